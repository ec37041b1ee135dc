//! Binding a task to a node, checked against the state at the time of the entry, not of the plan.

use super::apply::{Transaction, check_version, invalid};
use super::tasks::host_ports;
use shoal_model::command::{ObjectKey, Rejection};
use shoal_model::network::Endpoint;
use shoal_model::spec::MountKind;
use shoal_model::task::VolumeAttachment;
use shoal_model::volume::SlotKey;
use shoal_model::{
    Labels, Meta, Node, NodeId, Task, TaskId, TaskState, TaskStatus, Version, Volume, VolumeId,
};
use std::collections::BTreeSet;

/// Message of a task that has got its node.
const ASSIGNED_MESSAGE: &str = "scheduler assigned task to node";

impl Transaction<'_> {
    pub(super) fn assign(
        &mut self,
        task_id: TaskId,
        version: Version,
        node_id: NodeId,
        new_volumes: &[(VolumeId, String)],
        endpoints: &[Endpoint],
    ) -> Result<(), Rejection> {
        let key = ObjectKey::Task(task_id);
        let task = self.state.task(task_id).ok_or(Rejection::NotFound(key))?;
        check_version(key, version, task.meta.version)?;
        if task.status.state >= TaskState::Assigned {
            return Err(invalid(key, "a task is bound to one node, once"));
        }
        let mut task = Task::clone(task);
        self.check_fit(&task, node_id)
            .and_then(|()| self.check_endpoints(&task, node_id, endpoints))
            .map_err(|reason| Rejection::DoesNotFit {
                task_id,
                node_id,
                reason,
            })?;
        task.endpoints = endpoints.to_vec();
        task.volumes = self.attach_volumes(&task, node_id, new_volumes)?;
        task.node_id = Some(node_id);
        task.status = TaskStatus {
            state: TaskState::Assigned,
            at: self.time,
            message: ASSIGNED_MESSAGE.to_owned(),
            ..TaskStatus::default()
        };
        self.put_task(task);
        Ok(())
    }

    fn check_fit(&self, task: &Task, node_id: NodeId) -> Result<(), String> {
        if task.desired > TaskState::Running {
            return Err("the task is not wanted any more".to_owned());
        }
        if task.node_id.is_some_and(|own| own != node_id) {
            return Err("the task belongs to another node".to_owned());
        }
        let node = self.state.node(node_id).ok_or("the node has left")?;
        if !node.takes_tasks() {
            return Err(format!(
                "the node is {} and {}",
                node.status.state.as_str(),
                node.spec.availability.as_str()
            ));
        }
        self.check_resources(task, node)?;
        self.check_ports(task, node_id)?;
        self.check_homes(task, node_id)
    }

    fn check_resources(&self, task: &Task, node: &Node) -> Result<(), String> {
        let description = node.description.as_ref();
        let total = description.map_or_else(Default::default, |known| known.resources);
        let wanted = task.spec.resources.reservations;
        if self.state.usage(node.id).leaves_room(total, wanted) {
            return Ok(());
        }
        Err("its reservations are not free".to_owned())
    }

    fn check_ports(&self, task: &Task, node_id: NodeId) -> Result<(), String> {
        for (protocol, port) in host_ports(task) {
            if let Some(holder) = self.state.port_holder(node_id, protocol, port) {
                let protocol = protocol.as_str();
                return Err(format!("port {port}/{protocol} is used by task `{holder}`"));
            }
        }
        Ok(())
    }

    /// A slot runs only where its volumes are. Slot 0 is a global service's: there each node has its own.
    fn check_homes(&self, task: &Task, node_id: NodeId) -> Result<(), String> {
        if task.slot == 0 {
            return Ok(());
        }
        for name in task.spec.named_volumes() {
            match self.state.home_of(slot_of(task), name) {
                Some(home) if home != node_id => {
                    return Err(format!("its volume `{name}` is on node `{home}`"));
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    fn attach_volumes(
        &mut self,
        task: &Task,
        node_id: NodeId,
        new_volumes: &[(VolumeId, String)],
    ) -> Result<Vec<VolumeAttachment>, Rejection> {
        let names: BTreeSet<&str> = task.spec.named_volumes().collect();
        let mut attachments = Vec::with_capacity(names.len());
        for name in names {
            let existing = self.state.volume_by_name(node_id, name);
            let (id, must_exist) = match existing {
                Some(volume) => (volume.id, volume.materialized),
                None => (self.make_volume(task, node_id, name, new_volumes)?, false),
            };
            if task.slot != 0 {
                self.change_volume(id, |volume| {
                    volume.bound_slots.insert(slot_of(task));
                });
            }
            attachments.push(VolumeAttachment {
                volume_id: id,
                name: name.to_owned(),
                must_exist,
            });
        }
        Ok(attachments)
    }

    fn make_volume(
        &mut self,
        task: &Task,
        node_id: NodeId,
        name: &str,
        new_volumes: &[(VolumeId, String)],
    ) -> Result<VolumeId, Rejection> {
        let id = new_volumes
            .iter()
            .find(|(_, given)| given == name)
            .map(|(id, _)| *id)
            .ok_or_else(|| Rejection::DoesNotFit {
                task_id: task.id,
                node_id,
                reason: format!("volume `{name}` is not there any more"),
            })?;
        if self.state.volume(id).is_some() {
            return Err(Rejection::Exists(ObjectKey::Volume(id)));
        }
        let (driver, options, labels) = volume_settings(task, name);
        self.create_volume(Volume {
            id,
            meta: Meta::default(),
            name: name.to_owned(),
            node_id,
            driver,
            labels,
            options,
            bound_slots: BTreeSet::new(),
            materialized: false,
        });
        Ok(id)
    }
}

const fn slot_of(task: &Task) -> SlotKey {
    SlotKey {
        service_id: task.service_id,
        slot: task.slot,
    }
}

/// Driver, options and labels of the first mount that names the volume.
fn volume_settings(task: &Task, wanted: &str) -> (String, Labels, Labels) {
    let mounts = task.spec.container.mounts.iter();
    let mut settings = mounts.filter_map(|mount| match &mount.kind {
        MountKind::Volume {
            name,
            driver,
            options,
            labels,
            ..
        } if name == wanted => Some((driver.clone(), options.clone(), labels.clone())),
        MountKind::Volume { .. } | MountKind::Bind { .. } | MountKind::Tmpfs { .. } => None,
    });
    let (driver, options, labels) = settings.next().unwrap_or_default();
    let driver = if driver.is_empty() {
        "local".to_owned()
    } else {
        driver
    };
    (driver, options, labels)
}
