//! One host: its init, its daemon, commands in it.

use crate::PlaygroundError;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};
use tokio::process::{ChildStdin, Command};

/// How often a condition is looked at again.
const POLL_PERIOD: Duration = Duration::from_millis(10);

/// Longest time for a daemon to answer on its socket.
const DAEMON_START_MAX: Duration = Duration::from_secs(20);

/// What varies between daemons.
#[derive(Debug, Clone, Default)]
pub struct DaemonOptions {
    /// Further arguments of `shoal daemon`.
    pub args: Vec<String>,
}

/// A host.
#[derive(Debug, Serialize, Deserialize)]
pub struct Host {
    /// Its name, also its host name.
    pub name: String,
    /// Its address on the switch.
    pub address: Ipv4Addr,
    /// Its files: `data`, `run`, `daemon.log`.
    pub dir: PathBuf,
    /// The `shoal` program.
    pub exe: PathBuf,
    /// Its pinned network namespace.
    pub netns: PathBuf,
    /// Parent of its containers' cgroups, below each hierarchy's root.
    pub cgroup_parent: String,
    /// Its init, when it is up.
    pub init_pid: Option<i32>,
    /// Its daemon, as this machine numbers it, when one was started.
    pub daemon_pid: Option<i32>,
    /// Keeps the init alive while it is open.
    #[serde(skip)]
    tether: Option<ChildStdin>,
}

impl Host {
    pub(crate) fn new(
        name: &str,
        address: Ipv4Addr,
        dir: PathBuf,
        exe: &Path,
        netns: PathBuf,
        cgroup_parent: String,
    ) -> Self {
        Self {
            name: name.to_owned(),
            address,
            dir,
            exe: exe.to_owned(),
            netns,
            cgroup_parent,
            init_pid: None,
            daemon_pid: None,
            tether: None,
        }
    }

    /// Path of its daemon's socket, usable from outside of the host.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/shoal.sock")
    }

    /// What its daemon logged.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    fn failed(&self, action: &str) -> impl FnOnce(std::io::Error) -> PlaygroundError {
        let (action, host) = (action.to_owned(), self.name.clone());
        move |err| PlaygroundError::Process { action, host, err }
    }

    /// Switches the host on: its init runs, no daemon yet. A tethered host ends with the process that started it.
    ///
    /// # Errors
    /// When its namespaces can't be made.
    pub async fn power_on(&mut self, tethered: bool) -> Result<(), PlaygroundError> {
        for dir in [self.dir.join("data"), self.dir.join("run")] {
            std::fs::create_dir_all(&dir).map_err(|err| PlaygroundError::File {
                action: "make",
                path: dir,
                err,
            })?;
        }
        let mut command = Command::new(&self.exe);
        command.args([
            "playground",
            "host-init",
            "--hostname",
            &self.name,
            "--netns",
        ]);
        command.arg(&self.netns);
        if tethered {
            command.arg("--tethered");
        }
        let stdin = if tethered {
            Stdio::piped()
        } else {
            Stdio::null()
        };
        command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(self.failed("start the init"))?;
        self.tether = child.stdin.take();
        let output = child
            .wait_with_output()
            .await
            .map_err(self.failed("start the init"))?;
        let output = self.checked("shoal playground host-init", output)?;
        self.init_pid = String::from_utf8_lossy(&output.stdout).trim().parse().ok();
        Ok(())
    }

    /// SIGKILL to its init, and waits until everything in the host is gone.
    ///
    /// # Errors
    /// When it does not go within ten seconds.
    pub async fn kill(&mut self) -> Result<(), PlaygroundError> {
        self.strike()?;
        let Some(pid) = self.init_pid.take() else {
            return Ok(());
        };
        self.tether = None;
        self.daemon_pid = None;
        self.gone(pid).await
    }

    /// Its processes were ended by other means.
    pub(crate) fn forget(&mut self) {
        self.init_pid = None;
        self.daemon_pid = None;
        self.tether = None;
    }

    /// SIGKILL to its init without waiting: this is the moment at which the host is lost. The kernel takes its time to
    /// clear the namespaces away.
    ///
    /// # Errors
    /// When the signal can't be sent.
    pub fn strike(&self) -> Result<(), PlaygroundError> {
        match self.init_pid {
            Some(pid) => self.signal(pid, Signal::SIGKILL),
            None => Ok(()),
        }
    }

    /// SIGKILL to its daemon only; containers, and the rest of the host, live on.
    ///
    /// # Errors
    /// When it does not go within five seconds.
    pub async fn kill_daemon(&mut self) -> Result<(), PlaygroundError> {
        self.end_daemon(Signal::SIGKILL).await
    }

    /// SIGTERM to its daemon only.
    ///
    /// # Errors
    /// When it does not go within five seconds.
    pub async fn stop_daemon(&mut self) -> Result<(), PlaygroundError> {
        self.end_daemon(Signal::SIGTERM).await
    }

    async fn end_daemon(&mut self, signal: Signal) -> Result<(), PlaygroundError> {
        let Some(pid) = self.daemon_pid.take() else {
            return Ok(());
        };
        self.signal(pid, signal)?;
        self.gone(pid).await
    }

    /// Sends a signal to its daemon, SIGSTOP for example.
    ///
    /// # Errors
    /// When it is not there.
    pub fn signal_daemon(&self, signal: Signal) -> Result<(), PlaygroundError> {
        self.daemon_pid
            .map_or(Ok(()), |pid| self.signal(pid, signal))
    }

    fn signal(&self, pid: i32, signal: Signal) -> Result<(), PlaygroundError> {
        match kill(Pid::from_raw(pid), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(errno) => Err(self.failed("send a signal")(errno.into())),
        }
    }

    /// Waits until a process is no more, or is a zombie: the playground is not always its parent.
    async fn gone(&self, pid: i32) -> Result<(), PlaygroundError> {
        let ended = || {
            let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
                return true;
            };
            stat.rsplit(')')
                .next()
                .is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']))
        };
        let what = format!("the end of process {pid} of host `{}`", self.name);
        wait_until(&what, Duration::from_secs(10), || match ended() {
            true => Ok(()),
            false => Err("it still runs".to_owned()),
        })
        .await
    }

    /// The command that runs `argv` in this host.
    pub fn command<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Command {
        self.enter(false, argv)
    }

    fn enter<S: AsRef<OsStr>>(&self, detach: bool, argv: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.exe);
        command.args(["playground", "enter", "--init-pid"]);
        command.arg(self.init_pid.unwrap_or(0).to_string());
        if detach {
            command.arg("--detach");
        }
        command.arg("--").args(argv);
        command
    }

    /// Runs a command in this host and answers what it wrote.
    ///
    /// # Errors
    /// [`PlaygroundError::Command`] when it ends with an error.
    pub async fn run<S: AsRef<OsStr>>(
        &self,
        argv: impl IntoIterator<Item = S>,
    ) -> Result<String, PlaygroundError> {
        let mut command = self.command(argv);
        let output = command
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await;
        let output = output.map_err(self.failed("run a command"))?;
        let line = format!("{:?}", command.as_std());
        let output = self.checked(&line, output)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The `shoal` client of this host's daemon, with `args`.
    pub fn client<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.exe);
        command
            .arg("--host")
            .arg(format!("unix://{}", self.socket().display()))
            .args(args);
        command
    }

    /// Runs the `shoal` client against this host's daemon and answers what it wrote on standard output.
    ///
    /// # Errors
    /// [`PlaygroundError::Command`] when it ends with an error.
    pub async fn shoal<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> Result<String, PlaygroundError> {
        let mut command = self.client(args);
        let output = command
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await;
        let output = output.map_err(self.failed("run the client"))?;
        let words: Vec<_> = command.as_std().get_args().skip(2).collect();
        let line = words.iter().fold("shoal".to_owned(), |line, word| {
            format!("{line} {}", word.to_string_lossy())
        });
        let output = self.checked(&line, output)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn checked(&self, command: &str, output: Output) -> Result<Output, PlaygroundError> {
        use std::os::unix::process::ExitStatusExt;
        if output.status.success() {
            return Ok(output);
        }
        let signal = || output.status.signal().map_or(-1, |signal| 128 + signal);
        Err(PlaygroundError::Command {
            command: command.to_owned(),
            host: self.name.clone(),
            code: output.status.code().unwrap_or_else(signal),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// When it does not answer; the end of its log is in the error.
    pub async fn start_daemon(&mut self, options: &DaemonOptions) -> Result<(), PlaygroundError> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .map_err(|err| PlaygroundError::File {
                action: "open",
                path: self.log_path(),
                err,
            })?;
        let exe = self.exe.clone().into_os_string();
        let mut argv = vec![exe, "daemon".into()];
        let pairs = [
            ("--data-root", self.dir.join("data").into_os_string()),
            ("--run-root", self.dir.join("run").into_os_string()),
            ("--socket", self.socket().into_os_string()),
            ("--advertise-addr", self.address.to_string().into()),
            ("--cgroup-parent", self.cgroup_parent.clone().into()),
        ];
        for (name, value) in pairs {
            argv.extend([name.into(), value]);
        }
        argv.extend(options.args.iter().map(Into::into));
        let mut command = self.enter(true, argv);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::from(log));
        // The process id goes to the pipe; the daemon itself logs to standard error.
        let mut child = command.spawn().map_err(self.failed("start the daemon"))?;
        let pid = read_line(&mut child)
            .await
            .map_err(self.failed("start the daemon"))?;
        child
            .wait()
            .await
            .map_err(self.failed("start the daemon"))?;
        let pid = pid.trim().parse::<i32>().ok();
        self.daemon_pid = pid;
        self.wait_for_daemon().await
    }

    async fn wait_for_daemon(&self) -> Result<(), PlaygroundError> {
        let what = format!("an answer of the daemon on host `{}`", self.name);
        let answered = wait_until(&what, DAEMON_START_MAX, || {
            std::os::unix::net::UnixStream::connect(self.socket())
                .map(drop)
                .map_err(|err| err.to_string())
        });
        answered.await.map_err(|error| match error {
            PlaygroundError::TimedOut {
                what,
                seconds,
                last,
            } => {
                let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(10).collect();
                let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
                PlaygroundError::TimedOut {
                    what,
                    seconds,
                    last: format!("{last}\n{tail}"),
                }
            }
            other => other,
        })
    }
}

async fn read_line(child: &mut tokio::process::Child) -> std::io::Result<String> {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).await?;
    }
    Ok(line)
}

/// Looks at `condition` until it holds. Its inner error says what was seen instead; its outer one ends the wait.
pub(crate) async fn wait_until_async<T>(
    what: &str,
    at_most: Duration,
    mut condition: impl AsyncFnMut() -> Result<Result<T, String>, PlaygroundError>,
) -> Result<T, PlaygroundError> {
    let start = Instant::now();
    loop {
        let last = match condition().await? {
            Ok(value) => return Ok(value),
            Err(last) => last,
        };
        if start.elapsed() > at_most {
            let seconds = at_most.as_secs();
            return Err(PlaygroundError::TimedOut {
                what: what.to_owned(),
                seconds,
                last,
            });
        }
        tokio::time::sleep(POLL_PERIOD).await;
    }
}

/// Like [`wait_until_async`], for a condition that is looked up without waiting.
pub(crate) async fn wait_until<T>(
    what: &str,
    at_most: Duration,
    mut condition: impl FnMut() -> Result<T, String>,
) -> Result<T, PlaygroundError> {
    wait_until_async(what, at_most, async || Ok(condition())).await
}
