//! What an entry changed, for watchers.

use shoal_model::command::{Object, ObjectKey};
use shoal_model::{Cluster, Node, Service, Task, Volume};
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
        }
    }

    /// The task, if it is one.
    pub fn as_task(&self) -> Option<&Arc<Task>> {
        match self {
            Self::Task(task) => Some(task),
            Self::Cluster(_) | Self::Node(_) | Self::Service(_) | Self::Volume(_) => None,
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
