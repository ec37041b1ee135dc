//! The daemon's side: starts `shoal netd`, keeps it running, and asks it.

use super::protocol::{
    self, Frame, FrameError, Hello, NetdReply, NetdRequest, PROTOCOL_VERSION, Refusal, Welcome,
};
use super::{READY_LINE, SOCKET};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Command;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

/// Requests that may wait to be sent.
const QUEUE_MAX: usize = 64;
/// How long a request may take, with the wait for a new netd.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long netd may take to be ready.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before netd is started again after it did not start, at first and at most.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What a netd is started with.
#[derive(Debug, Clone)]
pub struct NetdOptions {
    /// The `shoal` binary.
    pub exe: PathBuf,
    /// Where its socket is.
    pub run_root: PathBuf,
    /// How much it logs: a word for `--log`.
    pub log: String,
}

/// Why netd did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum NetdError {
    /// The process could not be started.
    #[error("failed to start `{} netd`", exe.display())]
    Spawn {
        /// The binary.
        exe: PathBuf,
        /// The system's answer.
        #[source]
        err: io::Error,
    },
    /// It was started, and is not ready; its log says why.
    #[error("netd did not become ready; see `{}`", log.display())]
    NotReady {
        /// Its log.
        log: PathBuf,
    },
    /// Its socket does not answer as it must.
    #[error("failed to talk to netd at `{}`", path.display())]
    Talk {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        err: FrameError,
    },
    /// It ended before it answered; a new one is started.
    #[error("netd ended before it answered")]
    Lost,
    /// No answer in time.
    #[error("netd did not answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
    /// It refused.
    #[error("netd refused the request")]
    Refused(#[source] Refusal),
    /// It answered another question.
    #[error("netd gave an answer that does not fit the question")]
    Confused,
    /// It was told to end.
    #[error("netd was told to end")]
    Stopped,
}

type Answer = oneshot::Sender<Result<NetdReply, NetdError>>;

struct Call {
    request: NetdRequest,
    answer: Answer,
}

/// The netd of this instance. Cheap to clone; the last clone's end leaves the process alone.
#[derive(Debug, Clone)]
pub struct Netd {
    calls: mpsc::Sender<Call>,
    generation: watch::Receiver<u64>,
    path: Arc<PathBuf>,
}

impl Netd {
    /// Finds the running netd, or starts one. From then on one is kept running.
    ///
    /// # Errors
    /// When none can be started.
    pub async fn start(options: NetdOptions) -> Result<Self, NetdError> {
        let path = options.run_root.join(SOCKET);
        let connection = connect_or_spawn(&options).await?;
        let (calls, queue) = mpsc::channel(QUEUE_MAX);
        let (announce, generation) = watch::channel(1);
        let keeper = Keeper {
            options,
            queue,
            announce,
            number: 0,
        };
        tokio::spawn(keeper.run(connection));
        Ok(Self {
            calls,
            generation,
            path: Arc::new(path),
        })
    }

    /// A number that grows with every netd that must be told everything anew.
    pub fn generation(&self) -> watch::Receiver<u64> {
        self.generation.clone()
    }

    /// Its control socket.
    pub fn socket(&self) -> &Path {
        &self.path
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// When netd refuses, or ends meanwhile.
    pub async fn call(&self, request: NetdRequest) -> Result<NetdReply, NetdError> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            let call = Call { request, answer };
            self.calls
                .send(call)
                .await
                .map_err(|_| NetdError::Stopped)?;
            answered.await.map_err(|_| NetdError::Stopped)?
        };
        match timeout(CALL_TIMEOUT, asked).await {
            Ok(Ok(NetdReply::Refused(refusal))) => Err(NetdError::Refused(refusal)),
            Ok(result) => result,
            Err(_) => Err(NetdError::Timeout),
        }
    }

    /// Asks for something that has no other answer than that it is done.
    ///
    /// # Errors
    /// As [`Netd::call`].
    pub async fn tell(&self, request: NetdRequest) -> Result<(), NetdError> {
        match self.call(request).await? {
            NetdReply::Done => Ok(()),
            _ => Err(NetdError::Confused),
        }
    }

    /// Ends the process, and the device with it.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn stop(&self) -> Result<(), NetdError> {
        match self.tell(NetdRequest::Stop).await {
            // It was gone before it could say that it goes.
            Err(NetdError::Lost | NetdError::Stopped) => Ok(()),
            other => other,
        }
    }
}

/// Keeps a netd running for as long as somebody may ask it.
struct Keeper {
    options: NetdOptions,
    queue: mpsc::Receiver<Call>,
    announce: watch::Sender<u64>,
    number: u64,
}

/// Why a connection is served no more.
enum Ended {
    /// Nobody will ask again, or netd was told to end.
    ForGood,
    /// It broke.
    Lost,
}

impl Keeper {
    async fn run(mut self, mut connection: UnixStream) {
        let mut pause = RETRY_MIN;
        loop {
            let since = Instant::now();
            match self.serve(connection).await {
                Ended::ForGood => return,
                Ended::Lost => tracing::warn!("netd ended; another one is started"),
            }
            if since.elapsed() > RETRY_MAX {
                pause = RETRY_MIN;
            }
            connection = loop {
                match connect_or_spawn(&self.options).await {
                    Ok(connection) => break connection,
                    Err(err) => {
                        let err = crate::netd::chain(&err);
                        tracing::error!(err, "netd could not be started again");
                    }
                }
                sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
                if self.queue.is_closed() {
                    return;
                }
            };
            self.announce.send_modify(|generation| *generation += 1);
        }
    }

    async fn serve(&mut self, connection: UnixStream) -> Ended {
        let (reader, mut writer) = connection.into_split();
        let (replies_in, mut replies) = mpsc::channel(QUEUE_MAX);
        let reading = tokio::spawn(read(reader, replies_in));
        let mut open: BTreeMap<u64, (Answer, bool)> = BTreeMap::new();
        let ended = loop {
            tokio::select! {
                call = self.queue.recv() => {
                    let Some(call) = call else { break Ended::ForGood };
                    let stop = matches!(call.request, NetdRequest::Stop);
                    self.number += 1;
                    open.insert(self.number, (call.answer, stop));
                    if write(&mut writer, self.number, call.request).await.is_err() {
                        break Ended::Lost;
                    }
                }
                reply = replies.recv() => {
                    let Some(Frame { number, body }) = reply else { break Ended::Lost };
                    if let Some((answer, stop)) = open.remove(&number) {
                        // Nobody waits any more when the caller was cancelled.
                        drop(answer.send(Ok(body)));
                        if stop {
                            break Ended::ForGood;
                        }
                    }
                }
            }
        };
        reading.abort();
        let told_to_end = open.values().any(|(_, stop)| *stop);
        for (answer, _) in open.into_values() {
            drop(answer.send(Err(NetdError::Lost)));
        }
        if told_to_end { Ended::ForGood } else { ended }
    }
}

async fn read(mut from: OwnedReadHalf, replies: mpsc::Sender<Frame<NetdReply>>) {
    loop {
        match protocol::receive(&mut from).await {
            Ok(Some(frame)) => {
                if replies.send(frame).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(err) => {
                let err = crate::netd::chain(&err);
                tracing::warn!(err, "the connection to netd is given up");
                return;
            }
        }
    }
}

async fn write(to: &mut OwnedWriteHalf, number: u64, body: NetdRequest) -> Result<(), FrameError> {
    protocol::send(to, &Frame { number, body }).await
}

/// A connection that both sides have agreed on, to a netd that runs or to a new one.
async fn connect_or_spawn(options: &NetdOptions) -> Result<UnixStream, NetdError> {
    let path = options.run_root.join(SOCKET);
    if let Ok(stream) = UnixStream::connect(&path).await {
        match greet(stream, &path).await? {
            Greeted::Agreed(stream) => return Ok(stream),
            Greeted::Differs(stream) => end_other(stream, &path).await?,
        }
    }
    spawn(options).await?;
    let talk = |err| NetdError::Talk {
        path: path.clone(),
        err,
    };
    let stream = UnixStream::connect(&path)
        .await
        .map_err(|err| talk(FrameError::Io(err)))?;
    match greet(stream, &path).await? {
        Greeted::Agreed(stream) => Ok(stream),
        Greeted::Differs(_) => Err(NetdError::Confused),
    }
}

enum Greeted {
    Agreed(UnixStream),
    /// It speaks another protocol.
    Differs(UnixStream),
}

async fn greet(mut stream: UnixStream, path: &Path) -> Result<Greeted, NetdError> {
    let talk = |err| NetdError::Talk {
        path: path.to_owned(),
        err,
    };
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let greeting = async {
        protocol::send(&mut stream, &hello).await?;
        protocol::receive::<Welcome>(&mut stream).await
    };
    let welcome = match timeout(CALL_TIMEOUT, greeting).await {
        Ok(Ok(Some(welcome))) => welcome,
        Ok(Ok(None)) => return Err(NetdError::Lost),
        Ok(Err(err)) => return Err(talk(err)),
        Err(_) => return Err(NetdError::Timeout),
    };
    tracing::debug!(
        pid = welcome.pid,
        version = welcome.version,
        "netd is there"
    );
    Ok(if welcome.protocol == PROTOCOL_VERSION {
        Greeted::Agreed(stream)
    } else {
        Greeted::Differs(stream)
    })
}

/// Ends a netd of another protocol: the kernel says who is at the other end of the socket.
async fn end_other(mut stream: UnixStream, path: &Path) -> Result<(), NetdError> {
    let talk = |err: io::Error| NetdError::Talk {
        path: path.to_owned(),
        err: FrameError::Io(err),
    };
    let peer = stream.peer_cred().map_err(talk)?;
    let pid = peer.pid().ok_or(NetdError::Confused)?;
    tracing::info!(pid, "netd speaks another protocol and is replaced");
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)
        .map_err(|errno| talk(errno.into()))?;
    // The connection ends with the process.
    let mut rest = Vec::new();
    match timeout(START_TIMEOUT, stream.read_to_end(&mut rest)).await {
        Ok(_) => Ok(()),
        Err(_) => Err(NetdError::Timeout),
    }
}

/// Starts a netd and waits until its socket is there. It is no part of the daemon's life: it has a session of its own,
/// and tokio reaps it should it end before the daemon.
async fn spawn(options: &NetdOptions) -> Result<(), NetdError> {
    let failed = |err| NetdError::Spawn {
        exe: options.exe.clone(),
        err,
    };
    let log = options.run_root.join("netd.log");
    let log_file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .map_err(failed)?;
    let mut child = Command::new(&options.exe)
        .arg("netd")
        .arg("--run-root")
        .arg(&options.run_root)
        .arg("--log")
        .arg(&options.log)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::from(log_file))
        .current_dir("/")
        .env_clear()
        .process_group(0)
        .kill_on_drop(false)
        .spawn()
        .map_err(failed)?;
    let Some(mut stdout) = child.stdout.take() else {
        return Err(NetdError::NotReady { log });
    };
    let mut line = [0; READY_LINE.len()];
    match timeout(START_TIMEOUT, stdout.read_exact(&mut line)).await {
        Ok(Ok(_)) if line == *READY_LINE => Ok(()),
        _ => {
            // It may be that another one was quicker; then this one has ended by itself.
            drop(child.start_kill());
            Err(NetdError::NotReady { log })
        }
    }
}
