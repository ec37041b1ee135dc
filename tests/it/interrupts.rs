//! Commands that the user breaks off.

use crate::harness::{SOON, TestCluster, eventually, shoal_program, with_cluster, with_hosts};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

/// A client whose output is read while it runs.
struct Running {
    child: Child,
    said: Arc<Mutex<String>>,
    readers: Vec<tokio::task::JoinHandle<()>>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let command = command.stdin(Stdio::null()).kill_on_drop(true);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let readers = vec![
            follow(child.stdout.take().unwrap(), Arc::clone(&said)),
            follow(child.stderr.take().unwrap(), Arc::clone(&said)),
        ];
        Self {
            child,
            said,
            readers,
        }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    async fn says(&self, words: &str) {
        eventually(&format!("the client says `{words}`"), async || {
            let said = self.said();
            if said.contains(words) {
                Ok(())
            } else {
                Err(said)
            }
        })
        .await;
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Its end, with everything that it said.
    async fn ends(&mut self) -> ExitStatus {
        let (child, readers) = (&mut self.child, std::mem::take(&mut self.readers));
        let end = async {
            let status = child.wait().await.unwrap();
            futures_util::future::join_all(readers).await;
            status
        };
        match tokio::time::timeout(SOON, end).await {
            Ok(status) => status,
            Err(_) => panic!("it still runs: {}", self.said()),
        }
    }
}

fn follow(
    mut from: impl tokio::io::AsyncRead + Send + Unpin + 'static,
    said: Arc<Mutex<String>>,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut bytes = [0; 4096];
        while let Ok(len @ 1..) = from.read(&mut bytes).await {
            let text = String::from_utf8_lossy(&bytes[..len]).into_owned();
            said.lock().unwrap().push_str(&text);
        }
    })
}

fn client(test: &TestCluster, args: &[&str]) -> Running {
    Running::start(test.cluster().host("manager1").unwrap().client(args))
}

/// What a playground in `dir` would leave: its folder, and processes and mounts that name it.
fn traces(dir: &Path, known: &BTreeSet<String>) -> Vec<String> {
    let name = dir.to_str().unwrap();
    let mut found = Vec::new();
    if dir.exists() {
        found.push(format!("folder {name}"));
    }
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let words = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        let is_pid = process.file_name().to_string_lossy().parse::<u32>().is_ok();
        if is_pid && words.contains(name) && !words.contains("playground demo") {
            found.push(words);
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(name))
            .map(str::to_owned),
    );
    found.extend(cgroups().difference(known).cloned());
    found
}

/// Cgroups of playgrounds.
fn cgroups() -> BTreeSet<String> {
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
    let below = hierarchies.filter_map(|dir| std::fs::read_dir(dir.path()).ok());
    let paths = below
        .flatten()
        .flatten()
        .map(|entry| entry.path().display().to_string());
    paths
        .filter(|path| path.contains("shoal-playground-"))
        .collect()
}

fn demo(dir: &Path) -> Running {
    let mut command = Command::new(shoal_program());
    command.args(["playground", "demo", "--dir"]).arg(dir);
    Running::start(command)
}

#[test]
fn root_interrupted_demo_leaves_nothing() {
    with_hosts(1, 0, &[], async |test| {
        // While hosts start, and in the middle of its steps.
        for words in ["", "hosts started", "svc create"] {
            let dir = test.dir().join("demo");
            let known = cgroups();
            let mut demo = demo(&dir);
            if words.is_empty() {
                eventually("the first host starts", async || {
                    match dir.join("hosts").exists() {
                        true => Ok(()),
                        false => Err("no hosts".to_owned()),
                    }
                })
                .await;
            } else {
                demo.says(words).await;
            }
            demo.signal(Signal::SIGINT);
            let status = demo.ends().await;
            assert_eq!(status.code(), Some(130), "{words}: {}", demo.said());
            assert!(demo.said().contains("interrupted"), "{}", demo.said());
            assert_eq!(traces(&dir, &known), Vec::<String>::new(), "{words}");
        }
    });
}

#[test]
fn root_playground_down_removes_what_a_killed_demo_left() {
    with_hosts(1, 0, &[], async |test| {
        for words in ["", "hosts started"] {
            let dir = test.dir().join("demo");
            let known = cgroups();
            let mut demo = demo(&dir);
            if words.is_empty() {
                eventually("the first host starts", async || {
                    match dir.join("hosts").exists() {
                        true => Ok(()),
                        false => Err("no hosts".to_owned()),
                    }
                })
                .await;
            } else {
                demo.says(words).await;
            }
            demo.signal(Signal::SIGKILL);
            demo.ends().await;
            assert!(dir.exists());
            let mut down = Command::new(shoal_program());
            down.args(["playground", "down", "--dir"]).arg(&dir);
            let mut down = Running::start(down);
            assert!(down.ends().await.success(), "{}", down.said());
            eventually("nothing is left", async || match traces(&dir, &known) {
                left if left.is_empty() => Ok(()),
                left => Err(format!("{left:#?}")),
            })
            .await;
        }
    });
}

#[test]
fn root_interrupted_service_create_leaves_the_service() {
    with_cluster(1, 0, async |test| {
        let args =
            "svc create --name waits --constraint node.labels.zone==nowhere busybox sleep 100000";
        let words: Vec<&str> = args.split(' ').collect();
        let mut create = client(test, &words);
        create.says("zone").await;
        create.signal(Signal::SIGINT);
        // As docker: the service goes on by itself.
        let status = create.ends().await;
        assert_eq!(status.code(), Some(0), "{}", create.said());
        assert!(
            create.said().contains("continuing in background"),
            "{}",
            create.said()
        );
        let shown = test
            .shoal("manager1", "svc ls --format {{.Name}}:{{.Replicas}}")
            .await;
        assert_eq!(shown, "waits:0/1\n");
        test.shoal("manager1", "node update --label-add zone=nowhere manager1")
            .await;
        test.wait_running("manager1", "waits", 1).await;
    });
}

#[test]
fn root_followed_service_log_has_new_lines_and_ends_when_interrupted() {
    with_cluster(1, 1, async |test| {
        let script = "n=0; while true; do n=$((n+1)); echo line $n of $(hostname); sleep 0.2; done";
        let host = test.cluster().host("manager1").unwrap();
        let words = "svc create --name talk --mode global --stop-signal SIGKILL busybox sh -c";
        host.shoal(words.split(' ').chain([script])).await.unwrap();
        let mut logs = client(test, &["svc", "logs", "-f", "talk"]);
        logs.says("line 1 of").await;
        let seen = |text: &str| text.matches("line ").count();
        let before = seen(&logs.said());
        eventually("new lines come from both nodes", async || {
            let said = logs.said();
            let from = |node: &str| said.lines().filter(|line| line.contains(node)).count();
            match seen(&said) >= before + 6 && from("@manager1") > 3 && from("@worker1") > 3 {
                true => Ok(()),
                false => Err(said),
            }
        })
        .await;
        logs.signal(Signal::SIGINT);
        assert_eq!(logs.ends().await.code(), Some(130), "{}", logs.said());
        test.wait_running("manager1", "talk", 2).await;
    });
}

#[test]
fn root_interrupted_run_ends_its_container_and_usage_errors_have_dockers_codes() {
    with_hosts(1, 0, &[], async |test| {
        let mut run = client(
            test,
            &[
                "run",
                "--rm",
                "busybox",
                "sh",
                "-c",
                "trap 'exit 3' INT; echo ready; while true; do sleep 0.1; done",
            ],
        );
        run.says("ready").await;
        run.signal(Signal::SIGINT);
        assert_eq!(run.ends().await.code(), Some(3), "{}", run.said());
        assert_eq!(test.shoal("manager1", "ps -a -q").await, "");
        // Killed: it can end nothing. The container runs on, and can be ended by others.
        let mut run = client(
            test,
            &[
                "run",
                "--name",
                "left",
                "busybox",
                "sh",
                "-c",
                "echo ready; exec sleep 100000",
            ],
        );
        run.says("ready").await;
        run.signal(Signal::SIGKILL);
        run.ends().await;
        assert_eq!(
            test.shoal("manager1", "ps --format {{.Names}}").await,
            "left\n"
        );
        test.shoal("manager1", "rm -f left").await;

        let cases: [(&[&str], i32); 7] = [
            (&["run", "--nonsense", "busybox"], 125),
            (&["run", "--memory", "much", "busybox"], 125),
            (&["run"], 1),
            (&["ps", "--nonsense"], 125),
            (&["ps", "surplus"], 1),
            (&["nonsense"], 1),
            (&["run", "--help"], 0),
        ];
        for (args, code) in cases {
            let mut client = client(test, args);
            assert_eq!(
                client.ends().await.code(),
                Some(code),
                "{args:?}: {}",
                client.said()
            );
        }
    });
}
