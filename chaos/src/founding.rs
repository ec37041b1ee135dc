//! The first entries of the simulated cluster. There are no certificates: its network knows who a peer is.

use crate::network::CONTROL_PORT;
use crate::world::{MANAGERS, NODES, digest, host, node_id};
use shoal_model::cluster::{JoinSecret, Redacted, RootCa};
use shoal_model::command::{FEATURE_LEVEL, Object, StoreAction};
use shoal_model::network::{WireGuardBackend, WireGuardDescription};
use shoal_model::node::ManagerStatus;
use shoal_model::session::ManagerPeer;
use shoal_model::{
    Cluster, ClusterId, ClusterSpec, Meta, Node, NodeDescription, NodeRole, NodeSpec, NodeStatus,
    RaftNodeId, Resources,
};
use std::net::SocketAddr;

/// Entries between two snapshots: few, so that members which were away get one.
const SNAPSHOT_INTERVAL_ENTRIES: u64 = 100;

/// What nodes say of their WireGuard, which there is none of.
const WIREGUARD_PORT: u16 = 51_820;

/// Where a node listens.
pub(crate) fn addr(number: u64) -> SocketAddr {
    SocketAddr::new(turmoil::lookup(host(number)), CONTROL_PORT)
}

/// All managers.
pub(crate) fn managers() -> Vec<ManagerPeer> {
    let peer = |number| ManagerPeer {
        node_id: node_id(number),
        addr: addr(number),
    };
    (1..=MANAGERS).map(peer).collect()
}

/// What a node says of itself.
pub(crate) fn description(number: u64) -> NodeDescription {
    NodeDescription {
        hostname: host(number),
        os: "linux".to_owned(),
        architecture: "amd64".to_owned(),
        resources: Resources {
            nano_cpus: 8_000_000_000,
            memory_bytes: 1 << 34,
        },
        feature_level_max: FEATURE_LEVEL,
        control_addr: Some(addr(number)),
        wireguard: Some(WireGuardDescription {
            public_key: digest(number),
            next_key: None,
            port: WIREGUARD_PORT,
            backend: WireGuardBackend::Userspace,
        }),
        ..NodeDescription::default()
    }
}

/// The cluster with all its nodes, of which the first is the only member of Raft.
pub(crate) fn first_entries() -> Vec<Vec<StoreAction>> {
    let secret = || JoinSecret {
        secret: Redacted("nobody joins".to_owned()),
        expires_at: None,
        uses_left: None,
    };
    let cluster = Cluster {
        id: ClusterId::from_bits(1),
        meta: Meta::default(),
        spec: ClusterSpec {
            snapshot_interval_entries: SNAPSHOT_INTERVAL_ENTRIES,
            ..ClusterSpec::default()
        },
        root_ca: RootCa {
            certificate_der: Vec::new(),
            key_der: Redacted(Vec::new()),
        },
        worker_secret: secret(),
        manager_secret: secret(),
        last_raft_id: 1,
    };
    let nodes = (1..=NODES).map(|number| StoreAction::Create(Object::Node(Box::new(node(number)))));
    let cluster = StoreAction::Create(Object::Cluster(Box::new(cluster)));
    vec![std::iter::once(cluster).chain(nodes).collect()]
}

fn node(number: u64) -> Node {
    let role = match number <= MANAGERS {
        true => NodeRole::Manager,
        false => NodeRole::Worker,
    };
    let manager = ManagerStatus {
        raft_id: RaftNodeId(1),
        addr: addr(1),
    };
    Node {
        id: node_id(number),
        meta: Meta::default(),
        spec: NodeSpec {
            role,
            ..NodeSpec::default()
        },
        description: None,
        status: NodeStatus::default(),
        role,
        manager: (number == 1).then_some(manager),
        public_key_digest: digest(number),
        hold_until: None,
        mesh: None,
    }
}
