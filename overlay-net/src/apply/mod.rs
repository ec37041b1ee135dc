//! Making the kernel be as a plan says.
//!
//! [`DataPlane`] owns the packet filter's table, the tunnel, and every route, neighbour and rule of the overlay on one
//! host. Links, routes and their like are read from the kernel each time and compared as sets; of the packet filter
//! the last model is kept, and replaced as a whole when it is not known to be in force. Applying twice changes
//! nothing. Only what has our tag or our origin is ever removed.

mod attach;
mod conntrack;
mod diff;
mod kernel;
mod settings;

pub use attach::InterfaceSpec;

use crate::local::links::connect;
use crate::local::{InstanceTag, LocalNetError};
use crate::metrics::Traffic;
use crate::nft::{self, Batch, FAMILY_INET, Model, NftError};
use crate::plan::{self, Attached, AttachedInterface, LinkNames, Plan, PlanInput};
use crate::probe::Outlook;
use kernel::Kernel;
use shoal_model::netstate::NetState;
use shoal_model::{ContainerId, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Mutex;

/// Why the kernel could not be made to be as planned.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Links, addresses, routes.
    #[error("failed to configure the overlay's links")]
    Links(#[source] LocalNetError),
    /// Packet filter.
    #[error("failed to change the overlay's packet filter")]
    Filter(#[source] NftError),
    /// Connection tracking.
    #[error("failed to forget the connections of backends that are gone")]
    Connections(#[source] io::Error),
    /// The runtime is shutting down.
    #[error("the overlay's worker was stopped")]
    Stopped,
}

impl From<LocalNetError> for ApplyError {
    fn from(err: LocalNetError) -> Self {
        Self::Links(err)
    }
}

/// What a data plane is opened with.
#[derive(Debug, Clone)]
pub struct DataPlaneOptions {
    /// Marks its kernel objects.
    pub instance: InstanceTag,
    /// The node.
    pub node_id: NodeId,
    /// UDP ports of daemons, which no container may reach at any node's address.
    pub daemon_ports: BTreeSet<u16>,
    /// MTU of the mesh's device in bytes.
    pub mesh_mtu: u32,
}

/// What the node knows by itself when it applies a state.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// What the managers told.
    pub state: Arc<NetState>,
    /// Nodes that do not answer.
    pub suspects: Arc<BTreeSet<NodeId>>,
    /// The node has a live lease.
    pub leased: bool,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Changes of links, addresses, routes, neighbours and rules.
    pub link_changes: usize,
    /// Whether the packet filter changed.
    pub filter_changed: bool,
    /// Tracked connections that were forgotten.
    pub connections_forgotten: usize,
}

impl Report {
    /// Nothing was done.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The overlay's part of one host's kernel. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DataPlane {
    options: Arc<DataPlaneOptions>,
    names: Arc<LinkNames>,
    kernel: Kernel,
    in_force: Arc<Mutex<InForce>>,
}

#[derive(Debug, Default)]
struct InForce {
    attached: Attached,
    view: View,
    /// `None`: not known, so that the whole table is written.
    filter: Option<Model>,
    /// Where connections lead; `None` before the first plan.
    fronts: Option<plan::Fronts>,
}

impl DataPlane {
    /// Opens the data plane of the network namespace that the calling thread is in. Touches nothing yet.
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When no netlink socket can be had.
    pub fn open(options: DataPlaneOptions) -> Result<Self, ApplyError> {
        let netlink = connect().map_err(|err| LocalNetError::Namespace {
            action: "open netlink in",
            path: PathBuf::from("/proc/self/ns/net"),
            err,
        })?;
        let names = LinkNames::of(&options.instance);
        Ok(Self {
            options: Arc::new(options),
            names: Arc::new(names),
            kernel: Kernel::new(netlink),
            in_force: Arc::default(),
        })
    }

    /// The names of its devices.
    pub fn names(&self) -> &LinkNames {
        &self.names
    }

    fn input<'a>(&'a self, view: &'a View, attached: &'a Attached) -> PlanInput<'a> {
        PlanInput {
            tag: &self.options.instance,
            state: &view.state,
            outlook: Outlook {
                node_id: self.options.node_id,
                suspects: &view.suspects,
                leased: view.leased,
            },
            attached,
            daemon_ports: &self.options.daemon_ports,
            mesh_mtu: self.options.mesh_mtu,
        }
    }

    /// The peers that the mesh must have for a view.
    pub fn peers(&self, view: &View) -> BTreeMap<NodeId, plan::PeerPlan> {
        plan::peers(&self.input(view, &Attached::new()))
    }

    /// Makes the kernel be as the view says. What can't be done is tried again by the next call; the rest is done all
    /// the same.
    ///
    /// # Errors
    /// The first failure.
    pub async fn apply(&self, view: &View) -> Result<Report, ApplyError> {
        let mut in_force = self.in_force.lock().await;
        let plan = plan::plan(&self.input(view, &in_force.attached));
        in_force.view = view.clone();
        let mut report = Report::default();
        // First the ways, then who is sent there; and nobody's connections are forgotten before both are in force.
        let linked = self.kernel.apply(&plan).await;
        let filtered = self.apply_filter(&mut in_force, &plan).await;
        report.filter_changed = filtered?;
        report.link_changes = linked?;
        let forget = plan.fronts.forgotten_since(in_force.fronts.as_ref());
        in_force.fronts = Some(plan.fronts);
        if !forget.is_empty() {
            report.connections_forgotten = blocking(move || conntrack::forget(&forget))
                .await?
                .map_err(ApplyError::Connections)?;
        }
        Ok(report)
    }

    async fn apply_filter(&self, in_force: &mut InForce, plan: &Plan) -> Result<bool, ApplyError> {
        let table = self.names.table.clone();
        let there = blocking(move || nft::table_exists(FAMILY_INET, &table))
            .await?
            .map_err(ApplyError::Filter)?;
        let known = in_force.filter.as_ref().filter(|_| there);
        let changes =
            known.and_then(|now| now.changes_to(&plan.filter, FAMILY_INET, &self.names.table));
        if let Some(batch) = changes {
            if batch.is_empty() {
                return Ok(false);
            }
            match self.commit(batch).await {
                Ok(()) => {
                    in_force.filter = Some(plan.filter.clone());
                    return Ok(true);
                }
                Err(err) => tracing::warn!(
                    err = &err as &dyn std::error::Error,
                    "packet filter is not as expected and is written anew"
                ),
            }
        }
        in_force.filter = None;
        let whole = plan.filter.replace(FAMILY_INET, &self.names.table);
        self.commit(whole).await?;
        in_force.filter = Some(plan.filter.clone());
        Ok(true)
    }

    async fn commit(&self, batch: Batch) -> Result<(), ApplyError> {
        let table = self.names.table.clone();
        blocking(move || nft::commit(&table, batch))
            .await?
            .map_err(ApplyError::Filter)
    }

    /// Gives a container its interfaces: addresses, routes and neighbours inside; routes, neighbours and the right to
    /// send outside.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is left then.
    pub async fn attach(
        &self,
        container: ContainerId,
        netns: &Path,
        interfaces: &[InterfaceSpec],
    ) -> Result<(), ApplyError> {
        let attached: Vec<_> = interfaces.iter().map(InterfaceSpec::attached).collect();
        self.admit(container, attached).await?;
        let made = attach::make(&self.kernel, netns, interfaces).await;
        if let Err(err) = made {
            if let Err(left) = self.detach(container).await {
                tracing::warn!(
                    container_id = %container,
                    err = &left as &dyn std::error::Error,
                    "parts of an interface stay until the next state"
                );
            }
            return Err(err);
        }
        Ok(())
    }

    /// The packet filter lets the container send. Before there are links, so that no packet is taken for a forged one.
    async fn admit(
        &self,
        container: ContainerId,
        interfaces: Vec<AttachedInterface>,
    ) -> Result<(), ApplyError> {
        let mut in_force = self.in_force.lock().await;
        let InForce {
            attached,
            view,
            filter,
            ..
        } = &mut *in_force;
        let before = attached.insert(container, interfaces.clone());
        let Some(model) = filter else {
            return Ok(());
        };
        let mut next = nft::SetChanges::default();
        for interface in before.iter().flatten() {
            for (set, range, _) in plan::endpoint_elements(interface, &view.state) {
                next.take(&set, &range);
            }
        }
        for interface in &interfaces {
            for (set, range, value) in plan::endpoint_elements(interface, &view.state) {
                next.put(&set, range, value);
            }
        }
        self.commit_sets(model, next).await
    }

    /// Takes a container's interfaces away; harmless if it has none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn detach(&self, container: ContainerId) -> Result<(), ApplyError> {
        let mut in_force = self.in_force.lock().await;
        let Some(interfaces) = in_force.attached.remove(&container) else {
            return Ok(());
        };
        for interface in &interfaces {
            // The routes and neighbours of a link go with it.
            self.kernel.remove_link(&interface.host_link).await?;
        }
        let InForce { view, filter, .. } = &mut *in_force;
        let Some(model) = filter else {
            return Ok(());
        };
        let mut next = nft::SetChanges::default();
        for interface in &interfaces {
            for (set, range, _) in plan::endpoint_elements(interface, &view.state) {
                next.take(&set, &range);
            }
        }
        self.commit_sets(model, next).await
    }

    /// Changes the elements of some sets, and `model` with them.
    async fn commit_sets(
        &self,
        model: &mut Model,
        next: nft::SetChanges,
    ) -> Result<(), ApplyError> {
        let mut batch = Batch::new(FAMILY_INET, &self.names.table);
        next.write(model, &mut batch);
        if !batch.is_empty() {
            self.commit(batch).await?;
            next.enter(model);
        }
        Ok(())
    }

    /// What is attached, after a restart of the daemon: links of other containers are removed. Nothing is made.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn adopt(&self, attached: Attached) -> Result<(), ApplyError> {
        let mut in_force = self.in_force.lock().await;
        let kept: BTreeSet<&str> = attached
            .values()
            .flatten()
            .map(|interface| interface.host_link.as_str())
            .collect();
        for name in self.kernel.links(&self.names.container_prefix).await? {
            if !kept.contains(name.as_str()) {
                self.kernel.remove_link(&name).await?;
            }
        }
        in_force.attached = attached;
        Ok(())
    }

    /// How many containers are attached.
    pub async fn containers(&self) -> usize {
        self.in_force.lock().await.attached.len()
    }

    /// What was dropped or refused, by reason.
    ///
    /// # Errors
    /// When the counters can't be read.
    pub async fn drops(&self) -> Result<BTreeMap<String, Traffic>, ApplyError> {
        let table = self.names.table.clone();
        let counters = blocking(move || nft::counters(FAMILY_INET, &table))
            .await?
            .map_err(ApplyError::Filter)?;
        Ok(counters
            .into_iter()
            .map(|(name, (packets, bytes))| (name, Traffic { packets, bytes }))
            .collect())
    }

    /// Removes everything of the overlay from the kernel, but for the mesh's device, which belongs to the mesh.
    ///
    /// # Errors
    /// The first failure; the rest is removed all the same.
    pub async fn remove_everything(&self) -> Result<(), ApplyError> {
        let mut in_force = self.in_force.lock().await;
        *in_force = InForce::default();
        let nothing = Plan {
            names: (*self.names).clone(),
            ..Plan::default()
        };
        let linked = self.kernel.apply(&nothing).await;
        let mut removed = Ok(());
        for name in self.kernel.links(&self.names.container_prefix).await? {
            removed = removed.and(self.kernel.remove_link(&name).await);
        }
        let mut batch = Batch::new(FAMILY_INET, &self.names.table);
        batch.add_table();
        batch.delete_table();
        self.commit(batch).await?;
        removed?;
        linked.map(drop)
    }
}

/// Runs a call that waits for the kernel on a thread that may wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApplyError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| ApplyError::Stopped)
}
