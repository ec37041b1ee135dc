//! A new task of a service.

use super::Scene;
use super::places::Place;
use shoal_model::command::{Object, StoreAction};
use shoal_model::service::UpdateState;
use shoal_model::{Meta, Task, TaskId, TaskSpec, TaskState, TaskStatus, Timestamp};
use std::sync::Arc;
use std::time::Duration;

/// Makes tasks that share one copy of the spec.
pub(crate) struct Maker<'a> {
    scene: &'a Scene<'a>,
    spec: Arc<TaskSpec>,
}

impl<'a> Maker<'a> {
    pub(crate) fn new(scene: &'a Scene<'a>) -> Self {
        Self {
            scene,
            spec: Arc::new(scene.service.spec.task.clone()),
        }
    }

    /// The creation of a task in `place`; nothing is left to allocate, so that it is pending at once.
    pub(crate) fn create(&self, place: Place, not_before: Option<Timestamp>) -> StoreAction {
        let service = self.scene.service;
        let now = self.scene.now.wall;
        let updating = service
            .update_status
            .as_ref()
            .is_some_and(|update| update.state == UpdateState::Updating);
        let monitor = Duration::from_nanos(service.spec.update.monitor_ns);
        let node_id = match place {
            Place::Slot(_) => None,
            Place::Node(node_id) => Some(node_id),
        };
        StoreAction::Create(Object::Task(Box::new(Task {
            id: TaskId::from_bits(self.scene.ids.bits()),
            meta: Meta::default(),
            service_id: service.id,
            service_name: service.spec.name.clone(),
            slot: place.slot(),
            node_id,
            spec: Arc::clone(&self.spec),
            spec_version: service.spec_version,
            ports: service.ports.clone(),
            on_partition: service.spec.effective_on_partition(),
            desired: TaskState::Running,
            status: TaskStatus {
                state: TaskState::Pending,
                at: now,
                message: "pending task scheduling".to_owned(),
                ..TaskStatus::default()
            },
            volumes: Vec::new(),
            monitor_until: updating.then(|| now.plus(monitor)),
            endpoints: Vec::new(),
            not_before,
        })))
    }
}
