//! Which containers a list shows: Docker's filters.

use crate::error::{EngineError, Result};
use crate::info::{ContainerInfo, ContainerStatus};
use crate::requests::ListFilter;
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
    let ancestors = ancestors(filter, images);
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
        if visible && bounds.contain(&info) && matches_all(&info, filter, &ancestors)? {
            selected.push((*info).clone());
        }
        if selected.len() == limit {
            break;
        }
    }
    Ok(selected)
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

fn matches_all(info: &ContainerInfo, filter: &ListFilter, ancestors: &[String]) -> Result<bool> {
    for (key, values) in &filter.filters {
        if !values.is_empty() && !matches_key(info, key, values, ancestors)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn matches_key(
    info: &ContainerInfo,
    key: &str,
    values: &[String],
    ancestors: &[String],
) -> Result<bool> {
    let id = info.id.to_string();
    let any = |test: &dyn Fn(&String) -> bool| values.iter().any(test);
    Ok(match key {
        "id" => any(&|value| id.starts_with(value.as_str())),
        "name" => any(&|value| name_matches(&info.name, value)),
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
        "ancestor" => ancestors.contains(&info.image_id) || values.contains(&info.config.image),
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

/// Docker matches a regular expression; here `^` and `$` anchor, everything else is plain text.
fn name_matches(name: &str, pattern: &str) -> bool {
    let pattern = pattern.strip_prefix('/').unwrap_or(pattern);
    let (start, rest) = match pattern.strip_prefix('^') {
        Some(rest) => (true, rest.strip_prefix('/').unwrap_or(rest)),
        None => (false, pattern),
    };
    match (start, rest.strip_suffix('$')) {
        (true, Some(exact)) => name == exact,
        (true, None) => name.starts_with(rest),
        (false, Some(end)) => name.ends_with(end),
        (false, None) => name.contains(rest),
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
            ("my-web", "^web", false),
            ("my-web", "web$", true),
        ] {
            assert_eq!(name_matches(name, pattern), expected, "{name} {pattern}");
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
