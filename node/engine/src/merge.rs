//! What a user asks for and what the image says, made one, by Docker's rules.

use crate::config::{ContainerConfig, ContainerPort};
use crate::error::{EngineError, Result};
use shoal_image::Image;
use shoal_model::spec::Healthcheck;

/// The program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) path: String,
    pub(crate) args: Vec<String>,
}

/// Fills in what the user left open.
pub(crate) fn merge(config: &mut ContainerConfig, image: &Image) -> Result<()> {
    if let Some(from) = image.config.config() {
        fill(&mut config.user, from.user().as_deref());
        fill(&mut config.working_dir, from.working_dir().as_deref());
        fill(&mut config.stop_signal, from.stop_signal().as_deref());
        for port in from.exposed_ports().iter().flatten() {
            config.exposed_ports.insert(port.parse::<ContainerPort>()?);
        }
        merge_env(&mut config.env, from.env().as_deref().unwrap_or_default());
        for (key, value) in from.labels().iter().flatten() {
            config
                .labels
                .entry(key.clone())
                .or_insert_with(|| value.clone());
        }
        if config.entrypoint.as_ref().is_none_or(Vec::is_empty) {
            if config.cmd.as_ref().is_none_or(Vec::is_empty) && config.entrypoint.is_none() {
                config.cmd = from.cmd().clone();
            }
            if config.entrypoint.is_none() {
                config.entrypoint = from.entrypoint().clone();
            }
        }
        config
            .volumes
            .extend(from.volumes().iter().flatten().cloned());
    }
    config
        .exposed_ports
        .extend(config.host.port_bindings.keys().copied());
    merge_health(config, image);
    if config
        .entrypoint
        .as_ref()
        .is_some_and(|words| words.len() == 1 && words[0].is_empty())
    {
        config.entrypoint = None;
    }
    Ok(())
}

/// The command line of a merged configuration.
pub(crate) fn command(config: &ContainerConfig) -> Result<Command> {
    let entrypoint = config.entrypoint.iter().flatten();
    let mut words = entrypoint.chain(config.cmd.iter().flatten()).cloned();
    match words.next() {
        Some(path) => Ok(Command {
            path,
            args: words.collect(),
        }),
        None => Err(EngineError::invalid("command", "no command specified")),
    }
}

fn fill(own: &mut String, from: Option<&str>) {
    if own.is_empty()
        && let Some(from) = from
    {
        from.clone_into(own);
    }
}

fn key(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(key, _)| key)
}

fn merge_env(own: &mut Vec<String>, from: &[String]) {
    let missing: Vec<_> = from
        .iter()
        .filter(|theirs| own.iter().all(|ours| key(ours) != key(theirs)))
        .cloned()
        .collect();
    own.extend(missing);
    // A key without a value takes the variable away.
    own.retain(|entry| entry.contains('='));
}

fn merge_health(config: &mut ContainerConfig, image: &Image) {
    let Some(from) = &image.docker.healthcheck else {
        return;
    };
    let ns = |value: i64| u64::try_from(value).unwrap_or(0);
    let from = Healthcheck {
        test: from.test.clone(),
        interval_ns: ns(from.interval),
        timeout_ns: ns(from.timeout),
        retries: ns(from.retries),
        start_period_ns: ns(from.start_period),
        start_interval_ns: ns(from.start_interval),
    };
    let Some(own) = &mut config.healthcheck else {
        config.healthcheck = Some(from);
        return;
    };
    if own.test.is_empty() {
        own.test = from.test;
    }
    for (own, from) in [
        (&mut own.interval_ns, from.interval_ns),
        (&mut own.timeout_ns, from.timeout_ns),
        (&mut own.retries, from.retries),
        (&mut own.start_period_ns, from.start_period_ns),
        (&mut own.start_interval_ns, from.start_interval_ns),
    ] {
        if *own == 0 {
            *own = from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn the_users_variables_win_and_bare_keys_remove() {
        let mut own = strings(&["A=1", "B"]);
        merge_env(&mut own, &strings(&["A=9", "B=2", "C=3"]));
        assert_eq!(own, ["A=1", "C=3"]);
    }

    #[test]
    fn command_is_entrypoint_then_arguments() {
        let mut config = ContainerConfig {
            entrypoint: Some(strings(&["/e", "x"])),
            cmd: Some(strings(&["y"])),
            ..ContainerConfig::default()
        };
        let found = command(&config).unwrap();
        assert_eq!(
            (found.path.as_str(), found.args),
            ("/e", strings(&["x", "y"]))
        );
        config.entrypoint = None;
        config.cmd = None;
        assert!(command(&config).is_err());
    }
}
