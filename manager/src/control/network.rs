//! Networks: list, create, remove; addresses of containers that no service owns.

use super::answer::Answer;
use super::core::{Core, no_cluster};
use super::error::Failure;
use super::validate;
use crate::allocator::{self, Addresses};
use crate::netfeed;
use crate::store::State;
use shoal_model::command::{ACTIONS_PER_COMMAND_MAX, Object, ObjectKey, StoreAction};
use shoal_model::control::{ControlResponse, NetworkView};
use shoal_model::netstate::{EndpointId, NetKey, NetRecord};
use shoal_model::network::{Attachment, AttachmentWish, NetworkAttachment, NetworkSpec};
use shoal_model::rpc::ErrorCode;
use shoal_model::{ContainerId, Meta, Network, NetworkId, NodeId, NodeState, Service};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Users of a network that a refusal names before it says "and n more".
const NAMES_MAX: usize = 3;

/// A container asks for its addresses.
pub(super) struct AttachRequest {
    pub(super) node_id: NodeId,
    pub(super) container_id: ContainerId,
    pub(super) name: String,
    pub(super) wishes: Vec<AttachmentWish>,
}

impl Core {
    pub(super) fn list_networks(&self, state: &State) -> Answer {
        let views = state.networks().map(|network| NetworkView {
            network: Network::clone(network),
            leases: Vec::new(),
            services: Vec::new(),
            endpoints: Vec::new(),
        });
        Answer::pages(views, ControlResponse::Networks)
    }

    pub(super) fn get_network(
        &self,
        state: &State,
        id: NetworkId,
    ) -> Result<ControlResponse, Failure> {
        let network = state
            .network(id)
            .ok_or_else(|| Failure::not_found("network", id))?;
        Ok(ControlResponse::Network(Box::new(view(state, network))))
    }

    pub(super) async fn create_network(
        &self,
        state: &State,
        id: NetworkId,
        spec: NetworkSpec,
    ) -> Result<ControlResponse, Failure> {
        self.propose_decided(state, |state| {
            let actions = creation(state, id, &spec)?;
            Ok((actions, ControlResponse::NetworkCreated(id)))
        })
        .await
    }

    pub(super) async fn remove_network(
        &self,
        state: &State,
        id: NetworkId,
        repeated: bool,
    ) -> Result<ControlResponse, Failure> {
        if state.network(id).is_none() && repeated {
            return Ok(ControlResponse::Done);
        }
        // Leases beyond what one entry takes go first: whatever becomes of the rest, nobody used them.
        let surplus = idle_leases(state, removable(state, id)?).skip(ACTIONS_PER_COMMAND_MAX - 1);
        self.propose_chunks(surplus.collect()).await?;
        self.propose_decided(state, |state| {
            let network = removable(state, id)?;
            let mut actions: Vec<StoreAction> = idle_leases(state, network)
                .take(ACTIONS_PER_COMMAND_MAX - 1)
                .collect();
            actions.push(StoreAction::Remove {
                key: ObjectKey::Network(id),
                version: None,
            });
            Ok((actions, ControlResponse::Done))
        })
        .await
    }

    pub(super) async fn attach_container(
        &self,
        state: &State,
        request: &AttachRequest,
    ) -> Result<ControlResponse, Failure> {
        let attachment = self
            .propose_decided(state, |state| attachment(state, request))
            .await?;
        // The stored one has its version.
        let view = self.store.view();
        let stored = view.attachment(request.container_id);
        let attachment = stored.map_or(attachment, |stored| Attachment::clone(stored));
        Ok(ControlResponse::Attached(Box::new(attachment)))
    }

    pub(super) async fn detach_container(
        &self,
        state: &State,
        caller: NodeId,
        id: ContainerId,
    ) -> Result<ControlResponse, Failure> {
        let Some(stored) = state.attachment(id) else {
            return Ok(ControlResponse::Done);
        };
        own_container(stored, caller)?;
        self.propose_decided(state, |state| {
            let key = ObjectKey::Attachment(id);
            let removal = StoreAction::Remove { key, version: None };
            let there = state.attachment(id).is_some();
            Ok((
                there.then_some(removal).into_iter().collect(),
                ControlResponse::Done,
            ))
        })
        .await
    }
}

/// What makes a network; nothing, if it is there already.
fn creation(state: &State, id: NetworkId, spec: &NetworkSpec) -> Result<Vec<StoreAction>, Failure> {
    if let Some(stored) = state.network(id) {
        if stored.spec == *spec {
            return Ok(Vec::new());
        }
        let name = &stored.spec.name;
        let message = format!("network id `{id}` belongs to network `{name}`");
        return Err(Failure::new(ErrorCode::AlreadyExists, message));
    }
    validate::network(spec)?;
    if let Some(holder) = state.network_by_name(&spec.name) {
        let message = format!(
            "network with name {} already exists: it is `{}`",
            spec.name, holder.id
        );
        return Err(Failure::new(ErrorCode::AlreadyExists, message));
    }
    let cluster = state.cluster().ok_or_else(no_cluster)?;
    let network = Network {
        id,
        meta: Meta::default(),
        spec: spec.clone(),
        subnets: allocator::subnets::choose(state, cluster, spec)?,
    };
    Ok(vec![StoreAction::Create(Object::Network(Box::new(
        network,
    )))])
}

/// The network, if nothing uses it.
fn removable(state: &State, id: NetworkId) -> Result<&Network, Failure> {
    let network = state
        .network(id)
        .ok_or_else(|| Failure::not_found("network", id))?;
    let name = &network.spec.name;
    let refuse = |what: String| {
        Err(Failure::precondition(format!(
            "network `{name}` is in use by {what}"
        )))
    };
    if network.spec.ingress {
        return Err(Failure::precondition(format!(
            "network `{name}` is built in: it carries published ports and can't be removed"
        )));
    }
    let (leaving, staying): (Vec<_>, Vec<_>) = state
        .services_in(id)
        .partition(|service| service.pending_delete);
    if !staying.is_empty() {
        let names = names("service", staying.iter().map(|service| &service.spec.name));
        return refuse(format!("{names}: remove what uses it first"));
    }
    let users = state.endpoints_in(id, network.subnets.ipv4);
    let users: Vec<_> = users.map(|(_, holder)| holder).collect();
    let tasks = users.iter().filter_map(|holder| match holder {
        EndpointId::Task(id) => Some(state.task(*id)?.name()),
        EndpointId::Container(_) => None,
    });
    let containers = users.iter().filter_map(|holder| match holder {
        EndpointId::Task(_) => None,
        EndpointId::Container(id) => Some(state.attachment(*id)?.name.clone()),
    });
    let containers = names("container", containers);
    if !containers.is_empty() {
        return refuse(format!("{containers}: remove or disconnect them first"));
    }
    let tasks = names("task", tasks);
    if !tasks.is_empty() {
        let silent = users
            .iter()
            .filter_map(|holder| silent_node(state, *holder));
        let silent = names("node", silent);
        return refuse(if silent.is_empty() {
            format!("{tasks}, still stopping: try again")
        } else {
            format!(
                "{tasks}, which may still run on {silent}: bring it back, or forget it with `node rm --force`"
            )
        });
    }
    if leaving.iter().any(|service| !service.vips.is_empty()) {
        let names = names("service", leaving.iter().map(|service| &service.spec.name));
        return refuse(format!("{names}, still being removed: try again"));
    }
    Ok(network)
}

/// The name of the node of a task, if nothing is heard of the node.
fn silent_node(state: &State, holder: EndpointId) -> Option<String> {
    let EndpointId::Task(id) = holder else {
        return None;
    };
    let node = state.node(state.task(id)?.node_id?)?;
    (node.status.state != NodeState::Ready).then(|| node.display_name())
}

/// ``services `a`, `b` and 4 more``; empty for none.
fn names(kind: &str, names: impl Iterator<Item = impl AsRef<str>>) -> String {
    let mut names: Vec<String> = names.map(|name| format!("`{}`", name.as_ref())).collect();
    names.sort();
    names.dedup();
    let plural = if names.len() == 1 { "" } else { "s" };
    match names.len().checked_sub(NAMES_MAX) {
        _ if names.is_empty() => String::new(),
        None | Some(0) => format!("{kind}{plural} {}", names.join(", ")),
        Some(more) => {
            names.truncate(NAMES_MAX);
            format!("{kind}{plural} {} and {more} more", names.join(", "))
        }
    }
}

fn idle_leases<'a>(
    state: &'a State,
    network: &Network,
) -> impl Iterator<Item = StoreAction> + use<'a> {
    state
        .leases_in(network.id)
        .map(|lease| StoreAction::Remove {
            key: ObjectKey::Lease(lease.network_id, lease.node_id),
            version: None,
        })
}

fn own_container(stored: &Attachment, caller: NodeId) -> Result<(), Failure> {
    if stored.node_id == caller {
        return Ok(());
    }
    let (id, node) = (stored.container_id.short(), stored.node_id);
    let message = format!("container `{id}` belongs to node `{node}`");
    Err(Failure::new(ErrorCode::PermissionDenied, message))
}

/// What gives a container its addresses, those that it has already among them.
fn attachment(
    state: &State,
    request: &AttachRequest,
) -> Result<(Vec<StoreAction>, Attachment), Failure> {
    validate::attachment(&request.name, &request.wishes)?;
    let node_id = request.node_id;
    let node = state
        .node(node_id)
        .ok_or_else(|| Failure::not_found("node", node_id))?;
    if node.mesh.is_none() {
        let message = format!(
            "node `{}` has no address in the mesh yet: its WireGuard is not up",
            node.display_name()
        );
        return Err(Failure::new(ErrorCode::Unavailable, message));
    }
    let stored = state.attachment(request.container_id);
    stored.map_or(Ok(()), |stored| own_container(stored, node_id))?;
    let mut addresses = Addresses::new(state);
    let mut endpoints = Vec::with_capacity(request.wishes.len());
    let mut seen = BTreeSet::new();
    for wish in &request.wishes {
        let network = attachable(state, &wish.network)?;
        if !seen.insert(network.id) {
            return Err(Failure::invalid(format!(
                "network `{}` is asked for twice",
                network.spec.name
            )));
        }
        let had = stored.and_then(|stored| {
            let mut all = stored.endpoints.iter();
            all.find(|endpoint| endpoint.network_id == network.id)
        });
        let had = had.filter(|had| wish.ipv4.is_none_or(|wanted| wanted == had.ipv4));
        let place = NetworkAttachment {
            network_id: network.id,
            aliases: wish.aliases.clone(),
        };
        let mut endpoint = match (had, wish.ipv4) {
            (Some(had), _) => had.clone(),
            (None, Some(wanted)) => addresses.fixed(&place, node_id, wanted)?,
            (None, None) => {
                let seed = seed(request.container_id);
                let given = addresses.endpoints(std::slice::from_ref(&place), node_id, seed)?;
                endpoints.extend(given);
                continue;
            }
        };
        endpoint.aliases = place.aliases;
        endpoints.push(endpoint);
    }
    let attachment = Attachment {
        container_id: request.container_id,
        meta: stored.map_or_else(Meta::default, |stored| stored.meta),
        node_id,
        name: request.name.clone(),
        endpoints,
    };
    if stored.is_some_and(|stored| **stored == attachment) {
        return Ok((Vec::new(), attachment));
    }
    let object = Object::Attachment(Box::new(attachment.clone()));
    let mut actions = addresses.into_actions();
    actions.push(match stored {
        Some(_) => StoreAction::Update(object),
        None => StoreAction::Create(object),
    });
    Ok((actions, attachment))
}

fn seed(id: ContainerId) -> u128 {
    let bytes = id.as_bytes().iter().take(16);
    bytes.fold(0, |seed, byte| (seed << 8) | u128::from(*byte))
}

/// The network of that name, id or unique beginning of an id, if containers may be attached to it.
fn attachable<'a>(state: &'a State, wanted: &str) -> Result<&'a Arc<Network>, Failure> {
    let by_id = || {
        let mut found = state
            .networks()
            .filter(|network| !wanted.is_empty() && network.id.to_string().starts_with(wanted));
        found.next().filter(|_| found.next().is_none())
    };
    let network = state.network_by_name(wanted).or_else(by_id);
    let network = network.ok_or_else(|| Failure::not_found("network", wanted))?;
    if network.spec.attachable {
        return Ok(network);
    }
    Err(Failure::precondition(format!(
        "network `{}` is not attachable: only services use it; create one with `--attachable`",
        network.spec.name
    )))
}

fn view(state: &State, network: &Network) -> NetworkView {
    let vip = |service: &Service| {
        let mut vips = service.vips.iter();
        vips.find(|vip| vip.network_id == network.id).copied()
    };
    NetworkView {
        network: network.clone(),
        leases: state
            .leases_in(network.id)
            .map(|lease| (**lease).clone())
            .collect(),
        services: state
            .services_in(network.id)
            .filter(|service| !service.pending_delete)
            .map(|service| (service.id, service.spec.name.clone(), vip(service)))
            .collect(),
        endpoints: state
            .endpoints_in(network.id, network.subnets.ipv4)
            .filter_map(
                |(_, holder)| match netfeed::record(state, NetKey::Endpoint(holder))? {
                    NetRecord::Endpoint(endpoint) => Some(endpoint),
                    NetRecord::Node(_)
                    | NetRecord::Network(_)
                    | NetRecord::Lease(_)
                    | NetRecord::Service(_) => None,
                },
            )
            .collect(),
    }
}
