//! The way to a running container: a row of named steps, each undone if a later one fails.

use super::connect::{Network, connect, make_network};
use super::record::{ContainerDir, ContainerRecord, Phase, StateRecord};
use super::streams::PendingAttach;
use crate::config::{ContainerConfig, NamespaceMode};
use crate::disk::{self, Durability, blocking};
use crate::env::Env;
use crate::error::{EngineError, Result, chain};
use crate::etc_files;
use crate::info::{MountPoint, MountPointKind};
use crate::network::{Lease, ReleaseAddress};
use crate::oci::{self, NetworkNamespace};
use crate::rootfs::Layers;
use crate::user::Identity;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use shoal_model::{ContainerId, Timestamp};
use shoal_runtime::{Bundle, Rootfs, ShimHandle, ShimSpec, SpawnOptions, StartError, StdioSpec};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Exit code of a container that could not be made.
pub(crate) const EXIT_NOT_MADE: i32 = 128;

/// What a start is about.
pub(crate) struct StartInput {
    pub(crate) env: Arc<Env>,
    pub(crate) record: Arc<ContainerRecord>,
    pub(crate) dir: ContainerDir,
    pub(crate) state: StateRecord,
    /// Clients that attached before the start.
    pub(crate) attachers: Vec<PendingAttach>,
}

/// What came of it.
pub(crate) struct Started {
    pub(crate) shim: ShimHandle,
    pub(crate) state: StateRecord,
}

/// The steps that leave something behind, in order.
#[derive(Debug)]
pub(crate) enum Made {
    /// Addresses were asked for.
    Asked,
    Namespace(PathBuf),
    Address,
    Link,
    /// Interfaces in networks of the cluster.
    Overlay,
    Ports,
    Shim(ShimHandle),
}

/// Starts a container. After an error nothing of the attempt is left.
pub(crate) async fn start(input: StartInput) -> Result<Started> {
    let mut made = Vec::new();
    match steps(&input, &mut made).await {
        Ok(started) => Ok(started),
        Err(err) => {
            undo(&input.env, &input.record.id, made).await;
            Err(err)
        }
    }
}

async fn undo(env: &Env, id: &ContainerId, made: Vec<Made>) {
    for step in made.into_iter().rev() {
        let name = format!("{step:?}");
        let undone = match step {
            Made::Shim(shim) => shim
                .delete(true)
                .await
                .map_err(|err| runtime_error("remove", *id)(&err)),
            Made::Ports => env.networks.unpublish(id).await,
            // The pair of links goes with its namespace.
            Made::Link => Ok(()),
            Made::Overlay => {
                env.overlay.detach(*id, false).await;
                Ok(())
            }
            Made::Asked => env.overlay.returns.add(*id).await,
            Made::Address => env
                .addresses
                .send(ReleaseAddress(*id))
                .await
                .map_err(EngineError::from),
            Made::Namespace(path) => {
                env.networks.retire_netns(&path);
                Ok(())
            }
        };
        if let Err(err) = undone {
            // The next start of the engine finds what is left.
            tracing::warn!(container_id = %id, step = name, err = chain(&err), "a step of a failed start could not be undone");
        }
    }
}

async fn steps(input: &StartInput, made: &mut Vec<Made>) -> Result<Started> {
    let StartInput {
        env, record, dir, ..
    } = input;
    let config = &record.config;
    let mut state = input.state.clone();
    state.phase = Phase::Starting;
    state.lease = Lease::default();
    write_state(dir, &state, Durability::Cached).await?;

    let (prepared, network) = tokio::join!(prepare(input), make_network(env, record, made));
    let prepared = prepared?;
    let mut network = network?;
    let joined = joined_namespaces(env, config).await?;
    let spec = spec(input, &prepared, &network, joined)?;
    write_bundle(input, prepared.lower, &network, spec).await?;

    // The shim enters the namespace by its path: links and ports can be made beside it.
    let options = SpawnOptions::new(&env.options.exe, dir.bundle());
    let (spawned, connected) = tokio::join!(
        ShimHandle::spawn(options),
        connect(env, record, &mut network, made)
    );
    if let Ok(shim) = &spawned {
        made.push(Made::Shim(shim.clone()));
    }
    connected?;
    let shim = spawned.map_err(|err| start_error(&StartError::from(err)))?;
    for attacher in &input.attachers {
        attacher.connect(&shim).await;
    }
    shim.start().await.map_err(|err| start_error(&err))?;
    state.phase = Phase::Running;
    state.lease = network.lease;
    state.started_at = Some(crate::clock::now());
    state.error = String::new();
    state.oom_killed = false;
    state.exit_code = 0;
    write_state(dir, &state, Durability::Cached).await?;
    Ok(Started { shim, state })
}

fn start_error(err: &StartError) -> EngineError {
    EngineError::Start {
        exit_code: err.exit_code(),
        reason: chain(err),
    }
}

/// An error of the shim's, with what was attempted.
pub(crate) fn runtime_error(
    action: &'static str,
    id: ContainerId,
) -> impl Fn(&shoal_runtime::ShimError) -> EngineError {
    move |err| EngineError::Runtime {
        action,
        id,
        reason: chain(err),
    }
}

async fn write_state(
    dir: &ContainerDir,
    state: &StateRecord,
    durability: Durability,
) -> Result<()> {
    let (dir, state) = (dir.clone(), state.clone());
    blocking("state record", move || dir.write_state(&state, durability)).await
}

struct Prepared {
    lower: Vec<PathBuf>,
    identity: Identity,
}

/// Layers, the user's number, and the sources of binds.
async fn prepare(input: &StartInput) -> Result<Prepared> {
    let StartInput {
        env, record, dir, ..
    } = input;
    let image = env.image(&record.image_id)?;
    let lower = env.lower(&image).await?;
    let layers = Layers {
        lower: lower.clone(),
        upper: Some((dir.upper(), dir.work())),
    };
    let accounts = env.accounts(&record.image_id, layers).await?;
    let identity = accounts.resolve(&record.config.user, &record.config.host.group_add)?;
    for point in record.mounts.iter() {
        check_source(point)?;
    }
    Ok(Prepared { lower, identity })
}

/// A bind's source exists, or is made where the short form says so; a volume's data is never made anew here.
pub(crate) fn check_source(point: &MountPoint) -> Result<()> {
    let path = Path::new(&point.source);
    if point.kind == MountPointKind::Tmpfs || path.exists() {
        return Ok(());
    }
    match (point.kind, point.create_source) {
        (MountPointKind::Bind, true) => disk::create_dir_all(path, 0o755),
        (MountPointKind::Volume, _) => Err(EngineError::NoSuch {
            object: "volume",
            name: format!(
                "{} (its directory `{}` is missing)",
                point.name, point.source
            ),
        }),
        _ => Err(EngineError::invalid(
            "mount config for type \"bind\"",
            format!("bind source path does not exist: {}", point.source),
        )),
    }
}

/// The process of another container, for joining its namespaces.
pub(crate) async fn running_pid(env: &Env, name: &str, action: &str) -> Result<u32> {
    let entry = crate::supervisor::resolve(env, name).await?;
    let info = entry.info();
    if info.state.pid == 0 {
        return Err(EngineError::conflict(format!(
            "cannot {action} a non running container: {}",
            info.id
        )));
    }
    Ok(info.state.pid)
}

async fn joined_namespaces(
    env: &Env,
    config: &ContainerConfig,
) -> Result<Vec<(LinuxNamespaceType, PathBuf)>> {
    let mut joined = Vec::new();
    for (typ, mode, file) in [
        (LinuxNamespaceType::Pid, &config.host.pid_mode, "pid"),
        (LinuxNamespaceType::Ipc, &config.host.ipc_mode, "ipc"),
    ] {
        if let NamespaceMode::Container(name) = mode {
            let pid = running_pid(env, name, "join a namespace of").await?;
            joined.push((typ, format!("/proc/{pid}/ns/{file}").into()));
        }
    }
    Ok(joined)
}

/// The container's host name.
pub(crate) fn hostname(record: &ContainerRecord) -> String {
    if record.config.hostname.is_empty() {
        record.id.short()
    } else {
        record.config.hostname.clone()
    }
}

fn spec(
    input: &StartInput,
    prepared: &Prepared,
    network: &Network,
    joined: Vec<(LinuxNamespaceType, PathBuf)>,
) -> Result<Spec> {
    let StartInput {
        env, record, dir, ..
    } = input;
    let hostname = hostname(record);
    oci::build(&oci::Inputs {
        config: &record.config,
        command: &record.command(),
        identity: &prepared.identity,
        hostname: &hostname,
        mounts: &record.mounts,
        etc_files: vec![
            (dir.resolv_conf(), "/etc/resolv.conf"),
            (dir.hostname(), "/etc/hostname"),
            (dir.hosts(), "/etc/hosts"),
        ],
        rootfs: dir.rootfs(),
        cgroup: Path::new(&env.options.cgroup_parent).join(record.id.to_string()),
        network: network.namespace.clone(),
        joined,
    })
}

/// The files of /etc, `config.json` and `shoal.json`.
async fn write_bundle(
    input: &StartInput,
    lower: Vec<PathBuf>,
    network: &Network,
    spec: Spec,
) -> Result<()> {
    let StartInput {
        env, record, dir, ..
    } = input;
    let (env, record, dir) = (Arc::clone(env), Arc::clone(record), dir.clone());
    let addresses = network.addresses();
    let overlay_resolv = network.resolv_conf();
    let own_network = network.namespace != NetworkNamespace::Host;
    let mut shim = ShimSpec::new(
        record.id.to_string(),
        Rootfs::Overlay {
            lower,
            upper: dir.upper(),
            work: dir.work(),
        },
    );
    shim.stdio = StdioSpec {
        open_stdin: record.config.open_stdin,
        stdin_once: record.config.stdin_once,
    };
    shim.log = super::logs::shim_config(&env.options, &record, &dir)?;
    shim.fencing_deadline_ns = record
        .config
        .fencing
        .map(|fencing| fencing.deadline_boottime_ns);
    shim.init = record.config.host.init;
    blocking("bundle", move || {
        let hostname = hostname(&record);
        let gateway = Some(env.networks.bridge.gateway);
        let hosts = etc_files::hosts(&record.config, &hostname, &addresses, gateway);
        let resolv = overlay_resolv.unwrap_or_else(|| {
            let host_resolv = etc_files::read_host_resolv_conf(&env.options.resolv_conf);
            etc_files::resolv_conf(&record.config, &host_resolv, own_network)
        });
        for (path, text) in [
            (dir.hosts(), hosts),
            (dir.resolv_conf(), resolv),
            (dir.hostname(), format!("{hostname}\n")),
        ] {
            // Written in place: a running container may have the file bind-mounted.
            std::fs::write(&path, text).map_err(EngineError::disk("write", &path))?;
        }
        Bundle::new(dir.bundle())
            .write(&spec, &shim)
            .map_err(|err| EngineError::Record {
                path: dir.bundle(),
                reason: chain(&err),
            })
    })
    .await
}

/// How a container ended, as far as the engine tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) oom_killed: bool,
    pub(crate) fenced: bool,
    pub(crate) at: Timestamp,
}

/// Gives back what a run held. What a waiting client must not see any more goes first; links and namespaces, which
/// cost the kernel milliseconds, follow in the returned task, which the next start waits for.
pub(crate) async fn teardown(
    env: &Arc<Env>,
    id: ContainerId,
    shim: Option<ShimHandle>,
    lease: Lease,
) -> tokio::task::JoinHandle<()> {
    if let Some(shim) = shim
        && let Err(err) = shim.delete(true).await
        && !matches!(err, shoal_runtime::ShimError::Lost { .. })
    {
        tracing::warn!(container_id = %id, err = chain(&err), "the shim did not end in order");
    }
    if !lease.ports.is_empty()
        && let Err(err) = env.networks.unpublish(&id).await
    {
        tracing::warn!(container_id = %id, err = chain(&err), "published ports were not withdrawn");
    }
    // Before anybody hears of the end: from then on the managers may give the addresses to others.
    if let Some(overlay) = &lease.overlay {
        env.overlay.detach(id, overlay.asked).await;
    }
    let env_in_task = Arc::clone(env);
    env.runtime.spawn(async move {
        let env = env_in_task;
        let mut made = Vec::new();
        made.extend(lease.netns.map(Made::Namespace));
        made.extend(lease.endpoint.map(|_| Made::Address));
        made.extend(lease.host_link.map(|_| Made::Link));
        undo(&env, &id, made).await;
    })
}
