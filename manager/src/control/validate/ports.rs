//! Published ports.

use super::{Invalid, ensure, list_bound};
use crate::store::{clash, share_address};
use ipnet::IpNet;
use shoal_model::spec::{EndpointMode, EndpointSpec, PortConfig, PublishMode};
use std::ops::RangeInclusive;

/// How long a client stays with its task, in seconds: at most a day.
const STICKY_S: RangeInclusive<u32> = 1..=24 * 3600;

pub(super) fn endpoint(spec: &EndpointSpec) -> Result<(), Invalid> {
    const PORTS: &str = "EndpointSpec.Ports";
    list_bound(PORTS, &spec.ports)?;
    for (index, port) in spec.ports.iter().enumerate() {
        let field = format!("{PORTS}[{index}]");
        ensure(port.target != 0, &format!("{field}.TargetPort"), || {
            "0 is not a port: give the port that the container listens on (`target=8080`)"
                .to_owned()
        })?;
        let everywhere = port.mode == PublishMode::Ingress;
        ensure(
            !everywhere || spec.mode == EndpointMode::Vip,
            &format!("{field}.PublishMode"),
            || {
                format!(
                    "`ingress` (port {}) does not go with the endpoint mode `dnsrr`: publish with `mode=host`, or use \
                     the mode `vip`",
                    port.published
                )
            },
        )?;
        addresses(&field, port)?;
        let twice = spec.ports[..index].iter().any(|other| same(port, other));
        ensure(!twice, &format!("{field}.PublishedPort"), || {
            let protocol = port.protocol.as_str();
            format!(
                "{}/{protocol} is published twice: give each its own port",
                port.published
            )
        })?;
    }
    match spec.sticky_s {
        Some(seconds) => ensure(STICKY_S.contains(&seconds), "EndpointSpec.Sticky", || {
            let (least, most) = (STICKY_S.start(), STICKY_S.end());
            format!("{seconds} s: {least} to {most} are allowed")
        }),
        None => Ok(()),
    }
}

/// Two ports of one service that meet on a node.
fn same(one: &PortConfig, other: &PortConfig) -> bool {
    let numbers = |port: &PortConfig| (port.protocol, port.published);
    let on_one_node = one.published != 0 && numbers(one) == numbers(other);
    clash(one, other) || (on_one_node && share_address(one, other))
}

/// Addresses and clients are networks without host bits. Only the network across hosts knows them.
fn addresses(field: &str, port: &PortConfig) -> Result<(), Invalid> {
    for (name, nets) in [("Addrs", &port.addrs), ("Allow", &port.allow)] {
        let field = format!("{field}.{name}");
        list_bound(&field, nets)?;
        ensure(
            nets.is_empty() || port.mode == PublishMode::Ingress,
            &field,
            || {
                "it goes with `mode=ingress` only: a host-mode port is open on all addresses of its node".to_owned()
            },
        )?;
        for net in nets {
            ensure(*net == IpNet::trunc(net), &field, || {
                format!("{net} has host bits set: it should be {}", net.trunc())
            })?;
        }
    }
    Ok(())
}
