//! Certificates that are too old, or of another cluster.

use crate::harness::{TestCluster, eventually, with_cluster, with_hosts};
use async_trait::async_trait;
use shoal_manager::manager::{RandomIds, SystemClock};
use shoal_manager::raft::{Placement, RealDisk, Timing};
use shoal_manager::{Manager, ManagerOptions, Start};
use shoal_model::rpc::Method;
use shoal_model::{NodeRole, Timestamp};
use shoal_transport::ca::{Authority, SigningRequest, Subject};
use shoal_transport::files::IdentityFiles;
use shoal_transport::{
    CallError, Connector, Endpoint, EndpointOptions, Expect, Identity, IdentityHandle, RpcStream,
    TransportError, call, join,
};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const SLEEP: &str = "--stop-signal SIGKILL busybox sleep 100000";
const HOUR: Duration = Duration::from_secs(3600);

fn data_root(test: &TestCluster, host: &str) -> PathBuf {
    test.cluster().host(host).unwrap().dir.join("data")
}

fn files(test: &TestCluster, host: &str) -> IdentityFiles {
    IdentityFiles::new(data_root(test, host).join("certs"))
}

fn stored(test: &TestCluster, host: &str) -> Identity {
    files(test, host).load().unwrap().unwrap()
}

fn now() -> Timestamp {
    Timestamp::from_unix(
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap(),
    )
}

/// No other manager can be reached.
struct Alone;

#[async_trait]
impl Connector for Alone {
    async fn open(
        &self,
        addr: SocketAddr,
        _: Expect,
        _: Method,
    ) -> Result<RpcStream, TransportError> {
        let limit = Duration::ZERO;
        Err(TransportError::TimedOut { addr, limit })
    }
}

/// The authority's key of a cluster, read by a manager in this process from a copy of what a stopped one has on disk.
async fn authority(test: &TestCluster, host: &str) -> Authority {
    let from = data_root(test, host);
    let copy = test.dir().join(format!("copy-of-{host}"));
    let copied = Command::new("cp").arg("-a").arg(&from).arg(&copy).status();
    assert!(copied.unwrap().success());
    let own = stored(test, host);
    let manager = Manager::start(ManagerOptions {
        data_dir: copy.join("raft"),
        key_path: copy.join("certs/raft.key"),
        node_id: own.node_id(),
        advertise: SocketAddr::new(test.cluster().host(host).unwrap().address.into(), 2377),
        start: Start::Join(Vec::new()),
        timing: Timing::default(),
        placement: Placement::Caller,
        connector: Arc::new(Alone),
        disk: Arc::new(RealDisk),
        clock: Arc::new(SystemClock),
        ids: Arc::new(RandomIds),
        seed: 1,
    })
    .await
    .unwrap();
    let root = eventually("the copy knows its cluster", async || {
        let view = manager.store().view();
        let cluster = view.cluster().ok_or("none is there")?;
        Ok(cluster.root_ca.clone())
    })
    .await;
    manager.shutdown().await;
    Authority::load(&root).unwrap()
}

/// Gives a host whose daemon is stopped a certificate that ended an hour ago.
fn expire(test: &TestCluster, host: &str, authority: &Authority) {
    let old = stored(test, host);
    let subject = Subject {
        node_id: old.node_id(),
        role: old.role(),
        cluster_id: old.cluster_id(),
    };
    let request = SigningRequest::parse(&old.key().signing_request().unwrap()).unwrap();
    let then = Timestamp::from_unix(now().since(Timestamp(0)) - 2 * HOUR);
    let der = authority.issue(&subject, &request, then, HOUR).unwrap();
    let root = old.root_der().to_vec();
    let expired = Identity::new(old.key().clone(), der, root).unwrap();
    assert!(expired.is_expired(now()));
    files(test, host).store(&expired).unwrap();
}

async fn renewed(test: &TestCluster, host: &str) {
    eventually(
        "the certificate on disk is good again",
        async || match stored(test, host).is_expired(now()) {
            true => Err("it has expired".to_owned()),
            false => Ok(()),
        },
    )
    .await;
}

#[test]
fn root_node_with_an_expired_certificate_is_readmitted_by_its_key() {
    with_cluster(1, 2, async |test| {
        let line =
            format!("svc create --name web --mode global --constraint node.role==worker {SLEEP}");
        test.shoal("manager1", &line).await;
        let before = test.shoal("worker1", "ps -q --no-trunc").await;
        for host in ["worker1", "worker2", "manager1"] {
            let host = test.cluster_mut().host_mut(host).unwrap();
            host.stop_daemon().await.unwrap();
        }
        let authority = authority(test, "manager1").await;
        expire(test, "worker1", &authority);
        expire(test, "worker2", &authority);
        // The only manager, too: nobody is left who could re-admit it.
        expire(test, "manager1", &authority);
        for host in ["manager1", "worker1"] {
            test.cluster_mut().restart_daemon(host).await.unwrap();
            renewed(test, host).await;
        }
        eventually("worker1 is ready and worker2 is not", async || {
            let line = "node ls --format {{.Hostname}}:{{.Status}}";
            match test.try_shoal("manager1", line).await {
                Ok(text) if text.contains("worker1:Ready") && text.contains("manager1:Ready") => {
                    Ok(())
                }
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        assert_eq!(test.shoal("worker1", "ps -q --no-trunc").await, before);

        // The key opens nothing any more once the node is removed, and the node says so.
        test.shoal("manager1", "node rm --force worker2").await;
        test.cluster_mut().restart_daemon("worker2").await.unwrap();
        let path = test.cluster().host("worker2").unwrap().log_path();
        eventually("the removed node says what to do", async || {
            let log = std::fs::read_to_string(&path).unwrap();
            match log.contains("it was removed") && log.contains("join again") {
                true => Ok(()),
                false => Err(log),
            }
        })
        .await;
        assert!(stored(test, "worker2").is_expired(now()));
        let shown = test
            .shoal("manager1", "node ls --format {{.Hostname}}")
            .await;
        assert!(!shown.contains("worker2"), "{shown}");
    });
}

#[test]
fn root_managers_whose_certificates_all_expired_find_together_again() {
    with_cluster(3, 0, async |test| {
        test.shoal("manager1", "svc create -d --name kept --replicas 0 busybox")
            .await;
        let managers = ["manager1", "manager2", "manager3"];
        for host in managers {
            let host = test.cluster_mut().host_mut(host).unwrap();
            host.kill_daemon().await.unwrap();
        }
        // One of three can't lead: its copy is asked for what it has seen committed.
        let authority = authority(test, "manager1").await;
        for host in managers {
            expire(test, host, &authority);
        }
        for host in managers {
            test.cluster_mut().restart_daemon(host).await.unwrap();
        }
        for host in managers {
            renewed(test, host).await;
        }
        test.wait_ready(3).await;
        let shown = test.shoal("manager2", "svc ls --format {{.Name}}").await;
        assert_eq!(shown, "kept\n");
    });
}

/// What a call gets, made from inside of a host.
fn ask_from(
    test: &TestCluster,
    host: &str,
    addr: SocketAddr,
    identity: &Identity,
) -> Vec<(Method, Result<u64, CallError>)> {
    let netns = std::fs::File::open(&test.cluster().host(host).unwrap().netns).unwrap();
    let identity = identity.clone();
    let asking = std::thread::spawn(move || {
        nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let any = "0.0.0.0:0".parse().unwrap();
            let shown = IdentityHandle::new(Some(identity));
            let endpoint = Endpoint::bind(any, shown, EndpointOptions::control()).unwrap();
            let mut answers = Vec::new();
            for method in [
                Method::Session,
                Method::Control,
                Method::ControlWatch,
                Method::RaftJoin,
                Method::RaftAppend,
                Method::RenewCertificate,
                Method::Leave,
                Method::TaskLogs,
            ] {
                let deadline = Duration::from_secs(5);
                let answer = call(&endpoint, addr, Expect::AnyManager, method, &(), deadline);
                answers.push((method, answer.await));
            }
            endpoint.shutdown().await;
            answers
        })
    });
    asking.join().unwrap()
}

#[test]
fn root_node_of_another_cluster_gets_nothing() {
    with_hosts(1, 2, &[], async |test| {
        test.shoal("manager1", "init").await;
        test.shoal("worker1", "init").await;
        let manager = test.cluster().host("manager1").unwrap().address;
        let stranger = stored(test, "worker1");
        assert_eq!(stranger.role(), NodeRole::Manager);
        for port in [2377, 2378] {
            let addr = SocketAddr::new(manager.into(), port);
            for (method, answer) in ask_from(test, "worker2", addr, &stranger) {
                let refused = matches!(answer, Err(CallError::Transport(_)));
                assert!(refused, "{method:?} at port {port}: {answer:?}");
            }
        }
        // Its own root does not sign for this manager, so it does not even ask to be re-admitted; and with the right
        // root its key is nobody's.
        let addr = SocketAddr::new(manager.into(), 2377);
        let netns = std::fs::File::open(&test.cluster().host("worker2").unwrap().netns).unwrap();
        let home = stored(test, "manager1");
        let asking = std::thread::spawn(move || {
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let any = "0.0.0.0:0".parse().unwrap();
                let none = IdentityHandle::new(None);
                let endpoint = Endpoint::bind(any, none, EndpointOptions::control()).unwrap();
                let deadline = Duration::from_secs(5);
                let other_root = join::readmit(&endpoint, addr, &stranger, deadline).await;
                let token = shoal_transport::JoinToken {
                    root_digest: home.root_digest(),
                    secret: shoal_transport::JoinToken::secret_from_bits(1),
                };
                let availability = shoal_model::Availability::default();
                let key = stranger.key();
                let joined = join::join(&endpoint, addr, &token, key, availability, deadline).await;
                endpoint.shutdown().await;
                (other_root, joined.map(drop))
            })
        });
        let (other_root, joined) = asking.join().unwrap();
        assert!(other_root.is_err(), "{other_root:?}");
        let said = joined.unwrap_err().to_string();
        assert!(said.contains("not a token of this cluster"), "{said}");
        let shown = test
            .shoal("manager1", "node ls --format {{.Hostname}}")
            .await;
        assert_eq!(shown, "manager1\n");
        let log = std::fs::read_to_string(test.cluster().host("manager1").unwrap().log_path());
        assert!(!log.unwrap().contains("panicked"));
    });
}
