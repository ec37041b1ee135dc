//! Tasks.

use super::answer::Answer;
use super::core::Core;
use super::error::Failure;
use crate::store::State;
use shoal_model::control::ControlResponse;
use shoal_model::{NodeId, ServiceId, Task, TaskId};
use std::sync::Arc;

impl Core {
    pub(super) fn list_tasks(
        &self,
        state: &State,
        service_id: Option<ServiceId>,
        node_id: Option<NodeId>,
    ) -> Answer {
        let tasks: Box<dyn Iterator<Item = &Arc<Task>>> = match (service_id, node_id) {
            (Some(service), node) => Box::new(
                state
                    .tasks_by_service(service)
                    .filter(move |task| node.is_none() || task.node_id == node),
            ),
            (None, Some(node)) => Box::new(state.tasks_by_node(node)),
            (None, None) => Box::new(state.tasks()),
        };
        Answer::pages(tasks.map(|task| Task::clone(task)), ControlResponse::Tasks)
    }

    pub(super) fn get_task(&self, state: &State, id: TaskId) -> Result<ControlResponse, Failure> {
        let task = state
            .task(id)
            .ok_or_else(|| Failure::not_found("task", id))?;
        Ok(ControlResponse::Task(Box::new(Task::clone(task))))
    }
}
