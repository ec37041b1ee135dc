//! From a merged configuration to the OCI description that the runtime runs.

use crate::config::{ContainerConfig, NamespaceMode, ResourceLimits};
use crate::error::{EngineError, Result};
use crate::info::{MountPoint, MountPointKind};
use crate::merge::Command;
use crate::user::Identity;
use oci_spec::runtime::{
    Capability, LinuxCpu, LinuxMemory, LinuxNamespaceType, LinuxPids, LinuxResources, Mount,
    PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, Spec, User,
};
use shoal_runtime::{capabilities, seccomp, spec as base};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Microseconds of a CPU period when only the number of CPUs is given.
const CPU_PERIOD_DEFAULT_US: u64 = 100_000;
/// Billionths of one CPU.
const NANO: i64 = 1_000_000_000;
/// What `docker exec` and `docker run` give programs on a terminal.
const TERM: &str = "TERM=xterm";

/// Which network namespace the container is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NetworkNamespace {
    /// The host's.
    Host,
    /// The one pinned or shown at a path.
    Path(PathBuf),
}

/// Everything that the description depends on.
pub(crate) struct Inputs<'a> {
    pub(crate) config: &'a ContainerConfig,
    pub(crate) command: &'a Command,
    pub(crate) identity: &'a Identity,
    pub(crate) hostname: &'a str,
    pub(crate) mounts: &'a [MountPoint],
    /// Files behind /etc/hosts and the like: (source, target).
    pub(crate) etc_files: Vec<(PathBuf, &'static str)>,
    pub(crate) rootfs: PathBuf,
    pub(crate) cgroup: PathBuf,
    pub(crate) network: NetworkNamespace,
    /// Namespaces of other containers, by their process.
    pub(crate) joined: Vec<(LinuxNamespaceType, PathBuf)>,
}

/// The description.
pub(crate) fn build(inputs: &Inputs<'_>) -> Result<Spec> {
    let config = inputs.config;
    let mut words = vec![inputs.command.path.clone()];
    words.extend(inputs.command.args.iter().cloned());
    let mut spec = base::default_spec(&inputs.rootfs, words, &inputs.cgroup);
    let capabilities = capability_set(config)?;
    spec.set_process(Some(process(
        inputs,
        &capabilities,
        spec.process().clone(),
    )?));
    spec.set_mounts(Some(mounts(inputs)));
    if config.host.uts_mode != NamespaceMode::Host {
        spec.set_hostname(Some(inputs.hostname.to_owned()));
        if !config.domainname.is_empty() {
            spec.set_domainname(Some(config.domainname.clone()));
        }
    }
    if let Some(root) = spec.root_mut() {
        root.set_readonly(Some(config.host.read_only_rootfs));
    }
    let Some(linux) = spec.linux_mut() else {
        return Ok(spec);
    };
    linux.set_namespaces(Some(namespaces(inputs)));
    let mut resources = resources(&config.host.resources);
    if config.host.oom_kill_disable {
        let mut memory = resources.memory().unwrap_or_default();
        memory.set_disable_oom_killer(Some(true));
        resources.set_memory(Some(memory));
    }
    let (nodes, rules) = crate::devices::devices(config)?;
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
    linux.set_devices((!nodes.is_empty()).then_some(nodes));
    if !config.host.sysctls.is_empty() {
        linux.set_sysctl(Some(
            config
                .host
                .sysctls
                .iter()
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
        ));
    }
    confine(config, &capabilities, linux)?;
    Ok(spec)
}

/// The process of an exec: the container's, with another command line.
pub(crate) fn exec_process(
    config: &ContainerConfig,
    exec: &crate::requests::ExecConfig,
    identity: &Identity,
) -> Result<Process> {
    let mut process = base::process(exec.cmd.clone());
    let capabilities = if exec.privileged {
        capabilities::available()
    } else {
        capability_set(config)?
    };
    let mut env = environment(config, &identity.home, exec.tty, "");
    for entry in &exec.env {
        set_variable(&mut env, entry);
    }
    let dir = match (exec.working_dir.as_str(), config.working_dir.as_str()) {
        ("", "") => "/",
        ("", dir) | (dir, _) => dir,
    };
    process
        .set_env(Some(env))
        .set_cwd(dir.into())
        .set_terminal(Some(exec.tty))
        .set_user(user(identity));
    process.set_capabilities(Some(process_sets(identity, &capabilities)));
    process.set_rlimits(rlimits(config)?);
    process.set_oom_score_adj(Some(config.host.oom_score_adj));
    if no_new_privileges(config)? {
        process.set_no_new_privileges(Some(true));
    }
    Ok(process)
}

fn process(
    inputs: &Inputs<'_>,
    capabilities: &[Capability],
    base: Option<Process>,
) -> Result<Process> {
    let config = inputs.config;
    let mut process = base.unwrap_or_default();
    let dir = if config.working_dir.is_empty() {
        "/"
    } else {
        &config.working_dir
    };
    process
        .set_terminal(Some(config.tty))
        .set_env(Some(environment(
            config,
            &inputs.identity.home,
            config.tty,
            inputs.hostname,
        )))
        .set_cwd(dir.into())
        .set_user(user(inputs.identity))
        .set_capabilities(Some(process_sets(inputs.identity, capabilities)))
        .set_rlimits(rlimits(config)?)
        .set_oom_score_adj(Some(config.host.oom_score_adj));
    if no_new_privileges(config)? {
        process.set_no_new_privileges(Some(true));
    }
    Ok(process)
}

/// A process of another user than root has the capabilities only in its bounding set, as in Docker: it gains them
/// through set-user-ID programs alone.
fn process_sets(
    identity: &Identity,
    capabilities: &[Capability],
) -> oci_spec::runtime::LinuxCapabilities {
    let mut sets = capabilities::sets(capabilities.iter().copied());
    if identity.uid != 0 {
        sets.set_permitted(Some(Default::default()))
            .set_effective(Some(Default::default()))
            .set_inheritable(Some(Default::default()))
            .set_ambient(Some(Default::default()));
    }
    sets
}

fn user(identity: &Identity) -> User {
    // The first group is in the list too: a process could otherwise drop it and so pass a check that denies it.
    let mut groups = vec![identity.gid];
    groups.extend(identity.groups.iter().filter(|gid| **gid != identity.gid));
    let mut user = User::default();
    user.set_uid(identity.uid)
        .set_gid(identity.gid)
        .set_additional_gids(Some(groups));
    user
}

fn environment(config: &ContainerConfig, home: &str, tty: bool, hostname: &str) -> Vec<String> {
    let mut env = vec![base::DEFAULT_PATH.to_owned()];
    let hostname = if hostname.is_empty() {
        &config.hostname
    } else {
        hostname
    };
    env.push(format!("HOSTNAME={hostname}"));
    if tty {
        env.push(TERM.to_owned());
    }
    env.push(format!("HOME={home}"));
    for entry in &config.env {
        set_variable(&mut env, entry);
    }
    env
}

fn set_variable(env: &mut Vec<String>, entry: &str) {
    let (key, value) = match entry.split_once('=') {
        Some((key, _)) => (key, true),
        None => (entry, false),
    };
    let of_key = |known: &String| known.split_once('=').is_some_and(|(name, _)| name == key);
    match (env.iter().position(of_key), value) {
        (Some(place), true) => entry.clone_into(&mut env[place]),
        (Some(place), false) => drop(env.remove(place)),
        (None, true) => env.push(entry.to_owned()),
        (None, false) => {}
    }
}

fn capability_set(config: &ContainerConfig) -> Result<Vec<Capability>> {
    if config.host.privileged {
        return Ok(capabilities::available());
    }
    let is_all = |name: &String| matches!(name.to_ascii_uppercase().as_str(), "ALL" | "CAP_ALL");
    let parse = |field: &str, name: &String| {
        capabilities::parse(name)
            .ok_or_else(|| EngineError::invalid(field, format!("unknown capability: \"{name}\"")))
    };
    let host = &config.host;
    let mut set: Vec<Capability> = if host.cap_add.iter().any(is_all) {
        capabilities::available()
    } else if host.cap_drop.iter().any(is_all) {
        Vec::new()
    } else {
        capabilities::DEFAULT.to_vec()
    };
    for name in host.cap_drop.iter().filter(|name| !is_all(name)) {
        let dropped = parse("CapDrop", name)?;
        set.retain(|known| *known != dropped);
    }
    for name in host.cap_add.iter().filter(|name| !is_all(name)) {
        let added = parse("CapAdd", name)?;
        if !set.contains(&added) {
            set.push(added);
        }
    }
    Ok(set)
}

/// The user's security options, each of them known or refused.
fn security_option<'a>(config: &'a ContainerConfig, wanted: &str) -> Option<&'a str> {
    config.host.security_opt.iter().rev().find_map(|option| {
        let (key, value) = option
            .split_once('=')
            .or_else(|| option.split_once(':'))
            .unwrap_or((option, ""));
        (key == wanted).then_some(value)
    })
}

fn no_new_privileges(config: &ContainerConfig) -> Result<bool> {
    match security_option(config, "no-new-privileges") {
        None | Some("false") => Ok(false),
        Some("" | "true") => Ok(true),
        Some(other) => Err(EngineError::invalid(
            "security-opt",
            format!("no-new-privileges=`{other}`: expected true or false"),
        )),
    }
}

/// Refuses what the engine would otherwise have to ignore.
pub(crate) fn check(config: &ContainerConfig) -> Result<()> {
    for option in &config.host.security_opt {
        let known = option.starts_with("no-new-privileges")
            || matches!(
                option.as_str(),
                "seccomp=unconfined"
                    | "seccomp:unconfined"
                    | "seccomp=builtin"
                    | "systempaths=unconfined"
                    | "apparmor=unconfined"
                    | "apparmor:unconfined"
                    | "label=disable"
                    | "label:disable"
            );
        if !known {
            return Err(EngineError::unsupported(
                format!("security-opt `{option}`"),
                "known are no-new-privileges, seccomp=unconfined, seccomp=builtin, systempaths=unconfined, \
                 apparmor=unconfined and label=disable",
            ));
        }
    }
    no_new_privileges(config)?;
    capability_set(config)?;
    rlimits(config)?;
    if !(-1000..=1000).contains(&config.host.oom_score_adj) {
        return Err(EngineError::invalid(
            "oom-score-adj",
            format!(
                "{} is not between -1000 and 1000",
                config.host.oom_score_adj
            ),
        ));
    }
    check_limits(&config.host.resources)
}

/// Docker's bounds of limits.
pub(crate) fn check_limits(limits: &ResourceLimits) -> Result<()> {
    /// Docker's smallest memory limit: 6 MiB.
    const MEMORY_BYTES_MIN: i64 = 6 << 20;
    let refuse = |field: &str, reason: &str| Err(EngineError::invalid(field, reason));
    if limits.memory_bytes != 0 && limits.memory_bytes < MEMORY_BYTES_MIN {
        return refuse("memory", "minimum memory limit allowed is 6MB");
    }
    if limits.memory_swap_bytes > 0 && limits.memory_swap_bytes < limits.memory_bytes {
        return refuse(
            "memory-swap",
            "minimum memoryswap limit should be larger than memory limit",
        );
    }
    if limits.memory_swap_bytes > 0 && limits.memory_bytes == 0 {
        return refuse(
            "memory-swap",
            "you should always set the memory limit when using memoryswap limit",
        );
    }
    if limits.memory_reservation_bytes > 0
        && limits.memory_bytes > 0
        && limits.memory_reservation_bytes > limits.memory_bytes
    {
        return refuse(
            "memory-reservation",
            "minimum memory limit can not be less than memory reservation limit",
        );
    }
    if limits.nano_cpus < 0 {
        return refuse("cpus", "must not be negative");
    }
    let cpus = std::thread::available_parallelism()
        .map_or(i64::MAX, |n| i64::try_from(n.get()).unwrap_or(i64::MAX));
    if limits.nano_cpus > cpus.saturating_mul(NANO) {
        return Err(EngineError::invalid(
            "cpus",
            format!(
                "range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
            ),
        ));
    }
    if limits.nano_cpus > 0 && (limits.cpu_quota > 0 || limits.cpu_period > 0) {
        return refuse(
            "cpus",
            "Nano CPUs and CPU Period or Quota can't both be set",
        );
    }
    if limits.cpu_period != 0 && !(1_000..=1_000_000).contains(&limits.cpu_period) {
        return refuse(
            "cpu-period",
            "CPU cfs period can not be less than 1ms or larger than 1s",
        );
    }
    if limits.cpu_quota > 0 && limits.cpu_quota < 1_000 {
        return refuse("cpu-quota", "CPU cfs quota can not be less than 1ms");
    }
    Ok(())
}

/// Limits in the kernel's terms.
pub(crate) fn resources(limits: &ResourceLimits) -> LinuxResources {
    let mut resources = LinuxResources::default();
    let positive = |value: i64| (value > 0).then_some(value);
    if limits.memory_bytes > 0 || limits.memory_reservation_bytes > 0 {
        let mut memory = LinuxMemory::default();
        memory.set_limit(positive(limits.memory_bytes));
        memory.set_reservation(positive(limits.memory_reservation_bytes));
        // Without a word on swap a container may use as much of it as of memory.
        memory.set_swap(match (limits.memory_swap_bytes, limits.memory_bytes) {
            (0, 0) => None,
            (0, bytes) => Some(bytes.saturating_mul(2)),
            (swap, _) => Some(swap),
        });
        resources.set_memory(Some(memory));
    }
    let mut cpu = LinuxCpu::default();
    if limits.nano_cpus > 0 {
        let period = CPU_PERIOD_DEFAULT_US;
        let quota = i128::from(limits.nano_cpus) * i128::from(period) / i128::from(NANO);
        cpu.set_period(Some(period));
        cpu.set_quota(Some(i64::try_from(quota).unwrap_or(i64::MAX)));
    } else {
        cpu.set_period(
            u64::try_from(limits.cpu_period)
                .ok()
                .filter(|period| *period > 0),
        );
        cpu.set_quota(positive(limits.cpu_quota));
    }
    cpu.set_shares(
        u64::try_from(limits.cpu_shares)
            .ok()
            .filter(|shares| *shares > 0),
    );
    let text = |set: &String| (!set.is_empty()).then(|| set.clone());
    cpu.set_cpus(text(&limits.cpuset_cpus));
    cpu.set_mems(text(&limits.cpuset_mems));
    if cpu != LinuxCpu::default() {
        resources.set_cpu(Some(cpu));
    }
    if limits.pids_limit > 0 {
        let mut pids = LinuxPids::default();
        pids.set_limit(limits.pids_limit);
        resources.set_pids(Some(pids));
    }
    resources
}

fn rlimits(config: &ContainerConfig) -> Result<Option<Vec<PosixRlimit>>> {
    let unlimited = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
    let limits = config.host.ulimits.iter().map(|ulimit| {
        let name = format!("RLIMIT_{}", ulimit.name.to_ascii_uppercase());
        let typ: PosixRlimitType = name.parse().map_err(|_| {
            EngineError::invalid("ulimit", format!("invalid ulimit type: {}", ulimit.name))
        })?;
        let (soft, hard) = (unlimited(ulimit.soft), unlimited(ulimit.hard));
        if soft > hard {
            return Err(EngineError::invalid(
                "ulimit",
                format!(
                    "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
                ),
            ));
        }
        PosixRlimitBuilder::default()
            .typ(typ)
            .soft(soft)
            .hard(hard)
            .build()
            .map_err(|err| EngineError::invalid("ulimit", err.to_string()))
    });
    let limits = limits.collect::<Result<Vec<_>>>()?;
    Ok((!limits.is_empty()).then_some(limits))
}

fn mounts(inputs: &Inputs<'_>) -> Vec<Mount> {
    let host = &inputs.config.host;
    let shm = u64::try_from(host.shm_size_bytes)
        .ok()
        .filter(|bytes| *bytes > 0)
        .unwrap_or(base::SHM_SIZE_BYTES);
    let mut mounts = base::mounts(shm);
    let targets: BTreeSet<&Path> = inputs
        .mounts
        .iter()
        .map(|point| Path::new(&point.target))
        .collect();
    mounts.retain(|mount| !targets.contains(mount.destination().as_path()));
    if host.privileged {
        for mount in &mut mounts {
            if matches!(mount.typ().as_deref(), Some("sysfs" | "cgroup")) {
                let options = mount
                    .options()
                    .iter()
                    .flatten()
                    .filter(|word| *word != "ro")
                    .cloned();
                mount.set_options(Some(options.collect()));
            }
        }
    }
    for (source, target) in &inputs.etc_files {
        if !targets.contains(Path::new(target)) {
            let ro = if host.read_only_rootfs { "ro" } else { "rw" };
            mounts.push(bind(source, target, &["rbind", "rprivate", ro]));
        }
    }
    mounts.extend(inputs.mounts.iter().map(user_mount));
    mounts
}

fn bind(source: &Path, target: &str, options: &[&str]) -> Mount {
    base::mount(target, "bind", &source.to_string_lossy(), options)
}

fn user_mount(point: &MountPoint) -> Mount {
    let writable = if point.writable { "rw" } else { "ro" };
    match point.kind {
        MountPointKind::Tmpfs => {
            let mut options = vec!["nosuid", "nodev", "noexec"];
            options.extend(point.mode.split(',').filter(|word| !word.is_empty()));
            base::mount(&point.target, "tmpfs", "tmpfs", &options)
        }
        MountPointKind::Bind | MountPointKind::Volume => {
            let propagation = if point.propagation.is_empty() {
                "rprivate"
            } else {
                &point.propagation
            };
            bind(
                Path::new(&point.source),
                &point.target,
                &["rbind", propagation, writable],
            )
        }
    }
}

fn namespaces(inputs: &Inputs<'_>) -> Vec<oci_spec::runtime::LinuxNamespace> {
    let host = &inputs.config.host;
    let shared_with_host = |typ: LinuxNamespaceType| match typ {
        LinuxNamespaceType::Network => inputs.network == NetworkNamespace::Host,
        LinuxNamespaceType::Pid => host.pid_mode == NamespaceMode::Host,
        LinuxNamespaceType::Ipc => host.ipc_mode == NamespaceMode::Host,
        LinuxNamespaceType::Uts => host.uts_mode == NamespaceMode::Host,
        LinuxNamespaceType::Cgroup => host.cgroupns_mode == NamespaceMode::Host,
        LinuxNamespaceType::Mount | LinuxNamespaceType::User | LinuxNamespaceType::Time => false,
    };
    let mut namespaces = base::namespaces();
    namespaces.retain(|namespace| !shared_with_host(namespace.typ()));
    for namespace in &mut namespaces {
        let typ = namespace.typ();
        if let (LinuxNamespaceType::Network, NetworkNamespace::Path(path)) = (typ, &inputs.network)
        {
            namespace.set_path(Some(path.clone()));
        }
        if let Some((_, path)) = inputs.joined.iter().find(|(joined, _)| *joined == typ) {
            namespace.set_path(Some(path.clone()));
        }
    }
    namespaces
}

fn confine(
    config: &ContainerConfig,
    capabilities: &[Capability],
    linux: &mut oci_spec::runtime::Linux,
) -> Result<()> {
    let host = &config.host;
    let open = host.privileged || security_option(config, "systempaths") == Some("unconfined");
    if open {
        linux.set_masked_paths(None);
        linux.set_readonly_paths(None);
    }
    if let Some(paths) = &host.masked_paths {
        linux.set_masked_paths(Some(paths.clone()));
    }
    if let Some(paths) = &host.readonly_paths {
        linux.set_readonly_paths(Some(paths.clone()));
    }
    let unconfined = host.privileged || security_option(config, "seccomp") == Some("unconfined");
    linux.set_seccomp((!unconfined).then(|| seccomp::default_profile(capabilities)));
    Ok(())
}
