//! Sends probes, hears answers, says who is suspected.

use super::detector::{Detector, DetectorOptions, PeerProbe, Ping};
use super::packet::{self, PACKET_BYTES, PROBE_PORT, Stamp};
use nix::sys::socket::{setsockopt, sockopt};
use shoal_model::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// The nodes that this node suspects.
pub type Suspects = Arc<BTreeSet<NodeId>>;

/// Where a prober sends from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProberOptions {
    /// The node's own address in the mesh. It need not be there yet.
    pub address: Ipv4Addr,
    /// The mesh's network device: probes leave by it or not at all. It need not be there yet.
    pub device: String,
    /// Times.
    pub detector: DetectorOptions,
}

/// A running prober. It ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Prober {
    shared: Arc<Shared>,
    suspects: watch::Receiver<Suspects>,
    /// Dropping the set ends the loop.
    _loop: Arc<JoinSet<()>>,
}

#[derive(Debug)]
struct Shared {
    detector: Mutex<Detector>,
    /// The peers are others than before.
    changed: Notify,
    started: Instant,
}

impl Shared {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn detector(&self) -> MutexGuard<'_, Detector> {
        // The detector's numbers are whole between any two of its statements.
        self.detector.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Prober {
    /// Starts, without peers. Must be called within a tokio runtime.
    pub fn start(options: ProberOptions) -> Self {
        let shared = Arc::new(Shared {
            detector: Mutex::new(Detector::new(options.detector)),
            changed: Notify::new(),
            started: Instant::now(),
        });
        let (publish, suspects) = watch::channel(Suspects::default());
        let rounds = Rounds {
            options,
            shared: Arc::clone(&shared),
            publish,
            nonce: rand::random(),
            socket: None,
            reported: false,
        };
        let mut task = JoinSet::new();
        task.spawn(rounds.run());
        Self {
            shared,
            suspects,
            _loop: Arc::new(task),
        }
    }

    /// Makes exactly `peers` (by their mesh addresses) the peers that are probed.
    pub fn set_peers(&self, peers: &BTreeMap<NodeId, Ipv4Addr>) {
        let now = self.shared.now();
        self.shared.detector().set_peers(now, peers);
        self.shared.changed.notify_one();
    }

    /// Who is suspected; changes whenever that does.
    pub fn suspects(&self) -> watch::Receiver<Suspects> {
        self.suspects.clone()
    }

    /// What is known of each peer.
    pub fn peers(&self) -> BTreeMap<NodeId, PeerProbe> {
        self.shared.detector().peers()
    }
}

/// Pause before a socket that could not be opened is tried again.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
/// Most answers that are read in one go.
const ANSWERS_PER_TURN_MAX: usize = 256;

struct Rounds {
    options: ProberOptions,
    shared: Arc<Shared>,
    publish: watch::Sender<Suspects>,
    nonce: [u8; 16],
    socket: Option<UdpSocket>,
    /// The log says already that there is no socket.
    reported: bool,
}

impl Rounds {
    async fn run(mut self) {
        let mut reopen_at = Instant::now();
        loop {
            if self.socket.is_none() && Instant::now() >= reopen_at {
                self.socket = self.opened();
                reopen_at = Instant::now() + REOPEN_AFTER;
            }
            let next = self.shared.detector().next_at(self.shared.now());
            let wake_at = match (next, &self.socket) {
                (Some(next), Some(_)) => Some(self.shared.started + next),
                (Some(next), None) => Some(reopen_at.min(self.shared.started + next)),
                (None, _) => None,
            };
            tokio::select! {
                biased;
                () = readable(self.socket.as_ref()) => {}
                () = self.shared.changed.notified() => {}
                () = sleep_until(wake_at) => {}
            }
            self.turn();
        }
    }

    /// Answers first: what lies in the socket is a sign of life that a late turn must not overlook.
    fn turn(&mut self) {
        self.hear();
        let (pings, suspects) = {
            let mut detector = self.shared.detector();
            let pings = detector.tick(self.shared.now());
            (pings, detector.suspects())
        };
        for ping in pings {
            self.send(ping);
        }
        self.publish.send_if_modified(|published| {
            let differ = **published != suspects;
            if differ {
                report(published, &suspects);
                *published = Arc::new(suspects);
            }
            differ
        });
    }

    fn opened(&mut self) -> Option<UdpSocket> {
        let (address, device) = (self.options.address, &self.options.device);
        match open(address, device) {
            Ok(socket) => {
                self.reported = false;
                Some(socket)
            }
            Err(err) => {
                if !self.reported {
                    tracing::warn!(%address, device, %err, "peers can't be probed");
                    self.reported = true;
                }
                None
            }
        }
    }

    fn hear(&mut self) {
        let Some(socket) = &self.socket else { return };
        let mut buffer = [0; PACKET_BYTES + 1];
        for _ in 0..ANSWERS_PER_TURN_MAX {
            match socket.try_recv_from(&mut buffer) {
                Ok((length, from)) => {
                    let stamp = packet::stamp_of_answer(&buffer[..length]);
                    if let (Some(stamp), IpAddr::V4(from)) = (stamp, from.ip())
                        && stamp.nonce == self.nonce
                    {
                        let now = self.shared.now();
                        self.shared.detector().answer(now, from, stamp.sequence);
                    }
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
                // ICMP errors: a peer whose responder is away.
                Err(err) => tracing::trace!(%err, "a probe was refused"),
            }
        }
    }

    fn send(&mut self, ping: Ping) {
        let Some(socket) = &self.socket else { return };
        let packet = packet::probe(Stamp {
            sequence: ping.sequence,
            nonce: self.nonce,
        });
        let to = SocketAddr::from((ping.address, PROBE_PORT));
        match socket.try_send_to(&packet, to) {
            Ok(_) => {}
            Err(err) if gone(&err) => {
                // The device was made anew: the socket belongs to the old one for good.
                self.socket = None;
            }
            Err(err) => tracing::trace!(node_id = %ping.node_id, %err, "a probe was not sent"),
        }
    }
}

fn gone(err: &io::Error) -> bool {
    matches!(err.raw_os_error(), Some(libc::ENODEV | libc::ENXIO))
}

fn report(before: &BTreeSet<NodeId>, now: &BTreeSet<NodeId>) {
    for node_id in now.difference(before) {
        tracing::info!(%node_id, "peer does not answer: its tasks get no new connections from here");
    }
    for node_id in before.difference(now) {
        tracing::info!(%node_id, "peer is no longer suspected");
    }
}

fn open(address: Ipv4Addr, device: &str) -> io::Result<UdpSocket> {
    let socket = bound(address, 0)?;
    setsockopt(&socket, sockopt::BindToDevice, &OsString::from(device))?;
    UdpSocket::from_std(socket)
}

/// A socket at an address that need not be the host's yet.
pub(super) fn bound(address: Ipv4Addr, port: u16) -> io::Result<std::net::UdpSocket> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};
    use std::os::fd::AsRawFd;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&fd, sockopt::IpFreebind, &true)?;
    let address = SockaddrIn::from(std::net::SocketAddrV4::new(address, port));
    bind(fd.as_raw_fd(), &address)?;
    Ok(fd.into())
}

async fn readable(socket: Option<&UdpSocket>) {
    match socket {
        Some(socket) => {
            if let Err(err) = socket.readable().await {
                tracing::debug!(%err, "the prober's socket failed");
            }
        }
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
