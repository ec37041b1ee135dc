//! Programs that are talked to: terminals, detaching, exit codes, signals.

use crate::harness::{TestCluster, eventually, with_hosts};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

/// The client with a terminal of its own.
struct Terminal {
    master: std::fs::File,
    shown: Arc<Mutex<String>>,
    client: tokio::process::Child,
}

impl Terminal {
    fn open(test: &TestCluster, args: &[&str]) -> Self {
        let pty = nix::pty::openpty(None, None).unwrap();
        let side = || Stdio::from(pty.slave.try_clone().unwrap());
        let host = test.cluster().host("manager1").unwrap();
        let mut command = host.client(args);
        let command = command.stdin(side()).stdout(side()).stderr(side());
        let client = command.kill_on_drop(true).spawn().unwrap();
        let master = std::fs::File::from(pty.master);
        let shown = Arc::new(Mutex::new(String::new()));
        let (mut reader, text) = (master.try_clone().unwrap(), Arc::clone(&shown));
        // Ends with an error of the read once no side of the terminal is open.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(len @ 1..) = reader.read(&mut bytes) {
                let new = String::from_utf8_lossy(&bytes[..len]).into_owned();
                text.lock().unwrap().push_str(&new);
            }
        });
        Self {
            master,
            shown,
            client,
        }
    }

    async fn shows(&self, words: &str) {
        eventually(&format!("the terminal shows `{words}`"), async || {
            let shown = self.shown.lock().unwrap().clone();
            if shown.contains(words) {
                Ok(())
            } else {
                Err(shown)
            }
        })
        .await;
    }

    fn types(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }

    async fn ends(mut self) -> ExitStatus {
        let ended = tokio::time::timeout(crate::harness::SOON, self.client.wait()).await;
        let shown = self.shown.lock().unwrap().clone();
        ended
            .unwrap_or_else(|_| panic!("the client still runs: {shown}"))
            .unwrap()
    }
}

#[test]
fn root_terminal_is_one_and_its_exit_code_comes_through() {
    with_hosts(1, 0, &[], async |test| {
        let mut terminal = Terminal::open(test, &["run", "-it", "--rm", "busybox", "sh"]);
        terminal.shows("# ").await;
        terminal.types(b"test -t 0 && echo term$((20+3))\n");
        terminal.shows("term23").await;
        terminal.types(b"exit 5\n");
        assert_eq!(terminal.ends().await.code(), Some(5));
        assert_eq!(test.shoal("manager1", "ps -a -q").await, "");
    });
}

#[test]
fn root_detach_keys_leave_the_container_running() {
    with_hosts(1, 0, &[], async |test| {
        let mut terminal = Terminal::open(test, &["run", "-it", "--name", "kept", "busybox", "sh"]);
        terminal.shows("# ").await;
        terminal.types(b"\x10\x11");
        assert_eq!(terminal.ends().await.code(), Some(0));
        assert_eq!(
            test.shoal("manager1", "ps --format {{.Names}}").await,
            "kept\n"
        );

        let mut terminal = Terminal::open(test, &["exec", "-it", "kept", "sh"]);
        terminal.shows("# ").await;
        terminal.types(b"\x10\x11");
        assert_eq!(terminal.ends().await.code(), Some(0));
        let mut terminal = Terminal::open(test, &["exec", "-it", "kept", "sh"]);
        terminal.shows("# ").await;
        terminal.types(b"exit 3\n");
        assert_eq!(terminal.ends().await.code(), Some(3));
    });
}

/// Runs the client: exit code and everything it said.
async fn client(test: &TestCluster, args: &[&str]) -> (Option<i32>, String) {
    let mut command = test.cluster().host("manager1").unwrap().client(args);
    let output = command.stdin(Stdio::null()).output().await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[test]
fn root_exit_codes_tell_who_failed() {
    with_hosts(1, 0, &[], async |test| {
        test.shoal("manager1", "run -d --name busy busybox sleep 100000")
            .await;
        let cases: [(&[&str], i32, &str); 9] = [
            (&["run", "--rm", "busybox", "sh", "-c", "exit 7"], 7, ""),
            (&["run", "--rm", "busybox", "nothing"], 127, "not found"),
            (
                &["run", "--rm", "busybox", "/etc/passwd"],
                126,
                "permission denied",
            ),
            (
                &["run", "--rm", "--user", "nobody9", "busybox", "true"],
                125,
                "nobody9",
            ),
            (&["exec", "busy", "sh", "-c", "exit 9"], 9, ""),
            (&["exec", "busy", "nothing"], 127, "not found"),
            (&["exec", "busy", "/etc/passwd"], 126, "permission denied"),
            (&["exec", "absent", "true"], 1, "absent"),
            // It would change the whole machine.
            (
                &[
                    "run",
                    "--rm",
                    "--sysctl",
                    "vm.swappiness=7",
                    "busybox",
                    "true",
                ],
                125,
                "vm.swappiness",
            ),
        ];
        for (args, code, words) in cases {
            let (got, said) = client(test, args).await;
            assert_eq!(got, Some(code), "{args:?}: {said}");
            assert!(said.contains(words), "{args:?}: {said}");
        }
        // No terminal to make raw: `-t` alone works all the same.
        let (code, said) = client(test, &["run", "--rm", "-t", "busybox", "echo", "seen"]).await;
        assert_eq!((code, said.trim()), (Some(0), "seen"));
        let (_, left) = client(test, &["ps", "-a", "--format", "{{.Names}}"]).await;
        assert_eq!(left, "busy\n");
        // Docker's own client reads the same.
        let (ok, _, said) = test
            .try_docker("manager1", &["exec", "busy", "nothing"])
            .await;
        assert!(!ok && said.contains("not found"), "{said}");
    });
}

#[test]
fn root_signals_to_the_client_reach_the_program() {
    with_hosts(1, 0, &[], async |test| {
        let script = "trap 'exit 44' TERM; echo ready; while true; do sleep 0.1; done";
        let host = test.cluster().host("manager1").unwrap();
        let mut command = host.client(["run", "--rm", "busybox", "sh", "-c", script]);
        let mut client = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut first = [0; 6];
        let output = client.stdout.as_mut().unwrap();
        tokio::io::AsyncReadExt::read_exact(output, &mut first)
            .await
            .unwrap();
        assert_eq!(&first, b"ready\n");
        let pid = i32::try_from(client.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
        assert_eq!(client.wait().await.unwrap().code(), Some(44));
    });
}
