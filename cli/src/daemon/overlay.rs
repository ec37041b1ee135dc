//! The node's part in networks across hosts: starts it, feeds it, and asks the managers for addresses.
//!
//! A machine that can't have an overlay is a node all the same: its containers are refused networks of the cluster,
//! with the reason.

use super::chain;
use super::joined::Ports;
use crate::args::daemon::DaemonArgs;
use async_trait::async_trait;
use shoal_agent::{AgentHandle, NetworkSink, SinkError};
use shoal_engine::{Attacher, EngineHandle};
use shoal_model::control::{ControlRequest, ControlResponse};
use shoal_model::netstate::NetState;
use shoal_model::network::{Attachment, AttachmentWish};
use shoal_model::node::NodeDescription;
use shoal_model::rpc::{ErrorCode, Method, RpcError};
use shoal_model::{ContainerId, NodeId, Version};
use shoal_overlay_net::{
    InstanceTag, LocalNet, OverlayError, OverlayHandle, OverlayOptions, WireGuardChoice,
};
use shoal_transport::{CallError, Expect, call};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// Time between two looks at the machine's own routes.
const ROUTES_PERIOD: Duration = Duration::from_secs(30);
/// Longest time for one manager to answer a request for addresses.
const ATTACH_DEADLINE: Duration = Duration::from_secs(5);

/// What the daemon's command line says about the overlay.
#[derive(Debug, Clone)]
pub(crate) struct OverlaySettings {
    instance: InstanceTag,
    data_root: PathBuf,
    run_root: PathBuf,
    exe: PathBuf,
    wireguard: WireGuardChoice,
    wireguard_port: u16,
    /// Control and bulk port: the same on every node, unless nodes are started with different ones.
    daemon_ports: BTreeSet<u16>,
}

impl OverlaySettings {
    pub(crate) fn new(args: &DaemonArgs) -> Result<Self, String> {
        let exe =
            std::env::current_exe().map_err(|err| format!("failed to find this program: {err}"))?;
        Ok(Self {
            instance: InstanceTag::derive(&args.data_root.to_string_lossy()),
            data_root: args.data_root.clone(),
            run_root: args.run_root.clone(),
            exe,
            wireguard: args.wireguard.into(),
            wireguard_port: args.wireguard_port,
            daemon_ports: [args.listen.port(), args.listen.port().saturating_add(1)].into(),
        })
    }

    fn options(&self, node_id: NodeId, advertise: IpAddr) -> OverlayOptions {
        OverlayOptions {
            instance: self.instance.clone(),
            node_id,
            data_root: self.data_root.clone(),
            run_root: self.run_root.clone(),
            exe: self.exe.clone(),
            wireguard: self.wireguard,
            wireguard_port: self.wireguard_port,
            advertise,
            daemon_ports: self.daemon_ports.clone(),
        }
    }

    /// Starts the overlay, and makes the engine use it. `None`: this machine can't have one, and the engine knows why.
    pub(crate) async fn start(
        &self,
        node_id: NodeId,
        advertise: IpAddr,
        engine: &EngineHandle,
        addresses: Arc<Addresses>,
    ) -> Option<OverlayHandle> {
        let started = OverlayHandle::start(self.options(node_id, advertise)).await;
        let overlay = match started {
            Ok(overlay) => overlay,
            Err(err) => {
                let reason = chain(&err);
                tracing::error!(
                    err = %reason,
                    "this node has no part in networks across hosts; containers that need one are refused"
                );
                engine.refuse_overlay(reason);
                return None;
            }
        };
        if let Err(err) = engine.join_overlay(overlay.clone(), addresses).await {
            tracing::error!(err = %chain(&err), "the engine did not take the overlay");
        }
        Some(overlay)
    }

    /// Fills in what the description says about networks.
    pub(crate) async fn describe(
        &self,
        description: &mut NodeDescription,
        overlay: Option<&OverlayHandle>,
    ) {
        description.wireguard = overlay.map(OverlayHandle::wireguard);
        let networks = match LocalNet::open(self.instance.clone()) {
            Ok(net) => net.machine_networks().await,
            Err(err) => Err(err),
        };
        match networks {
            Ok(networks) => description.local_networks = networks,
            Err(err) => {
                tracing::warn!(err = %chain(&err), "the machine's own routes are not known")
            }
        }
    }

    /// Tells the managers whenever the node's WireGuard or the machine's routes change.
    pub(crate) async fn follow(
        self,
        overlay: Option<OverlayHandle>,
        agent: AgentHandle,
        mut description: NodeDescription,
    ) {
        let mut keys = overlay.as_ref().map(OverlayHandle::descriptions);
        let mut ticks = tokio::time::interval(ROUTES_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let changed = async {
                match &mut keys {
                    Some(keys) => keys.changed().await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                alive = changed => if !alive {
                    keys = None;
                },
                _ = ticks.tick() => {}
            }
            let before = description.clone();
            self.describe(&mut description, overlay.as_ref()).await;
            if description != before {
                agent.describe(description.clone());
            }
        }
    }
}

/// The overlay as the agent sees it.
pub(crate) struct Sink(pub(crate) OverlayHandle);

fn sink_error(err: &OverlayError) -> SinkError {
    SinkError { reason: chain(err) }
}

#[async_trait]
impl NetworkSink for Sink {
    async fn apply(&self, state: Arc<NetState>) -> Result<Version, SinkError> {
        self.0.apply(state).await.map_err(|err| sink_error(&err))
    }

    async fn confirmed(&self, version: Version) {
        self.0.confirmed(version).await;
    }

    async fn lease(&self, live: bool) {
        self.0.lease(live).await;
    }

    async fn rotate_key(&self) -> Result<(), SinkError> {
        self.0.rotate_key().await.map_err(|err| sink_error(&err))
    }
}

/// Asks the managers for addresses of this node's own containers.
pub(crate) struct Addresses {
    ports: Arc<Ports>,
    /// Knows the managers; set once it runs.
    agent: OnceLock<AgentHandle>,
}

impl Addresses {
    pub(crate) fn new(ports: Arc<Ports>) -> Self {
        Self {
            ports,
            agent: OnceLock::new(),
        }
    }

    pub(crate) fn set_agent(&self, agent: AgentHandle) {
        // It is set once, by whoever made this.
        drop(self.agent.set(agent));
    }

    /// The managers one after the other, the last leader first, until one decides.
    async fn ask(&self, request: &ControlRequest) -> Result<ControlResponse, RpcError> {
        let managers = self
            .agent
            .get()
            .map(AgentHandle::managers)
            .unwrap_or_default();
        let mut failure = RpcError::new(
            ErrorCode::Unavailable,
            "no manager is known that could give out addresses",
        );
        for peer in managers {
            let answer = call(
                &self.ports.calls,
                peer.addr,
                Expect::AnyManager,
                Method::Attach,
                request,
                ATTACH_DEADLINE,
            )
            .await;
            match answer {
                Ok(response) => return Ok(response),
                Err(CallError::Remote(error)) if !error.code.is_retryable() => return Err(error),
                Err(CallError::Remote(error)) => failure = error,
                Err(err) => failure = RpcError::new(ErrorCode::Unavailable, chain(&err)),
            }
        }
        Err(failure)
    }
}

#[async_trait]
impl Attacher for Addresses {
    async fn attach(
        &self,
        container: ContainerId,
        name: &str,
        wishes: &[AttachmentWish],
    ) -> Result<Attachment, RpcError> {
        let request = ControlRequest::AttachContainer {
            container_id: container,
            name: name.to_owned(),
            wishes: wishes.to_vec(),
        };
        match self.ask(&request).await? {
            ControlResponse::Attached(attachment) => Ok(*attachment),
            _ => Err(RpcError::new(
                ErrorCode::Internal,
                "a manager answered a request for addresses with something else",
            )),
        }
    }

    async fn detach(&self, container: ContainerId) -> Result<(), RpcError> {
        match self.ask(&ControlRequest::DetachContainer(container)).await {
            Ok(_) => Ok(()),
            Err(error) if error.code == ErrorCode::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}
