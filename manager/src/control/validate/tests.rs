//! Tables of specs and their refusals.

use super::{attachment, cluster, image_reference, network, service, service_name, volume_name};
use shoal_model::network::{AttachmentWish, NetworkAttachment, NetworkSpec};
use shoal_model::spec::{
    EndpointMode, Healthcheck, Mount, MountKind, PortConfig, PublishMode, Ulimit,
};
use shoal_model::{ClusterSpec, NetworkId, ServiceMode, ServiceSpec};

/// A valid service after `change` is refused with a text that begins like this; empty: it is still valid.
fn check(expected: &str, change: impl FnOnce(&mut ServiceSpec)) {
    let mut spec = ServiceSpec {
        name: "web".to_owned(),
        ..ServiceSpec::default()
    };
    spec.task.container.image = "nginx".to_owned();
    change(&mut spec);
    let refused = service(&spec, 3_000).err().map(|err| err.to_string());
    let text = refused.unwrap_or_default();
    assert_eq!(text.is_empty(), expected.is_empty(), "{text} / {expected}");
    assert!(text.starts_with(expected), "{text} / {expected}");
}

fn port(mode: PublishMode, target: u16, published: u16) -> PortConfig {
    PortConfig {
        target,
        published,
        mode,
        ..PortConfig::default()
    }
}

fn mount(target: &str, kind: MountKind) -> Mount {
    Mount {
        kind,
        target: target.to_owned(),
        read_only: false,
    }
}

fn tmpfs() -> MountKind {
    MountKind::Tmpfs {
        size_bytes: 0,
        mode: 0,
    }
}

#[test]
fn fields_are_checked_and_named() {
    check("", |_| {});
    check("`Name`: the name is empty", |s| s.name.clear());
    check("`Name`: `-a` is not", |s| s.name = "-a".to_owned());
    check("`Mode.Replicated.Replicas`: 100001", |s| {
        s.mode = ServiceMode::Replicated { replicas: 100_001 };
    });
    check("`TaskTemplate.ContainerSpec.Image`: no image", |s| {
        s.task.container.image.clear()
    });
    check("`TaskTemplate.ContainerSpec.Env`", |s| {
        s.task.container.env = vec!["=x".to_owned()]
    });
    check("", |s| s.task.container.env = vec!["KEY".to_owned()]);
    check("`TaskTemplate.ContainerSpec.Dir`", |s| {
        s.task.container.dir = "tmp".to_owned()
    });
    check("`TaskTemplate.ContainerSpec.StopSignal`", |s| {
        s.task.container.stop_signal = "99".to_owned();
    });
    check("", |s| {
        s.task.container.stop_signal = "SIGRTMIN+3".to_owned()
    });
    check("`TaskTemplate.ContainerSpec.StopGracePeriod`", |s| {
        s.task.container.stop_grace_period_ns = Some(u64::MAX);
    });
    check("`TaskTemplate.ContainerSpec.CapabilityAdd`", |s| {
        s.task.container.cap_add = vec!["net admin".to_owned()];
    });
    check(
        "`TaskTemplate.ContainerSpec.Sysctls`: `vm.swappiness`",
        |s| {
            let sysctls = &mut s.task.container.sysctls;
            sysctls.insert("vm.swappiness".to_owned(), "1".to_owned());
        },
    );
    check("`TaskTemplate.ContainerSpec.Ulimits`: nofile=2:1", |s| {
        s.task.container.ulimits = vec![Ulimit {
            name: "nofile".to_owned(),
            soft: 2,
            hard: 1,
        }];
    });
    check("`TaskTemplate.ContainerSpec.Healthcheck.Test`", |s| {
        s.task.container.healthcheck = Some(Healthcheck {
            test: vec!["curl".to_owned()],
            ..Healthcheck::default()
        });
    });
    check(
        "`TaskTemplate.Resources.Reservations.MemoryBytes`: 5",
        |s| {
            s.task.resources.reservations.memory_bytes = 5;
        },
    );
    check(
        "`TaskTemplate.Placement.Constraints`: constraint `node.colour==red`",
        |s| {
            s.task.placement.constraints = vec!["node.colour==red".to_owned()];
        },
    );
    check("`TaskTemplate.Placement.Preferences`", |s| {
        s.task.placement.spread = vec!["zone".to_owned()];
    });
    check("`UpdateConfig.MaxFailureRatio`", |s| {
        s.update.max_failure_permille = 1_001
    });
    check("`DownLimit`: 2000 ms", |s| s.down_limit_ms = Some(2_000));
    check("`TaskTemplate`: the service's spec has", |s| {
        s.task.container.args = vec!["x".repeat(2 << 20)];
    });
}

#[test]
fn ports_are_checked() {
    let set = |ports: Vec<PortConfig>| move |s: &mut ServiceSpec| s.endpoint.ports = ports;
    check(
        "",
        set(vec![
            port(PublishMode::Host, 80, 80),
            port(PublishMode::Host, 81, 0),
        ]),
    );
    check("", set(vec![port(PublishMode::Ingress, 80, 80)]));
    check(
        "`EndpointSpec.Ports[0].PublishMode`: `ingress` (port 80) does not go with the endpoint mode `dnsrr`",
        |s| {
            s.endpoint.mode = EndpointMode::DnsRoundRobin;
            s.endpoint.ports = vec![port(PublishMode::Ingress, 80, 80)];
        },
    );
    check("", |s| {
        s.endpoint.mode = EndpointMode::DnsRoundRobin;
        s.endpoint.ports = vec![port(PublishMode::Host, 80, 80)];
    });
    let at = |mode, addr: &str| PortConfig {
        addrs: vec![addr.parse().unwrap()],
        ..port(mode, 80, 80)
    };
    check(
        "",
        set(vec![
            at(PublishMode::Ingress, "10.0.0.0/8"),
            at(PublishMode::Ingress, "fd00::/8"),
        ]),
    );
    check(
        "`EndpointSpec.Ports[1].PublishedPort`: 80/tcp",
        set(vec![
            at(PublishMode::Ingress, "10.0.0.0/8"),
            at(PublishMode::Ingress, "10.1.0.0/16"),
        ]),
    );
    check(
        "`EndpointSpec.Ports[0].Addrs`: 10.0.0.1/8 has host bits set: it should be 10.0.0.0/8",
        set(vec![at(PublishMode::Ingress, "10.0.0.1/8")]),
    );
    check(
        "`EndpointSpec.Ports[0].Addrs`: it goes with `mode=ingress`",
        set(vec![at(PublishMode::Host, "10.0.0.0/8")]),
    );
    check(
        "`EndpointSpec.Ports[1].PublishedPort`: 80/tcp",
        set(vec![
            port(PublishMode::Ingress, 1, 80),
            port(PublishMode::Host, 2, 80),
        ]),
    );
    check("`EndpointSpec.Sticky`: 0 s", |s| {
        s.endpoint.sticky_s = Some(0)
    });
    check(
        "`EndpointSpec.Ports[0].TargetPort`",
        set(vec![port(PublishMode::Host, 0, 80)]),
    );
    check(
        "`EndpointSpec.Ports[1].PublishedPort`: 80/tcp",
        set(vec![
            port(PublishMode::Host, 1, 80),
            port(PublishMode::Host, 2, 80),
        ]),
    );
}

#[test]
fn mounts_are_checked() {
    let set = |mounts: Vec<Mount>| move |s: &mut ServiceSpec| s.task.container.mounts = mounts;
    check("", set(vec![mount("/a", tmpfs())]));
    let field = "`TaskTemplate.ContainerSpec.Mounts";
    check(
        &format!("{field}[0].Target`: `a` is not"),
        set(vec![mount("a", tmpfs())]),
    );
    check(
        &format!("{field}[0].Target`: `/a/../..`"),
        set(vec![mount("/a/../..", tmpfs())]),
    );
    check(
        &format!("{field}[0].Target`: `/` is"),
        set(vec![mount("/./", tmpfs())]),
    );
    check(
        &format!("{field}[1].Target`: `/a/` is mounted twice"),
        set(vec![mount("/a", tmpfs()), mount("/a/", tmpfs())]),
    );
    let bind = MountKind::Bind {
        source: "data".to_owned(),
        propagation: String::new(),
    };
    check(
        &format!("{field}[0].Source`: `data`"),
        set(vec![mount("/a", bind)]),
    );
}

#[test]
fn names_follow_dockers_rules() {
    for good in ["a", "web-1", "a_b", &"x".repeat(63)] {
        assert_eq!(service_name(good), Ok(()), "{good}");
    }
    for bad in ["", "a b", "a.b", "a-", "ä", &"x".repeat(64)] {
        assert!(service_name(bad).is_err(), "{bad}");
    }
    for good in ["ab", "a.b_c-d"] {
        assert_eq!(volume_name("Source", good), Ok(()), "{good}");
    }
    for bad in ["a", ".ab", "a/b", "../etc"] {
        assert!(volume_name("Source", bad).is_err(), "{bad}");
    }
    for good in ["nginx", "r.example:5000/a/b:1", "[::1]:5000/a@sha256:00"] {
        assert_eq!(image_reference(good), Ok(()), "{good}");
    }
    for bad in ["", " nginx", "a b", "-x", "a\nb"] {
        assert!(image_reference(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_node_is_never_declared_down_before_its_lease_has_ended() {
    assert_eq!(cluster(&ClusterSpec::default()), Ok(()));
    let hasty = ClusterSpec {
        down_limit_ms: 2_999,
        ..ClusterSpec::default()
    };
    assert_eq!(cluster(&hasty).unwrap_err().field, "Dispatcher.DownLimit");
    let short = ClusterSpec {
        lease_ms: 999,
        ..ClusterSpec::default()
    };
    assert_eq!(cluster(&short).unwrap_err().field, "Dispatcher.Lease");
}

#[test]
fn networks_are_checked() {
    let check = |expected: &str, change: &dyn Fn(&mut NetworkSpec)| {
        let mut spec = NetworkSpec {
            name: "backend".to_owned(),
            ..NetworkSpec::default()
        };
        change(&mut spec);
        let refused = network(&spec).err().map(|err| err.to_string());
        let text = refused.unwrap_or_default();
        assert_eq!(text.is_empty(), expected.is_empty(), "{text} / {expected}");
        assert!(text.starts_with(expected), "{text} / {expected}");
    };
    check("", &|_| {});
    check("", &|s| s.name = "a.b_c-d".to_owned());
    check("`Name`: the name is empty", &|s| s.name.clear());
    check("`Name`: `.a` is not", &|s| s.name = ".a".to_owned());
    check("`Name`: `a b` is not", &|s| s.name = "a b".to_owned());
    for name in ["bridge", "host", "none", "ingress"] {
        let expected = format!("`Name`: `{name}` is the name of a built-in network");
        check(&expected, &|s| s.name = name.to_owned());
    }
    check("`Ingress`", &|s| s.ingress = true);
    check("`Options.mtu`: 1000: 1280 to 65000", &|s| {
        s.mtu = Some(1_000)
    });
    check("", &|s| s.mtu = Some(9_000));
}

#[test]
fn networks_of_containers_are_checked() {
    let place = |aliases: &[&str]| NetworkAttachment {
        network_id: NetworkId::from_bits(1),
        aliases: aliases.iter().map(|&alias| alias.to_owned()).collect(),
    };
    let set =
        |networks: Vec<NetworkAttachment>| move |s: &mut ServiceSpec| s.task.networks = networks;
    check("", set(vec![place(&["db", "db.local"])]));
    check(
        "`TaskTemplate.Networks[1].Target`",
        set(vec![place(&[]), place(&[])]),
    );
    check(
        "`TaskTemplate.Networks[0].Aliases`: `a b`",
        set(vec![place(&["a b"])]),
    );
    check(
        "`TaskTemplate.Networks`: 33 networks",
        set(vec![place(&[]); 33]),
    );
    let wish = |name: &str| AttachmentWish {
        network: name.to_owned(),
        ipv4: None,
        aliases: Vec::new(),
    };
    let told =
        |name: &str, wishes: &[AttachmentWish]| attachment(name, wishes).unwrap_err().to_string();
    assert!(attachment("c", &[wish("a")]).is_ok());
    assert!(told("", &[wish("a")]).starts_with("`Name`"));
    assert!(told("c", &[]).starts_with("`NetworkingConfig`: no network"));
}

#[test]
fn address_pools_are_checked() {
    let check = |expected: &str, change: &dyn Fn(&mut ClusterSpec)| {
        let mut spec = ClusterSpec::default();
        change(&mut spec);
        let refused = cluster(&spec).err().map(|err| err.to_string());
        let text = refused.unwrap_or_default();
        assert_eq!(text.is_empty(), expected.is_empty(), "{text} / {expected}");
        assert!(text.starts_with(expected), "{text} / {expected}");
    };
    let pools = |list: &[&str]| {
        list.iter()
            .map(|net| net.parse().unwrap())
            .collect::<Vec<_>>()
    };
    check("", &|s| {
        s.address_pools = pools(&["10.1.0.0/16", "172.16.0.0/12"])
    });
    check("`DefaultAddrPool`: no pool", &|s| s.address_pools.clear());
    check("`DefaultAddrPool`: 10.1.0.1/16 has host bits", &|s| {
        s.address_pools = pools(&["10.1.0.1/16"])
    });
    check("`DefaultAddrPool`: 10.1.0.0/25 is smaller", &|s| {
        s.address_pools = pools(&["10.1.0.0/25"])
    });
    check("`DefaultAddrPool`: 10.1.0.0/16 overlaps 10.0.0.0/8", &|s| {
        s.address_pools = pools(&["10.0.0.0/8", "10.1.0.0/16"]);
    });
    check("`SubnetSize`: 30: 8 to 29", &|s| s.subnet_prefix_len = 30);
    check("`MeshPool`: 10.255.0.0/25", &|s| {
        s.mesh_pool = "10.255.0.0/25".parse().unwrap()
    });
    check("`KeyRotation`: 60", &|s| s.key_rotation_s = 60);
}
