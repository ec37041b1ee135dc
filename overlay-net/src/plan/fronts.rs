//! Where connections lead, and which tracked ones are wrong after a change.

use super::PlanInput;
use super::balance::ingress_endpoint;
use shoal_model::spec::{Protocol, PublishMode};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Who takes connections, and at which addresses and ports clients come in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fronts {
    /// Addresses of all endpoints, whether they take new connections or not.
    pub endpoints: BTreeSet<IpAddr>,
    /// Addresses of those that take new connections.
    pub rotation: BTreeSet<IpAddr>,
    /// Virtual addresses.
    pub vips: BTreeSet<IpAddr>,
    /// Published UDP ports.
    pub udp_ports: BTreeSet<u16>,
}

/// Tracked connections that lead to the wrong place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forget {
    /// Backends that do not exist any more: nothing can come of their connections.
    pub gone: BTreeSet<IpAddr>,
    /// Backends that take no new connections: datagrams find another one, TCP connections may come to their end.
    pub resting: BTreeSet<IpAddr>,
    /// Virtual addresses that were not there before.
    pub new_vips: BTreeSet<IpAddr>,
    /// UDP ports that were not published before.
    pub new_udp_ports: BTreeSet<u16>,
}

impl Forget {
    /// There are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Fronts {
    pub(super) fn of(input: &PlanInput<'_>) -> Self {
        let mut fronts = Self::default();
        for member in input.state.endpoints.values() {
            for endpoint in &member.endpoints {
                fronts.endpoints.insert(IpAddr::V4(endpoint.ipv4));
                fronts.endpoints.extend(endpoint.ipv6.map(IpAddr::V6));
            }
        }
        let members = super::balance::members(input.state);
        for service in input.state.services.values() {
            let all = members.get(&service.id).into_iter().flatten().copied();
            let ingress = service
                .ports
                .iter()
                .any(|port| port.mode == PublishMode::Ingress);
            for member in input.outlook.rotation(service.on_partition, all) {
                let in_networks = member.endpoints.iter();
                let by_ports = ingress.then(|| ingress_endpoint(service, member)).flatten();
                for endpoint in in_networks.chain(by_ports) {
                    fronts.rotation.insert(IpAddr::V4(endpoint.ipv4));
                    fronts.rotation.extend(endpoint.ipv6.map(IpAddr::V6));
                }
            }
            for vip in &service.vips {
                fronts.vips.insert(IpAddr::V4(vip.ipv4));
                fronts.vips.extend(vip.ipv6.map(IpAddr::V6));
            }
            let udp = service
                .ports
                .iter()
                .filter(|port| port.mode == PublishMode::Ingress && port.protocol == Protocol::Udp);
            fronts.udp_ports.extend(udp.map(|port| port.published));
        }
        fronts
    }

    /// What must be forgotten when `self` follows `before`.
    pub fn forgotten_since(&self, before: Option<&Self>) -> Forget {
        let nothing = Self::default();
        let old = before.unwrap_or(&nothing);
        let without = |old: &BTreeSet<IpAddr>, new: &BTreeSet<IpAddr>| {
            old.difference(new).copied().collect::<BTreeSet<_>>()
        };
        Forget {
            gone: without(&old.endpoints, &self.endpoints),
            resting: without(&old.rotation, &self.rotation),
            new_vips: without(&self.vips, &old.vips),
            new_udp_ports: self.udp_ports.difference(&old.udp_ports).copied().collect(),
        }
    }
}
