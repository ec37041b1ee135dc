//! Networks are read as Docker's clients mean them, and written as Docker's types have them.

use super::network_in::{self, NamedNetwork};
use super::network_out::{self, Around};
use super::{container_in, container_out, service_out};
use crate::fields::Fields;
use bollard_stubs::models as docker;
use serde_json::{Value, json};
use shoal_engine::NetworkMode;
use shoal_engine::info::Endpoint as ShownEndpoint;
use shoal_model::control::{NetworkView, NodeView, ServiceView};
use shoal_model::netstate::{EndpointId, NetEndpoint};
use shoal_model::network::{
    AddressLease, AttachmentWish, Endpoint, IpamConfig, Network, NetworkSpec, ServiceVip, Subnets,
};
use shoal_model::spec::{PortConfig, PublishMode};
use shoal_model::{
    ContainerId, Meta, NetworkId, Node, NodeId, NodeRole, NodeSpec, NodeStatus, Service, ServiceId,
    ServiceSpec, TaskId, Timestamp, Version,
};
use std::collections::{BTreeMap, BTreeSet};

fn fields(body: &Value) -> Fields {
    Fields::of(body.clone()).unwrap()
}

#[test]
fn dockers_request_for_a_network_is_read_whole() {
    // What `docker network create -d overlay --attachable …` sends.
    let body = json!({
        "Name": "backend",
        "CheckDuplicate": true,
        "Driver": "overlay",
        "Scope": "",
        "EnableIPv4": true,
        "EnableIPv6": true,
        "IPAM": {
            "Driver": "default",
            "Options": {},
            "Config": [
                {"Subnet": "10.5.0.0/16", "IPRange": "10.5.1.0/24", "Gateway": "10.5.0.1"},
                {},
            ],
        },
        "Internal": true,
        "Attachable": true,
        "Ingress": false,
        "ConfigOnly": false,
        "ConfigFrom": null,
        "Options": {"com.docker.network.driver.mtu": "1400", "encrypted": ""},
        "Labels": {"a": "b"},
    });
    let spec = network_in::network_spec(fields(&body)).unwrap();
    assert_eq!(
        spec,
        NetworkSpec {
            name: "backend".into(),
            labels: BTreeMap::from([("a".into(), "b".into())]),
            attachable: true,
            internal: true,
            ingress: false,
            ipv6: true,
            mtu: Some(1400),
            ipam: vec![IpamConfig {
                subnet: "10.5.0.0/16".parse().unwrap(),
                gateway: Some("10.5.0.1".parse().unwrap()),
                ip_range: Some("10.5.1.0/24".parse().unwrap()),
            }],
            options: BTreeMap::from([
                ("com.docker.network.driver.mtu".into(), "1400".into()),
                ("encrypted".into(), String::new()),
            ]),
        }
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table of refusals")]
fn what_a_network_can_not_be_is_refused_by_name() {
    let with = |name: &str, value: Value| {
        let mut body = json!({"Name": "n", "Driver": "overlay"});
        body[name] = value;
        body
    };
    for (body, expected) in [
        (with("Name", json!("")), "invalid `Name`: no name is given"),
        (
            with("Name", json!("host")),
            "operation is not permitted on predefined host network",
        ),
        (
            with("Driver", json!("bridge")),
            "user-defined networks with driver `bridge` are not there yet: use driver `overlay` in a cluster, or the \
             networks bridge, host, none and container:NAME",
        ),
        (
            with("Driver", json!("macvlan")),
            "network driver `macvlan` is not there: the one for networks that users make is `overlay`",
        ),
        (
            with("Scope", json!("local")),
            "invalid `Scope`: `local`: an overlay network has the scope `swarm`",
        ),
        (
            with("Ingress", json!(true)),
            "invalid `Ingress`: the cluster has its ingress network from the start",
        ),
        (
            with("EnableIPv4", json!(false)),
            "invalid `EnableIPv4`: every network has IPv4",
        ),
        (
            with("ConfigOnly", json!(true)),
            "field `ConfigOnly` is not supported: networks without a driver are not done",
        ),
        (
            with("Options", json!({"mtu": "100"})),
            "invalid `Options.mtu`: `100`: expected a number from 1280 to 65000",
        ),
        (
            with("Options", json!({"encrypted": "false"})),
            "invalid `Options.encrypted`: `false`: what goes between hosts is always encrypted; leave it out",
        ),
        (
            with("Options", json!({"vxlan": "1"})),
            "invalid `Options.vxlan`: there is no such option of driver `overlay`",
        ),
        (
            with("IPAM", json!({"Driver": "other"})),
            "invalid `IPAM.Driver`: `other`: the only one is `default`",
        ),
        (
            with("IPAM", json!({"Config": [{"Subnet": "10.5.0.7/16"}]})),
            "invalid `IPAM.Config[0].Subnet`: `10.5.0.7/16`: it should be 10.5.0.0/16",
        ),
        (
            with("IPAM", json!({"Config": [{"Gateway": "10.5.0.1"}]})),
            "invalid `IPAM.Config[0].Subnet`: a gateway or a range needs the subnet that it is in",
        ),
        (
            with(
                "IPAM",
                json!({"Config": [{"Subnet": "10.5.0.0/16", "AuxiliaryAddresses": {"a": "10.5.0.9"}}]}),
            ),
            "field `IPAM.Config[0].AuxiliaryAddresses` is not supported: addresses that are kept free are not done: \
             give an IPRange",
        ),
        (with("Colour", json!("red")), "unknown field `Colour`"),
    ] {
        let err = network_in::network_spec(fields(&body)).unwrap_err();
        assert_eq!(err.message(), expected);
    }
}

#[test]
fn networks_are_found_by_id_then_name_then_prefix() {
    let known: Vec<_> = [
        (NetworkId::from_bits(1), "front".to_owned()),
        (NetworkId::from_bits(2), "back".to_owned()),
        // Somebody has called a network like the id of another.
        (NetworkId::from_bits(3), NetworkId::from_bits(1).to_string()),
    ]
    .into();
    let find = |text: &str| {
        let named = NamedNetwork {
            target: text.to_owned(),
            aliases: Vec::new(),
        };
        network_in::resolve(&[named], &known).map(|found| found[0].network_id)
    };
    let id = NetworkId::from_bits(1);
    assert_eq!(find("back"), Ok(NetworkId::from_bits(2)));
    assert_eq!(find(&id.to_string()), Ok(id));
    assert_eq!(
        find(&NetworkId::from_bits(2).to_string()),
        Ok(NetworkId::from_bits(2))
    );
    assert!(find("0000").unwrap_err().message().contains("ambiguous"));
    assert_eq!(
        find("nope").unwrap_err().message(),
        "network nope not found"
    );
}

fn network() -> Network {
    Network {
        id: NetworkId::from_bits(9),
        meta: Meta {
            version: Version(3),
            created_at: Timestamp(1),
            updated_at: Timestamp(2),
        },
        spec: NetworkSpec {
            name: "backend".into(),
            attachable: true,
            options: BTreeMap::from([("encrypted".into(), String::new())]),
            labels: BTreeMap::from([("a".into(), "b".into())]),
            ..NetworkSpec::default()
        },
        subnets: Subnets {
            ipv4: "10.0.5.0/24".parse().unwrap(),
            gateway: "10.0.5.1".parse().unwrap(),
            range: "10.0.5.128/25".parse().unwrap(),
            ipv6: Some("fd00:5::/64".parse().unwrap()),
            gateway_ipv6: Some("fd00:5::1".parse().unwrap()),
        },
    }
}

fn place(last: u8) -> Endpoint {
    Endpoint {
        network_id: NetworkId::from_bits(9),
        ipv4: [10, 0, 5, last].into(),
        ipv6: Some(format!("fd00:5::{last:x}").parse().unwrap()),
        aliases: Vec::new(),
    }
}

fn node() -> NodeView {
    NodeView {
        node: Node {
            id: NodeId::from_bits(4),
            meta: Meta::default(),
            spec: NodeSpec {
                name: "host-a".into(),
                ..NodeSpec::default()
            },
            description: None,
            status: NodeStatus {
                addr: "192.0.2.1".into(),
                ..NodeStatus::default()
            },
            role: NodeRole::Worker,
            manager: None,
            public_key_digest: [0; 32],
            hold_until: None,
            mesh: None,
        },
        leader: false,
        reachable: true,
    }
}

fn view() -> NetworkView {
    let end = |id, service, name: &str, last| NetEndpoint {
        id,
        node_id: NodeId::from_bits(4),
        service,
        name: name.into(),
        endpoints: vec![place(last)],
        in_rotation: true,
    };
    NetworkView {
        network: network(),
        leases: vec![AddressLease {
            network_id: NetworkId::from_bits(9),
            node_id: NodeId::from_bits(4),
            meta: Meta::default(),
            blocks: BTreeSet::from(["10.0.5.128/28".parse().unwrap()]),
        }],
        services: vec![(
            ServiceId::from_bits(6),
            "web".into(),
            Some(ServiceVip {
                network_id: NetworkId::from_bits(9),
                ipv4: [10, 0, 5, 130].into(),
                ipv6: None,
            }),
        )],
        endpoints: vec![
            end(
                EndpointId::Task(TaskId::from_bits(7)),
                Some((ServiceId::from_bits(6), 3)),
                "web.3",
                131,
            ),
            end(
                EndpointId::Container(ContainerId::from_bytes([8; 32])),
                None,
                "alone",
                132,
            ),
        ],
    }
}

#[test]
fn an_inspected_network_shows_who_is_in_it() {
    let nodes = [node()];
    let shown = ShownEndpoint {
        network: "backend".into(),
        network_id: NetworkId::from_bits(9).to_string(),
        address: Some([10, 0, 5, 132].into()),
        prefix_len: 24,
        ipv6: Some("fd00:5::84".parse().unwrap()),
        ipv6_prefix_len: 64,
        mac: "02:00:00:00:00:01".into(),
        ..ShownEndpoint::default()
    };
    let id = ContainerId::from_bytes([8; 32]);
    let around = Around {
        containers: vec![(id, "alone".into(), shown)],
        nodes: &nodes,
        ports: BTreeMap::from([(
            ServiceId::from_bits(6),
            vec![PortConfig {
                target: 8080,
                published: 80,
                mode: PublishMode::Ingress,
                ..PortConfig::default()
            }],
        )]),
        verbose: true,
    };
    let written = network_out::inspect(&view(), &around);
    super::tests::conforms::<docker::NetworkInspect>(&written);
    assert_eq!(written["IPAM"]["Config"][0]["IPRange"], "10.0.5.128/25");
    assert_eq!(written["IPAM"]["Config"][1]["Gateway"], "fd00:5::1");
    assert_eq!(
        written["Peers"],
        json!([{"Name": "host-a", "IP": "192.0.2.1"}])
    );
    let alone = &written["Containers"][id.to_string()];
    assert_eq!(alone["IPv4Address"], "10.0.5.132/24");
    assert_eq!(alone["IPv6Address"], "fd00:5::84/64");
    let web = &written["Services"]["web"];
    assert_eq!(web["VIP"], "10.0.5.130");
    assert_eq!(web["Ports"], json!(["Target: 8080, Publish: 80"]));
    assert_eq!(web["Tasks"][0]["EndpointIP"], "10.0.5.131");
    assert_eq!(web["Tasks"][0]["Info"]["Host IP"], "192.0.2.1");
    let name = web["Tasks"][0]["Name"].as_str().unwrap();
    assert!(name.starts_with("web.3."), "{name}");
    assert_eq!(
        written["Services"][""]["Tasks"][0]["EndpointID"], alone["EndpointID"],
        "the same endpoint has one id wherever it is shown"
    );
    let brief = network_out::inspect(&view(), &Around::default());
    assert!(brief.get("Services").is_none());
    super::tests::conforms::<docker::Network>(&network_out::summary(&network()));
}

#[test]
fn a_service_shows_its_virtual_addresses_and_the_ports_that_were_chosen() {
    let port = |published| PortConfig {
        target: 8080,
        published,
        mode: PublishMode::Ingress,
        ..PortConfig::default()
    };
    let mut spec = ServiceSpec {
        name: "web".into(),
        ..ServiceSpec::default()
    };
    spec.endpoint.ports = vec![port(0)];
    let service = Service {
        id: ServiceId::from_bits(6),
        meta: Meta::default(),
        spec,
        previous_spec: None,
        spec_version: 1,
        update_status: None,
        vips: vec![ServiceVip {
            network_id: NetworkId::from_bits(9),
            ipv4: [10, 0, 5, 130].into(),
            ipv6: Some("fd00:5::82".parse().unwrap()),
        }],
        ports: vec![port(30_000)],
        pending_delete: false,
    };
    let view = ServiceView {
        service,
        running_tasks: 0,
        desired_tasks: 0,
    };
    let written = service_out::service(&view, service_out::ServiceDetail::default());
    let endpoint = &written["Endpoint"];
    assert_eq!(endpoint["Ports"][0]["PublishedPort"], 30_000);
    assert!(endpoint["Spec"]["Ports"][0].get("PublishedPort").is_none());
    let addrs: Vec<_> = endpoint["VirtualIPs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|vip| vip["Addr"].as_str().unwrap())
        .collect();
    assert_eq!(addrs, ["10.0.5.130/32", "fd00:5::82/128"]);
}

#[test]
fn a_task_shows_its_networks_with_their_prefixes() {
    let known = BTreeMap::from([(NetworkId::from_bits(9), network())]);
    let written = network_out::attachments(&[place(131)], &known);
    assert_eq!(written[0]["Network"]["Spec"]["Name"], "backend");
    assert_eq!(
        written[0]["Addresses"],
        json!(["10.0.5.131/24", "fd00:5::83/64"])
    );
    // A network that is being removed: the addresses stand on their own.
    let written = network_out::attachments(&[place(131)], &BTreeMap::new());
    assert_eq!(
        written[0]["Addresses"],
        json!(["10.0.5.131/32", "fd00:5::83/128"])
    );
}

#[test]
fn a_container_names_networks_of_the_cluster_with_its_wishes() {
    // What `docker run --network back --ip 10.0.5.9 --network-alias x --network front` sends.
    let body = json!({
        "Image": "a",
        "HostConfig": {"NetworkMode": "back"},
        "NetworkingConfig": {"EndpointsConfig": {
            "front": {"IPAMConfig": null, "Aliases": null, "DriverOpts": null},
            "back": {"IPAMConfig": {"IPv4Address": "10.0.5.9"}, "Aliases": ["x"]},
        }},
    });
    let config = container_in::container_config(fields(&body)).unwrap();
    assert_eq!(config.host.network_mode, NetworkMode::Named("back".into()));
    let wish = |network: &str, ipv4, aliases| AttachmentWish {
        network: network.to_owned(),
        ipv4,
        aliases,
    };
    assert_eq!(
        config.networks,
        [
            wish("back", Some([10, 0, 5, 9].into()), vec!["x".to_owned()]),
            wish("front", None, Vec::new()),
        ]
    );
    let only_the_mode = json!({"Image": "a", "HostConfig": {"NetworkMode": "back"}});
    let config = container_in::container_config(fields(&only_the_mode)).unwrap();
    assert_eq!(config.networks, [wish("back", None, Vec::new())]);
}

#[test]
fn wishes_that_no_network_can_fulfil_are_refused() {
    let with = |mode: &str, name: &str, endpoint: Value| {
        json!({
            "Image": "a",
            "HostConfig": {"NetworkMode": mode},
            "NetworkingConfig": {"EndpointsConfig": {name: endpoint}},
        })
    };
    for (body, expected) in [
        (
            with("bridge", "bridge", json!({"Aliases": ["x"]})),
            "field `NetworkingConfig.EndpointsConfig.bridge.Aliases` is not supported: network-scoped aliases are only \
             supported for user-defined networks",
        ),
        (
            with(
                "default",
                "bridge",
                json!({"IPAMConfig": {"IPv4Address": "172.17.0.9"}}),
            ),
            "field `NetworkingConfig.EndpointsConfig.bridge.IPAMConfig` is not supported: user specified IP address \
             is supported on user defined networks only",
        ),
        (
            with("back", "bridge", json!({})),
            "invalid `NetworkingConfig.EndpointsConfig.bridge`: a container is in the network of its network mode \
             only, or in several of the cluster",
        ),
        (
            with(
                "back",
                "back",
                json!({"IPAMConfig": {"IPv6Address": "fd00::9"}}),
            ),
            "field `NetworkingConfig.EndpointsConfig.back.IPAMConfig.IPv6Address` is not supported: an IPv6 address \
             follows from the IPv4 address of the same endpoint",
        ),
        (
            with("back", "back", json!({"DriverOpts": {"a": "b"}})),
            "field `NetworkingConfig.EndpointsConfig.back.DriverOpts` is not supported: an attachment has no options \
             here",
        ),
    ] {
        let err = container_in::container_config(fields(&body)).unwrap_err();
        assert_eq!(err.message(), expected);
    }
}

#[test]
fn a_container_shows_its_places_in_networks() {
    let mut info = super::tests::container();
    info.network_mode = NetworkMode::Named("back".into());
    info.network.endpoints = vec![ShownEndpoint {
        network: "back".into(),
        network_id: NetworkId::from_bits(9).to_string(),
        address: Some([10, 0, 5, 9].into()),
        prefix_len: 24,
        gateway: Some([10, 0, 5, 1].into()),
        ipv6: Some("fd00:5::9".parse().unwrap()),
        ipv6_prefix_len: 64,
        ipv6_gateway: Some("fd00:5::1".parse().unwrap()),
        mac: "02:00:00:00:00:01".into(),
        aliases: vec!["x".into()],
    }];
    let written = container_out::inspect(&info);
    let back = &written["NetworkSettings"]["Networks"]["back"];
    assert_eq!(back["NetworkID"], NetworkId::from_bits(9).to_string());
    assert_eq!(back["GlobalIPv6Address"], "fd00:5::9");
    assert_eq!(back["IPv6Gateway"], "fd00:5::1");
    assert_eq!(back["Aliases"], json!(["x"]));
    assert_eq!(back["EndpointID"].as_str().unwrap().len(), 64);
    assert_eq!(written["HostConfig"]["NetworkMode"], "back");
}
