//! The resolver of this node's containers.

use super::options::DnsOptions;
use super::table::DnsUpdate;
use super::zone::Zone;
use serde::{Deserialize, Serialize};
use shoal_model::{ContainerId, NetworkId};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// What a server needs to know of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsServerOptions {
    /// The host's resolver settings: /etc/resolv.conf. Read again when it changes.
    pub host_resolv_conf: PathBuf,
}

/// A container that gets a resolver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsContainer {
    /// The container.
    pub id: ContainerId,
    /// Where its network namespace is pinned.
    pub netns: PathBuf,
    /// Its networks in the order in which names are looked up.
    pub networks: Vec<NetworkId>,
    /// Its resolver settings.
    pub options: DnsOptions,
}

/// Why a container has no resolver.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// Its namespace can't be entered, or has no room for sockets.
    #[error(
        "failed to open the resolver of container `{container}` in network namespace `{netns}`"
    )]
    Open {
        /// The container.
        container: ContainerId,
        /// Its namespace.
        netns: PathBuf,
        /// The kernel's answer.
        #[source]
        err: io::Error,
    },
}

/// Questions by what became of them, since the server started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsCounters {
    /// Answered with addresses or a name.
    pub answered: u64,
    /// The name exists, but has no address of the wanted family.
    pub empty: u64,
    /// An address of ours that nobody has.
    pub unknown: u64,
    /// Asked outside, and answered from there.
    pub forwarded: u64,
    /// Asked outside, and nobody answered; or too many questions were open.
    pub failed: u64,
    /// Not for a container in internal networks only, or a kind of question that is not answered.
    pub refused: u64,
    /// Not understood; no answer was given.
    pub malformed: u64,
}

/// A running server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DnsServer {
    zone: Arc<RwLock<Zone>>,
    containers: Arc<Mutex<BTreeMap<ContainerId, DnsContainer>>>,
}

impl DnsServer {
    /// A server without names and containers. Must be called within a tokio runtime.
    pub fn start(_options: DnsServerOptions) -> Self {
        Self {
            zone: Arc::default(),
            containers: Arc::default(),
        }
    }

    /// Changes what is answered, at once and as a whole.
    pub fn set_table(&self, update: DnsUpdate) {
        let mut zone = self.zone.write().unwrap_or_else(PoisonError::into_inner);
        zone.apply(update);
    }

    /// Gives a container its resolver, or changes networks and settings of the one that it has.
    ///
    /// # Errors
    /// When the namespace does not take it; the container has no resolver then.
    pub async fn open_container(&self, container: DnsContainer) -> Result<(), DnsError> {
        Err(DnsError::Open {
            container: container.id,
            netns: container.netns,
            err: io::Error::other("not available yet"),
        })
    }

    /// Takes a container's resolver away; harmless if it has none.
    pub async fn close_container(&self, id: ContainerId) {
        let mut containers = self
            .containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        containers.remove(&id);
    }

    /// The containers that have a resolver.
    pub fn containers(&self) -> Vec<DnsContainer> {
        let containers = self
            .containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        containers.values().cloned().collect()
    }

    /// What became of the questions so far.
    pub fn counters(&self) -> DnsCounters {
        DnsCounters::default()
    }
}
