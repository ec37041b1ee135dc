//! Local networks of one node: bridges, the namespaces of containers, NAT, published ports.

pub(crate) mod links;
mod machine;
pub mod netns;
mod plan;
mod reserve;
mod ruleset;

pub(crate) use links::connect;
pub use machine::MACHINE_NETWORKS_MAX;
pub use plan::{
    AttachSpec, Attachment, BridgeSpec, InstanceTag, LocalPlan, PortPublish, Transport,
};

use crate::nft::{self, NftError};
use reserve::Reservation;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Why a local network operation failed.
#[derive(Debug, thiserror::Error)]
pub enum LocalNetError {
    /// A netlink request about a link, an address or a route failed.
    #[error("failed to {action} `{name}`")]
    Link {
        /// `create bridge`, `attach`…
        action: &'static str,
        /// The link.
        name: String,
        /// The kernel's answer.
        #[source]
        err: rtnetlink::Error,
    },
    /// A link that must exist does not.
    #[error("link `{name}` does not exist")]
    NoLink {
        /// The link.
        name: String,
    },
    /// A network namespace could not be made, entered or removed.
    #[error("failed to {action} network namespace `{path}`")]
    Namespace {
        /// `create`, `enter`, `remove`.
        action: &'static str,
        /// Where it is pinned.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        err: io::Error,
    },
    /// A kernel setting could not be written.
    #[error("failed to set `{path}`")]
    Setting {
        /// File below /proc/sys.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        err: io::Error,
    },
    /// Packet filter.
    #[error("failed to change the packet filter")]
    Filter(#[from] NftError),
    /// Somebody has the port.
    #[error(
        "port {host_port}/{transport} on {host_ip} is already allocated: it is held by {holder}"
    )]
    PortTaken {
        /// The address.
        host_ip: IpAddr,
        /// The port.
        host_port: u16,
        /// TCP or UDP.
        transport: Transport,
        /// A container's id, or `another process`.
        holder: String,
    },
    /// The address can't be bound: not ours, or no rights.
    #[error("failed to reserve port {host_port}/{transport} on {host_ip}")]
    Reserve {
        /// The address.
        host_ip: IpAddr,
        /// The port.
        host_port: u16,
        /// TCP or UDP.
        transport: Transport,
        /// The kernel's answer.
        #[source]
        err: io::Error,
    },
    /// Something that is not built.
    #[error("{what} is not supported")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
    },
    /// The runtime is shutting down.
    #[error("network worker was stopped")]
    Stopped,
}

/// Bridges and published ports as they are in force.
#[derive(Default)]
struct InForce {
    bridges: BTreeMap<String, BridgeSpec>,
    ports: BTreeMap<String, Vec<Published>>,
}

struct Published {
    port: PortPublish,
    /// Keeps the port from everybody else for as long as it is published.
    _reservation: Reservation,
}

impl InForce {
    fn plan(&self) -> LocalPlan {
        LocalPlan {
            bridges: self.bridges.values().cloned().collect(),
            ports: self
                .ports
                .values()
                .flatten()
                .map(|published| published.port.clone())
                .collect(),
        }
    }
}

/// The local networks of one daemon. Cheap to clone.
#[derive(Clone)]
pub struct LocalNet {
    tag: InstanceTag,
    netlink: rtnetlink::Handle,
    in_force: Arc<Mutex<InForce>>,
    retired: Arc<Mutex<Vec<PathBuf>>>,
    /// Held while retired namespaces are unpinned.
    clearing: Arc<tokio::sync::Mutex<()>>,
}

/// How long a namespace may wait for others to be cleared away with it.
pub const RETIREMENT: Duration = Duration::from_millis(400);

impl LocalNet {
    /// Opens the local networks of the network namespace that the calling thread is in.
    ///
    /// Must be called within a tokio runtime. Touches nothing yet.
    ///
    /// # Errors
    /// When no netlink socket can be had.
    pub fn open(tag: InstanceTag) -> Result<Self, LocalNetError> {
        let netlink = links::connect().map_err(|err| LocalNetError::Namespace {
            action: "open netlink in",
            path: PathBuf::from("/proc/self/ns/net"),
            err,
        })?;
        Ok(Self {
            tag,
            netlink,
            in_force: Arc::default(),
            retired: Arc::default(),
            clearing: Arc::default(),
        })
    }

    /// The name of the bridge of network `short`, at most eight characters, for this instance.
    pub fn bridge_name(&self, short: &str) -> String {
        self.tag.bridge_name(short)
    }

    /// Makes the kernel have exactly `plan`: at start-up, before anything else. Links and rules with our tag that the
    /// plan does not name are removed. Veth links belong to containers' namespaces and go with them; those whose
    /// name is not in `host_links` are removed too.
    ///
    /// # Errors
    /// The first failure; the rest of the plan is then not in force.
    pub async fn reconcile(
        &self,
        plan: LocalPlan,
        host_links: &[String],
    ) -> Result<(), LocalNetError> {
        let names: Vec<_> = plan
            .bridges
            .iter()
            .map(|bridge| bridge.name.clone())
            .collect();
        for (name, index) in links::local_links(&self.netlink, &self.tag).await? {
            if !names.contains(&name) && !host_links.contains(&name) {
                links::delete(&self.netlink, &name, index).await?;
            }
        }
        for bridge in &plan.bridges {
            links::ensure_bridge(&self.netlink, bridge).await?;
        }
        let mut in_force = InForce::default();
        for bridge in plan.bridges {
            in_force.bridges.insert(bridge.name.clone(), bridge);
        }
        for port in plan.ports {
            let published = self.reserve(&in_force, port)?;
            in_force
                .ports
                .entry(published.port.container.clone())
                .or_default()
                .push(published);
        }
        self.install(&in_force.plan()).await?;
        *self.lock() = in_force;
        Ok(())
    }

    /// Makes a bridge with its address, its NAT and its isolation; harmless if it is there.
    ///
    /// # Errors
    /// A refused request names the bridge.
    pub async fn ensure_bridge(&self, bridge: BridgeSpec) -> Result<(), LocalNetError> {
        if self.lock().bridges.get(&bridge.name) == Some(&bridge) {
            return Ok(());
        }
        links::ensure_bridge(&self.netlink, &bridge).await?;
        let plan = {
            let mut in_force = self.lock();
            in_force.bridges.insert(bridge.name.clone(), bridge);
            in_force.plan()
        };
        self.install(&plan).await
    }

    /// Removes a bridge and its rules; harmless if it is not there.
    ///
    /// # Errors
    /// A refused request names the bridge.
    pub async fn remove_bridge(&self, name: &str) -> Result<(), LocalNetError> {
        let plan = {
            let mut in_force = self.lock();
            in_force.bridges.remove(name);
            in_force.plan()
        };
        self.install(&plan).await?;
        match links::index_of(&self.netlink, name).await? {
            Some(index) => links::delete(&self.netlink, name, index).await,
            None => Ok(()),
        }
    }

    /// Makes a network namespace with its loopback up, pinned at `path`.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is left then.
    pub async fn create_netns(&self, path: &Path) -> Result<(), LocalNetError> {
        if path.exists() {
            // The name may still be that of a retired one: a container that is started again.
            let _clearing = self.clearing.lock().await;
            self.forget_retired(path);
            netns::delete(path.to_owned()).await?;
        }
        netns::create(path.to_owned()).await
    }

    fn forget_retired(&self, path: &Path) {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.retain(|other| other != path);
    }

    /// Unpins the namespace at `path`; its links go with its last process. Harmless if it is not there.
    ///
    /// # Errors
    /// When it can't be unmounted.
    pub async fn delete_netns(&self, path: &Path) -> Result<(), LocalNetError> {
        netns::delete(path.to_owned()).await
    }

    /// Unpins the namespace at `path` within [`RETIREMENT`], together with others that end meanwhile.
    ///
    /// The kernel takes tens of milliseconds to clear a namespace with links away, and a container that starts in that
    /// time would wait for it. Until then the namespace is dead, but its address still answers: give it to nobody.
    pub fn retire_netns(&self, path: &Path) {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.push(path.to_owned());
        if retired.len() > 1 {
            // Whoever retired the first one has started the clock.
            return;
        }
        drop(retired);
        let net = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(RETIREMENT).await;
            if let Err(err) = net.delete_retired().await {
                tracing::warn!(
                    err = &err as &dyn std::error::Error,
                    "a network namespace stays until the next start"
                );
            }
        });
    }

    /// Unpins every retired namespace now: before the daemon ends.
    ///
    /// # Errors
    /// The last failure; the others are unpinned all the same.
    pub async fn delete_retired(&self) -> Result<(), LocalNetError> {
        let _clearing = self.clearing.lock().await;
        let paths =
            std::mem::take(&mut *self.retired.lock().unwrap_or_else(PoisonError::into_inner));
        if paths.is_empty() {
            Ok(())
        } else {
            netns::delete_all(paths).await
        }
    }

    /// Puts an interface into the namespace at `netns`, connected to a bridge, with address and default route.
    ///
    /// # Errors
    /// When the kernel refuses; the pair of links is removed again.
    pub async fn attach(
        &self,
        netns: &Path,
        spec: &AttachSpec,
    ) -> Result<Attachment, LocalNetError> {
        let host_link = self.tag.veth_name(&spec.container, &spec.interface);
        if let Some(index) = links::index_of(&self.netlink, &host_link).await? {
            // Of the container's last run: its namespace is gone, and the kernel is still clearing away.
            links::delete(&self.netlink, &host_link, index).await?;
        }
        let created = links::attach(&self.netlink, netns, &host_link, spec).await;
        if created.is_err()
            && let Ok(Some(index)) = links::index_of(&self.netlink, &host_link).await
        {
            links::delete(&self.netlink, &host_link, index).await?;
        }
        created.map(|mac| Attachment { host_link, mac })
    }

    /// Removes the interface of `container` again; harmless if it is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn detach(&self, container: &str, interface: &str) -> Result<(), LocalNetError> {
        let host_link = self.tag.veth_name(container, interface);
        match links::index_of(&self.netlink, &host_link).await? {
            Some(index) => links::delete(&self.netlink, &host_link, index).await,
            None => Ok(()),
        }
    }

    /// Publishes all of `ports`, or none. A host port of 0 takes a free one; the answer has the numbers in use.
    ///
    /// # Errors
    /// [`LocalNetError::PortTaken`] names the holder.
    pub async fn publish(&self, ports: &[PortPublish]) -> Result<Vec<PortPublish>, LocalNetError> {
        let mut published = Vec::with_capacity(ports.len());
        for port in ports {
            let reserved = self.reserve(&self.lock(), port.clone())?;
            published.push(reserved);
        }
        let chosen: Vec<_> = published.iter().map(|one| one.port.clone()).collect();
        let batch = ruleset::add_ports(&self.tag, &chosen);
        self.commit(batch).await?;
        let mut in_force = self.lock();
        for one in published {
            in_force
                .ports
                .entry(one.port.container.clone())
                .or_default()
                .push(one);
        }
        Ok(chosen)
    }

    /// Withdraws every port of `container`.
    ///
    /// # Errors
    /// When the packet filter refuses; the ports stay reserved then.
    pub async fn unpublish(&self, container: &str) -> Result<(), LocalNetError> {
        let ports: Vec<_> = match self.lock().ports.get(container) {
            Some(published) => published.iter().map(|one| one.port.clone()).collect(),
            None => return Ok(()),
        };
        self.commit(ruleset::remove_ports(&self.tag, &ports))
            .await?;
        self.lock().ports.remove(container);
        Ok(())
    }

    /// Removes every link and rule of this instance: when its data is removed for good.
    ///
    /// # Errors
    /// The first failure.
    pub async fn remove_everything(&self) -> Result<(), LocalNetError> {
        for (name, index) in links::local_links(&self.netlink, &self.tag).await? {
            links::delete(&self.netlink, &name, index).await?;
        }
        *self.lock() = InForce::default();
        self.commit(ruleset::remove_table(&self.tag)).await
    }

    fn reserve(&self, in_force: &InForce, port: PortPublish) -> Result<Published, LocalNetError> {
        let holder = || {
            let same = |held: &&Published| {
                held.port.host_port == port.host_port && held.port.transport == port.transport
            };
            in_force
                .ports
                .iter()
                .find(|(_, held)| held.iter().any(|one| same(&one)))
                .map_or_else(
                    || "another process".to_owned(),
                    |(name, _)| format!("`{name}`"),
                )
        };
        let reservation = Reservation::take(&port, holder)?;
        let mut port = port;
        port.host_port = reservation.port();
        Ok(Published {
            port,
            _reservation: reservation,
        })
    }

    async fn install(&self, plan: &LocalPlan) -> Result<(), LocalNetError> {
        self.commit(ruleset::replace_table(&self.tag, plan)).await
    }

    async fn commit(&self, batch: nft::Batch) -> Result<(), LocalNetError> {
        let table = self.tag.table_name();
        tokio::task::spawn_blocking(move || nft::commit(&table, batch))
            .await
            .map_err(|_| LocalNetError::Stopped)?
            .map_err(LocalNetError::Filter)
    }

    fn lock(&self) -> MutexGuard<'_, InForce> {
        // The map is whole even if a holder of the lock panicked: each change is one insertion or removal.
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
