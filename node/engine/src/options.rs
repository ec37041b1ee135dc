//! Settings of an engine. Nothing global is assumed: several engines run on one machine.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// What an engine needs to know at its start.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Durable things: images, containers, volumes.
    pub data_root: PathBuf,
    /// Things that a reboot may take: namespaces, sockets.
    pub run_root: PathBuf,
    /// The program that is run as `EXE shim --bundle DIR`.
    pub exe: PathBuf,
    /// Parent of the containers' cgroups: `/shoal`.
    pub cgroup_parent: String,
    /// Short unique tag of this engine on this machine, part of the names of kernel objects.
    pub instance: String,
    /// `HOST[:PORT]` of registries that may be spoken to without TLS.
    pub insecure_registries: Vec<String>,
    /// Log driver of containers that name none: `json-file` or `none`.
    pub log_driver: String,
    /// Log options of containers that name none.
    pub log_options: BTreeMap<String, String>,
    /// Subnets from which the default bridge takes the first free one; empty: Docker's 172.17.0.0/16 and following.
    pub address_pools: Vec<String>,
    /// Fixed subnet of the default bridge with the gateway's address: `10.1.0.1/24`.
    pub bridge_address: Option<String>,
    /// MTU of the default bridge.
    pub bridge_mtu: u32,
    /// Where the host's resolver settings are.
    pub resolv_conf: PathBuf,
    /// The node is part of a cluster, so networks across hosts will come: starts that need them wait.
    pub overlay_expected: bool,
}

/// MTU of Ethernet.
pub const BRIDGE_MTU_DEFAULT: u32 = 1500;

impl EngineOptions {
    /// Defaults under the two roots.
    pub fn new(
        data_root: impl Into<PathBuf>,
        run_root: impl Into<PathBuf>,
        exe: impl Into<PathBuf>,
    ) -> Self {
        Self {
            data_root: data_root.into(),
            run_root: run_root.into(),
            exe: exe.into(),
            cgroup_parent: "/shoal".to_owned(),
            instance: "0".to_owned(),
            insecure_registries: Vec::new(),
            log_driver: "json-file".to_owned(),
            log_options: BTreeMap::new(),
            address_pools: Vec::new(),
            bridge_address: None,
            bridge_mtu: BRIDGE_MTU_DEFAULT,
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            overlay_expected: false,
        }
    }
}
