//! What a service gets: virtual addresses, and the numbers of its published ports.

use super::{Addresses, AllocationError};
use crate::store::{State, clash};
use shoal_model::command::StoreAction;
use shoal_model::network::ServiceVip;
use shoal_model::spec::{EndpointMode, PortConfig, Protocol, PublishMode};
use shoal_model::{Service, ServiceId};
use std::collections::BTreeSet;

/// First of the ports that are given to services which leave the choice to us.
pub const DYNAMIC_PORT_FIRST: u16 = 30_000;

/// The last of these ports.
pub const DYNAMIC_PORT_LAST: u16 = 32_767;

/// Fills in the virtual addresses and ports that the spec of `service` asks for; what it has and still wants it keeps.
/// Returns what must change before the service does.
///
/// # Errors
/// A network is not there, a port belongs to another service, or nothing is left.
pub fn fill(state: &State, service: &mut Service) -> Result<Vec<StoreAction>, AllocationError> {
    let ports = ports(state, service)?;
    let mut addresses = Addresses::new(state);
    let vips = vips(state, service, &mut addresses)?;
    service.ports = ports;
    service.vips = vips;
    Ok(addresses.into_actions())
}

fn vips(
    state: &State,
    service: &Service,
    addresses: &mut Addresses<'_>,
) -> Result<Vec<ServiceVip>, AllocationError> {
    let networks: BTreeSet<_> = service
        .spec
        .task
        .networks
        .iter()
        .map(|attachment| attachment.network_id)
        .collect();
    let mut vips = Vec::with_capacity(networks.len());
    for id in networks {
        let network = state.network(id).ok_or(AllocationError::NoNetwork(id))?;
        match service.spec.endpoint.mode {
            EndpointMode::DnsRoundRobin => continue,
            EndpointMode::Vip => {}
        }
        let had = service.vips.iter().find(|vip| vip.network_id == id);
        let ipv4 = match had {
            Some(vip) => vip.ipv4,
            None => addresses.virtual_address(id)?,
        };
        vips.push(ServiceVip {
            network_id: id,
            ipv4,
            ipv6: network.subnets.ipv6_of(ipv4),
        });
    }
    Ok(vips)
}

/// The ports of the spec in its order, with numbers.
fn ports(state: &State, service: &Service) -> Result<Vec<PortConfig>, AllocationError> {
    let mut ports = service.spec.endpoint.ports.clone();
    // Asked for by number: first, so that no choice of ours takes one of them.
    for port in ports.iter().filter(|port| port.published != 0) {
        refuse_taken(state, service.id, port)?;
    }
    let open = |port: &PortConfig| port.published == 0 && port.mode == PublishMode::Ingress;
    let mut had: Vec<&PortConfig> = service.ports.iter().collect();
    let mut chosen: BTreeSet<(Protocol, u16)> = ports
        .iter()
        .filter(|port| port.published != 0)
        .map(|port| (port.protocol, port.published))
        .collect();
    // What it had is kept, before anything new is chosen.
    for port in ports.iter_mut().filter(|port| open(port)) {
        let kept = had.iter().position(|had| {
            let unnumbered = PortConfig {
                published: 0,
                ..PortConfig::clone(had)
            };
            let dynamic = (DYNAMIC_PORT_FIRST..=DYNAMIC_PORT_LAST).contains(&had.published);
            dynamic && unnumbered == *port && !chosen.contains(&(had.protocol, had.published))
        });
        let Some(place) = kept else { continue };
        let candidate = had.swap_remove(place).clone();
        if refuse_taken(state, service.id, &candidate).is_ok() {
            chosen.insert((candidate.protocol, candidate.published));
            port.published = candidate.published;
        }
    }
    for port in ports.iter_mut().filter(|port| open(port)) {
        let free = (DYNAMIC_PORT_FIRST..=DYNAMIC_PORT_LAST).find(|number| {
            let candidate = PortConfig {
                published: *number,
                ..port.clone()
            };
            !chosen.contains(&(port.protocol, *number))
                && refuse_taken(state, service.id, &candidate).is_ok()
        });
        port.published = free.ok_or(AllocationError::NoPort {
            first: DYNAMIC_PORT_FIRST,
            last: DYNAMIC_PORT_LAST,
        })?;
        chosen.insert((port.protocol, port.published));
    }
    Ok(ports)
}

fn refuse_taken(state: &State, own: ServiceId, port: &PortConfig) -> Result<(), AllocationError> {
    let others = state
        .port_publishers(port.protocol, port.published)
        .filter(|other| other.id != own);
    for other in others {
        if let Some(theirs) = other.ports.iter().find(|theirs| clash(port, theirs)) {
            return Err(AllocationError::PortTaken {
                port: port.published,
                protocol: port.protocol.as_str(),
                holder: other.spec.name.clone(),
                how: match theirs.mode {
                    PublishMode::Ingress => " on every node",
                    PublishMode::Host => " on the nodes of its tasks",
                },
            });
        }
    }
    Ok(())
}
