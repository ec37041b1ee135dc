//! One node as the scheduler sees it.

use shoal_model::spec::Protocol;
use shoal_model::{Node, NodeId, Resources, TaskId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A node and what is in use on it.
#[derive(Debug, Clone)]
pub(crate) struct NodeEntry {
    pub(crate) id: NodeId,
    /// `None`: only known from tasks that name it. It takes nothing.
    pub(crate) node: Option<Box<Node>>,
    /// Sum of the reservations of its tasks.
    pub(crate) reserved: Resources,
    /// Tasks that occupy it.
    pub(crate) tasks: u32,
    /// Host ports with their holders.
    pub(crate) ports: BTreeMap<(Protocol, u16), Vec<PortHolder>>,
}

/// A task that occupies a host port.
#[derive(Debug, Clone)]
pub(crate) struct PortHolder {
    pub(crate) task_id: TaskId,
    pub(crate) service_name: Arc<str>,
}

/// A node with what the service in question has there: what filters look at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seat<'a> {
    pub(crate) node: &'a NodeEntry,
    /// Tasks of the service that shall run there.
    pub(crate) service_tasks: u32,
}

impl NodeEntry {
    pub(crate) fn new(id: NodeId) -> Self {
        Self {
            id,
            node: None,
            reserved: Resources::default(),
            tasks: 0,
            ports: BTreeMap::new(),
        }
    }

    pub(crate) fn takes_tasks(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.takes_tasks())
    }

    pub(crate) fn is_in_mesh(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.mesh.is_some())
    }

    pub(crate) fn name(&self) -> String {
        match &self.node {
            Some(node) => node.display_name(),
            None => self.id.to_string(),
        }
    }

    /// What the machine has; nothing before its first session.
    pub(crate) fn capacity(&self) -> Resources {
        self.node
            .as_ref()
            .and_then(|node| node.description.as_ref())
            .map(|description| description.resources)
            .unwrap_or_default()
    }

    /// What is not reserved; negative when the machine shrank.
    pub(crate) fn free(&self) -> Resources {
        let capacity = self.capacity();
        Resources {
            nano_cpus: capacity.nano_cpus.saturating_sub(self.reserved.nano_cpus),
            memory_bytes: capacity
                .memory_bytes
                .saturating_sub(self.reserved.memory_bytes),
        }
    }

    /// Nothing refers to this entry any more.
    pub(crate) fn is_unused(&self) -> bool {
        self.node.is_none() && self.tasks == 0
    }
}
