//! Sends probes, hears answers, says who is suspected.

use super::detector::PeerProbe;
use shoal_model::NodeId;
use shoal_model::network::MeshAddress;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// The nodes that this node suspects.
pub type Suspects = Arc<BTreeSet<NodeId>>;

/// Where a prober sends from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProberOptions {
    /// The node's own addresses in the mesh. They need not be there yet.
    pub mesh: MeshAddress,
    /// The mesh's network device: what comes in by another is no answer.
    pub device: String,
}

/// Why there is no prober.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No socket.
    #[error("failed to open a socket at the mesh address `{address}`")]
    Socket {
        /// The address.
        address: IpAddr,
        /// The kernel's answer.
        #[source]
        err: io::Error,
    },
}

/// A running prober. It ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Prober {
    suspects: watch::Receiver<Suspects>,
}

impl Prober {
    /// Opens the socket and starts. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn start(_options: ProberOptions) -> Result<Self, ProbeError> {
        let (_, suspects) = watch::channel(Suspects::default());
        Ok(Self { suspects })
    }

    /// Makes exactly `peers` (by their mesh addresses) the peers that are probed.
    pub fn set_peers(&self, _peers: BTreeMap<NodeId, IpAddr>) {}

    /// Who is suspected; changes whenever that does.
    pub fn suspects(&self) -> watch::Receiver<Suspects> {
        self.suspects.clone()
    }

    /// What is known of each peer.
    pub fn peers(&self) -> BTreeMap<NodeId, PeerProbe> {
        BTreeMap::new()
    }
}
