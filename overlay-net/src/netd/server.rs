//! Takes requests, and does what they say.

use super::chain;
use super::protocol::{
    self, DeviceStatus, Frame, Hello, NetdReply, NetdRequest, PROTOCOL_VERSION, Refusal, Welcome,
};
use crate::dns::{DnsServer, DnsServerOptions};
use crate::mesh::device::{UserDevice, UserDeviceError};
use crate::probe::Responder;
use std::error::Error;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Notify, Semaphore, mpsc};
use tokio::task::JoinSet;

/// Connections at a time; the daemon needs one.
const CONNECTIONS_MAX: usize = 16;
/// Requests of a connection that are worked on at a time.
const REQUESTS_MAX: usize = 64;

/// How long connections may take to end.
const FAREWELL: Duration = Duration::from_millis(200);

/// What all connections share.
struct Core {
    dns: DnsServer,
    device: Mutex<Option<UserDevice>>,
    responder: Mutex<Option<Responder>>,
    stop: Notify,
}

pub(super) struct Server {
    core: Arc<Core>,
}

impl Server {
    /// Must be called within a tokio runtime.
    pub(super) fn new() -> Self {
        let dns = DnsServer::start(DnsServerOptions {
            host_resolv_conf: PathBuf::from("/etc/resolv.conf"),
        });
        Self {
            core: Arc::new(Core {
                dns,
                device: Mutex::default(),
                responder: Mutex::default(),
                stop: Notify::new(),
            }),
        }
    }

    /// Serves connections until one of them says stop.
    pub(super) async fn accept(&mut self, listener: UnixListener) {
        let mut connections = JoinSet::new();
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let next = async {
                let slot = Arc::clone(&slots).acquire_owned().await;
                (slot, listener.accept().await)
            };
            tokio::select! {
                (slot, accepted) = next => match (slot, accepted) {
                    (Ok(slot), Ok((stream, _))) => {
                        let core = Arc::clone(&self.core);
                        connections.spawn(async move {
                            let _slot = slot;
                            if let Err(err) = converse(core, stream).await {
                                tracing::warn!(err = chain(&err), "a connection is given up");
                            }
                        });
                    }
                    (_, Err(err)) => tracing::warn!(%err, "a connection could not be taken"),
                    (Err(_), _) => return,
                },
                Some(_) = connections.join_next() => {}
                () = self.core.stop.notified() => {
                    // Let the answer to the request get out.
                    let all = async { while connections.join_next().await.is_some() {} };
                    if tokio::time::timeout(FAREWELL, all).await.is_err() {
                        tracing::debug!("connections were cut off");
                    }
                    return;
                }
            }
        }
    }

    /// Takes away what was made in the kernel.
    pub(super) async fn end(&mut self) {
        self.core.responder.lock().await.take();
        if let Some(device) = self.core.device.lock().await.take() {
            device.remove().await;
        }
    }
}

async fn converse(core: Arc<Core>, stream: UnixStream) -> Result<(), protocol::FrameError> {
    let (mut reader, mut writer) = stream.into_split();
    let Some(hello) = protocol::receive::<Hello>(&mut reader).await? else {
        return Ok(());
    };
    let welcome = Welcome {
        protocol: PROTOCOL_VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
    };
    protocol::send(&mut writer, &welcome).await?;
    if hello.protocol != PROTOCOL_VERSION {
        // The other side decides what becomes of this process; until then it keeps the connection.
        protocol::receive::<Hello>(&mut reader).await?;
        return Ok(());
    }
    let (answers, mut outgoing) = mpsc::channel::<Frame<NetdReply>>(REQUESTS_MAX);
    let writing = async {
        while let Some(frame) = outgoing.recv().await {
            let stopped = frame.number == STOPPED;
            if stopped {
                break;
            }
            protocol::send(&mut writer, &frame).await?;
        }
        Ok(())
    };
    let (read, written) = tokio::join!(take(core, reader, answers), writing);
    read.and(written)
}

/// The number of no request: the last frame of a connection that said stop.
const STOPPED: u64 = u64::MAX;

async fn take(
    core: Arc<Core>,
    mut reader: OwnedReadHalf,
    answers: mpsc::Sender<Frame<NetdReply>>,
) -> Result<(), protocol::FrameError> {
    let slots = Arc::new(Semaphore::new(REQUESTS_MAX));
    while let Some(frame) = protocol::receive::<Frame<NetdRequest>>(&mut reader).await? {
        let Frame { number, body } = frame;
        // Entering namespaces takes a while, and containers do not wait for each other. All else keeps its order.
        if matches!(body, NetdRequest::DnsOpen(_) | NetdRequest::DnsClose(_)) {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                return Ok(());
            };
            let (core, answers) = (Arc::clone(&core), answers.clone());
            tokio::spawn(async move {
                let _slot = slot;
                let body = core.answer(body).await;
                // The connection is gone when nobody takes it.
                drop(answers.send(Frame { number, body }).await);
            });
            continue;
        }
        let stop = matches!(body, NetdRequest::Stop);
        let body = core.answer(body).await;
        if answers.send(Frame { number, body }).await.is_err() {
            return Ok(());
        }
        if stop {
            core.stop.notify_one();
            let last = Frame {
                number: STOPPED,
                body: NetdReply::Done,
            };
            drop(answers.send(last).await);
            return Ok(());
        }
    }
    Ok(())
}

fn refused(err: &(dyn Error + 'static), errno: Option<i32>) -> NetdReply {
    NetdReply::Refused(Refusal {
        reason: chain(err),
        errno,
    })
}

fn device_refused(err: &UserDeviceError) -> NetdReply {
    refused(err, err.errno())
}

impl Core {
    async fn answer(&self, request: NetdRequest) -> NetdReply {
        match request {
            NetdRequest::Device(spec) => {
                let mut device = self.device.lock().await;
                let info = match &*device {
                    Some(present) => present.change(spec).await,
                    None => match UserDevice::create(spec).await {
                        Ok((made, info)) => {
                            *device = Some(made);
                            Ok(info)
                        }
                        Err(err) => Err(err),
                    },
                };
                match info {
                    Ok(info) => NetdReply::Device(info),
                    Err(err) => device_refused(&err),
                }
            }
            NetdRequest::Peers(update) => match &*self.device.lock().await {
                Some(device) => match device.set_peers(update).await {
                    Ok(()) => NetdReply::Done,
                    Err(err) => device_refused(&err),
                },
                None => device_refused(&UserDeviceError::NoDevice),
            },
            NetdRequest::DeviceStatus => match &*self.device.lock().await {
                Some(device) => match device.status().await {
                    Ok(status) => NetdReply::Status(status),
                    Err(err) => device_refused(&err),
                },
                None => NetdReply::Status(DeviceStatus::default()),
            },
            NetdRequest::RemoveDevice => {
                if let Some(device) = self.device.lock().await.take() {
                    device.remove().await;
                }
                NetdReply::Done
            }
            NetdRequest::DnsTable(update) => {
                self.dns.set_table(update);
                NetdReply::Done
            }
            NetdRequest::DnsOpen(container) => match self.dns.open_container(container).await {
                Ok(()) => NetdReply::Done,
                Err(err) => refused(&err, None),
            },
            NetdRequest::DnsClose(container) => {
                self.dns.close_container(container).await;
                NetdReply::Done
            }
            NetdRequest::DnsContainers => NetdReply::DnsContainers(self.dns.containers().await),
            NetdRequest::DnsCounters => NetdReply::DnsCounters(self.dns.counters()),
            NetdRequest::Responder(address) => self.respond_at(address).await,
            NetdRequest::Stop => NetdReply::Done,
        }
    }

    async fn respond_at(&self, address: Option<Ipv4Addr>) -> NetdReply {
        let mut responder = self.responder.lock().await;
        if responder.as_ref().map(Responder::address) == address {
            return NetdReply::Done;
        }
        *responder = None;
        let Some(address) = address else {
            return NetdReply::Done;
        };
        match Responder::start(address) {
            Ok(started) => {
                *responder = Some(started);
                NetdReply::Done
            }
            Err(err) => refused(&err, None),
        }
    }
}
