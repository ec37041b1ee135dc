//! A service has at most one virtual address per network, in a network that is there; a port that is published on every
//! node is published by one service.

use crate::store::networks::clash;
use crate::store::state::State;
use std::collections::BTreeSet;

pub(super) fn check(state: &State) -> Vec<String> {
    let mut broken = Vec::new();
    for service in state.services() {
        let name = &service.spec.name;
        let mut networks = BTreeSet::new();
        for vip in &service.vips {
            if !networks.insert(vip.network_id) {
                broken.push(format!("service `{name}` has two addresses in a network"));
            }
            if state.network(vip.network_id).is_none() {
                broken.push(format!("service `{name}` has an address in no network"));
            }
        }
    }
    let services: Vec<_> = state
        .services()
        .filter(|service| !service.pending_delete && !service.ports.is_empty())
        .collect();
    for (place, service) in services.iter().enumerate() {
        for other in &services[place + 1..] {
            let shared = service
                .ports
                .iter()
                .any(|port| other.ports.iter().any(|theirs| clash(port, theirs)));
            if shared {
                let names = (&service.spec.name, &other.spec.name);
                broken.push(format!("services {names:?} publish one port"));
            }
        }
    }
    broken
}
