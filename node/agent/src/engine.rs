//! The container runtime of production: the engine.

use crate::runtime::{
    ContainerChange, ContainerPhase, Exit, Found, Health, Running, RuntimeError, TaskRuntime,
};
use async_trait::async_trait;
use futures_util::StreamExt;
use shoal_engine::image::RegistryAuth;
use shoal_engine::info::HealthStatus;
use shoal_engine::{
    ContainerConfig, ContainerInfo, ContainerPort, ContainerStatus, EngineError, EngineHandle,
    ErrorKind, EventFilter, Fencing, HostConfig, ListFilter, LogConfig, PortBinding, RemoveOptions,
    ResourceLimits, WaitCondition,
};
use shoal_model::cluster::Redacted;
use shoal_model::spec::{ContainerSpec, Platform, PortConfig, PublishMode};
use shoal_model::{ContainerId, Task, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::mpsc;

/// Names the task of a container, as Docker does.
pub const TASK_ID_LABEL: &str = "com.docker.swarm.task.id";

/// Progress events of a pull that may wait; nobody reads them here.
const PROGRESS_EVENTS_MAX: usize = 64;

const NANOSECONDS_PER_SECOND: u64 = 1_000_000_000;

/// Exit code of a container that somebody removed while it ran.
const REMOVED_EXIT_CODE: i32 = 137;

/// Runs tasks as containers of the engine.
#[derive(Debug, Clone)]
pub struct EngineRuntime {
    engine: EngineHandle,
}

impl EngineRuntime {
    /// Runs tasks on `engine`.
    pub const fn new(engine: EngineHandle) -> Self {
        Self { engine }
    }

    async fn pull(&self, image: &str, auth: Option<RegistryAuth>) -> Result<(), RuntimeError> {
        let (progress, mut events) = mpsc::channel(PROGRESS_EVENTS_MAX);
        let pull = self
            .engine
            .image_pull(image, host_platform(), auth, progress);
        let drain = async {
            while events.recv().await.is_some() {}
            std::future::pending::<()>().await;
        };
        tokio::select! {
            pulled = pull => pulled.map(drop).map_err(error),
            () = drain => Ok(()),
        }
    }

    async fn inspect(&self, id: ContainerId) -> Result<Option<ContainerInfo>, RuntimeError> {
        match self.engine.inspect(&id.to_string()).await {
            Ok(info) => Ok(Some(info)),
            Err(err) if err.kind() == ErrorKind::NotFound => Ok(None),
            Err(err) => Err(error(err)),
        }
    }
}

#[async_trait]
impl TaskRuntime for EngineRuntime {
    async fn prepare(
        &self,
        task: &Task,
        auth: Option<&Redacted<String>>,
    ) -> Result<(), RuntimeError> {
        for volume in task.volumes.iter().filter(|volume| volume.must_exist) {
            match self.engine.volume_inspect(&volume.name).await {
                Ok(_) => {}
                Err(err) if err.kind() == ErrorKind::NotFound => {
                    let name = &volume.name;
                    let reason = format!(
                        "volume `{name}` has data on record but is missing on this node; a fresh one is not made \
                         silently: bring its directory back, or rebind the slot to a fresh volume"
                    );
                    return Err(RuntimeError::Rejected { reason });
                }
                Err(err) => return Err(error(err)),
            }
        }
        let image = &task.spec.container.image;
        match self.engine.image_inspect(image) {
            Ok(_) => Ok(()),
            Err(err) if err.kind() == ErrorKind::NotFound => {
                let auth = auth.map(|auth| RegistryAuth::from_header(&auth.0));
                let auth = auth.transpose().map_err(|err| RuntimeError::Rejected {
                    reason: err.to_string(),
                })?;
                self.pull(image, auth.flatten()).await
            }
            Err(err) => Err(error(err)),
        }
    }

    async fn create(
        &self,
        task: &Task,
        attempt: u32,
        deadline: Option<u64>,
    ) -> Result<ContainerId, RuntimeError> {
        let name = match attempt {
            0 => format!("{}.{}", task.name(), task.id),
            attempt => format!("{}.{}-r{attempt}", task.name(), task.id),
        };
        let config = config(task, deadline)?;
        let created = self
            .engine
            .create(Some(name), config)
            .await
            .map_err(error)?;
        Ok(created.id)
    }

    async fn start(&self, id: ContainerId) -> Result<Running, RuntimeError> {
        match self.engine.start_container(&id.to_string()).await {
            Ok(()) => {}
            Err(err) if err.kind() == ErrorKind::NotModified => {}
            Err(err) => return Err(error(err)),
        }
        let gone = || RuntimeError::Unavailable {
            reason: format!("container {id} was removed while it started"),
        };
        let info = self.inspect(id).await?.ok_or_else(gone)?;
        Ok(running(&info))
    }

    async fn changed(
        &self,
        id: ContainerId,
        known: Health,
    ) -> Result<ContainerChange, RuntimeError> {
        let name = id.to_string();
        let filter = EventFilter {
            filters: BTreeMap::from([("container".to_owned(), vec![name.clone()])]),
            ..EventFilter::default()
        };
        let ended = match self
            .engine
            .wait_begin(&name, WaitCondition::NotRunning)
            .await
        {
            Ok(ended) => ended,
            Err(err) if err.kind() == ErrorKind::NotFound => return Ok(removed()),
            Err(err) => return Err(error(err)),
        };
        tokio::pin!(ended);
        // Listen first, look then: a change in between is seen either way.
        let mut events = None;
        loop {
            let Some(info) = self.inspect(id).await? else {
                return Ok(removed());
            };
            if !info.state.status.is_running() {
                return Ok(ContainerChange::Exited(exit(&info)));
            }
            let health = health(&info);
            if health != known {
                return Ok(ContainerChange::Health(health));
            }
            if health == Health::Unchecked {
                (&mut ended).await;
                continue;
            }
            let Some(stream) = &mut events else {
                let stream = self.engine.events(filter.clone()).await.map_err(error)?;
                events = Some(stream);
                continue;
            };
            tokio::select! {
                _ = &mut ended => {}
                event = stream.next() => {
                    // Missed events end the stream: listen anew, and look.
                    if !matches!(event, Some(Ok(_))) {
                        events = None;
                    }
                }
            }
        }
    }

    async fn stop(&self, id: ContainerId) -> Result<(), RuntimeError> {
        match self.engine.stop(&id.to_string(), None, None).await {
            Ok(()) => Ok(()),
            Err(err) if matches!(err.kind(), ErrorKind::NotModified | ErrorKind::NotFound) => {
                Ok(())
            }
            Err(err) => Err(error(err)),
        }
    }

    async fn remove(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let options = RemoveOptions {
            force: true,
            volumes: true,
        };
        match self.engine.remove(&id.to_string(), options).await {
            Ok(()) => Ok(()),
            Err(err) if err.kind() == ErrorKind::NotFound => Ok(()),
            Err(err) => Err(error(err)),
        }
    }

    async fn renew(&self, id: ContainerId, deadline: u64) -> Result<(), RuntimeError> {
        let fencing = Fencing {
            deadline_boottime_ns: deadline,
        };
        let renewed = self
            .engine
            .renew_fencing(&id.to_string(), Some(fencing))
            .await;
        match renewed {
            Ok(()) => Ok(()),
            // It has ended meanwhile; its end is about to be told.
            Err(err) if matches!(err.kind(), ErrorKind::NotFound | ErrorKind::Conflict) => Ok(()),
            Err(err) => Err(error(err)),
        }
    }

    async fn found(&self) -> Result<Vec<Found>, RuntimeError> {
        let filter = ListFilter {
            all: true,
            limit: 0,
            filters: BTreeMap::from([("label".to_owned(), vec![TASK_ID_LABEL.to_owned()])]),
        };
        let containers = self.engine.list(filter).await.map_err(error)?;
        Ok(containers.iter().filter_map(found).collect())
    }

    async fn volumes(&self) -> Result<Vec<String>, RuntimeError> {
        let volumes = self
            .engine
            .volume_list(BTreeMap::new())
            .await
            .map_err(error)?;
        let named = volumes.into_iter().filter(|volume| !volume.anonymous);
        Ok(named.map(|volume| volume.name).collect())
    }
}

/// This machine, in the OCI's words.
fn host_platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Platform {
        os: std::env::consts::OS.to_owned(),
        architecture: architecture.to_owned(),
    }
}

fn found(info: &ContainerInfo) -> Option<Found> {
    let task_id = info.config.labels.get(TASK_ID_LABEL)?.parse().ok()?;
    let phase = match info.state.status {
        ContainerStatus::Created => ContainerPhase::Created,
        ContainerStatus::Running | ContainerStatus::Paused => {
            ContainerPhase::Running(running(info))
        }
        ContainerStatus::Restarting
        | ContainerStatus::Removing
        | ContainerStatus::Exited
        | ContainerStatus::Dead => ContainerPhase::Exited(exit(info)),
    };
    Some(Found {
        container_id: info.id,
        task_id,
        created: info.created,
        phase,
    })
}

fn running(info: &ContainerInfo) -> Running {
    let ports: BTreeSet<PortConfig> = info
        .network
        .ports
        .iter()
        .map(|port| PortConfig {
            name: String::new(),
            protocol: port.container.protocol,
            target: port.container.port,
            published: port.host_port,
            mode: PublishMode::Host,
            addrs: Vec::new(),
            allow: Vec::new(),
        })
        .collect();
    Running {
        pid: info.state.pid,
        ports: ports.into_iter().collect(),
        health: health(info),
    }
}

fn health(info: &ContainerInfo) -> Health {
    match info.state.health.as_ref().map(|health| health.status) {
        None => Health::Unchecked,
        Some(HealthStatus::Starting) => Health::Starting,
        Some(HealthStatus::Healthy) => Health::Healthy,
        Some(HealthStatus::Unhealthy) => Health::Unhealthy,
    }
}

fn exit(info: &ContainerInfo) -> Exit {
    Exit {
        exit_code: info.state.exit_code,
        oom_killed: info.state.oom_killed,
        at: info.state.finished_at.unwrap_or(info.created),
        reason: info.state.error.clone(),
    }
}

fn removed() -> ContainerChange {
    ContainerChange::Exited(Exit {
        exit_code: REMOVED_EXIT_CODE,
        oom_killed: false,
        at: Timestamp::default(),
        reason: "the container was removed".to_owned(),
    })
}

fn error(err: EngineError) -> RuntimeError {
    let mut reason = err.to_string();
    let mut source = std::error::Error::source(&err);
    while let Some(cause) = source {
        reason.push_str(": ");
        reason.push_str(&cause.to_string());
        source = cause.source();
    }
    if let EngineError::Start { exit_code, .. } = err {
        return RuntimeError::Start { exit_code, reason };
    }
    match err.kind() {
        ErrorKind::NotFound
        | ErrorKind::InvalidArgument
        | ErrorKind::NotImplemented
        | ErrorKind::Forbidden => RuntimeError::Rejected { reason },
        ErrorKind::Conflict
        | ErrorKind::NotModified
        | ErrorKind::Unavailable
        | ErrorKind::Internal => RuntimeError::Unavailable { reason },
    }
}

fn config(task: &Task, deadline: Option<u64>) -> Result<ContainerConfig, RuntimeError> {
    let spec = &task.spec.container;
    let listed = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
    Ok(ContainerConfig {
        image: spec.image.clone(),
        hostname: spec.hostname.clone(),
        user: spec.user.clone(),
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        env: spec.env.clone(),
        cmd: listed(&spec.args),
        entrypoint: listed(&spec.command),
        working_dir: spec.dir.clone(),
        labels: labels(task),
        healthcheck: spec.healthcheck.clone(),
        stop_signal: spec.stop_signal.clone(),
        stop_timeout_s: spec
            .stop_grace_period_ns
            .map(|ns| i64::try_from(ns.div_ceil(NANOSECONDS_PER_SECOND)).unwrap_or(i64::MAX)),
        endpoints: task.endpoints.clone(),
        host: host(task, spec)?,
        fencing: deadline.map(|deadline_boottime_ns| Fencing {
            deadline_boottime_ns,
        }),
        ..ContainerConfig::default()
    })
}

fn labels(task: &Task) -> shoal_model::Labels {
    let mut labels = task.spec.container.labels.clone();
    let node_id = task.node_id.map(|id| id.to_string()).unwrap_or_default();
    for (key, value) in [
        ("com.docker.swarm.task", String::new()),
        (TASK_ID_LABEL, task.id.to_string()),
        (
            "com.docker.swarm.task.name",
            format!("{}.{}", task.name(), task.id),
        ),
        ("com.docker.swarm.service.id", task.service_id.to_string()),
        ("com.docker.swarm.service.name", task.service_name.clone()),
        ("com.docker.swarm.node.id", node_id),
    ] {
        labels.insert(key.to_owned(), value);
    }
    labels
}

fn host(task: &Task, spec: &ContainerSpec) -> Result<HostConfig, RuntimeError> {
    let resources = &task.spec.resources;
    let log = task.spec.log_driver.as_ref();
    let oom_score_adj = i32::try_from(spec.oom_score_adj).map_err(|_| RuntimeError::Rejected {
        reason: format!("oom-score-adj {} is out of range", spec.oom_score_adj),
    })?;
    Ok(HostConfig {
        mounts: spec.mounts.clone(),
        port_bindings: port_bindings(&task.ports),
        cap_add: spec.cap_add.clone(),
        cap_drop: spec.cap_drop.clone(),
        security_opt: if spec.no_new_privileges {
            vec!["no-new-privileges".to_owned()]
        } else {
            Vec::new()
        },
        read_only_rootfs: spec.read_only,
        dns: spec.dns.nameservers.clone(),
        dns_search: spec.dns.search.clone(),
        dns_options: spec.dns.options.clone(),
        extra_hosts: extra_hosts(&spec.hosts)?,
        resources: ResourceLimits {
            memory_bytes: resources.limits.memory_bytes,
            memory_reservation_bytes: resources.reservations.memory_bytes,
            nano_cpus: resources.limits.nano_cpus,
            pids_limit: resources.pids_limit,
            ..ResourceLimits::default()
        },
        oom_score_adj,
        sysctls: spec.sysctls.clone(),
        ulimits: spec.ulimits.clone(),
        group_add: spec.groups.clone(),
        init: spec.init.unwrap_or(false),
        log: log.map_or_else(LogConfig::default, |log| LogConfig {
            driver: log.name.clone(),
            options: log.options.clone(),
        }),
        ..HostConfig::default()
    })
}

fn port_bindings(ports: &[PortConfig]) -> BTreeMap<ContainerPort, Vec<PortBinding>> {
    let mut bindings: BTreeMap<_, Vec<_>> = BTreeMap::new();
    // The other mode is no matter of the container: every node leads such ports to its address.
    for port in ports.iter().filter(|port| port.mode == PublishMode::Host) {
        let container = ContainerPort {
            port: port.target,
            protocol: port.protocol,
        };
        bindings.entry(container).or_default().push(PortBinding {
            host_ports: (port.published, port.published),
            ..PortBinding::default()
        });
    }
    bindings
}

/// `IP name…` as in /etc/hosts becomes `name:IP` for each name.
fn extra_hosts(lines: &[String]) -> Result<Vec<String>, RuntimeError> {
    let mut hosts = Vec::new();
    for line in lines {
        let mut words = line.split_whitespace();
        let address = words.next().unwrap_or_default();
        if address.parse::<std::net::IpAddr>().is_err() {
            let reason = format!("hosts: `{line}` does not begin with an address");
            return Err(RuntimeError::Rejected { reason });
        }
        hosts.extend(words.map(|name| format!("{name}:{address}")));
    }
    Ok(hosts)
}
