//! How a service is reached: its networks, its published ports, its mode.

use super::network;
use super::parse::{self, ServicePort};
use crate::args::service::{CreateArgs, EndpointMode, SpecFlags, UpdateArgs};
use crate::error::Result;
use bollard::models::{
    EndpointPortConfig, EndpointPortConfigPublishModeEnum, EndpointSpecModeEnum, ServiceSpec,
};
use std::collections::{BTreeMap, HashMap};

/// Labels of a service through which Docker's API carries what it has no field for.
const LABEL_STICKY: &str = "shoal.sticky";
const LABEL_PUBLISH: &str = "shoal.publish.";
const PUBLISH_ADDR: &str = ".addr";
const PUBLISH_ALLOW: &str = ".allow";

/// The ids of networks by the names that a user has given.
pub(crate) type NetworkIds = BTreeMap<String, String>;

/// Networks and ports of a new service.
pub(crate) fn create(spec: &mut ServiceSpec, args: &CreateArgs) -> Result<()> {
    let networks = args
        .networks
        .iter()
        .map(|text| network::attachment("--network", text))
        .collect::<Result<Vec<_>>>()?;
    if !networks.is_empty() {
        spec.task_template.get_or_insert_default().networks = Some(networks);
    }
    let ports = args
        .ports
        .iter()
        .map(|text| parse::service_port(text))
        .collect::<Result<Vec<_>>>()?;
    add_ports(spec, ports);
    Ok(())
}

/// Changes of networks and ports. `ids` has every network that the flags name.
pub(crate) fn update(spec: &mut ServiceSpec, args: &UpdateArgs, ids: &NetworkIds) -> Result<()> {
    change_networks(spec, args, ids)?;
    change_ports(spec, args)
}

/// The networks that the flags of an update name.
pub(crate) fn named_networks(args: &UpdateArgs) -> Result<Vec<String>> {
    let added = args.network_add.iter().map(|text| {
        let named = network::attachment("--network-add", text)?;
        Ok(named.target.unwrap_or_default())
    });
    let mut names = added.collect::<Result<Vec<_>>>()?;
    names.extend(args.network_rm.iter().cloned());
    Ok(names)
}

fn change_networks(spec: &mut ServiceSpec, args: &UpdateArgs, ids: &NetworkIds) -> Result<()> {
    if args.network_add.is_empty() && args.network_rm.is_empty() {
        return Ok(());
    }
    let id_of = |name: &str| ids.get(name).cloned().unwrap_or_else(|| name.to_owned());
    let networks = spec
        .task_template
        .get_or_insert_default()
        .networks
        .get_or_insert_default();
    let gone: Vec<String> = args.network_rm.iter().map(|name| id_of(name)).collect();
    networks.retain(|known| !known.target.as_ref().is_some_and(|id| gone.contains(id)));
    for text in &args.network_add {
        let mut added = network::attachment("--network-add", text)?;
        added.target = added.target.map(|name| id_of(&name));
        match networks
            .iter_mut()
            .find(|known| known.target == added.target)
        {
            Some(known) => *known = added,
            None => networks.push(added),
        }
    }
    Ok(())
}

/// What a label about a port calls it.
fn port_key(port: &EndpointPortConfig) -> String {
    let protocol = port.protocol.as_ref().map(ToString::to_string);
    format!(
        "{}:{}/{}",
        port.published_port.unwrap_or(0),
        port.target_port.unwrap_or(0),
        protocol.unwrap_or_else(|| "tcp".to_owned())
    )
}

fn add_ports(spec: &mut ServiceSpec, added: Vec<ServicePort>) {
    if added.is_empty() {
        return;
    }
    let labels = spec.labels.get_or_insert_default();
    for ServicePort { port, addrs, allow } in &added {
        for (blocks, end) in [(addrs, PUBLISH_ADDR), (allow, PUBLISH_ALLOW)] {
            if !blocks.is_empty() {
                let label = format!("{LABEL_PUBLISH}{}{end}", port_key(port));
                labels.insert(label, blocks.join(","));
            }
        }
    }
    let ports = spec
        .endpoint_spec
        .get_or_insert_default()
        .ports
        .get_or_insert_default();
    ports.extend(added.into_iter().map(|added| added.port));
}

fn change_ports(spec: &mut ServiceSpec, args: &UpdateArgs) -> Result<()> {
    if args.publish_add.is_empty() && args.publish_rm.is_empty() {
        return Ok(());
    }
    let gone = args
        .publish_rm
        .iter()
        .map(|text| Ok(parse::service_port(text)?.port.target_port))
        .collect::<Result<Vec<_>>>()?;
    let added = args
        .publish_add
        .iter()
        .map(|text| parse::service_port(text))
        .collect::<Result<Vec<_>>>()?;
    let ports = spec
        .endpoint_spec
        .get_or_insert_default()
        .ports
        .get_or_insert_default();
    let stays = |port: &EndpointPortConfig| {
        let replaced = added.iter().any(|new| {
            new.port.target_port == port.target_port && new.port.protocol == port.protocol
        });
        !gone.contains(&port.target_port) && !replaced
    };
    let (kept, dropped): (Vec<_>, Vec<_>) = std::mem::take(ports).into_iter().partition(stays);
    *ports = kept;
    if let Some(labels) = &mut spec.labels {
        for port in &dropped {
            let about = format!("{LABEL_PUBLISH}{}.", port_key(port));
            labels.retain(|label, _| !label.starts_with(&about));
        }
    }
    add_ports(spec, added);
    Ok(())
}

/// The flags that mean the same in `create` and `update`.
pub(crate) fn apply_flags(spec: &mut ServiceSpec, flags: &SpecFlags) -> Result<()> {
    if let Some(mode) = flags.endpoint_mode {
        spec.endpoint_spec.get_or_insert_default().mode = Some(match mode {
            EndpointMode::Vip => EndpointSpecModeEnum::VIP,
            EndpointMode::Dnsrr => EndpointSpecModeEnum::DNSRR,
        });
    }
    if let Some(text) = &flags.sticky {
        let labels = spec.labels.get_or_insert_default();
        match parse::duration("--sticky", text)? {
            0 => labels.remove(LABEL_STICKY),
            _ => labels.insert(LABEL_STICKY.to_owned(), text.clone()),
        };
    }
    Ok(())
}

/// `*:80->8080/tcp`, sorted, for the ports that every node publishes.
pub(crate) fn shown_ports(ports: &[EndpointPortConfig]) -> String {
    let mut shown: Vec<_> = ports
        .iter()
        .filter(|port| port.publish_mode == Some(EndpointPortConfigPublishModeEnum::INGRESS))
        .map(|port| {
            let protocol = port.protocol.as_ref().map(ToString::to_string);
            let published = port.published_port.unwrap_or(0);
            let target = port.target_port.unwrap_or(0);
            let text = format!("*:{published}->{target}/{}", protocol.unwrap_or_default());
            (published, text)
        })
        .collect();
    shown.sort();
    let texts: Vec<_> = shown.into_iter().map(|(_, text)| text).collect();
    texts.join(", ")
}

/// What labels say of a published port, for people: ` on 10.0.0.0/8, for 10.1.0.0/16`.
pub(crate) fn shown_limits(
    port: &EndpointPortConfig,
    labels: Option<&HashMap<String, String>>,
) -> String {
    let said = |end: &str| {
        let label = format!("{LABEL_PUBLISH}{}{end}", port_key(port));
        labels.and_then(|labels| labels.get(&label)).cloned()
    };
    let on = said(PUBLISH_ADDR).map(|blocks| format!(" on {blocks}"));
    let allowed = said(PUBLISH_ALLOW).map(|blocks| format!(" for {blocks}"));
    format!("{}{}", on.unwrap_or_default(), allowed.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::service::ServiceCommand;
    use crate::args::{Cli, Command};
    use crate::spec::service;
    use clap::Parser as _;

    fn created(words: &str) -> ServiceSpec {
        let words = format!("shoal svc create {words} image");
        let cli = Cli::try_parse_from(words.split_whitespace()).unwrap();
        let Command::Service(ServiceCommand::Create(args)) = cli.command else {
            panic!("not a creation");
        };
        service::create(&args).unwrap()
    }

    fn updated(mut spec: ServiceSpec, words: &str) -> ServiceSpec {
        let words = format!("shoal svc update {words} web");
        let cli = Cli::try_parse_from(words.split_whitespace()).unwrap();
        let Command::Service(ServiceCommand::Update(args)) = cli.command else {
            panic!("not a change");
        };
        let ids = named_networks(&args)
            .unwrap()
            .into_iter()
            .map(|name| (name.clone(), format!("id-of-{name}")))
            .collect();
        service::update(&mut spec, &args, &ids).unwrap();
        spec
    }

    fn targets(spec: &ServiceSpec) -> Vec<String> {
        let task = spec.task_template.as_ref().unwrap();
        let networks = task.networks.iter().flatten();
        networks.map(|n| n.target.clone().unwrap()).collect()
    }

    fn labels(spec: &ServiceSpec) -> Vec<(String, String)> {
        let mut labels: Vec<_> = spec
            .labels
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect();
        labels.sort();
        labels
    }

    fn ports(spec: &ServiceSpec) -> String {
        let endpoint = spec.endpoint_spec.as_ref().unwrap();
        shown_ports(&endpoint.ports.clone().unwrap_or_default())
    }

    #[test]
    fn networks_keep_their_order_and_are_changed_by_id() {
        let spec = created("--network back --network name=front,alias=f");
        assert_eq!(targets(&spec), ["back", "front"]);
        let mut stored = spec;
        for network in stored
            .task_template
            .as_mut()
            .unwrap()
            .networks
            .iter_mut()
            .flatten()
        {
            network.target = Some(format!("id-of-{}", network.target.clone().unwrap()));
        }
        let spec = updated(
            stored,
            "--network-rm back --network-add name=front,alias=g --network-add new",
        );
        assert_eq!(targets(&spec), ["id-of-front", "id-of-new"]);
        let task = spec.task_template.unwrap();
        let front = &task.networks.unwrap()[0];
        assert_eq!(front.aliases.clone().unwrap(), ["g"]);
    }

    #[test]
    fn ports_go_with_what_is_said_of_them() {
        let spec = created(
            "--publish published=80,target=8080,addr=10.0.0.0/8,addr=fd00::/8,allow=192.0.2.1 --publish 53:53/udp \
             --publish mode=host,target=9000 --sticky 10m --endpoint-mode dnsrr",
        );
        assert_eq!(ports(&spec), "*:53->53/udp, *:80->8080/tcp");
        assert_eq!(
            labels(&spec),
            [
                (
                    "shoal.publish.80:8080/tcp.addr".to_owned(),
                    "10.0.0.0/8,fd00::/8".to_owned()
                ),
                (
                    "shoal.publish.80:8080/tcp.allow".to_owned(),
                    "192.0.2.1".to_owned()
                ),
                ("shoal.sticky".to_owned(), "10m".to_owned()),
            ]
        );
        let endpoint = spec.endpoint_spec.clone().unwrap();
        assert_eq!(endpoint.mode, Some(EndpointSpecModeEnum::DNSRR));
        let limits = shown_limits(&endpoint.ports.unwrap()[0], spec.labels.as_ref());
        assert_eq!(limits, " on 10.0.0.0/8,fd00::/8 for 192.0.2.1");

        let spec = updated(spec, "--publish-rm 8080 --sticky 0");
        assert_eq!(ports(&spec), "*:53->53/udp");
        assert_eq!(labels(&spec), []);
        let spec = updated(
            spec,
            "--publish-add published=54,target=53,protocol=udp,allow=10.0.0.0/8",
        );
        assert_eq!(ports(&spec), "*:54->53/udp");
        assert_eq!(labels(&spec)[0].0, "shoal.publish.54:53/udp.allow");
    }
}
