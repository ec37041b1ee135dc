//! Published ports.

use super::{Invalid, ensure, list_bound};
use shoal_model::spec::{EndpointMode, EndpointSpec, PublishMode};
use std::collections::BTreeSet;

pub(super) fn endpoint(spec: &EndpointSpec) -> Result<(), Invalid> {
    match spec.mode {
        EndpointMode::Vip => {}
        EndpointMode::DnsRoundRobin => {
            return Err(Invalid::new(
                "EndpointSpec.Mode",
                "`dnsrr` needs an overlay network, which this version does not have: leave the mode out",
            ));
        }
    }
    list_bound("EndpointSpec.Ports", &spec.ports)?;
    let mut taken = BTreeSet::new();
    for (index, port) in spec.ports.iter().enumerate() {
        let field = format!("EndpointSpec.Ports[{index}]");
        ensure(port.target != 0, &format!("{field}.TargetPort"), || {
            "0 is not a port: give the port that the container listens on (`target=8080`)"
                .to_owned()
        })?;
        ensure(
            port.mode == PublishMode::Host,
            &format!("{field}.PublishMode"),
            || {
                format!(
                    "`ingress` (port {}) needs the overlay network, which this version does not have: publish with \
                 `mode=host` (`--publish mode=host,target={},published={}`)",
                    port.published, port.target, port.published
                )
            },
        )?;
        let fresh = port.published == 0 || taken.insert((port.protocol, port.published));
        ensure(fresh, &format!("{field}.PublishedPort"), || {
            let protocol = port.protocol.as_str();
            format!(
                "{}/{protocol} is published twice: give each its own port",
                port.published
            )
        })?;
    }
    Ok(())
}
