//! Applying entries: all of one or nothing of it, the same on every manager.

use super::bounds::{self, NODE_SPEC_BYTES_MAX, SERVICE_SPEC_BYTES_MAX};
use super::change::{Change, Entity};
use super::state::State;
use super::tasks::{accepts_report, forwards_desired, holds_node, is_desired_state};
use shoal_model::command::{Command, Object, ObjectKey, Outcome, Rejection, StoreAction};
use shoal_model::node::{ManagerStatus, NodeDescription, NodeStatus};
use shoal_model::task::EXITS_KEPT_MAX;
use shoal_model::volume::SlotKey;
use shoal_model::{
    Cluster, Meta, Node, NodeId, NodeRole, Service, Task, TaskId, TaskSpec, TaskState, TaskStatus,
    Timestamp, Version, Volume, VolumeId,
};
use std::collections::BTreeMap;
use std::sync::Arc;

impl State {
    /// Applies one entry. On a rejection only [`State::version`] moves.
    pub fn apply(&mut self, index: u64, command: &Command) -> (Outcome, Vec<Change>) {
        let version = Version(index);
        let feature_level = self.feature_level;
        let mut transaction = Transaction {
            state: self,
            version,
            time: command.time,
            before: BTreeMap::new(),
        };
        let result = command
            .actions
            .iter()
            .try_for_each(|action| transaction.perform(action));
        let (outcome, changes) = match result {
            Ok(()) => (Outcome::Applied { version }, transaction.into_changes()),
            Err(rejection) => {
                transaction.undo();
                self.feature_level = feature_level;
                (Outcome::Rejected(rejection), Vec::new())
            }
        };
        self.version = version;
        (outcome, changes)
    }
}

/// An entry that is being applied. It changes the state in place, so that entries which are applied in a row copy no
/// more than they touch together.
pub(super) struct Transaction<'a> {
    pub(super) state: &'a mut State,
    version: Version,
    pub(super) time: Timestamp,
    /// Every object that was touched, as it was before the entry.
    before: BTreeMap<ObjectKey, Option<Entity>>,
}

impl Transaction<'_> {
    fn into_changes(self) -> Vec<Change> {
        let state = self.state;
        self.before
            .into_iter()
            .map(|(key, before)| Change {
                key,
                before,
                after: state.get(key),
            })
            .filter(|change| change.before.is_some() || change.after.is_some())
            .collect()
    }

    /// Puts back every object that was touched. All of them are taken out first: a name that went from one to another
    /// must not be freed by the one that has it now after the one that had it has it again.
    fn undo(self) {
        for key in self.before.keys() {
            self.state.delete(*key);
        }
        for before in self.before.into_values().flatten() {
            self.state.put(before);
        }
    }

    fn perform(&mut self, action: &StoreAction) -> Result<(), Rejection> {
        match action {
            StoreAction::Create(object) => self.create(object),
            StoreAction::Update(object) => self.update(object),
            StoreAction::Remove { key, version } => self.remove(*key, *version),
            StoreAction::Assign {
                task_id,
                version,
                node_id,
                new_volumes,
                endpoints,
            } => self.assign(*task_id, *version, *node_id, new_volumes, endpoints),
            StoreAction::SetDesired { task_id, desired } => self.set_desired(*task_id, *desired),
            StoreAction::SetTaskStatus { task_id, status } => {
                self.set_task_status(*task_id, status);
                Ok(())
            }
            StoreAction::SetNodeStatus {
                node_id,
                status,
                description,
            } => {
                self.set_node_status(*node_id, status, description.as_deref());
                Ok(())
            }
            StoreAction::SetNodeRole {
                node_id,
                role,
                manager,
            } => self.set_node_role(*node_id, *role, manager.as_ref()),
            StoreAction::SetNodeHold { node_id, until } => {
                self.change_node(*node_id, |node| node.hold_until = *until);
                Ok(())
            }
            StoreAction::SetVolumesMaterialized { node_id, names } => {
                self.set_volumes_materialized(*node_id, names);
                Ok(())
            }
            StoreAction::UnbindVolume { volume_id, slot } => self.unbind_volume(*volume_id, *slot),
            StoreAction::SetNodeMesh { node_id, mesh } => self.set_node_mesh(*node_id, *mesh),
            StoreAction::UseJoinToken { role } => self.use_join_token(*role),
            StoreAction::RaiseFeatureLevel(level) => {
                self.state.feature_level = self.state.feature_level.max(*level);
                Ok(())
            }
        }
    }

    /// The meta of an object that is written now; `before` is what is stored.
    pub(super) fn meta(&self, before: Option<&Meta>) -> Meta {
        Meta {
            version: self.version,
            created_at: before.map_or(self.time, |meta| meta.created_at),
            updated_at: self.time,
        }
    }

    pub(super) fn put(&mut self, entity: Entity) {
        let key = entity.key();
        let before = self.state.put(entity);
        self.before.entry(key).or_insert(before);
    }

    fn delete(&mut self, key: ObjectKey) {
        let before = self.state.delete(key);
        self.before.entry(key).or_insert(before);
    }

    fn create(&mut self, object: &Object) -> Result<(), Rejection> {
        let key = object.key();
        if self.state.get(key).is_some() {
            return Err(Rejection::Exists(key));
        }
        let meta = self.meta(None);
        match object {
            Object::Cluster(cluster) => {
                let mut cluster = Cluster::clone(cluster);
                cluster.meta = meta;
                self.put(Entity::Cluster(Arc::new(cluster)));
            }
            Object::Node(node) => {
                self.check_node(node)?;
                let mut node = Node::clone(node);
                node.meta = meta;
                self.put(Entity::Node(Arc::new(node)));
            }
            Object::Service(service) => {
                self.check_service(service)?;
                let mut service = Service::clone(service);
                service.meta = meta;
                self.put(Entity::Service(Arc::new(service)));
            }
            Object::Task(task) => {
                self.check_new_task(task)?;
                let mut task = Task::clone(task);
                task.meta = meta;
                task.spec = self.shared_spec(&task);
                self.put(Entity::Task(Arc::new(task)));
            }
            Object::Volume(volume) => {
                self.check_volume(volume)?;
                let mut volume = Volume::clone(volume);
                volume.meta = meta;
                self.put(Entity::Volume(Arc::new(volume)));
            }
            Object::Network(_) | Object::Lease(_) | Object::Attachment(_) => {
                self.create_in_network(object, meta)?;
            }
        }
        Ok(())
    }

    fn update(&mut self, object: &Object) -> Result<(), Rejection> {
        let key = object.key();
        let found = self.state.get(key).ok_or(Rejection::NotFound(key))?;
        match (found, object) {
            (Entity::Cluster(before), Object::Cluster(cluster)) => {
                check_version(key, cluster.meta.version, before.meta.version)?;
                if cluster.id != before.id || cluster.last_raft_id < before.last_raft_id {
                    return Err(invalid(
                        key,
                        "its id and its Raft ids given out never go back",
                    ));
                }
                let mut cluster = Cluster::clone(cluster);
                cluster.meta = self.meta(Some(&before.meta));
                self.put(Entity::Cluster(Arc::new(cluster)));
            }
            (Entity::Node(before), Object::Node(node)) => {
                check_version(key, node.meta.version, before.meta.version)?;
                if node.public_key_digest != before.public_key_digest {
                    return Err(invalid(key, "a node is its key: the key can't change"));
                }
                self.check_node(node)?;
                let mut node = Node::clone(node);
                node.meta = self.meta(Some(&before.meta));
                self.put(Entity::Node(Arc::new(node)));
            }
            (Entity::Service(before), Object::Service(service)) => {
                check_version(key, service.meta.version, before.meta.version)?;
                self.check_service(service)?;
                if before.pending_delete && !service.pending_delete {
                    return Err(invalid(key, "the service is being removed"));
                }
                let mut service = Service::clone(service);
                service.meta = self.meta(Some(&before.meta));
                self.put(Entity::Service(Arc::new(service)));
            }
            (Entity::Task(before), Object::Task(task)) => {
                check_version(key, task.meta.version, before.meta.version)?;
                check_task_update(&before, task)?;
                let mut task = Task::clone(task);
                task.meta = self.meta(Some(&before.meta));
                task.spec = Arc::clone(&before.spec);
                self.put(Entity::Task(Arc::new(task)));
            }
            (Entity::Volume(before), Object::Volume(volume)) => {
                check_version(key, volume.meta.version, before.meta.version)?;
                if volume.node_id != before.node_id || volume.name != before.name {
                    return Err(invalid(key, "its name and its node can't change"));
                }
                self.check_volume(volume)?;
                let mut volume = Volume::clone(volume);
                volume.meta = self.meta(Some(&before.meta));
                self.put(Entity::Volume(Arc::new(volume)));
            }
            (found @ (Entity::Network(_) | Entity::Lease(_) | Entity::Attachment(_)), object) => {
                self.update_in_network(&found, object)?;
            }
            // Keys name the kind, so that the two always agree.
            (
                Entity::Cluster(_)
                | Entity::Node(_)
                | Entity::Service(_)
                | Entity::Task(_)
                | Entity::Volume(_),
                _,
            ) => return Err(Rejection::NotFound(key)),
        }
        Ok(())
    }

    fn remove(&mut self, key: ObjectKey, version: Option<Version>) -> Result<(), Rejection> {
        let found = self.state.get(key).ok_or(Rejection::NotFound(key))?;
        let (stored, obstacle) = match &found {
            Entity::Cluster(cluster) => (
                cluster.meta.version,
                Some("the cluster object lives as long as the cluster"),
            ),
            Entity::Node(node) => (node.meta.version, self.node_obstacle(node)),
            Entity::Service(service) => (
                service.meta.version,
                self.state
                    .tasks_by_service(service.id)
                    .next()
                    .map(|_| "the service still has tasks"),
            ),
            Entity::Task(task) => (task.meta.version, self.task_obstacle(task)),
            Entity::Volume(volume) => (volume.meta.version, self.volume_obstacle(volume)),
            Entity::Network(network) => (network.meta.version, self.network_obstacle(network)),
            Entity::Lease(lease) => (lease.meta.version, self.lease_obstacle(lease)),
            Entity::Attachment(attachment) => (attachment.meta.version, None),
        };
        if let Some(expected) = version {
            check_version(key, expected, stored)?;
        }
        if let Some(reason) = obstacle {
            return Err(invalid(key, reason));
        }
        if let Entity::Service(service) = &found {
            self.unbind_service(service);
        }
        self.delete(key);
        Ok(())
    }

    fn node_obstacle(&self, node: &Node) -> Option<&'static str> {
        if node.manager.is_some() {
            return Some("the node is a member of Raft");
        }
        self.state
            .tasks_by_node(node.id)
            .any(|task| holds_node(task))
            .then_some("tasks hold the node")
    }

    /// What a task holds is free only after its node has proved that it stopped, or has left the cluster.
    fn task_obstacle(&self, task: &Task) -> Option<&'static str> {
        let node_known = task.node_id.is_some_and(|id| self.state.node(id).is_some());
        (holds_node(task) && node_known).then_some("its node has not reported its end")
    }

    fn volume_obstacle(&self, volume: &Volume) -> Option<&'static str> {
        self.state
            .tasks_by_node(volume.node_id)
            .any(|task| {
                holds_node(task) && task.volumes.iter().any(|used| used.volume_id == volume.id)
            })
            .then_some("a task uses the volume")
    }

    fn unbind_service(&mut self, service: &Service) {
        let bound: Vec<_> = self
            .state
            .indexes
            .volumes_by_slot
            .range((slot(service, u64::MIN), VolumeId::MIN)..)
            .take_while(|(slot, _)| slot.service_id == service.id)
            .copied()
            .collect();
        for (slot, volume_id) in bound {
            self.change_volume(volume_id, |volume| {
                volume.bound_slots.remove(&slot);
            });
        }
    }

    fn check_node(&self, node: &Node) -> Result<(), Rejection> {
        let key = ObjectKey::Node(node.id);
        if let Some(holder) = self.state.node_by_name(&node.spec.name)
            && holder.id != node.id
        {
            return Err(name_taken("node", &node.spec.name, holder.id));
        }
        if let Some(manager) = &node.manager {
            self.check_raft_id(node.id, manager)?;
        }
        within(
            key,
            bounds::node_spec_bytes(&node.spec),
            NODE_SPEC_BYTES_MAX,
        )
    }

    fn check_raft_id(&self, node_id: NodeId, manager: &ManagerStatus) -> Result<(), Rejection> {
        let taken = self.state.nodes().any(|other| {
            other.id != node_id
                && other
                    .manager
                    .as_ref()
                    .is_some_and(|held| held.raft_id == manager.raft_id)
        });
        if taken {
            return Err(invalid(
                ObjectKey::Node(node_id),
                "its Raft id belongs to another node",
            ));
        }
        Ok(())
    }

    fn check_service(&self, service: &Service) -> Result<(), Rejection> {
        let name = &service.spec.name;
        if let Some(holder) = self.state.service_by_name(name)
            && holder.id != service.id
            && !service.pending_delete
        {
            return Err(name_taken("service", name, holder.id));
        }
        self.check_service_addresses(service)?;
        within(
            ObjectKey::Service(service.id),
            bounds::service_spec_bytes(&service.spec),
            SERVICE_SPEC_BYTES_MAX,
        )
    }

    fn check_volume(&self, volume: &Volume) -> Result<(), Rejection> {
        if let Some(holder) = self.state.volume_by_name(volume.node_id, &volume.name)
            && holder.id != volume.id
        {
            return Err(name_taken("volume", &volume.name, holder.id));
        }
        for slot in &volume.bound_slots {
            let bound = self
                .state
                .volumes_bound_to(*slot)
                .any(|other| other.id != volume.id && other.name == volume.name);
            if bound || self.state.service(slot.service_id).is_none() {
                return Err(invalid(
                    ObjectKey::Volume(volume.id),
                    "a slot of it is bound to another volume of that name, or has no service",
                ));
            }
        }
        Ok(())
    }

    fn check_new_task(&self, task: &Task) -> Result<(), Rejection> {
        let key = ObjectKey::Task(task.id);
        let service_key = ObjectKey::Service(task.service_id);
        let service = self
            .state
            .service(task.service_id)
            .ok_or(Rejection::NotFound(service_key))?;
        if service.pending_delete {
            return Err(invalid(service_key, "the service is being removed"));
        }
        let bound = !task.volumes.is_empty() || !task.endpoints.is_empty();
        if task.status.state >= TaskState::Assigned || bound {
            return Err(invalid(
                key,
                "a new task is new or pending and has neither volumes nor addresses",
            ));
        }
        if !is_desired_state(task.desired) {
            return Err(invalid(key, "that is no desired state"));
        }
        match task.node_id {
            Some(node) if self.state.node(node).is_none() => {
                Err(Rejection::NotFound(ObjectKey::Node(node)))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The spec of a neighbour, if it is equal: entries carry a copy per task, the store keeps one per version.
    fn shared_spec(&self, task: &Task) -> Arc<TaskSpec> {
        let first = (task.service_id, u64::MIN, TaskId::MIN);
        let here = (task.service_id, task.slot, TaskId::MAX);
        let slots = &self.state.indexes.tasks_by_slot;
        let below = slots.get_prev(&here).copied();
        let lowest = slots.range(first..here).next().copied();
        [below, lowest]
            .into_iter()
            .flatten()
            .filter_map(|(_, _, id)| self.state.task(id))
            .find(|other| other.service_id == task.service_id && other.spec == task.spec)
            .map_or_else(|| Arc::clone(&task.spec), |other| Arc::clone(&other.spec))
    }

    fn set_desired(&mut self, task_id: TaskId, desired: TaskState) -> Result<(), Rejection> {
        if !is_desired_state(desired) {
            return Err(invalid(
                ObjectKey::Task(task_id),
                "that is no desired state",
            ));
        }
        if let Some(task) = self.state.task(task_id)
            && forwards_desired(task.desired, desired)
        {
            let mut task = Task::clone(task);
            task.desired = desired;
            self.put_task(task);
        }
        Ok(())
    }

    fn set_task_status(&mut self, task_id: TaskId, report: &TaskStatus) {
        let Some(stored) = self.state.task(task_id) else {
            return;
        };
        // Only `Assign` binds a task to a node: no report may pretend that it happened.
        let unbound = stored.status.state < TaskState::Assigned;
        if unbound && report.state >= TaskState::Assigned && !report.state.is_terminal() {
            return;
        }
        if !accepts_report(&stored.status, report) {
            return;
        }
        let mut task = Task::clone(stored);
        task.status = report.clone();
        bounds::cut_text(&mut task.status.message);
        bounds::cut_text(&mut task.status.err);
        let surplus = task.status.exits.len().saturating_sub(EXITS_KEPT_MAX);
        task.status.exits.drain(..surplus);
        self.put_task(task);
    }

    pub(super) fn put_task(&mut self, mut task: Task) {
        task.meta = self.meta(Some(&task.meta));
        self.put(Entity::Task(Arc::new(task)));
    }

    /// Changes a node in place; an unknown node and a change of nothing are ignored.
    pub(super) fn change_node(&mut self, id: NodeId, change: impl FnOnce(&mut Node)) {
        let Some(before) = self.state.node(id) else {
            return;
        };
        let mut node = Node::clone(before);
        change(&mut node);
        if node != **before {
            node.meta = self.meta(Some(&node.meta));
            self.put(Entity::Node(Arc::new(node)));
        }
    }

    /// Changes a volume in place; an unknown volume and a change of nothing are ignored.
    pub(super) fn change_volume(&mut self, id: VolumeId, change: impl FnOnce(&mut Volume)) {
        let Some(before) = self.state.volume(id) else {
            return;
        };
        let mut volume = Volume::clone(before);
        change(&mut volume);
        if volume != **before {
            volume.meta = self.meta(Some(&volume.meta));
            self.put(Entity::Volume(Arc::new(volume)));
        }
    }

    pub(super) fn create_volume(&mut self, mut volume: Volume) {
        volume.meta = self.meta(None);
        self.put(Entity::Volume(Arc::new(volume)));
    }

    fn set_node_status(
        &mut self,
        id: NodeId,
        status: &NodeStatus,
        description: Option<&NodeDescription>,
    ) {
        self.change_node(id, |node| {
            node.status = status.clone();
            bounds::cut_text(&mut node.status.message);
            if let Some(description) = description {
                node.description = Some(description.clone());
            }
        });
    }

    fn set_node_role(
        &mut self,
        id: NodeId,
        role: NodeRole,
        manager: Option<&ManagerStatus>,
    ) -> Result<(), Rejection> {
        let key = ObjectKey::Node(id);
        if self.state.node(id).is_none() {
            return Err(Rejection::NotFound(key));
        }
        if let Some(manager) = manager {
            self.check_raft_id(id, manager)?;
            self.note_raft_id(manager);
        }
        self.change_node(id, |node| {
            node.role = role;
            node.manager = manager.cloned();
        });
        Ok(())
    }

    /// Raft ids are never given out twice.
    fn note_raft_id(&mut self, manager: &ManagerStatus) {
        let Some(cluster) = self.state.cluster() else {
            return;
        };
        if manager.raft_id.0 > cluster.last_raft_id {
            let mut cluster = Cluster::clone(cluster);
            cluster.last_raft_id = manager.raft_id.0;
            cluster.meta = self.meta(Some(&cluster.meta));
            self.put(Entity::Cluster(Arc::new(cluster)));
        }
    }

    fn set_volumes_materialized(&mut self, node_id: NodeId, names: &[String]) {
        for name in names {
            if let Some(volume) = self.state.volume_by_name(node_id, name) {
                let id = volume.id;
                self.change_volume(id, |volume| volume.materialized = true);
            }
        }
    }

    fn unbind_volume(&mut self, id: VolumeId, slot: SlotKey) -> Result<(), Rejection> {
        if self.state.volume(id).is_none() {
            return Err(Rejection::NotFound(ObjectKey::Volume(id)));
        }
        self.change_volume(id, |volume| {
            volume.bound_slots.remove(&slot);
        });
        Ok(())
    }

    fn use_join_token(&mut self, role: NodeRole) -> Result<(), Rejection> {
        let cluster = self
            .state
            .cluster()
            .ok_or(Rejection::NotFound(ObjectKey::Cluster))?;
        let mut cluster = Cluster::clone(cluster);
        let secret = match role {
            NodeRole::Worker => &mut cluster.worker_secret,
            NodeRole::Manager => &mut cluster.manager_secret,
        };
        if secret.expires_at.is_some_and(|end| self.time > end) {
            return Err(Rejection::TokenUsedUp);
        }
        let Some(left) = secret.uses_left else {
            return Ok(());
        };
        secret.uses_left = Some(left.checked_sub(1).ok_or(Rejection::TokenUsedUp)?);
        cluster.meta = self.meta(Some(&cluster.meta));
        self.put(Entity::Cluster(Arc::new(cluster)));
        Ok(())
    }
}

const fn slot(service: &Service, slot: u64) -> SlotKey {
    SlotKey {
        service_id: service.id,
        slot,
    }
}

pub(super) fn check_version(
    key: ObjectKey,
    expected: Version,
    found: Version,
) -> Result<(), Rejection> {
    if expected == found {
        return Ok(());
    }
    Err(Rejection::Stale {
        key,
        expected,
        found,
    })
}

fn check_task_update(before: &Task, task: &Task) -> Result<(), Rejection> {
    let key = ObjectKey::Task(task.id);
    if (task.service_id, task.slot, task.spec_version)
        != (before.service_id, before.slot, before.spec_version)
        || task.spec != before.spec
    {
        return Err(invalid(key, "its service, slot and spec can't change"));
    }
    if task.node_id != before.node_id
        || task.volumes != before.volumes
        || task.ports != before.ports
        || task.endpoints != before.endpoints
    {
        return Err(invalid(
            key,
            "only an assignment sets its node, ports, volumes and addresses",
        ));
    }
    if task.desired < before.desired || !is_desired_state(task.desired) {
        return Err(invalid(key, "the desired state only moves forward"));
    }
    let binds = before.status.state < TaskState::Assigned
        && task.status.state >= TaskState::Assigned
        && !task.status.state.is_terminal();
    if binds || (task.status != before.status && !accepts_report(&before.status, &task.status)) {
        return Err(invalid(key, "the observed state only moves forward"));
    }
    Ok(())
}

pub(super) fn invalid(key: ObjectKey, reason: impl Into<String>) -> Rejection {
    Rejection::Invalid {
        key,
        reason: reason.into(),
    }
}

pub(super) fn name_taken(kind: &str, name: &str, holder: impl std::fmt::Display) -> Rejection {
    Rejection::NameTaken {
        kind: kind.to_owned(),
        name: name.to_owned(),
        holder: holder.to_string(),
    }
}

fn within<E>(key: ObjectKey, bytes: Result<usize, E>, bytes_max: usize) -> Result<(), Rejection> {
    match bytes {
        Ok(bytes) if bytes <= bytes_max => Ok(()),
        Ok(bytes) => Err(invalid(
            key,
            format!("its spec has {bytes} bytes, at most {bytes_max} are stored"),
        )),
        Err(_) => Err(invalid(key, "its spec can't be encoded")),
    }
}
