//! Keeps a node as the newest state says: mesh, kernel, names, probes.
//!
//! One loop applies; whoever wants something changes what it works from and wakes it. It is level-triggered: each round
//! takes the newest state, the suspects of the moment and the lease, and does the whole work, of which most is nothing.
//! What failed is tried again.

use super::{
    ATTACH_WAIT, OverlayAttach, OverlayAttached, OverlayError, OverlayInterface, OverlayOptions,
};
use crate::apply::{DataPlane, DataPlaneOptions, InterfaceSpec, View};
use crate::check::{PeerCheck, PeerPath};
use crate::dns::{self, DnsContainer, Names};
use crate::mesh::{MESH_MTU, Mesh, MeshOptions, MeshPeer, MeshPlan, OwnKeys};
use crate::metrics::{OverlayMetrics, Traffic};
use crate::netd::{Netd, NetdOptions, NetdRequest, chain};
use crate::plan::{Attached, AttachedInterface};
use crate::probe::{DetectorOptions, Outlook, PeerProbe, Prober, ProberOptions, Suspects};
use ipnet::IpNet;
use shoal_model::netstate::NetState;
use shoal_model::network::Endpoint;
use shoal_model::{ContainerId, NodeId, Version};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// Pause before a round that failed is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long the kernel may be other than planned without anybody having asked for a round.
const RESYNC_AFTER: Duration = Duration::from_secs(30);

/// What is to be in force.
#[derive(Debug, Clone)]
struct Wanted {
    /// Grows with each change.
    number: u64,
    /// `None`: nothing was told yet, so nothing is touched.
    state: Option<Arc<NetState>>,
    leased: bool,
}

/// What the last round did.
#[derive(Debug, Clone, Default)]
struct Done {
    /// The [`Wanted::number`] that it was for.
    number: u64,
    /// The state that the kernel has.
    state: Option<Arc<NetState>>,
    /// What failed.
    failure: Option<String>,
}

/// The overlay of one node.
#[derive(Debug)]
pub(super) struct Worker {
    options: OverlayOptions,
    netd: Netd,
    pub(super) mesh: Mesh,
    plane: DataPlane,
    wanted: watch::Sender<Wanted>,
    done: watch::Receiver<Done>,
    names: Names,
    prober: Mutex<Option<(Ipv4Addr, Prober)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each holder replaces or reads one value.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Worker {
    pub(super) async fn start(options: OverlayOptions) -> Result<Arc<Self>, OverlayError> {
        let netd = Netd::start(NetdOptions {
            exe: options.exe.clone(),
            run_root: options.run_root.clone(),
            log: "info".to_owned(),
        });
        let netd = netd.await.map_err(OverlayError::Netd)?;
        let mesh = Mesh::start(MeshOptions {
            instance: options.instance.clone(),
            certs_dir: options.data_root.join("certs"),
            choice: options.wireguard,
            port: options.wireguard_port,
            mtu: MESH_MTU,
            netd: netd.clone(),
        });
        let mesh = mesh.await.map_err(OverlayError::Mesh)?;
        let plane = DataPlane::open(DataPlaneOptions {
            instance: options.instance.clone(),
            node_id: options.node_id,
            daemon_ports: options.daemon_ports.clone(),
            mesh_mtu: MESH_MTU,
        });
        let (report, done) = watch::channel(Done::default());
        let (wanted, changes) = watch::channel(Wanted {
            number: 0,
            state: None,
            leased: true,
        });
        let worker = Arc::new(Self {
            options,
            names: Names::new(netd.clone()),
            netd,
            mesh,
            plane: plane.map_err(OverlayError::Kernel)?,
            wanted,
            done,
            prober: Mutex::default(),
        });
        let rounds = Rounds {
            worker: Arc::downgrade(&worker),
            made: worker.mesh.device_made(),
            generation: worker.netd.generation(),
            suspects: None,
            told: false,
            changes,
            report,
        };
        tokio::spawn(rounds.run());
        Ok(worker)
    }

    pub(super) async fn apply(&self, state: Arc<NetState>) -> Result<Version, OverlayError> {
        let version = state.version;
        let number = self.want(|wanted| wanted.state = Some(state));
        let mut done = self.done.clone();
        let done = done
            .wait_for(|done| done.number >= number)
            .await
            .map_err(|_| OverlayError::Stopped)?;
        match &done.failure {
            Some(reason) => Err(OverlayError::NotApplied {
                version,
                reason: reason.clone(),
            }),
            None => Ok(done.state.as_ref().map_or(version, |state| state.version)),
        }
    }

    pub(super) fn lease(&self, live: bool) {
        if self.wanted.borrow().leased != live {
            self.want(|wanted| wanted.leased = live);
        }
    }

    fn want(&self, change: impl FnOnce(&mut Wanted)) -> u64 {
        let mut number = 0;
        self.wanted.send_modify(|wanted| {
            change(wanted);
            wanted.number += 1;
            number = wanted.number;
        });
        number
    }

    pub(super) async fn attach(
        &self,
        spec: &OverlayAttach,
    ) -> Result<OverlayAttached, OverlayError> {
        let state = self.state_with(&spec.endpoints).await?;
        let interfaces = self.interfaces(spec, &state);
        let linked = async {
            let made = self.plane.attach(spec.container, &spec.netns, &interfaces);
            made.await.map_err(OverlayError::Kernel)
        };
        let named = async {
            let opened = self.names.open(resolver(spec));
            opened.await.map_err(OverlayError::Netd)
        };
        // Both to their end, so that nothing is made after it was taken away.
        let (linked, named) = tokio::join!(linked, named);
        if let Err(err) = linked.and(named) {
            if let Err(left) = self.detach(spec.container).await {
                tracing::warn!(
                    container_id = %spec.container,
                    err = %chain(&left),
                    "parts of a container's networks are left behind"
                );
            }
            return Err(err);
        }
        Ok(OverlayAttached {
            interfaces: interfaces
                .iter()
                .map(|interface| described(interface, &state))
                .collect(),
            resolv_conf: dns::resolv_conf(&spec.dns),
        })
    }

    /// The state in force, once it has networks and leases for the endpoints.
    async fn state_with(&self, endpoints: &[Endpoint]) -> Result<Arc<NetState>, OverlayError> {
        let node = self.options.node_id;
        let deadline = Instant::now() + ATTACH_WAIT;
        let mut done = self.done.clone();
        loop {
            let state = done.borrow_and_update().state.clone();
            let missing = match &state {
                Some(state) => endpoints
                    .iter()
                    .find_map(|endpoint| missing(state, node, endpoint)),
                None => endpoints.first().map(no_network),
            };
            match (state, missing) {
                (Some(state), None) => return Ok(state),
                (None, None) => return Ok(Arc::default()),
                (_, Some(missing)) => match timeout_at(deadline, done.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Err(OverlayError::Stopped),
                    Err(_) => return Err(missing),
                },
            }
        }
    }

    fn interfaces(&self, spec: &OverlayAttach, state: &NetState) -> Vec<InterfaceSpec> {
        let way_out = spec.endpoints.iter().position(|endpoint| {
            let network = state.networks.get(&endpoint.network_id);
            network.is_some_and(|network| !network.internal)
        });
        let endpoints = spec.endpoints.iter().enumerate();
        endpoints
            .filter_map(|(index, endpoint)| {
                let network = state.networks.get(&endpoint.network_id)?;
                let name = interface_name(spec, index);
                Some(InterfaceSpec {
                    host_link: self.host_link(spec, index),
                    name,
                    endpoint: endpoint.clone(),
                    subnets: network.subnets,
                    mtu: spec.mtu.or(network.mtu).unwrap_or(MESH_MTU),
                    default_route: way_out == Some(index),
                })
            })
            .collect()
    }

    fn host_link(&self, spec: &OverlayAttach, index: usize) -> String {
        let container = spec.container.to_string();
        let interface = interface_name(spec, index);
        self.options
            .instance
            .overlay_link_name(&container, &interface)
    }

    pub(super) async fn detach(&self, container: ContainerId) -> Result<(), OverlayError> {
        let unlinked = self.plane.detach(container).await;
        let unnamed = self.names.close(container).await;
        unlinked.map_err(OverlayError::Kernel)?;
        unnamed.map_err(OverlayError::Netd)
    }

    pub(super) async fn reconcile(&self, running: &[OverlayAttach]) -> Result<(), OverlayError> {
        let mut attached = Attached::new();
        for spec in running {
            let interfaces = spec.endpoints.iter().enumerate();
            let interfaces = interfaces.map(|(index, endpoint)| AttachedInterface {
                host_link: self.host_link(spec, index),
                endpoint: endpoint.clone(),
            });
            attached.insert(spec.container, interfaces.collect());
        }
        let adopted = self.plane.adopt(attached).await;
        let resolvers = running.iter().map(resolver).collect();
        let named = self.names.reconcile(resolvers).await;
        self.want(|_| {});
        adopted.map_err(OverlayError::Kernel)?;
        named.map_err(OverlayError::Netd)
    }

    async fn name(&self, view: &View) -> Result<(), OverlayError> {
        let outlook = Outlook {
            node_id: self.options.node_id,
            suspects: &view.suspects,
            leased: view.leased,
        };
        let told = self.names.update(&view.state, &outlook).await;
        told.map_err(OverlayError::Netd)
    }

    pub(super) async fn check(&self) -> Vec<PeerCheck> {
        let state = self.wanted.borrow().state.clone().unwrap_or_default();
        let statuses = match self.mesh.peers().await {
            Ok(statuses) => statuses,
            Err(err) => {
                tracing::warn!(err = %chain(&err), "the mesh does not say how its peers are");
                Vec::new()
            }
        };
        let probes = lock(&self.prober)
            .as_ref()
            .map(|(_, prober)| prober.peers());
        let probes = probes.unwrap_or_default();
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let own = self.options.node_id;
        let others = state.nodes.values().filter(|node| node.id != own);
        others
            .map(|node| {
                let status = statuses.iter().find(|status| status.node_id == node.id);
                let probe: Option<&PeerProbe> = probes.get(&node.id);
                PeerCheck {
                    node_id: node.id,
                    name: node.name.clone(),
                    path: status.map_or(PeerPath::None, |status| status.path),
                    endpoint: status.and_then(|status| status.endpoint),
                    handshake_age_ms: status.and_then(|status| status.handshake_age).map(millis),
                    rtt_last_us: probe.and_then(|probe| probe.rtt_last).map(micros),
                    rtt_p50_us: probe.and_then(|probe| probe.rtt_p50).map(micros),
                    mtu: MESH_MTU,
                    rx_bytes: status.map_or(0, |status| status.rx_bytes),
                    tx_bytes: status.map_or(0, |status| status.tx_bytes),
                    probes_sent: probe.map_or(0, |probe| probe.sent),
                    probes_answered: probe.map_or(0, |probe| probe.answered),
                    suspect: probe.is_some_and(|probe| probe.suspect),
                }
            })
            .collect()
    }

    pub(super) async fn metrics(&self) -> OverlayMetrics {
        let version = |state: &Option<Arc<NetState>>| {
            state.as_ref().map_or(Version(0), |state| state.version)
        };
        let mut drops = match self.plane.drops().await {
            Ok(drops) => drops,
            Err(err) => {
                tracing::debug!(err = %chain(&err), "there are no counters");
                BTreeMap::new()
            }
        };
        let by_device = self.mesh.drops().await.unwrap_or_default();
        drops.extend(by_device.into_iter().map(|(reason, packets)| {
            let traffic = Traffic { packets, bytes: 0 };
            (format!("wireguard_{reason}"), traffic)
        }));
        let applied = version(&self.done.borrow().state);
        let wanted = version(&self.wanted.borrow().state);
        OverlayMetrics {
            applied,
            wanted,
            peers: self.check().await,
            drops,
            containers: self.plane.containers().await as u64,
            dns: self.names.counters().await.ok(),
        }
    }

    pub(super) async fn leave(&self) -> Result<(), OverlayError> {
        self.want(|wanted| wanted.state = None);
        *lock(&self.prober) = None;
        let removed = self.plane.remove_everything().await;
        let left = self.mesh.leave().await;
        let stopped = self.netd.stop().await;
        removed.map_err(OverlayError::Kernel)?;
        left.map_err(OverlayError::Mesh)?;
        stopped.map_err(OverlayError::Netd)
    }

    /// The prober of the node's own address in the mesh.
    fn prober(&self, address: Option<Ipv4Addr>) -> Option<Prober> {
        let mut prober = lock(&self.prober);
        let Some(address) = address else {
            *prober = None;
            return None;
        };
        match &*prober {
            Some((of, running)) if *of == address => Some(running.clone()),
            _ => {
                let started = Prober::start(ProberOptions {
                    address,
                    device: self.mesh.device().to_owned(),
                    detector: DetectorOptions::default(),
                });
                *prober = Some((address, started.clone()));
                Some(started)
            }
        }
    }

    fn mesh_plan(&self, view: &View) -> MeshPlan {
        let own = view.state.nodes.get(&self.options.node_id);
        let peers = self.plane.peers(view).into_iter().map(|(id, peer)| {
            let peer = MeshPeer {
                public_key: peer.public_key,
                next_key: peer.next_key,
                endpoints: peer.endpoints,
                mesh: peer.mesh,
                allowed: peer.allowed_ips,
                relay: peer.relay,
            };
            (id, peer)
        });
        MeshPlan {
            version: view.state.version,
            own: own.map(|node| OwnKeys {
                public_key: node.public_key,
                next_key: node.next_key,
            }),
            peers: peers.collect(),
        }
    }
}

fn resolver(spec: &OverlayAttach) -> DnsContainer {
    let endpoints = spec.endpoints.iter();
    DnsContainer {
        id: spec.container,
        netns: spec.netns.clone(),
        networks: endpoints.map(|endpoint| endpoint.network_id).collect(),
        options: spec.dns.clone(),
    }
}

fn interface_name(spec: &OverlayAttach, index: usize) -> String {
    format!("eth{}", usize::from(spec.first_interface) + index)
}

fn no_network(endpoint: &Endpoint) -> OverlayError {
    OverlayError::NoNetwork {
        network_id: endpoint.network_id,
        waited: ATTACH_WAIT,
    }
}

/// Why the endpoint can't be on the node yet.
fn missing(state: &NetState, node: NodeId, endpoint: &Endpoint) -> Option<OverlayError> {
    let network_id = endpoint.network_id;
    if !state.networks.contains_key(&network_id) {
        return Some(no_network(endpoint));
    }
    let lease = state.leases.get(&(network_id, node));
    let leased = lease.is_some_and(|lease| {
        let mut blocks = lease.blocks.iter();
        blocks.any(|block| block.contains(&endpoint.ipv4))
    });
    (!leased).then(|| OverlayError::NoLease {
        network_id,
        address: IpNet::from(IpAddr::V4(endpoint.ipv4)),
        waited: ATTACH_WAIT,
    })
}

fn described(interface: &InterfaceSpec, state: &NetState) -> OverlayInterface {
    let network = state.networks.get(&interface.endpoint.network_id);
    let subnets = interface.subnets;
    OverlayInterface {
        network_id: interface.endpoint.network_id,
        network: network
            .map(|network| network.name.clone())
            .unwrap_or_default(),
        name: interface.name.clone(),
        host_link: interface.host_link.clone(),
        mac: interface.mac(),
        ipv4: interface.endpoint.ipv4,
        ipv6: interface.endpoint.ipv6,
        prefix_len: subnets.ipv4.prefix_len(),
        ipv6_prefix_len: subnets.ipv6.map_or(0, |net| net.prefix_len()),
        gateway: subnets.gateway,
        gateway_ipv6: subnets.gateway_ipv6,
        mtu: interface.mtu,
    }
}

/// The loop.
struct Rounds {
    /// It ends with the last handle.
    worker: Weak<Worker>,
    changes: watch::Receiver<Wanted>,
    made: watch::Receiver<u64>,
    generation: watch::Receiver<u64>,
    suspects: Option<watch::Receiver<Suspects>>,
    /// The running netd knows where to answer probes.
    told: bool,
    report: watch::Sender<Done>,
}

impl Rounds {
    async fn run(mut self) {
        let mut failed = false;
        while let Some(worker) = self.wait(failed).await {
            let anew = self.generation.has_changed().unwrap_or(false) || !self.told;
            self.generation.mark_unchanged();
            self.made.mark_unchanged();
            let wanted = self.changes.borrow_and_update().clone();
            let Some(state) = wanted.state.clone() else {
                failed = false;
                continue;
            };
            let suspects = self
                .suspects
                .as_mut()
                .map(|suspects| suspects.borrow_and_update().clone());
            let view = View {
                state: Arc::clone(&state),
                suspects: suspects.unwrap_or_default(),
                leased: wanted.leased,
            };
            let (in_force, result) = self.round(&worker, &view, anew).await;
            let failure = result.err().map(|err| chain(&err));
            if let Some(reason) = &failure {
                tracing::warn!(version = %state.version, err = %reason, "the networks are not as they should be");
            }
            failed = failure.is_some();
            self.told = !failed;
            self.report.send_modify(|done| {
                done.number = wanted.number;
                done.failure = failure;
                if in_force {
                    done.state = Some(state);
                }
            });
        }
    }

    /// Until there is something to do; `None` when nobody holds the overlay any more.
    async fn wait(&mut self, failed: bool) -> Option<Arc<Worker>> {
        let pause = if failed { RETRY_AFTER } else { RESYNC_AFTER };
        let suspicion = async {
            if let Some(suspects) = &mut self.suspects
                && suspects.changed().await.is_ok()
            {
                return;
            }
            std::future::pending().await
        };
        tokio::select! {
            changed = self.changes.changed() => changed.ok()?,
            changed = self.made.changed() => changed.ok()?,
            changed = self.generation.changed() => {
                changed.ok()?;
                self.generation.mark_changed();
            }
            () = suspicion => {}
            () = tokio::time::sleep(pause) => {}
        }
        self.worker.upgrade()
    }

    /// Whether the kernel is as the view says, and what failed first. Every part is done whatever becomes of the
    /// others.
    async fn round(
        &mut self,
        worker: &Worker,
        view: &View,
        anew: bool,
    ) -> (bool, Result<(), OverlayError>) {
        let meshed = worker.mesh.set_plan(worker.mesh_plan(view)).await;
        let applied = worker.plane.apply(view).await;
        if let Ok(report) = &applied
            && !report.is_empty()
        {
            tracing::debug!(version = %view.state.version, ?report, "network state applied");
        }
        let named = worker.name(view).await;
        let probed = self.probes(worker, view, anew).await;
        let in_force = applied.is_ok();
        let result = meshed
            .map_err(OverlayError::Mesh)
            .and(applied.map(drop).map_err(OverlayError::Kernel))
            .and(named)
            .and(probed);
        (in_force, result)
    }

    async fn probes(
        &mut self,
        worker: &Worker,
        view: &View,
        anew: bool,
    ) -> Result<(), OverlayError> {
        let own = view.state.nodes.get(&worker.options.node_id);
        let address = own.map(|node| node.mesh.ipv4);
        let before = lock(&worker.prober).as_ref().map(|(address, _)| *address);
        let prober = worker.prober(address);
        if before != address || self.suspects.is_none() {
            self.suspects = prober.as_ref().map(Prober::suspects);
        }
        if let Some(prober) = prober {
            let others = view.state.nodes.values();
            let others = others.filter(|node| node.id != worker.options.node_id);
            let peers: BTreeMap<NodeId, Ipv4Addr> =
                others.map(|node| (node.id, node.mesh.ipv4)).collect();
            prober.set_peers(&peers);
        }
        if anew || before != address {
            let told = worker.netd.tell(NetdRequest::Responder(address)).await;
            told.map_err(OverlayError::Netd)?;
        }
        Ok(())
    }
}
