//! What an entry changed, for watchers.

use shoal_model::command::{Object, ObjectKey};
use shoal_model::{AddressLease, Attachment, Cluster, Network, Node, Service, Task, Volume};
use std::sync::Arc;

/// A stored object of any kind, shared with the state that it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entity {
    /// The cluster.
    Cluster(Arc<Cluster>),
    /// A node.
    Node(Arc<Node>),
    /// A service.
    Service(Arc<Service>),
    /// A task.
    Task(Arc<Task>),
    /// A volume.
    Volume(Arc<Volume>),
    /// A network.
    Network(Arc<Network>),
    /// The blocks of a node in a network.
    Lease(Arc<AddressLease>),
    /// A container in attachable networks.
    Attachment(Arc<Attachment>),
}

impl Entity {
    /// Its key.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Cluster(_) => ObjectKey::Cluster,
            Self::Node(node) => ObjectKey::Node(node.id),
            Self::Service(service) => ObjectKey::Service(service.id),
            Self::Task(task) => ObjectKey::Task(task.id),
            Self::Volume(volume) => ObjectKey::Volume(volume.id),
            Self::Network(network) => ObjectKey::Network(network.id),
            Self::Lease(lease) => ObjectKey::Lease(lease.network_id, lease.node_id),
            Self::Attachment(attachment) => ObjectKey::Attachment(attachment.container_id),
        }
    }

    /// The task, if it is one.
    pub fn as_task(&self) -> Option<&Arc<Task>> {
        match self {
            Self::Task(task) => Some(task),
            Self::Cluster(_)
            | Self::Node(_)
            | Self::Service(_)
            | Self::Volume(_)
            | Self::Network(_)
            | Self::Lease(_)
            | Self::Attachment(_) => None,
        }
    }

    /// A copy as an [`Object`], as entries and snapshots carry it.
    pub fn to_object(&self) -> Object {
        match self {
            Self::Cluster(cluster) => Object::Cluster(Box::new(Cluster::clone(cluster))),
            Self::Node(node) => Object::Node(Box::new(Node::clone(node))),
            Self::Service(service) => Object::Service(Box::new(Service::clone(service))),
            Self::Task(task) => Object::Task(Box::new(Task::clone(task))),
            Self::Volume(volume) => Object::Volume(Box::new(Volume::clone(volume))),
            Self::Network(network) => Object::Network(Box::new(Network::clone(network))),
            Self::Lease(lease) => Object::Lease(Box::new(AddressLease::clone(lease))),
            Self::Attachment(attachment) => {
                Object::Attachment(Box::new(Attachment::clone(attachment)))
            }
        }
    }
}

/// Kind of a [`Change`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// The object is new.
    Created,
    /// It was there before.
    Updated,
    /// It is gone.
    Removed,
}

/// One object before and after an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub key: ObjectKey,
    /// What it was; `None`: it is new.
    pub before: Option<Entity>,
    /// What it is; `None`: it is gone.
    pub after: Option<Entity>,
}

impl Change {
    /// Created, updated or removed.
    pub const fn kind(&self) -> ChangeKind {
        match (&self.before, &self.after) {
            (None, _) => ChangeKind::Created,
            (Some(_), Some(_)) => ChangeKind::Updated,
            (Some(_), None) => ChangeKind::Removed,
        }
    }

    /// The object as it is, or as it last was.
    pub fn newest(&self) -> Option<&Entity> {
        self.after.as_ref().or(self.before.as_ref())
    }
}
