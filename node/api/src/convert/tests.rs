//! What real clients send is understood and kept; what is written is what Docker's types have.

use super::{
    cluster, container_in, container_out, local_out, node, service_in, service_out, task_out,
};
use crate::fields::Fields;
use bollard_stubs::models as docker;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use shoal_engine::info::{Endpoint, NetworkSettings, PublishedPort};
use shoal_engine::{ContainerConfig, ContainerInfo, ContainerState, ContainerStatus, NetworkMode};
use shoal_model::cluster::{JoinSecret, Redacted, RootCa};
use shoal_model::control::{NodeView, ServiceView};
use shoal_model::network::NetworkAttachment;
use shoal_model::node::{ManagerStatus, NodeDescription};
use shoal_model::service::{UpdateState, UpdateStatus};
use shoal_model::spec::{
    Healthcheck, Mount, MountKind, OnPartition, PortConfig, PublishMode, UpdateOrder,
};
use shoal_model::task::{ContainerStatus as TaskContainer, ExitRecord};
use shoal_model::{
    Availability, Cluster, ClusterSpec, ContainerId, Meta, NetworkId, Node, NodeRole, Service,
    ServiceMode, ServiceSpec, Task, TaskState, TaskStatus, Timestamp, Version,
};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(serde::Deserialize)]
struct Sent {
    client: String,
    command: String,
    path: String,
    body: Value,
}

/// Bodies that docker 20.10 and 28 sent for the commands that stand beside them.
fn sent() -> Vec<Sent> {
    serde_json::from_str(include_str!("../../fixtures/docker-client-requests.json")).unwrap()
}

fn fields(body: &Value) -> Fields {
    Fields::of(body.clone()).unwrap()
}

/// The networks of the cluster.
fn known_networks() -> Vec<(NetworkId, String)> {
    ["front", "back"]
        .into_iter()
        .zip(1..)
        .map(|(name, bits)| (NetworkId::from_bits(bits), name.to_owned()))
        .collect()
}

fn service_spec(body: &Value) -> ServiceSpec {
    service_in::service_spec(fields(body))
        .and_then(|read| read.resolve(&known_networks()))
        .unwrap_or_else(|err| panic!("{err}: {body}"))
}

fn refusal(body: &Value) -> String {
    service_in::service_spec(fields(body))
        .and_then(|read| read.resolve(&known_networks()))
        .unwrap_err()
        .to_string()
}

/// Every leaf of `part` that says something is in `whole` too.
fn missing(path: &str, part: &Value, whole: &Value) -> Vec<String> {
    match part {
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, value)| missing(&format!("{path}.{key}"), value, &whole[key]))
            .collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .flat_map(|(index, value)| missing(&format!("{path}[{index}]"), value, &whole[index]))
            .collect(),
        Value::Null => Vec::new(),
        Value::Bool(false) => Vec::new(),
        Value::String(text) if text.is_empty() => Vec::new(),
        Value::Number(number) if number.as_f64() == Some(0.0) => Vec::new(),
        leaf if same(leaf, whole) => Vec::new(),
        leaf => vec![format!("{path}: {leaf} became {whole}")],
    }
}

fn same(a: &Value, b: &Value) -> bool {
    a == b || (a.as_f64().is_some() && a.as_f64() == b.as_f64())
}

/// Every name that is written is one of Docker's type, and of the right kind.
pub(super) fn conforms<T: DeserializeOwned + Serialize>(written: &Value) {
    let written = &without_second_names(written);
    let typed: T = serde_json::from_value(written.clone())
        .unwrap_or_else(|err| panic!("{}: {err}: {written}", std::any::type_name::<T>()));
    let again = serde_json::to_value(typed).unwrap();
    assert_eq!(missing("", written, &again), Vec::<String>::new());
}

/// Without the field that has two names under the one that the schema does not know.
fn without_second_names(written: &Value) -> Value {
    match written {
        Value::Object(map) => map
            .iter()
            .filter(|(key, _)| *key != "Healthcheck" || !map.contains_key("HealthCheck"))
            .map(|(key, value)| (key.clone(), without_second_names(value)))
            .collect(),
        Value::Array(items) => items.iter().map(without_second_names).collect(),
        leaf => leaf.clone(),
    }
}

#[test]
fn what_docker_clients_send_is_accepted() {
    for sent in sent() {
        let body = fields(&sent.body);
        let result = match sent.path.as_str() {
            "/containers/create" => container_in::container_config(body).map(drop),
            "/containers/c/update" => container_in::container_update(body).map(drop),
            "/containers/c/exec" => container_in::exec_config(body).map(drop),
            "/nodes/n1/update" => node::node_spec(body).map(drop),
            "/swarm/init" => {
                let mut body = body;
                let spec = body.object_or_empty("Spec").unwrap();
                cluster::cluster_spec(spec, &ClusterSpec::default())
                    .map(|spec| assert_eq!(spec, ClusterSpec::default()))
            }
            "/exec/e1/start" => Ok(()),
            _ => service_in::service_spec(body).map(drop),
        };
        if let Err(err) = result {
            panic!("{} `{}`: {err}", sent.client, sent.command);
        }
    }
}

#[test]
fn nothing_of_a_service_that_docker_sends_is_lost() {
    for sent in sent()
        .iter()
        .filter(|sent| sent.path.starts_with("/services/"))
    {
        let spec = service_spec(&sent.body);
        let written = service_out::service_spec(&spec);
        let lost = missing("", &sent.body, &written);
        assert_eq!(
            lost,
            Vec::<String>::new(),
            "{} `{}`",
            sent.client,
            sent.command
        );
        assert_eq!(service_spec(&written), spec);
    }
}

/// A service with every field set to something that is no default.
#[expect(clippy::too_many_lines, reason = "one flat list of fields")]
fn full_service() -> ServiceSpec {
    let sent = sent();
    let body = &sent
        .iter()
        .find(|sent| sent.command.contains("--placement-pref"))
        .unwrap()
        .body;
    let mut spec = service_spec(body);
    spec.on_partition = Some(OnPartition::Stop);
    spec.down_limit_ms = Some(4_500);
    spec.rollback.order = UpdateOrder::StartFirst;
    spec.rollback.parallelism = 0;
    spec.update.max_failure_permille = 125;
    spec.task.resources.pids_limit = 7;
    spec.task.restart.window_ns = Some(1);
    let container = &mut spec.task.container;
    container.command = vec!["a".into()];
    container.groups = vec!["g".into()];
    container.tty = true;
    container.open_stdin = true;
    container.read_only = true;
    container.no_new_privileges = true;
    container.oom_score_adj = -5;
    container.cap_drop = vec!["ALL".into()];
    container.stop_signal = "SIGINT".into();
    container.dns.search = vec!["s".into()];
    container.dns.options = vec!["o".into()];
    container.healthcheck = Some(Healthcheck {
        test: vec!["CMD".into(), "x".into()],
        interval_ns: 1,
        timeout_ns: 2,
        retries: 3,
        start_period_ns: 4,
        start_interval_ns: 5,
    });
    container.mounts = vec![
        Mount {
            kind: MountKind::Bind {
                source: "/a".into(),
                propagation: "rshared".into(),
            },
            target: "/b".into(),
            read_only: true,
        },
        Mount {
            kind: MountKind::Volume {
                name: "v".into(),
                driver: "local".into(),
                options: BTreeMap::from([("k".into(), "v".into())]),
                labels: BTreeMap::from([("l".into(), "m".into())]),
                no_copy: true,
            },
            target: "/c".into(),
            read_only: false,
        },
        Mount {
            kind: MountKind::Tmpfs {
                size_bytes: 4096,
                mode: 0o700,
            },
            target: "/d".into(),
            read_only: false,
        },
    ];
    spec.endpoint.ports[0].name = "web".into();
    spec.endpoint.sticky_s = Some(90);
    spec.endpoint.ports.push(PortConfig {
        target: 8080,
        published: 80,
        mode: PublishMode::Ingress,
        addrs: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
        allow: vec!["192.168.1.1/32".parse().unwrap()],
        ..PortConfig::default()
    });
    // The order says which network published ports lead to.
    spec.task.networks = vec![
        NetworkAttachment {
            network_id: NetworkId::from_bits(2),
            aliases: vec!["db".into()],
        },
        NetworkAttachment {
            network_id: NetworkId::from_bits(1),
            aliases: Vec::new(),
        },
    ];
    spec
}

#[test]
fn a_whole_service_survives_read_modify_write() {
    let spec = full_service();
    let written = service_out::service_spec(&spec);
    conforms::<docker::ServiceSpec>(&written);
    assert_eq!(service_spec(&written), spec);
    // A client that keeps to Docker's types writes back what it has read.
    let typed: docker::ServiceSpec = serde_json::from_value(written).unwrap();
    let sent_back = serde_json::to_value(typed).unwrap();
    assert_eq!(service_spec(&sent_back), spec);
}

#[test]
fn absent_restart_settings_stay_absent() {
    let spec = service_spec(&json!({"TaskTemplate": {"ContainerSpec": {"Image": "a"}}}));
    assert_eq!(spec.task.restart.delay_ns, None);
    assert_eq!(spec.mode, ServiceMode::Replicated { replicas: 1 });
    assert_eq!(service_spec(&service_out::service_spec(&spec)), spec);
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table of refusals")]
fn what_is_not_understood_is_refused_by_name() {
    let with = |path: &[&str], value: Value| {
        let mut body = json!({"TaskTemplate": {"ContainerSpec": {"Image": "a"}}});
        let mut place = &mut body;
        for key in path {
            place = &mut place[*key];
        }
        *place = value;
        body
    };
    let container = ["TaskTemplate", "ContainerSpec"];
    for (body, expected) in [
        (with(&["Colour"], json!("red")), "unknown field `Colour`"),
        (
            with(&[container[0], container[1], "Colour"], json!("red")),
            "unknown field `TaskTemplate.ContainerSpec.Colour`",
        ),
        (
            with(
                &[container[0], container[1], "Secrets"],
                json!([{"SecretID": "x"}]),
            ),
            "field `TaskTemplate.ContainerSpec.Secrets` is not supported: secrets and configs are not supported yet",
        ),
        (
            with(&["TaskTemplate", "Networks"], json!([{"Target": "n"}])),
            "network n not found",
        ),
        (
            with(&["Mode"], json!({"ReplicatedJob": {}})),
            "invalid `Mode.ReplicatedJob`: jobs are not supported yet",
        ),
        (
            with(&["TaskTemplate", "Networks"], json!([{"Target": "host"}])),
            "invalid `TaskTemplate.Networks[0].Target`: `host`: services are attached to networks of the cluster only",
        ),
        (
            with(&["EndpointSpec"], json!({"Ports": [{"TargetPort": 70000}]})),
            "invalid `EndpointSpec.Ports[0].TargetPort`: 70000 is out of range",
        ),
        (
            with(
                &["TaskTemplate", "RestartPolicy"],
                json!({"Condition": "sometimes"}),
            ),
            "invalid `TaskTemplate.RestartPolicy.Condition`: `sometimes`: expected one of none, on-failure, any",
        ),
        (
            with(
                &[container[0], container[1], "Mounts"],
                json!([{"Type": "volume", "Target": "d"}]),
            ),
            "invalid `TaskTemplate.ContainerSpec.Mounts[0].Target`: `d` is not an absolute path",
        ),
        (
            with(&["UpdateConfig"], json!({"MaxFailureRatio": 0.12345})),
            "invalid `UpdateConfig.MaxFailureRatio`: expected a ratio from 0 to 1 with at most three decimals",
        ),
        (
            with(&["Labels"], json!({"shoal.on-partition": "panic"})),
            "invalid `Labels.shoal.on-partition`: `panic`: expected stop or keep",
        ),
        (
            with(&["Labels"], json!({"shoal.sticky": "1500ms"})),
            "invalid `Labels.shoal.sticky`: expected whole seconds, such as 30s or 10m",
        ),
        (
            with(
                &["Labels"],
                json!({"shoal.publish.80:80/tcp.addr": "10.0.0.0/8"}),
            ),
            "invalid `Labels.shoal.publish.80:80/tcp.addr`: the service publishes no such port: remove the label",
        ),
    ] {
        assert_eq!(refusal(&body), expected);
    }
}

#[test]
fn a_container_is_read_as_docker_means_it() {
    let sent = sent();
    let body = &sent
        .iter()
        .find(|s| s.command.contains("-p 8080:80"))
        .unwrap()
        .body;
    let config = container_in::container_config(fields(body)).unwrap();
    assert_eq!(config.image, "busybox");
    assert_eq!(config.cmd.as_deref().unwrap(), ["sh", "-c", "echo hi"]);
    assert_eq!(config.entrypoint, None);
    assert_eq!(config.host.network_mode, NetworkMode::None);
    assert_eq!(config.host.resources.memory_bytes, 64 << 20);
    assert_eq!(config.host.resources.nano_cpus, 500_000_000);
    assert_eq!(
        config.host.restart_policy,
        shoal_engine::RestartPolicy::OnFailure { retries_max: 3 }
    );
    let port = "80/tcp".parse().unwrap();
    assert_eq!(config.host.port_bindings[&port][0].host_ports, (8080, 8080));
    assert!(config.host.init);
    assert_eq!(config.healthcheck.unwrap().test, ["CMD-SHELL", "true"]);
}

#[test]
fn what_a_container_can_not_have_is_refused_by_name() {
    for (body, expected) in [
        (json!({}), "invalid `Image`: no image is given"),
        (
            json!({"Image": "a", "Tty": 1}),
            "invalid `Tty`: expected true or false, found a number",
        ),
        (json!({"Image": "a", "Hats": 1}), "unknown field `Hats`"),
        (
            json!({"Image": "a", "HostConfig": {"Links": ["b"]}}),
            "field `HostConfig.Links` is not supported: links are not done yet",
        ),
        (
            json!({"Image": "a", "HostConfig": {"RestartPolicy": {"Name": "maybe"}}}),
            "invalid `HostConfig.RestartPolicy.Name`: `maybe`: expected one of no, always, unless-stopped, on-failure",
        ),
        (
            json!({"Image": "a", "HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": "x"}]}}}),
            "invalid `HostConfig.PortBindings.80/tcp[0].HostPort`: `x` is not a port or a range",
        ),
        (
            json!({"Image": "a", "NetworkingConfig": {"EndpointsConfig": {"mine": {}}}}),
            "invalid `NetworkingConfig.EndpointsConfig.mine`: a container is in the network of its network mode only, or \
             in several of the cluster",
        ),
    ] {
        let err = container_in::container_config(fields(&body)).unwrap_err();
        assert_eq!(err.to_string(), expected);
    }
}

pub(super) fn container() -> ContainerInfo {
    let sent = sent();
    let body = &sent
        .iter()
        .find(|s| s.command.contains("-p 8080:80"))
        .unwrap()
        .body;
    let config: ContainerConfig = container_in::container_config(fields(body)).unwrap();
    ContainerInfo {
        id: ContainerId::from_bytes([7; 32]),
        name: "web".into(),
        created: Timestamp(1_000_000_000),
        image_id: "sha256:ab".into(),
        config: Arc::new(config),
        path: "sh".into(),
        args: vec!["-c".into(), "echo hi".into()],
        state: ContainerState {
            status: ContainerStatus::Running,
            pid: 42,
            exit_code: 0,
            error: String::new(),
            oom_killed: false,
            started_at: Some(Timestamp(2_000_000_000)),
            finished_at: None,
            health: None,
        },
        restart_count: 1,
        mounts: Arc::new(Vec::new()),
        network: NetworkSettings {
            endpoints: vec![Endpoint {
                network: "bridge".into(),
                address: Some([172, 17, 0, 2].into()),
                prefix_len: 16,
                gateway: Some([172, 17, 0, 1].into()),
                mac: "02:42:ac:11:00:02".into(),
                ..Endpoint::default()
            }],
            overlay: Vec::new(),
            ports: vec![PublishedPort {
                container: "80/tcp".parse().unwrap(),
                host_ip: [0, 0, 0, 0].into(),
                host_port: 8080,
            }],
            sandbox: Some("/run/x".into()),
        },
        network_mode: NetworkMode::Bridge,
        log_path: Some("/l".into()),
        hostname_path: "/h".into(),
        hosts_path: "/o".into(),
        resolv_conf_path: "/r".into(),
        exec_ids: Vec::new(),
        upper_dir: "/u".into(),
    }
}

#[test]
fn containers_are_written_in_dockers_types() {
    let info = container();
    let row = container_out::summary(&info, Timestamp(63_000_000_000));
    conforms::<docker::ContainerSummary>(&row);
    assert_eq!(row["Status"], "Up About a minute");
    assert_eq!(row["Ports"][0]["PublicPort"], 8080);
    let mut whole = container_out::inspect(&info);
    assert_eq!(
        whole["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"],
        "8080"
    );
    assert_eq!(whole["State"]["FinishedAt"], "0001-01-01T00:00:00Z");
    assert_eq!(whole["Config"]["Cmd"], json!(["sh", "-c", "echo hi"]));
    // These three went with version 1.52, but clients of older versions read them.
    let network = whole["NetworkSettings"].as_object_mut().unwrap();
    for old in ["IPAddress", "IPPrefixLen", "Gateway", "MacAddress"] {
        assert!(network.remove(old).is_some(), "{old}");
    }
    conforms::<docker::ContainerInspectResponse>(&whole);
}

fn meta() -> Meta {
    Meta {
        version: Version(12),
        created_at: Timestamp(1),
        updated_at: Timestamp(2),
    }
}

#[test]
fn services_are_written_in_dockers_types() {
    let spec = full_service();
    let view = ServiceView {
        service: Service {
            id: shoal_model::ServiceId::from_bits(1),
            meta: meta(),
            previous_spec: Some(Box::new(spec.clone())),
            vips: Vec::new(),
            ports: Vec::new(),
            spec,
            spec_version: 1,
            update_status: Some(UpdateStatus {
                state: UpdateState::Paused,
                started_at: Timestamp(5),
                completed_at: Some(Timestamp(6)),
                message: "m".into(),
            }),
            pending_delete: false,
        },
        running_tasks: 2,
        desired_tasks: 3,
    };
    let detail = service_out::ServiceDetail {
        status: true,
        defaults: true,
    };
    let mut written = service_out::service(&view, detail);
    assert_eq!(written["ServiceStatus"]["DesiredTasks"], 3);
    assert_eq!(written["Version"]["Index"], 12);
    // Docker's own type has forgotten that the API gives it.
    written
        .as_object_mut()
        .unwrap()
        .remove("PreviousSpec")
        .unwrap();
    conforms::<docker::Service>(&written);
}

#[test]
fn tasks_are_written_in_dockers_types() {
    let spec = full_service();
    assert_eq!(spec.endpoint.ports[0].mode, PublishMode::Host);
    let task = Task {
        id: shoal_model::TaskId::from_bits(1),
        meta: meta(),
        service_id: shoal_model::ServiceId::from_bits(2),
        service_name: "web".into(),
        slot: 3,
        node_id: Some(shoal_model::NodeId::from_bits(4)),
        spec: Arc::new(spec.task.clone()),
        spec_version: 1,
        ports: spec.endpoint.ports.clone(),
        on_partition: OnPartition::Stop,
        desired: TaskState::Running,
        status: TaskStatus {
            state: TaskState::Running,
            at: Timestamp(9),
            message: "started".into(),
            container: Some(TaskContainer {
                container_id: ContainerId::from_bytes([1; 32]),
                pid: 4,
                exit_code: 0,
            }),
            exits: vec![ExitRecord {
                container_id: None,
                at: Timestamp(8),
                exit_code: 1,
                reason: "out of memory".into(),
            }],
            restarts: 1,
            ready: true,
            ..TaskStatus::default()
        },
        volumes: Vec::new(),
        monitor_until: None,
        endpoints: Vec::new(),
        not_before: None,
    };
    let mut written = task_out::task(&task, &BTreeMap::new());
    let ours = written.as_object_mut().unwrap().remove("Shoal").unwrap();
    assert_eq!(ours["Exits"][0]["Reason"], "out of memory");
    conforms::<docker::Task>(&written);
    assert_eq!(written["Slot"], 3);
    assert_eq!(
        written["Status"]["ContainerStatus"]["ContainerID"],
        "01".repeat(32)
    );
}

#[test]
fn nodes_are_written_and_read_in_dockers_types() {
    let view = NodeView {
        node: Node {
            id: shoal_model::NodeId::from_bits(4),
            meta: meta(),
            spec: shoal_model::NodeSpec {
                name: "n".into(),
                labels: BTreeMap::from([("a".into(), "b".into())]),
                role: NodeRole::Manager,
                availability: Availability::Drain,
            },
            description: Some(NodeDescription {
                hostname: "h".into(),
                os: "linux".into(),
                architecture: "amd64".into(),
                ..NodeDescription::default()
            }),
            status: shoal_model::NodeStatus::default(),
            role: NodeRole::Manager,
            manager: Some(ManagerStatus {
                raft_id: shoal_model::RaftNodeId(1),
                addr: ([127, 0, 0, 1], 2377).into(),
            }),
            public_key_digest: [0; 32],
            hold_until: None,
            mesh: None,
        },
        leader: true,
        reachable: true,
    };
    let written = node::node(&view);
    conforms::<docker::Node>(&written);
    assert_eq!(written["ManagerStatus"]["Leader"], true);
    assert_eq!(
        node::node_spec(fields(&written["Spec"])).unwrap(),
        view.node.spec
    );
}

#[test]
fn the_cluster_is_written_and_read_in_dockers_types() {
    let secret = || JoinSecret {
        secret: Redacted("s".into()),
        expires_at: None,
        uses_left: None,
    };
    let cluster = Cluster {
        id: shoal_model::ClusterId::from_bits(1),
        meta: meta(),
        spec: ClusterSpec {
            task_history_max: 7,
            snapshot_interval_entries: 5,
            heartbeat_period_ms: 250,
            lease_ms: 1_500,
            down_limit_ms: 4_000,
            node_cert_expiry_s: 7_200,
            labels: BTreeMap::from([("a".into(), "b".into())]),
            name: "default".into(),
            mesh_pool: "10.200.0.0/16".parse().unwrap(),
            key_rotation_s: 3_600,
            ..ClusterSpec::default()
        },
        root_ca: RootCa {
            certificate_der: vec![1; 100],
            key_der: Redacted(vec![2]),
        },
        worker_secret: secret(),
        manager_secret: secret(),
        last_raft_id: 1,
    };
    let written = cluster::swarm(&cluster, "w", "m");
    conforms::<docker::Swarm>(&written);
    let read = cluster::cluster_spec(fields(&written["Spec"]), &cluster.spec).unwrap();
    assert_eq!(read, cluster.spec);
    let pem = written["TLSInfo"]["TrustRoot"].as_str().unwrap();
    assert!(pem.lines().all(|line| line.len() <= 64), "{pem}");
}

#[test]
fn samples_and_events_are_written_in_dockers_types() {
    let sample = shoal_engine::info::ContainerStats {
        read: Timestamp(5),
        cpu_total_ns: 10,
        networks: vec![("eth0".into(), shoal_engine::info::InterfaceStats::default())],
        ..shoal_engine::info::ContainerStats::default()
    };
    conforms::<docker::ContainerStatsResponse>(&local_out::stats("id", "n", &sample, None));
    let event = shoal_engine::Event::new(
        shoal_engine::EventType::Volume,
        "create",
        "v",
        Timestamp(1_500_000_000),
    );
    conforms::<docker::EventMessage>(&local_out::event(&event));
    assert_eq!(local_out::event(&event)["time"], 1);
}
