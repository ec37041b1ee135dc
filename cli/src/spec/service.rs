//! From the flags of `service create` and `service update` to a spec.

use super::endpoint::{self, NetworkIds};
use super::parse;
use crate::args::container::HealthFlags;
use crate::args::service::{CreateArgs, Mode, OnPartition, SpecFlags, UpdateArgs};
use crate::error::{CliError, Result};
use bollard::models::{
    EndpointSpec, HealthConfig, Limit, ResourceObject, ServiceSpec, ServiceSpecMode,
    ServiceSpecModeReplicated, ServiceSpecUpdateConfig, TaskSpec, TaskSpecContainerSpec,
    TaskSpecContainerSpecDnsConfig, TaskSpecLogDriver, TaskSpecPlacement,
    TaskSpecPlacementPreferences, TaskSpecPlacementSpread, TaskSpecResources,
    TaskSpecRestartPolicy,
};
use std::collections::HashMap;
use std::str::FromStr;

/// Labels of a service through which Docker's API carries what it has no field for.
const LABEL_ON_PARTITION: &str = "shoal.on-partition";
const LABEL_DOWN_LIMIT: &str = "shoal.down-limit";

fn some_unless_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

fn choice<T: FromStr>(flag: &str, text: &str, expected: &str) -> Result<T> {
    let error = || format!("invalid argument \"{text}\" for \"{flag}\": expected {expected}");
    text.parse().map_err(|_| CliError::Usage(error()))
}

/// The spec of a new service.
pub(crate) fn create(args: &CreateArgs) -> Result<ServiceSpec> {
    let placement = TaskSpecPlacement {
        constraints: some_unless_empty(args.constraints.clone()),
        preferences: some_unless_empty(preferences(&args.placement_prefs)?),
        ..TaskSpecPlacement::default()
    };
    let task = TaskSpec {
        container_spec: Some(container(args)?),
        placement: Some(placement),
        ..TaskSpec::default()
    };
    let mode = match (args.mode, args.flags.replicas) {
        (Mode::Global, Some(_)) => {
            let text = "--replicas can only be used with replicated mode";
            return Err(CliError::Usage(text.to_owned()));
        }
        (Mode::Global, None) => ServiceSpecMode {
            global: Some(HashMap::new()),
            ..ServiceSpecMode::default()
        },
        (Mode::Replicated, _) => replicated(1),
    };
    let mut spec = ServiceSpec {
        name: args.name.clone(),
        labels: Some(parse::pairs(&args.labels)),
        task_template: Some(task),
        mode: Some(mode),
        endpoint_spec: Some(EndpointSpec::default()),
        ..ServiceSpec::default()
    };
    endpoint::create(&mut spec, args)?;
    apply_flags(&mut spec, &args.flags)?;
    Ok(spec)
}

fn replicated(replicas: i64) -> ServiceSpecMode {
    let replicated = ServiceSpecModeReplicated {
        replicas: Some(replicas),
    };
    ServiceSpecMode {
        replicated: Some(replicated),
        ..ServiceSpecMode::default()
    }
}

fn container(args: &CreateArgs) -> Result<TaskSpecContainerSpec> {
    let dns = TaskSpecContainerSpecDnsConfig {
        nameservers: some_unless_empty(args.dns.clone()),
        search: some_unless_empty(args.dns_search.clone()),
        options: some_unless_empty(args.dns_option.clone()),
    };
    let list = |list: &Vec<String>| some_unless_empty(list.clone());
    Ok(TaskSpecContainerSpec {
        image: Some(args.image.clone()),
        args: list(&args.command),
        env: some_unless_empty(parse::environment(&args.env, &args.env_file)?),
        labels: Some(parse::pairs(&args.container_labels)),
        mounts: some_unless_empty(
            args.mounts
                .iter()
                .map(|mount| parse::mount(mount))
                .collect::<Result<_>>()?,
        ),
        hosts: some_unless_empty(
            args.hosts
                .iter()
                .map(|host| host_line(host))
                .collect::<Result<_>>()?,
        ),
        dns_config: (dns != TaskSpecContainerSpecDnsConfig::default()).then_some(dns),
        sysctls: (!args.sysctls.is_empty()).then(|| parse::pairs(&args.sysctls)),
        ulimits: some_unless_empty(
            args.ulimits
                .iter()
                .map(|limit| parse::ulimit(limit))
                .collect::<Result<_>>()?,
        ),
        capability_add: list(&args.cap_add),
        capability_drop: list(&args.cap_drop),
        groups: list(&args.groups),
        ..TaskSpecContainerSpec::default()
    })
}

/// `HOST:IP` becomes `IP HOST`, the form of the API.
fn host_line(text: &str) -> Result<String> {
    let error = || CliError::Usage(format!("invalid host entry \"{text}\": expected HOST:IP"));
    let (host, address) = text.split_once([':', '=']).ok_or_else(error)?;
    let address: std::net::IpAddr = address.parse().map_err(|_| error())?;
    Ok(format!("{address} {host}"))
}

fn preferences(texts: &[String]) -> Result<Vec<TaskSpecPlacementPreferences>> {
    texts
        .iter()
        .map(|text| {
            let error = || {
                let text =
                    format!("invalid placement preference \"{text}\": expected spread=LABEL");
                CliError::Usage(text)
            };
            let label = text.strip_prefix("spread=").ok_or_else(error)?;
            let spread = TaskSpecPlacementSpread {
                spread_descriptor: Some(label.to_owned()),
            };
            Ok(TaskSpecPlacementPreferences {
                spread: Some(spread),
            })
        })
        .collect()
}

/// The changed spec of a service. `ids` has every network that the flags name.
pub(crate) fn update(spec: &mut ServiceSpec, args: &UpdateArgs, ids: &NetworkIds) -> Result<()> {
    change_pairs(
        spec.labels.get_or_insert_default(),
        &args.label_add,
        &args.label_rm,
    );
    let task = spec.task_template.get_or_insert_default();
    if args.force {
        task.force_update = Some(task.force_update.unwrap_or(0) + 1);
    }
    let placement = task.placement.get_or_insert_default();
    change_list(
        &mut placement.constraints,
        &args.constraint_add,
        &args.constraint_rm,
    );
    let prefs = placement.preferences.get_or_insert_default();
    let removed = preferences(&args.placement_pref_rm)?;
    prefs.retain(|pref| !removed.contains(pref));
    prefs.extend(preferences(&args.placement_pref_add)?);
    let container = task.container_spec.get_or_insert_default();
    if let Some(image) = &args.image {
        container.image = Some(image.clone());
    }
    if let Some(words) = &args.args {
        container.args = some_unless_empty(words.split_whitespace().map(str::to_owned).collect());
    }
    let labels = container.labels.get_or_insert_default();
    change_pairs(labels, &args.container_label_add, &args.container_label_rm);
    change_environment(container, args)?;
    let mounts = container.mounts.get_or_insert_default();
    let added: Vec<_> = args
        .mount_add
        .iter()
        .map(|mount| parse::mount(mount))
        .collect::<Result<_>>()?;
    mounts.retain(|mount| {
        let target = mount.target.as_deref().unwrap_or_default();
        !args.mount_rm.iter().any(|gone| gone == target)
            && !added.iter().any(|new| new.target == mount.target)
    });
    mounts.extend(added);
    endpoint::update(spec, args, ids)?;
    apply_flags(spec, &args.flags)
}

fn change_pairs(map: &mut HashMap<String, String>, add: &[String], remove: &[String]) {
    for key in remove {
        map.remove(key);
    }
    map.extend(parse::pairs(add));
}

fn change_list(list: &mut Option<Vec<String>>, add: &[String], remove: &[String]) {
    let list = list.get_or_insert_default();
    list.retain(|item| !remove.contains(item));
    for item in add {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

fn change_environment(container: &mut TaskSpecContainerSpec, args: &UpdateArgs) -> Result<()> {
    let added = parse::environment(&args.env_add, &[])?;
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let replaced: Vec<String> = added.iter().map(|variable| name(variable)).collect();
    let env = container.env.get_or_insert_default();
    env.retain(|variable| {
        let name = name(variable);
        !args.env_rm.contains(&name) && !replaced.contains(&name)
    });
    env.extend(added);
    Ok(())
}

/// The flags that mean the same in `create` and `update`; an absent one changes nothing.
fn apply_flags(spec: &mut ServiceSpec, flags: &SpecFlags) -> Result<()> {
    if let Some(replicas) = flags.replicas {
        scale(spec, replicas)?;
    }
    let labels = spec.labels.get_or_insert_default();
    if let Some(choice) = flags.on_partition {
        let word = match choice {
            OnPartition::Stop => "stop",
            OnPartition::Keep => "keep",
        };
        labels.insert(LABEL_ON_PARTITION.to_owned(), word.to_owned());
    }
    if let Some(limit) = &flags.down_limit {
        parse::duration("--down-limit", limit)?;
        labels.insert(LABEL_DOWN_LIMIT.to_owned(), limit.clone());
    }
    endpoint::apply_flags(spec, flags)?;
    apply_rollout(spec, flags)?;
    let task = spec.task_template.get_or_insert_default();
    apply_container(task.container_spec.get_or_insert_default(), flags)?;
    apply_resources(task, flags)?;
    apply_restart(task, flags)?;
    if let Some(most) = flags.replicas_max_per_node {
        task.placement.get_or_insert_default().max_replicas = Some(most);
    }
    if flags.log_driver.is_some() || !flags.log_opts.is_empty() {
        let driver = task
            .log_driver
            .get_or_insert_with(TaskSpecLogDriver::default);
        driver.name = flags.log_driver.clone().or(driver.name.take());
        driver
            .options
            .get_or_insert_default()
            .extend(parse::pairs(&flags.log_opts));
    }
    Ok(())
}

/// Changes the number of replicas.
pub(crate) fn scale(spec: &mut ServiceSpec, replicas: u64) -> Result<()> {
    if spec.mode.as_ref().is_some_and(|mode| mode.global.is_some()) {
        let text = "scale can only be used with replicated or replicated-job mode";
        return Err(CliError::Usage(text.to_owned()));
    }
    let replicas = i64::try_from(replicas)
        .map_err(|_| CliError::Usage(format!("{replicas} replicas are too many")))?;
    spec.mode = Some(replicated(replicas));
    Ok(())
}

fn apply_container(container: &mut TaskSpecContainerSpec, flags: &SpecFlags) -> Result<()> {
    fn set<T: Clone>(field: &mut Option<T>, value: &Option<T>) {
        if value.is_some() {
            field.clone_from(value);
        }
    }
    if let Some(entrypoint) = &flags.entrypoint {
        container.command = Some(entrypoint.split_whitespace().map(str::to_owned).collect());
    }
    set(&mut container.dir, &flags.workdir);
    set(&mut container.user, &flags.user);
    set(&mut container.hostname, &flags.hostname);
    set(&mut container.tty, &flags.tty);
    set(&mut container.init, &flags.init);
    set(&mut container.read_only, &flags.read_only);
    set(&mut container.stop_signal, &flags.stop_signal);
    set(&mut container.oom_score_adj, &flags.oom_score_adj);
    if let Some(grace) = &flags.stop_grace_period {
        container.stop_grace_period = Some(parse::duration("--stop-grace-period", grace)?);
    }
    health(&mut container.health_check, &flags.health)
}

/// The health check with the given flags changed.
pub(crate) fn health(check: &mut Option<HealthConfig>, flags: &HealthFlags) -> Result<()> {
    if flags.no_healthcheck {
        if flags.health_cmd.is_some() {
            let text = "--no-healthcheck conflicts with --health-* options";
            return Err(CliError::Usage(text.to_owned()));
        }
        *check = Some(HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..Default::default()
        });
        return Ok(());
    }
    if let Some(command) = &flags.health_cmd {
        let test = vec!["CMD-SHELL".to_owned(), command.clone()];
        check.get_or_insert_default().test = Some(test);
    }
    let durations = [
        ("--health-interval", &flags.health_interval),
        ("--health-timeout", &flags.health_timeout),
        ("--health-start-period", &flags.health_start_period),
        ("--health-start-interval", &flags.health_start_interval),
    ];
    for (flag, text) in durations {
        let Some(text) = text else { continue };
        let nanoseconds = Some(parse::duration(flag, text)?);
        let check = check.get_or_insert_default();
        match flag {
            "--health-interval" => check.interval = nanoseconds,
            "--health-timeout" => check.timeout = nanoseconds,
            "--health-start-period" => check.start_period = nanoseconds,
            _ => check.start_interval = nanoseconds,
        }
    }
    if let Some(retries) = flags.health_retries {
        check.get_or_insert_default().retries = Some(retries);
    }
    Ok(())
}

fn apply_resources(task: &mut TaskSpec, flags: &SpecFlags) -> Result<()> {
    let cpus = |flag, text: &Option<String>| {
        text.as_deref()
            .map(|text| parse::nano_cpus(flag, text))
            .transpose()
    };
    let bytes = |flag, text: &Option<String>| {
        text.as_deref()
            .map(|text| parse::bytes(flag, text))
            .transpose()
    };
    let (limit_cpu, reserve_cpu) = (
        cpus("--limit-cpu", &flags.limit_cpu)?,
        cpus("--reserve-cpu", &flags.reserve_cpu)?,
    );
    let limit_memory = bytes("--limit-memory", &flags.limit_memory)?;
    let reserve_memory = bytes("--reserve-memory", &flags.reserve_memory)?;
    if limit_cpu.or(limit_memory).or(flags.limit_pids).is_some() {
        let resources = task
            .resources
            .get_or_insert_with(TaskSpecResources::default);
        let limits = resources.limits.get_or_insert_with(Limit::default);
        limits.nano_cpus = limit_cpu.or(limits.nano_cpus);
        limits.memory_bytes = limit_memory.or(limits.memory_bytes);
        limits.pids = flags.limit_pids.or(limits.pids);
    }
    if reserve_cpu.or(reserve_memory).is_some() {
        let resources = task
            .resources
            .get_or_insert_with(TaskSpecResources::default);
        let kept = resources
            .reservations
            .get_or_insert_with(ResourceObject::default);
        kept.nano_cpus = reserve_cpu.or(kept.nano_cpus);
        kept.memory_bytes = reserve_memory.or(kept.memory_bytes);
    }
    Ok(())
}

fn apply_restart(task: &mut TaskSpec, flags: &SpecFlags) -> Result<()> {
    let given = flags.restart_condition.is_some()
        || flags.restart_delay.is_some()
        || flags.restart_max_attempts.is_some()
        || flags.restart_window.is_some();
    if !given {
        return Ok(());
    }
    let policy = task
        .restart_policy
        .get_or_insert_with(TaskSpecRestartPolicy::default);
    if let Some(text) = &flags.restart_condition {
        let expected = "none, on-failure or any";
        policy.condition = Some(choice("--restart-condition", text, expected)?);
    }
    if let Some(text) = &flags.restart_delay {
        policy.delay = Some(parse::duration("--restart-delay", text)?);
    }
    if let Some(text) = &flags.restart_window {
        policy.window = Some(parse::duration("--restart-window", text)?);
    }
    policy.max_attempts = flags.restart_max_attempts.or(policy.max_attempts);
    Ok(())
}

fn apply_rollout(spec: &mut ServiceSpec, flags: &SpecFlags) -> Result<()> {
    let words = [
        &flags.update_delay,
        &flags.update_monitor,
        &flags.update_failure_action,
        &flags.update_order,
    ];
    let given = flags.update_parallelism.is_some()
        || flags.update_max_failure_ratio.is_some()
        || words.iter().any(|word| word.is_some());
    if !given {
        return Ok(());
    }
    let first = || ServiceSpecUpdateConfig {
        parallelism: Some(1),
        ..ServiceSpecUpdateConfig::default()
    };
    let config = spec.update_config.get_or_insert_with(first);
    config.parallelism = flags.update_parallelism.or(config.parallelism);
    config.max_failure_ratio = flags.update_max_failure_ratio.or(config.max_failure_ratio);
    if let Some(text) = &flags.update_delay {
        config.delay = Some(parse::duration("--update-delay", text)?);
    }
    if let Some(text) = &flags.update_monitor {
        config.monitor = Some(parse::duration("--update-monitor", text)?);
    }
    if let Some(text) = &flags.update_failure_action {
        let expected = "pause, continue or rollback";
        config.failure_action = Some(choice("--update-failure-action", text, expected)?);
    }
    if let Some(text) = &flags.update_order {
        let expected = "stop-first or start-first";
        config.order = Some(choice("--update-order", text, expected)?);
    }
    Ok(())
}
