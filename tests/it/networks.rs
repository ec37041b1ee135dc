//! Networks across hosts as users meet them: names, virtual addresses, published ports, isolation, attached containers.

use crate::harness::{SOON, TestCluster, eventually, with_cluster, within};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Answers every request with its host name and the client's address.
const WHO: &str = "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho Content-type: text/plain\\necho\\necho $(hostname) \
                   $REMOTE_ADDR\\n' > /www/cgi-bin/who; chmod 755 /www/cgi-bin/who; exec httpd -f -p 8080 -h /www";

/// A host outside of the cluster has this number in its address.
const CLIENT_NUMBER: u8 = 200;

/// What a request was answered with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Answer {
    /// Host name of the container, which is the beginning of its id.
    by: String,
    /// The client as the container saw it.
    client: String,
}

/// Makes the service `name` of `count` containers that run a script.
async fn create(test: &TestCluster, name: &str, count: usize, words: &[&str], script: &str) {
    let host = test.cluster().host("manager1").unwrap();
    let begin = ["svc", "create", "-d", "--name", name];
    let end = ["--stop-signal", "SIGKILL", "busybox", "sh", "-c", script];
    host.shoal(begin.iter().chain(words).chain(&end))
        .await
        .unwrap();
    test.wait_running("manager1", name, count).await;
}

/// Makes the service `name` of containers that say who they are.
async fn create_who(test: &TestCluster, name: &str, replicas: usize, words: &[&str]) {
    let count = replicas.to_string();
    let words: Vec<&str> = ["--replicas", &count]
        .into_iter()
        .chain(words.iter().copied())
        .collect();
    create(test, name, replicas, &words, WHO).await;
}

/// Makes a service of containers that do nothing, one on every node.
async fn create_idle(test: &TestCluster, name: &str, network: &str) {
    let count = names(test).len();
    let words = ["--mode", "global", "--network", network];
    create(test, name, count, &words, "exec sleep 100000").await;
}

/// The container of a service on a node, by its id.
async fn container_on(test: &TestCluster, node: &str, service: &str) -> String {
    let line = format!("ps -q --no-trunc --filter label=com.docker.swarm.service.name={service}");
    let ids = test.shoal(node, &line).await;
    let ids: Vec<_> = ids.lines().collect();
    assert_eq!(ids.len(), 1, "{service} on {node}: {ids:?}");
    ids[0].to_owned()
}

/// Runs a command in a container; both streams' text tells what went wrong.
async fn exec(
    test: &TestCluster,
    node: &str,
    container: &str,
    words: &[&str],
) -> Result<String, String> {
    let host = test.cluster().host(node).unwrap();
    let begin = ["exec", container];
    let output = host.shoal(begin.iter().chain(words)).await;
    output.map_err(|error| error.to_string())
}

fn parsed(text: &str) -> Result<Answer, String> {
    let mut words = text.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some(by), Some(client), None) => Ok(Answer {
            by: by.to_owned(),
            // The server listens for both families with one socket.
            client: client
                .trim_matches(['[', ']'])
                .trim_start_matches("::ffff:")
                .to_owned(),
        }),
        _ => Err(format!("answered: {text}")),
    }
}

/// Asks from within a container. The name is looked up by itself: a program that is linked statically with glibc
/// would load its resolver from the image, which has none.
async fn ask_in(
    test: &TestCluster,
    node: &str,
    container: &str,
    place: &str,
) -> Result<Answer, String> {
    let (host, port) = place.rsplit_once(':').unwrap();
    let address = match host.parse::<Ipv4Addr>() {
        Ok(address) => address,
        Err(_) => {
            let found = look_up(test, node, container, host).await?;
            found
                .first()
                .copied()
                .ok_or_else(|| format!("{host} has no address"))?
        }
    };
    let url = format!("http://{address}:{port}/cgi-bin/who");
    let words = ["timeout", "3", "wget", "-q", "-O", "-", &url];
    parsed(&exec(test, node, container, &words).await?)
}

/// Asks from a host.
async fn ask_from(test: &TestCluster, host: &str, place: &str) -> Result<Answer, String> {
    let url = format!("http://{place}/cgi-bin/who");
    let words = [
        "busybox", "timeout", "3", "busybox", "wget", "-q", "-O", "-", &url,
    ];
    let text = test.cluster().host(host).unwrap().run(words).await;
    parsed(&text.map_err(|error| error.to_string())?)
}

/// Asks so many times, each of which must be answered; who answered how often.
async fn spread(
    count: usize,
    mut ask: impl AsyncFnMut() -> Result<Answer, String>,
) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..count {
        let answer = ask().await.unwrap();
        *counts.entry(answer.by).or_default() += 1;
    }
    counts
}

/// The IPv4 addresses that a name has in a container.
async fn look_up(
    test: &TestCluster,
    node: &str,
    container: &str,
    name: &str,
) -> Result<BTreeSet<Ipv4Addr>, String> {
    let text = exec(test, node, container, &["nslookup", "-type=a", name]).await?;
    // The first address is the resolver's own.
    let answers = text.split("Name:").skip(1);
    Ok(answers
        .flat_map(str::lines)
        .filter_map(|line| line.trim().strip_prefix("Address:"))
        .filter_map(|address| address.trim().parse().ok())
        .collect())
}

/// The address of a container in a network.
async fn address_of(test: &TestCluster, node: &str, container: &str, network: &str) -> Ipv4Addr {
    let format = format!(
        "{{{{with index .NetworkSettings.Networks \"{network}\"}}}}{{{{.IPAddress}}}}{{{{end}}}}"
    );
    let host = test.cluster().host(node).unwrap();
    let text = host
        .shoal(["inspect", "--format", &format, container])
        .await
        .unwrap();
    text.trim().parse().unwrap()
}

fn names(test: &TestCluster) -> Vec<String> {
    let hosts = &test.cluster().state.hosts;
    hosts
        .iter()
        .map(|host| host.name.clone())
        .filter(|name| name != "client")
        .collect()
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story, told step by step")]
fn root_names_and_virtual_addresses_reach_tasks_on_every_host() {
    with_cluster(1, 2, async |test| {
        let made = test
            .shoal("manager1", "network create --driver overlay backend")
            .await;
        assert_eq!(
            test.shoal("manager1", "network ls -q --no-trunc --filter name=backend")
                .await,
            made
        );
        create_who(
            test,
            "web",
            3,
            &[
                "--network",
                "name=backend,alias=www",
                "--replicas-max-per-node",
                "1",
            ],
        )
        .await;
        create_idle(test, "client", "backend").await;
        let vip = virtual_address(test, "web").await;
        let tasks = web_addresses(test).await;
        assert_eq!(tasks.len(), 3, "{tasks:?}");
        for node in names(test) {
            let client = container_on(test, &node, "client").await;
            let own = address_of(test, &node, &client, "backend").await;
            for (name, expected) in [
                ("web", BTreeSet::from([vip])),
                ("www", BTreeSet::from([vip])),
                ("tasks.web", tasks.values().copied().collect()),
            ] {
                eventually(&format!("{name} is known on {node}"), async || {
                    let found = look_up(test, &node, &client, name).await?;
                    if found == expected {
                        Ok(())
                    } else {
                        Err(format!("{found:?} instead of {expected:?}"))
                    }
                })
                .await;
            }
            for (slot, address) in &tasks {
                let name = format!("{slot}.web");
                let found = look_up(test, &node, &client, &name).await.unwrap();
                assert_eq!(found, BTreeSet::from([*address]), "{name} on {node}");
                let answer = ask_in(test, &node, &client, &format!("{name}:8080"))
                    .await
                    .unwrap();
                assert_eq!(answer.client, own.to_string());
            }
            let counts = spread(30, async || {
                let answer = ask_in(test, &node, &client, "web:8080").await?;
                assert_eq!(answer.client, own.to_string(), "{node}");
                Ok(answer)
            })
            .await;
            assert_eq!(counts.len(), 3, "from {node}: {counts:?}");
        }
        let verbose = test
            .shoal("manager1", "network inspect --verbose backend")
            .await;
        for address in tasks.values().chain([&vip]) {
            assert!(verbose.contains(&address.to_string()), "{verbose}");
        }
        let refused = test.refused("manager1", "network rm backend").await;
        assert!(refused.contains("backend"), "{refused}");
        test.shoal("manager1", "svc rm web client").await;
        eventually("the network can be removed", async || {
            let removed = test.try_shoal("manager1", "network rm backend").await;
            removed.map_err(|error| error.to_string())
        })
        .await;
    });
}

/// The virtual address of a service.
async fn virtual_address(test: &TestCluster, service: &str) -> Ipv4Addr {
    let format = "{{with index .Endpoint.VirtualIPs 0}}{{.Addr}}{{end}}";
    let host = test.cluster().host("manager1").unwrap();
    let text = host
        .shoal(["svc", "inspect", "--format", format, service])
        .await
        .unwrap();
    let address = text.trim().split('/').next().unwrap();
    address
        .parse()
        .unwrap_or_else(|_| panic!("no virtual address: {text}"))
}

/// Slot to address of the tasks of `web`, as their nodes say.
async fn web_addresses(test: &TestCluster) -> BTreeMap<String, Ipv4Addr> {
    let mut found = BTreeMap::new();
    for (name, node) in test.running("manager1", "web").await {
        let container = container_on(test, &node, "web").await;
        let address = address_of(test, &node, &container, "backend").await;
        found.insert(name.strip_prefix("web.").unwrap().to_owned(), address);
    }
    found
}

#[test]
fn root_published_port_answers_on_every_node_and_shows_the_clients_address() {
    with_cluster(1, 2, async |test| {
        test.cluster_mut()
            .add_host("client", CLIENT_NUMBER)
            .await
            .unwrap();
        let client = test.cluster().host("client").unwrap().address;
        // Neither has a network of its own; the second stays off two of the three nodes.
        create_who(test, "web", 2, &["--publish", "80:8080"]).await;
        create_who(
            test,
            "one",
            1,
            &[
                "--publish",
                "published=81,target=8080",
                "--constraint",
                "node.hostname==worker1",
            ],
        )
        .await;
        let listed = test
            .shoal("manager1", "svc ls --filter name=web --format {{.Ports}}")
            .await;
        assert_eq!(listed, "*:80->8080/tcp\n");
        for node in names(test) {
            let address = test.cluster().host(&node).unwrap().address;
            for port in ["80", "81"] {
                let place = format!("{address}:{port}");
                let answer = eventually(&format!("{node} answers at port {port}"), async || {
                    ask_from(test, "client", &place).await
                })
                .await;
                assert_eq!(answer.client, client.to_string(), "{place}");
            }
            let counts = spread(20, async || {
                ask_from(test, "client", &format!("{address}:80")).await
            })
            .await;
            assert_eq!(counts.len(), 2, "by {node}: {counts:?}");
            // From the node itself too, by its address and by its loopback address.
            for place in [format!("{address}:81"), "127.0.0.1:81".to_owned()] {
                ask_from(test, &node, &place).await.unwrap();
            }
        }
        let taken = test
            .refused(
                "manager1",
                "svc create -d --name two --publish 80:80 busybox",
            )
            .await;
        assert!(taken.contains("web") && taken.contains("80"), "{taken}");
        test.shoal("manager1", "svc update --publish-rm 8080 one")
            .await;
        let address = test.cluster().host("worker2").unwrap().address;
        eventually("the withdrawn port is closed", async || {
            match ask_from(test, "client", &format!("{address}:81")).await {
                Ok(answer) => Err(format!("{answer:?}")),
                Err(_) => Ok(()),
            }
        })
        .await;
    });
}

#[test]
fn root_networks_are_apart_and_internal_ones_have_no_way_out() {
    with_cluster(1, 1, async |test| {
        for line in ["network create front", "network create --internal back"] {
            test.shoal("manager1", line).await;
        }
        let on = |node: &str| format!("node.hostname=={node}");
        let (here, there) = (on("manager1"), on("worker1"));
        for (name, network, constraint) in [("front", "front", &here), ("back", "back", &there)] {
            let words = ["--network", network, "--constraint", constraint];
            create_who(test, name, 1, &words).await;
        }
        create_who(
            test,
            "both",
            1,
            &[
                "--network",
                "front",
                "--network",
                "back",
                "--constraint",
                &here,
            ],
        )
        .await;
        let front = container_on(test, "manager1", "front").await;
        let both = container_on(test, "manager1", "both").await;
        let back = container_on(test, "worker1", "back").await;
        let back_address = address_of(test, "worker1", &back, "back").await;
        let both_in_back = address_of(test, "manager1", &both, "back").await;

        // Who is in both networks reaches both, by name.
        for name in ["front:8080", "back:8080"] {
            eventually(&format!("{name} is reached"), async || {
                ask_in(test, "manager1", &both, name).await
            })
            .await;
        }
        // Who is in one knows no name of the other, and gets through to no address of it, on its own host or another.
        let unknown = ask_in(test, "manager1", &front, "back:8080").await;
        assert!(unknown.is_err(), "{unknown:?}");
        for address in [back_address, both_in_back] {
            let through = ask_in(test, "manager1", &front, &format!("{address}:8080")).await;
            assert!(through.is_err(), "{address}: {through:?}");
        }
        // The way out: masqueraded from the one, none from the other.
        let outside = test.cluster().host("worker1").unwrap().address;
        let ping = |address: &str| ["ping", "-c", "1", "-W", "2", address].map(str::to_owned);
        let words = ping(&outside.to_string());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        exec(test, "manager1", &front, &words).await.unwrap();
        let outside = test.cluster().host("manager1").unwrap().address;
        let words = ping(&outside.to_string());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let out = exec(test, "worker1", &back, &words).await;
        assert!(out.is_err(), "{out:?}");
    });
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story, told step by step")]
fn root_containers_are_attached_by_name_with_address_and_aliases() {
    with_cluster(1, 1, async |test| {
        for line in [
            "network create --attachable --subnet 10.77.0.0/24 open",
            "network create closed",
        ] {
            test.shoal("manager1", line).await;
        }
        create_who(
            test,
            "web",
            1,
            &[
                "--network",
                "open",
                "--constraint",
                "node.hostname==manager1",
            ],
        )
        .await;
        // On a worker, which can't ask its own daemon for the cluster's networks.
        let line = "run -d --name alone --network open --ip 10.77.0.99 --network-alias other busybox sleep 100000";
        test.shoal("worker1", line).await;
        let alone = test
            .shoal("worker1", "ps -q --no-trunc --filter name=alone")
            .await;
        let alone = alone.trim();
        assert_eq!(
            address_of(test, "worker1", alone, "open").await,
            Ipv4Addr::new(10, 77, 0, 99)
        );
        eventually("the service is reached", async || {
            let answer = ask_in(test, "worker1", alone, "web:8080").await?;
            assert_eq!(answer.client, "10.77.0.99");
            Ok(())
        })
        .await;
        let web = container_on(test, "manager1", "web").await;
        for name in ["alone", "other"] {
            eventually(&format!("{name} is known"), async || {
                let found = look_up(test, "manager1", &web, name).await?;
                if found == BTreeSet::from([Ipv4Addr::new(10, 77, 0, 99)]) {
                    Ok(())
                } else {
                    Err(format!("{found:?}"))
                }
            })
            .await;
        }
        let taken = test
            .refused(
                "manager1",
                "run --rm --network open --ip 10.77.0.99 busybox true",
            )
            .await;
        assert!(taken.contains("10.77.0.99"), "{taken}");
        for (network, expected) in [("closed", "attachable"), ("nothing", "does not exist")] {
            for node in ["manager1", "worker1"] {
                let line = format!("run --rm --network {network} busybox true");
                let refused = test.refused(node, &line).await;
                assert!(refused.contains(expected), "{node}: {refused}");
                assert!(refused.contains(network), "{node}: {refused}");
            }
        }
        // Stopped, its address is free again; started, it has it back.
        test.shoal("worker1", "stop -t 0 alone").await;
        eventually("the address is free", async || {
            let line = "run --rm --network open --ip 10.77.0.99 busybox true";
            let free = test.try_shoal("manager1", line).await;
            free.map_err(|error| error.to_string())
        })
        .await;
        eventually("it starts again", async || {
            let started = test.try_shoal("worker1", "start alone").await;
            started.map_err(|error| error.to_string())
        })
        .await;
        ask_in(test, "worker1", alone, "web:8080").await.unwrap();
        test.shoal("worker1", "rm -f alone").await;
        test.shoal("manager1", "svc rm web").await;
        eventually("nothing is left in the network", async || {
            let removed = test.try_shoal("manager1", "network rm open").await;
            removed.map_err(|error| error.to_string())
        })
        .await;
    });
}

#[test]
fn root_names_and_new_connections_live_on_without_daemons() {
    with_cluster(1, 2, async |test| {
        test.shoal("manager1", "network create backend").await;
        let on_worker1 = [
            "--network",
            "backend",
            "--constraint",
            "node.hostname==worker1",
        ];
        create_who(test, "web", 1, &on_worker1).await;
        create_idle(test, "source", "backend").await;
        let web = container_on(test, "worker1", "web").await;
        let source = container_on(test, "worker2", "source").await;
        let reached = async |test: &TestCluster| {
            eventually("web is reached", async || {
                ask_in(test, "worker2", &source, "web:8080").await
            })
            .await
        };
        reached(test).await;
        let vip = look_up(test, "worker2", &source, "web").await.unwrap();
        let vip = format!("http://{}:8080/cgi-bin/who", vip.first().unwrap());
        for (node, crash) in [("worker1", true), ("worker2", false), ("worker2", true)] {
            if crash {
                let host = test.cluster_mut().host_mut(node).unwrap();
                host.kill_daemon().await.unwrap();
            }
            // With the daemon dead the resolver, another process, answers as before, and so do kernel and mesh.
            let names = ["nslookup", "-type=a", "web", "127.0.0.11"];
            let found = run_inside(test, "worker2", &source, &names).await;
            assert!(found.contains("10."), "{node}: {found}");
            let words = ["timeout", "3", "busybox", "wget", "-q", "-O", "-", &vip];
            let answer = run_inside(test, "worker2", &source, &words).await;
            parsed(&answer).unwrap();
            test.cluster_mut().restart_daemon(node).await.unwrap();
            reached(test).await;
        }
        assert_eq!(container_on(test, "worker1", "web").await, web);
        assert_eq!(container_on(test, "worker2", "source").await, source);
    });
}

/// Runs an applet in a container's network by the host's own busybox, without the daemon.
async fn run_inside(test: &TestCluster, node: &str, container: &str, words: &[&str]) -> String {
    let host = test.cluster().host(node).unwrap();
    let netns = host.dir.join("run/netns").join(container);
    let netns = format!("--net={}", netns.display());
    let begin = ["nsenter", &netns, "busybox"];
    host.run(begin.iter().chain(words))
        .await
        .unwrap_or_else(|error| error.to_string())
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story, told step by step")]
fn root_lost_host_leaves_names_and_ports_within_seconds() {
    with_cluster(3, 2, async |test| {
        test.shoal("manager1", "network create backend").await;
        create_who(
            test,
            "web",
            4,
            &[
                "--network",
                "backend",
                "--replicas-max-per-node",
                "1",
                "--publish",
                "80:8080",
            ],
        )
        .await;
        create_idle(test, "client", "backend").await;
        let lost = test
            .running("manager1", "web")
            .await
            .into_iter()
            .map(|(_, node)| node)
            .find(|node| node.starts_with("worker"))
            .unwrap();
        let container = container_on(test, &lost, "web").await;
        let gone = address_of(test, &lost, &container, "backend").await;
        let client = container_on(test, "manager1", "client").await;
        test.cluster_mut()
            .host_mut(&lost)
            .unwrap()
            .kill()
            .await
            .unwrap();
        within(
            Duration::from_secs(10),
            "names forget the lost host",
            async || {
                let found = look_up(test, "manager1", &client, "tasks.web").await?;
                if found.contains(&gone) || found.is_empty() {
                    Err(format!("{found:?}"))
                } else {
                    Ok(())
                }
            },
        )
        .await;
        let node = test.cluster().host("manager2").unwrap().address;
        let counts = spread(20, async || {
            ask_in(test, "manager1", &client, "web:8080").await
        })
        .await;
        assert!(!counts.contains_key(&container[..12]), "{counts:?}");
        spread(20, async || {
            ask_from(test, "manager3", &format!("{node}:80")).await
        })
        .await;
        let rows = within(SOON, "four tasks run again", async || {
            let rows = test.running("manager1", "web").await;
            let alive = rows.iter().filter(|(_, node)| *node != lost).count();
            if alive == 4 {
                Ok(rows)
            } else {
                Err(format!("{rows:?}"))
            }
        })
        .await;
        let counts = spread(60, async || {
            ask_in(test, "manager1", &client, "web:8080").await
        })
        .await;
        assert_eq!(counts.len(), 4, "{rows:?} {counts:?}");
    });
}

#[test]
fn root_mesh_is_checked_and_its_keys_are_changed_on_demand() {
    with_cluster(1, 2, async |test| {
        let empty = eventually("every node has applied the first state", async || {
            let table = test.try_shoal("manager1", "net check").await;
            table.map_err(|error| error.to_string())
        })
        .await;
        assert!(empty.starts_with("NODE "), "{empty}");
        test.shoal("manager1", "network create backend").await;
        create_idle(test, "client", "backend").await;
        let good = async || {
            let table = test.try_shoal("manager1", "net check").await;
            let table = table.map_err(|error| error.to_string())?;
            let pairs = table
                .lines()
                .filter(|line| line.contains(" direct "))
                .count();
            if pairs == 6 { Ok(()) } else { Err(table) }
        };
        eventually("every pair is good", good).await;
        let keys = async || {
            // A node that is a version behind for a moment makes the command fail.
            let json = eventually("every node is up to date", async || {
                let json = test.try_shoal("manager1", "net check --json").await;
                json.map_err(|error| error.to_string())
            })
            .await;
            let value: serde_json::Value = serde_json::from_str(&json).unwrap();
            let nodes = value["Nodes"].as_array().unwrap().clone();
            nodes
                .iter()
                .map(|node| node["wireguard"]["public_key"].to_string())
                .collect::<BTreeSet<_>>()
        };
        let before = keys().await;
        assert_eq!(before.len(), 3, "{before:?}");
        test.shoal("manager1", "net rotate-keys").await;
        eventually("every node has another key", async || {
            let now = keys().await;
            if now.len() == 3 && now.is_disjoint(&before) {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            }
        })
        .await;
        eventually("every pair is good again", good).await;
        test.cluster()
            .switch
            .set_cable("worker2", false)
            .await
            .unwrap();
        eventually("the cut is seen", async || {
            match test.try_shoal("manager1", "net check").await {
                Ok(table) => Err(table),
                Err(_) => Ok(()),
            }
        })
        .await;
        test.cluster()
            .switch
            .set_cable("worker2", true)
            .await
            .unwrap();
        eventually("every pair is good after the cut", good).await;
    });
}
