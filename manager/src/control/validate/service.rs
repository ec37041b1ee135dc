//! Service specs.

use super::{
    Invalid, REPLICAS_MAX, container, duration, ensure, labels, list_bound, names, network, ports,
};
use crate::store::bounds::{SERVICE_SPEC_BYTES_MAX, service_spec_bytes};
use shoal_model::resources::ResourceRequirements;
use shoal_model::spec::{LogDriver, Placement, RestartPolicy, UpdateConfig};
use shoal_model::{Resources, ServiceMode, ServiceSpec, TaskSpec};
use shoal_scheduler::constraint;

/// Least CPU that can be limited or reserved, in billionths: a thousandth.
const NANO_CPUS_MIN: i64 = 1_000_000;

/// Least memory that can be limited or reserved: 4 MiB.
const MEMORY_BYTES_MIN: i64 = 4 << 20;

/// Down limits of a service, in milliseconds: at most a day.
const DOWN_LIMIT_MS_MAX: u64 = 24 * 3600 * 1000;

/// Thousandths in a whole.
const PERMILLE_MAX: u32 = 1_000;

/// Log options that our log driver has.
const LOG_OPTIONS: [&str; 2] = ["max-size", "max-file"];

/// Checks a service; `down_limit_ms_min` is the cluster's lease and its margin.
///
/// # Errors
/// [`Invalid`] with the first field that is wrong.
pub fn service(spec: &ServiceSpec, down_limit_ms_min: u64) -> Result<(), Invalid> {
    names::service_name(&spec.name)?;
    labels("Labels", &spec.labels)?;
    match spec.mode {
        ServiceMode::Replicated { replicas } => {
            ensure(replicas <= REPLICAS_MAX, "Mode.Replicated.Replicas", || {
                format!("{replicas}: at most {REPLICAS_MAX} replicas are allowed")
            })?;
        }
        ServiceMode::Global => {}
    }
    task(&spec.task)?;
    update_config("UpdateConfig", &spec.update)?;
    ensure(
        spec.rollback == UpdateConfig::default(),
        "RollbackConfig",
        || "it is not supported yet: a rollback is rolled out as UpdateConfig says".to_owned(),
    )?;
    ports::endpoint(&spec.endpoint)?;
    if let Some(limit) = spec.down_limit_ms {
        let range = down_limit_ms_min..=DOWN_LIMIT_MS_MAX;
        ensure(range.contains(&limit), "DownLimit", || {
            format!(
                "{limit} ms: {} (the cluster's lease and one second) to {} are allowed",
                range.start(),
                range.end()
            )
        })?;
    }
    let bytes = service_spec_bytes(spec).unwrap_or(usize::MAX);
    ensure(bytes <= SERVICE_SPEC_BYTES_MAX, "TaskTemplate", || {
        format!(
            "the service's spec has {bytes} bytes, and at most {SERVICE_SPEC_BYTES_MAX} are stored: \
             move large values into a file of the image or a volume"
        )
    })
}

fn task(spec: &TaskSpec) -> Result<(), Invalid> {
    container::container(&spec.container)?;
    resources(&spec.resources)?;
    restart(&spec.restart)?;
    placement(&spec.placement)?;
    network::task_networks(&spec.networks)?;
    match &spec.log_driver {
        Some(driver) => log_driver(driver),
        None => Ok(()),
    }
}

fn resources(wanted: &ResourceRequirements) -> Result<(), Invalid> {
    amount("TaskTemplate.Resources.Limits", &wanted.limits)?;
    amount("TaskTemplate.Resources.Reservations", &wanted.reservations)?;
    ensure(
        wanted.pids_limit >= 0,
        "TaskTemplate.Resources.Limits.Pids",
        || {
            format!(
                "{}: give a positive number, or 0 for no limit",
                wanted.pids_limit
            )
        },
    )
}

fn amount(field: &str, amount: &Resources) -> Result<(), Invalid> {
    let cpus = amount.nano_cpus;
    ensure(
        cpus == 0 || cpus >= NANO_CPUS_MIN,
        &format!("{field}.NanoCPUs"),
        || format!("{cpus}: at least {NANO_CPUS_MIN} (0.001 CPU), or 0 for none"),
    )?;
    let bytes = amount.memory_bytes;
    ensure(
        bytes == 0 || bytes >= MEMORY_BYTES_MIN,
        &format!("{field}.MemoryBytes"),
        || format!("{bytes}: at least {MEMORY_BYTES_MIN} bytes (4 MiB), or 0 for none"),
    )
}

fn restart(policy: &RestartPolicy) -> Result<(), Invalid> {
    duration(
        "TaskTemplate.RestartPolicy.Delay",
        policy.delay_ns.unwrap_or(0),
    )?;
    duration(
        "TaskTemplate.RestartPolicy.Window",
        policy.window_ns.unwrap_or(0),
    )
}

fn placement(placement: &Placement) -> Result<(), Invalid> {
    const CONSTRAINTS: &str = "TaskTemplate.Placement.Constraints";
    const PREFERENCES: &str = "TaskTemplate.Placement.Preferences";
    list_bound(CONSTRAINTS, &placement.constraints)?;
    list_bound(PREFERENCES, &placement.spread)?;
    list_bound("TaskTemplate.Placement.Platforms", &placement.platforms)?;
    constraint::parse(&placement.constraints)
        .map_err(|err| Invalid::new(CONSTRAINTS, err.to_string()))?;
    for descriptor in &placement.spread {
        ensure(
            constraint::Key::parse(descriptor).is_some(),
            PREFERENCES,
            || {
                format!(
                    "`{}` is no property of a node to spread over: use `node.labels.NAME` or `engine.labels.NAME`",
                    descriptor.escape_debug()
                )
            },
        )?;
    }
    Ok(())
}

fn log_driver(driver: &LogDriver) -> Result<(), Invalid> {
    const FIELD: &str = "TaskTemplate.LogDriver";
    let name = driver.name.as_str();
    ensure(matches!(name, "" | "json-file" | "none"), FIELD, || {
        format!(
            "`{}` is not supported: use `json-file` or `none`",
            name.escape_debug()
        )
    })?;
    let unknown = driver
        .options
        .keys()
        .find(|key| !LOG_OPTIONS.contains(&key.as_str()));
    match unknown {
        Some(key) => Err(Invalid::new(
            "TaskTemplate.LogDriver.Options",
            format!(
                "`{}` is not supported: use `max-size` and `max-file`",
                key.escape_debug()
            ),
        )),
        None => Ok(()),
    }
}

fn update_config(field: &str, config: &UpdateConfig) -> Result<(), Invalid> {
    duration(&format!("{field}.Delay"), config.delay_ns)?;
    duration(&format!("{field}.Monitor"), config.monitor_ns)?;
    let share = config.max_failure_permille;
    ensure(
        share <= PERMILLE_MAX,
        &format!("{field}.MaxFailureRatio"),
        || format!("{share} thousandths: give a ratio from 0 to 1"),
    )
}
