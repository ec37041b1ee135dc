//! Services: create, update, roll back, remove, list.

use super::answer::Answer;
use super::core::Core;
use super::error::Failure;
use super::validate;
use crate::allocator;
use crate::store::State;
use shoal_model::command::{ACTIONS_PER_COMMAND_MAX, Object, StoreAction};
use shoal_model::control::{ControlResponse, ServiceView};
use shoal_model::rpc::ErrorCode;
use shoal_model::service::{UpdateState, UpdateStatus};
use shoal_model::{
    Meta, NodeState, Service, ServiceId, ServiceMode, ServiceSpec, Task, TaskState, Timestamp,
    Version,
};
use std::sync::Arc;

impl Core {
    pub(super) fn list_services(&self, state: &State) -> Answer {
        let views = state
            .services()
            .filter(|service| !service.pending_delete)
            .map(|service| view(state, service));
        Answer::pages(views, ControlResponse::Services)
    }

    pub(super) fn get_service(
        &self,
        state: &State,
        id: ServiceId,
    ) -> Result<ControlResponse, Failure> {
        let service = live_service(state, id)?;
        Ok(ControlResponse::Service(Box::new(view(state, service))))
    }

    pub(super) async fn create_service(
        &self,
        state: &State,
        id: ServiceId,
        spec: ServiceSpec,
    ) -> Result<ControlResponse, Failure> {
        self.propose_decided(state, |state| {
            let actions = creation(state, id, &spec)?;
            Ok((actions, ControlResponse::ServiceCreated(id)))
        })
        .await
    }

    /// Changes the spec; `None` returns to the previous one.
    pub(super) async fn update_service(
        &self,
        state: &State,
        id: ServiceId,
        version: Version,
        wanted: Option<ServiceSpec>,
        repeated: bool,
    ) -> Result<ControlResponse, Failure> {
        self.propose_decided(state, |state| {
            let stored = live_service(state, id)?;
            if repeated && wanted.as_ref() == Some(&stored.spec) {
                return Ok((Vec::new(), ControlResponse::Done));
            }
            if stored.meta.version != version {
                return Err(Failure::out_of_date("service", &stored.spec.name));
            }
            let spec = match &wanted {
                Some(spec) => spec.clone(),
                None => previous_spec(stored)?,
            };
            validate::service(&spec, down_limit_min(state))?;
            check_change(&stored.spec, &spec)?;
            check_networks(state, &spec)?;
            let mut service = changed(stored, spec, self.clock.now());
            let mut actions = allocator::service::fill(state, &mut service)?;
            actions.push(StoreAction::Update(Object::Service(Box::new(service))));
            Ok((actions, ControlResponse::Done))
        })
        .await
    }

    pub(super) async fn remove_service(
        &self,
        state: &State,
        id: ServiceId,
        repeated: bool,
    ) -> Result<ControlResponse, Failure> {
        let stored = match live_service(state, id) {
            Ok(stored) => stored,
            Err(_) if repeated => return Ok(ControlResponse::Done),
            Err(failure) => return Err(failure),
        };
        let mut service = Service::clone(stored);
        service.pending_delete = true;
        let mark = StoreAction::Update(Object::Service(Box::new(service)));
        let mut tasks: Vec<_> = state
            .tasks_by_service(id)
            .map(|task| StoreAction::SetDesired {
                task_id: task.id,
                desired: TaskState::Remove,
            })
            .collect();
        let first = tasks.len().min(ACTIONS_PER_COMMAND_MAX - 1);
        let rest = tasks.split_off(first);
        self.propose([mark].into_iter().chain(tasks).collect())
            .await?;
        // From here the service is gone for its user: what fails now is done by the orchestrator.
        if let Err(failure) = self.propose_chunks(rest).await {
            tracing::debug!(service_id = %id, err = %failure.error, "tasks are left to the orchestrator");
        }
        Ok(ControlResponse::Done)
    }
}

/// What makes a service; nothing, if it is there already.
fn creation(state: &State, id: ServiceId, spec: &ServiceSpec) -> Result<Vec<StoreAction>, Failure> {
    if let Some(stored) = state.service(id) {
        if stored.spec == *spec && !stored.pending_delete {
            return Ok(Vec::new());
        }
        let message = format!(
            "service id `{id}` belongs to service `{}`",
            stored.spec.name
        );
        return Err(Failure::new(ErrorCode::AlreadyExists, message));
    }
    validate::service(spec, down_limit_min(state))?;
    refuse_taken_name(state, id, &spec.name)?;
    check_networks(state, spec)?;
    let mut service = Service {
        id,
        meta: Meta::default(),
        spec: spec.clone(),
        previous_spec: None,
        vips: Vec::new(),
        ports: Vec::new(),
        spec_version: 1,
        update_status: None,
        pending_delete: false,
    };
    let mut actions = allocator::service::fill(state, &mut service)?;
    actions.push(StoreAction::Create(Object::Service(Box::new(service))));
    Ok(actions)
}

/// The networks are there, and are the user's.
fn check_networks(state: &State, spec: &ServiceSpec) -> Result<(), Failure> {
    for (place, attachment) in spec.task.networks.iter().enumerate() {
        let field = format!("TaskTemplate.Networks[{place}].Target");
        let id = attachment.network_id;
        let Some(network) = state.network(id) else {
            let message = format!("`{field}`: network `{id}` does not exist");
            return Err(Failure::new(ErrorCode::NotFound, message));
        };
        if network.spec.ingress {
            return Err(Failure::invalid(format!(
                "`{field}`: `{}` carries published ports only: create a network (`shoal network create`) and name that",
                network.spec.name
            )));
        }
    }
    Ok(())
}

fn live_service(state: &State, id: ServiceId) -> Result<&Arc<Service>, Failure> {
    state
        .service(id)
        .filter(|service| !service.pending_delete)
        .ok_or_else(|| Failure::not_found("service", id))
}

fn refuse_taken_name(state: &State, id: ServiceId, name: &str) -> Result<(), Failure> {
    match state.service_by_name(name) {
        Some(holder) if holder.id != id => Err(Failure::new(
            ErrorCode::AlreadyExists,
            format!(
                "`Name`: `{name}` is in use by service `{}`: choose another, or update or remove that service",
                holder.id
            ),
        )),
        Some(_) | None => Ok(()),
    }
}

fn previous_spec(stored: &Service) -> Result<ServiceSpec, Failure> {
    let name = &stored.spec.name;
    stored.previous_spec.as_deref().cloned().ok_or_else(|| {
        Failure::precondition(format!(
            "service `{name}` has no previous spec to return to: it was never updated"
        ))
    })
}

/// A service keeps its name and its mode.
fn check_change(old: &ServiceSpec, new: &ServiceSpec) -> Result<(), Failure> {
    if old.name != new.name {
        return Err(Failure::invalid(format!(
            "`Name`: `{}`: a service can't be renamed (it is `{}`): create a new one",
            new.name, old.name
        )));
    }
    match (&old.mode, &new.mode) {
        (ServiceMode::Replicated { .. }, ServiceMode::Replicated { .. })
        | (ServiceMode::Global, ServiceMode::Global) => Ok(()),
        (ServiceMode::Replicated { .. } | ServiceMode::Global, _) => Err(Failure::invalid(
            "`Mode`: a service can't change between replicated and global: create a new one",
        )),
    }
}

/// The service with its new spec. The count of task versions moves only when running tasks are out of date: their
/// spec, the ports that they publish, or what their node does without managers.
fn changed(stored: &Service, spec: ServiceSpec, now: Timestamp) -> Service {
    let replaces_tasks = stored.spec.task != spec.task
        || stored.spec.endpoint.ports != spec.endpoint.ports
        || stored.spec.effective_on_partition() != spec.effective_on_partition();
    let mut service = stored.clone();
    service.previous_spec = Some(Box::new(std::mem::replace(&mut service.spec, spec)));
    if replaces_tasks {
        service.spec_version = service.spec_version.saturating_add(1);
        service.update_status = Some(UpdateStatus {
            state: UpdateState::Updating,
            started_at: now,
            completed_at: None,
            message: "update in progress".to_owned(),
        });
    }
    service
}

/// A replacement never starts before the lease of a lost node has ended, and one second more.
fn down_limit_min(state: &State) -> u64 {
    state.cluster().map_or(0, |cluster| {
        cluster
            .spec
            .lease_ms
            .saturating_add(validate::LEASE_MARGIN_MS)
    })
}

fn is_on_down_node(state: &State, task: &Task) -> bool {
    let node = task.node_id.and_then(|id| state.node(id));
    node.is_some_and(|node| node.status.state == NodeState::Down)
}

fn view(state: &State, service: &Service) -> ServiceView {
    let mut running_tasks = 0;
    let mut wanted_tasks = 0;
    for task in state.tasks_by_service(service.id) {
        if task.desired == TaskState::Running {
            // A job of a global service that ended well is not missing.
            wanted_tasks += u64::from(task.status.state <= TaskState::Running);
            // What runs but does not serve yet is still on its way; what was last heard of on a node that is down is not
            // known to run.
            let serves = task.status.state == TaskState::Running
                && task.status.ready
                && !is_on_down_node(state, task);
            running_tasks += u64::from(serves);
        }
    }
    ServiceView {
        service: service.clone(),
        running_tasks,
        desired_tasks: match service.spec.mode {
            ServiceMode::Replicated { replicas } => replicas,
            ServiceMode::Global => wanted_tasks,
        },
    }
}
