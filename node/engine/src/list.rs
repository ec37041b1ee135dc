//! Which containers a list shows: Docker's filters.

use crate::error::{EngineError, Result};
use crate::info::{ContainerInfo, ContainerStatus};
use crate::requests::ListFilter;
use regex::{Regex, RegexBuilder};
use shoal_image::ImageStore;
use shoal_model::{Labels, Timestamp};
use std::sync::Arc;

const KEYS: [&str; 15] = [
    "id", "name", "label", "status", "exited", "ancestor", "before", "since", "volume", "network",
    "publish", "expose", "health", "is-task", "label!",
];

/// Applies a filter; newest first.
pub(crate) fn select(
    mut all: Vec<Arc<ContainerInfo>>,
    filter: &ListFilter,
    images: &ImageStore,
) -> Result<Vec<ContainerInfo>> {
    if let Some(key) = filter
        .filters
        .keys()
        .find(|key| !KEYS.contains(&key.as_str()))
    {
        return Err(EngineError::invalid("filter", format!("'{key}'")));
    }
    all.sort_by_key(|info| std::cmp::Reverse((info.created, info.id)));
    let bounds = Bounds::find(&all, filter)?;
    let names = filter.filters.get("name").map_or(&[][..], Vec::as_slice);
    let known = Known {
        ancestors: ancestors(filter, images),
        names: NamePatterns::parse(names)?,
    };
    let every = filter.all
        || filter.limit > 0
        || ["status", "exited"]
            .iter()
            .any(|key| filter.filters.contains_key(*key));
    let limit = if filter.limit == 0 {
        usize::MAX
    } else {
        filter.limit
    };
    let mut selected = Vec::new();
    for info in all {
        let visible = every
            || matches!(
                info.state.status,
                ContainerStatus::Running | ContainerStatus::Paused | ContainerStatus::Restarting
            );
        if visible && bounds.contain(&info) && matches_all(&info, filter, &known)? {
            selected.push((*info).clone());
        }
        if selected.len() == limit {
            break;
        }
    }
    Ok(selected)
}

/// What is worked out once for a whole list.
struct Known {
    /// Image ids that `ancestor` names.
    ancestors: Vec<String>,
    names: NamePatterns,
}

/// Creation times between which a container must be.
struct Bounds {
    after: Option<Timestamp>,
    before: Option<Timestamp>,
}

impl Bounds {
    fn find(all: &[Arc<ContainerInfo>], filter: &ListFilter) -> Result<Self> {
        let created = |key: &str| -> Result<Option<Timestamp>> {
            let Some(name) = filter.filters.get(key).and_then(|names| names.first()) else {
                return Ok(None);
            };
            all.iter()
                .find(|info| info.name == *name || info.id.to_string().starts_with(name.as_str()))
                .map(|info| Some(info.created))
                .ok_or_else(|| EngineError::no_container(name))
        };
        Ok(Self {
            after: created("since")?,
            before: created("before")?,
        })
    }

    fn contain(&self, info: &ContainerInfo) -> bool {
        self.after.is_none_or(|after| info.created > after)
            && self.before.is_none_or(|before| info.created < before)
    }
}

/// Image ids that `ancestor` names.
fn ancestors(filter: &ListFilter, images: &ImageStore) -> Vec<String> {
    let names = filter.filters.get("ancestor").into_iter().flatten();
    names
        .filter_map(|name| images.resolve(name).ok())
        .map(|image| image.id.to_string())
        .collect()
}

fn matches_all(info: &ContainerInfo, filter: &ListFilter, known: &Known) -> Result<bool> {
    for (key, values) in &filter.filters {
        if !values.is_empty() && !matches_key(info, key, values, known)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn matches_key(info: &ContainerInfo, key: &str, values: &[String], known: &Known) -> Result<bool> {
    let id = info.id.to_string();
    let any = |test: &dyn Fn(&String) -> bool| values.iter().any(test);
    Ok(match key {
        "id" => any(&|value| id.starts_with(value.as_str())),
        "name" => known.names.match_container(&info.name),
        "label" => labels_match(&info.config.labels, values),
        "label!" => !labels_match(&info.config.labels, values),
        "status" => {
            check_status(values)?;
            any(&|value| value == info.state.status.as_str())
        }
        "exited" => {
            let codes: Vec<i32> = values
                .iter()
                .map(|value| {
                    value
                        .parse()
                        .map_err(|_| EngineError::invalid("filter", format!("exited={value}")))
                })
                .collect::<Result<_>>()?;
            info.state.finished_at.is_some()
                && !info.state.status.is_running()
                && codes.contains(&info.state.exit_code)
        }
        "ancestor" => {
            known.ancestors.contains(&info.image_id) || values.contains(&info.config.image)
        }
        "volume" => any(&|value| {
            info.mounts
                .iter()
                .any(|point| point.name == *value || point.target == *value)
        }),
        "network" => any(&|value| info.network_mode.to_string() == *value),
        "publish" => any(&|value| {
            info.network.ports.iter().any(|port| {
                same_port(
                    &format!("{}/{}", port.host_port, port.container.protocol.as_str()),
                    value,
                )
            })
        }),
        "expose" => any(&|value| {
            info.config
                .exposed_ports
                .iter()
                .any(|port| same_port(&port.to_string(), value))
        }),
        "health" => {
            let health = info
                .state
                .health
                .as_ref()
                .map_or("none", |health| health.status.as_str());
            any(&|value| value == health)
        }
        "is-task" => {
            let is_task = info.config.labels.contains_key("com.docker.swarm.task.id");
            any(&|value| matches!(value.as_str(), "true" | "1") == is_task)
        }
        // Handled by the bounds.
        _ => true,
    })
}

fn check_status(values: &[String]) -> Result<()> {
    const WORDS: [&str; 7] = [
        "created",
        "running",
        "paused",
        "restarting",
        "removing",
        "exited",
        "dead",
    ];
    match values.iter().find(|value| !WORDS.contains(&value.as_str())) {
        None => Ok(()),
        Some(value) => Err(EngineError::invalid(
            "filter",
            format!("'status={value}'; known are {}", WORDS.join(", ")),
        )),
    }
}

/// Bytes that a compiled pattern may take: 1 MiB.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// The regular expressions of a `name` filter; none match everything. They match anywhere unless anchored.
pub(crate) struct NamePatterns(Vec<Regex>);

impl NamePatterns {
    pub(crate) fn parse(patterns: &[String]) -> Result<Self> {
        let compile = |pattern: &String| {
            RegexBuilder::new(pattern)
                .size_limit(PATTERN_BYTES_MAX)
                .build()
                .map_err(|err| EngineError::invalid("filter", format!("name={pattern}: {err}")))
        };
        patterns
            .iter()
            .map(compile)
            .collect::<Result<_>>()
            .map(Self)
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|pattern| pattern.is_match(name))
    }

    /// Docker's containers have a slash before the name, and their patterns may have it or not.
    fn match_container(&self, name: &str) -> bool {
        self.matches(name) || self.matches(&format!("/{name}"))
    }
}

fn same_port(port: &str, wanted: &str) -> bool {
    port == wanted || (!wanted.contains('/') && port == format!("{wanted}/tcp"))
}

/// Every one of `key` or `key=value` holds.
pub(crate) fn labels_match(labels: &Labels, wanted: &[String]) -> bool {
    wanted.iter().all(|wish| match wish.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|known| known == value),
        None => labels.contains_key(wish),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_in_part_unless_anchored() {
        for (name, pattern, expected) in [
            ("web1", "web", true),
            ("web1", "^web$", false),
            ("web", "^/web$", true),
            ("web", "^web$", true),
            ("my-web", "^web", false),
            ("my-web", "web$", true),
            ("web12", "^web[0-9]+$", true),
            ("db", "^(web|db)$", true),
        ] {
            let patterns = NamePatterns::parse(&[pattern.to_owned()]).unwrap();
            assert_eq!(patterns.match_container(name), expected, "{name} {pattern}");
        }
    }

    #[test]
    fn a_bad_pattern_is_refused() {
        for bad in ["(", "a{1000}{1000}{1000}"] {
            let err = NamePatterns::parse(&[bad.to_owned()]).err().unwrap();
            assert!(err.to_string().contains(&format!("name={bad}")), "{err}");
        }
    }

    #[test]
    fn all_wanted_labels_must_hold() {
        let labels: Labels = [("a".to_owned(), "1".to_owned())].into();
        let wanted = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        assert!(labels_match(&labels, &wanted(&["a", "a=1"])));
        assert!(!labels_match(&labels, &wanted(&["a", "b"])));
        assert!(!labels_match(&labels, &wanted(&["a=2"])));
    }
}
