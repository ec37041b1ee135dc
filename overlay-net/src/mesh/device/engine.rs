//! The packet thread.

use super::UserDeviceError;
use super::merge::Merger;
use super::packet::{VNET_BYTES, VnetHeader, complete_checksum};
use super::peers::{OwnKey, Peers};
use super::split::Split;
use super::train::{Destination, Load, Train};
use super::tun::Tun;
use super::udp::{Received, Udp};
use crate::netd::{DeviceInfo, DeviceSpec, DeviceStatus, PeerUpdate};
use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn, TunnResult};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Batches that are taken from one side before the other one has its turn.
const BATCHES_PER_TURN: usize = 32;
/// How often sessions' timers are looked at.
const TIMER_PERIOD: Duration = Duration::from_millis(250);
/// How long a peer without a session is given to answer a handshake.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(1);
/// Handshakes that are begun per timer period because there is no session; the rest waits for its turn.
const HANDSHAKES_PER_PERIOD: usize = 25;
/// What WireGuard adds to a packet.
const DATA_OVERHEAD: usize = 32;
/// Room for any message that is no data.
const MESSAGE_ROOM: usize = 256;
/// Bytes that one read from a socket or the TUN device may give.
const BATCH_BYTES_MAX: usize = 65_536 + VNET_BYTES;
const DATA_MESSAGE: u8 = 4;

/// What the packet thread is told.
pub(super) enum Command {
    Change(
        DeviceSpec,
        oneshot::Sender<Result<DeviceInfo, UserDeviceError>>,
    ),
    Peers(PeerUpdate, oneshot::Sender<()>),
    Status(oneshot::Sender<DeviceStatus>),
    Remove(oneshot::Sender<()>),
}

/// Why packets were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DropReason {
    /// Nobody has the address that it is for.
    NoPeer,
    /// It is not known where the peer is.
    NoEndpoint,
    /// It comes from an address that is not the sender's.
    ForeignSource,
    /// It was here before, or is far too old.
    Replay,
    /// Not by a key or a session that is known.
    Unauthentic,
    /// No packet of IP.
    Malformed,
    /// The kernel did not take it.
    Kernel,
}

impl DropReason {
    const ALL: [Self; 7] = [
        Self::NoPeer,
        Self::NoEndpoint,
        Self::ForeignSource,
        Self::Replay,
        Self::Unauthentic,
        Self::Malformed,
        Self::Kernel,
    ];

    const fn word(self) -> &'static str {
        match self {
            Self::NoPeer => "no-peer",
            Self::NoEndpoint => "no-endpoint",
            Self::ForeignSource => "foreign-source",
            Self::Replay => "replay",
            Self::Unauthentic => "unauthentic",
            Self::Malformed => "malformed",
            Self::Kernel => "kernel",
        }
    }
}

#[derive(Debug, Default)]
struct Drops([u64; DropReason::ALL.len()]);

impl Drops {
    fn count(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }

    fn words(&self) -> BTreeMap<String, u64> {
        let each = DropReason::ALL.iter().map(|drop| drop.word().to_owned());
        each.zip(self.0).collect()
    }
}

/// What the events of the poll are about.
#[derive(Clone, Copy)]
enum Source {
    Wake,
    Tun,
    UdpIpv4,
    UdpIpv6,
}

pub(super) struct Engine {
    tun: Tun,
    udp: Udp,
    own: OwnKey,
    peers: Peers,
    drops: Drops,
    train: Train,
    merger: Merger,
    from_tun: Box<[u8]>,
    from_udp: Box<[u8]>,
    message: Box<[u8]>,
    epoll: Epoll,
    wake: Arc<EventFd>,
    commands: Receiver<Command>,
    timers_at: Instant,
}

impl Engine {
    pub(super) fn open(
        spec: &DeviceSpec,
        commands: Receiver<Command>,
        wake: Arc<EventFd>,
    ) -> Result<Self, UserDeviceError> {
        let udp = open_port(spec.port)?;
        let tun = Tun::open(&spec.name).map_err(|err| UserDeviceError::Tun {
            name: spec.name.clone(),
            err,
        })?;
        let merger = Merger::new(tun.udp_offload());
        let buffer = || vec![0; BATCH_BYTES_MAX].into_boxed_slice();
        let engine = Self {
            udp,
            own: OwnKey::new(spec.private_key.0),
            peers: Peers::new(),
            drops: Drops::default(),
            train: Train::new(),
            merger,
            from_tun: buffer(),
            from_udp: buffer(),
            message: buffer(),
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
                .map_err(|errno| UserDeviceError::Thread(errno.into()))?,
            wake,
            commands,
            timers_at: Instant::now() + TIMER_PERIOD,
            tun,
        };
        let watched = engine.watch_all();
        watched.map_err(|errno| UserDeviceError::Thread(errno.into()))?;
        Ok(engine)
    }

    pub(super) fn info(&self) -> DeviceInfo {
        DeviceInfo {
            port: self.udp.port(),
        }
    }

    fn watch_all(&self) -> nix::Result<()> {
        let event = |source: Source| EpollEvent::new(EpollFlags::EPOLLIN, source as u64);
        self.epoll.add(&self.wake, event(Source::Wake))?;
        self.epoll.add(&self.tun, event(Source::Tun))?;
        self.watch_udp()
    }

    fn watch_udp(&self) -> nix::Result<()> {
        for (end, source) in self.udp.ends().zip([Source::UdpIpv4, Source::UdpIpv6]) {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, source as u64);
            self.epoll.add(end, event)?;
        }
        Ok(())
    }

    /// Carries packets until told to remove the device.
    pub(super) fn run(mut self) {
        let mut events = [EpollEvent::empty(); 8];
        loop {
            let wait = self.timers_at.saturating_duration_since(Instant::now());
            let wait = wait + Duration::from_millis(1);
            let timeout = EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::ZERO);
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => {
                    tracing::error!(%errno, "the packet thread can't wait for packets any more");
                    return;
                }
            };
            for event in &events[..count] {
                match event.data() {
                    source if source == Source::Tun as u64 => self.drain_tun(),
                    source if source == Source::UdpIpv4 as u64 => self.drain_udp(false),
                    source if source == Source::UdpIpv6 as u64 => self.drain_udp(true),
                    _ => {
                        if self.obey() {
                            return;
                        }
                    }
                }
            }
            if Instant::now() >= self.timers_at {
                self.timers_at = Instant::now() + TIMER_PERIOD;
                self.on_timer();
            }
        }
    }

    /// Does what it is told; answers whether that was to end.
    fn obey(&mut self) -> bool {
        // The counter only says that there is something in the queue; it may have been read already.
        if let Err(errno) = self.wake.read() {
            tracing::trace!(%errno, "woken twice");
        }
        while let Ok(command) = self.commands.try_recv() {
            // Nobody waits for an answer any more when its receiver is gone.
            match command {
                Command::Change(spec, answer) => drop(answer.send(self.change(&spec))),
                Command::Peers(update, answer) => {
                    for group in self.peers.update(update, &self.own) {
                        self.begin_handshake(group);
                    }
                    done(answer);
                }
                Command::Status(answer) => drop(answer.send(DeviceStatus {
                    peers: self.peers.status(),
                    drops: self.drops.words(),
                })),
                Command::Remove(answer) => {
                    if let Err(err) = self.tun.forget() {
                        tracing::error!(%err, "the TUN device stays behind");
                    }
                    done(answer);
                    return true;
                }
            }
        }
        false
    }

    fn change(&mut self, spec: &DeviceSpec) -> Result<DeviceInfo, UserDeviceError> {
        if spec.port != 0 && spec.port != self.udp.port() {
            let udp = open_port(spec.port)?;
            // The old sockets leave the poll when they are closed.
            self.udp = udp;
            let watched = self.watch_udp();
            watched.map_err(|errno| UserDeviceError::Thread(errno.into()))?;
        }
        let own = OwnKey::new(spec.private_key.0);
        if own.public != self.own.public {
            self.own = own;
            self.peers.set_own(&self.own);
            for group in self.peers.without_session() {
                self.begin_handshake(group);
            }
        }
        Ok(self.info())
    }

    fn drain_tun(&mut self) {
        for _ in 0..BATCHES_PER_TURN {
            match self.tun.read(&mut self.from_tun) {
                Ok(bytes) => self.outbound(bytes),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    tracing::debug!(%errno, "no packet could be read");
                    break;
                }
            }
        }
        let Self { train, .. } = self;
        let mut out = Sender {
            udp: &self.udp,
            peers: &mut self.peers,
            drops: &mut self.drops,
        };
        train.send(&mut |load| out.send(load));
    }

    /// A packet of the kernel's, small or large, is in `from_tun`.
    fn outbound(&mut self, bytes: usize) {
        let Some((vnet, packet)) = self.from_tun[..bytes].split_first_chunk_mut::<VNET_BYTES>()
        else {
            return self.drops.count(DropReason::Malformed);
        };
        let vnet = VnetHeader::parse(vnet);
        let Some(group) = Tunn::dst_address(packet).and_then(|to| self.peers.behind(to)) else {
            return self.drops.count(DropReason::NoPeer);
        };
        let mut out = Outbound {
            group,
            udp: &self.udp,
            peers: &mut self.peers,
            drops: &mut self.drops,
            train: &mut self.train,
        };
        if !vnet.is_segmented() {
            if vnet.needs_checksum() && !complete_checksum(&vnet, packet) {
                return self.drops.count(DropReason::Malformed);
            }
            return out.encrypt(packet);
        }
        let Some(mut split) = Split::of(&vnet, packet) else {
            return self.drops.count(DropReason::Malformed);
        };
        while let Some(segment) = split.next(packet) {
            out.encrypt(segment);
        }
    }

    fn drain_udp(&mut self, ipv6: bool) {
        for _ in 0..BATCHES_PER_TURN {
            let Some(end) = self.udp.end(ipv6) else {
                return;
            };
            match end.receive(&mut self.from_udp) {
                Ok(received) => self.inbound(received),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    // An ICMP error of an earlier datagram, at most.
                    tracing::trace!(%errno, "no datagram could be received");
                    break;
                }
            }
        }
    }

    fn inbound(&mut self, received: Received) {
        let mut begin = 0;
        while begin < received.bytes {
            let end = (begin + received.datagram_bytes).min(received.bytes);
            if self.from_udp[begin] == DATA_MESSAGE {
                self.data(begin..end, received.from, received.bytes > end || begin > 0);
            } else {
                self.handshake(begin..end, received.from);
            }
            begin = end;
        }
        let (tun, drops) = (&self.tun, &mut self.drops);
        self.merger.flush(&mut |packet| deliver(tun, drops, packet));
    }

    /// A data message, at that place of `from_udp`.
    fn data(&mut self, place: std::ops::Range<usize>, from: SocketAddr, more: bool) {
        let datagram = &self.from_udp[place];
        let Some(index) = datagram.get(4..8).and_then(|index| index.try_into().ok()) else {
            return self.drops.count(DropReason::Malformed);
        };
        let number = (u32::from_le_bytes(index) >> 8) as usize;
        let Some(tunnel) = self.peers.tunnel(number) else {
            return self.drops.count(DropReason::Unauthentic);
        };
        let (tun, drops) = (&self.tun, &mut self.drops);
        let emit = &mut |packet: &[u8]| deliver(tun, drops, packet);
        let room = self.merger.slot(datagram.len(), emit);
        let opened = tunnel.tunn.decapsulate(Some(from.ip()), datagram, room);
        let (bytes, source) = match opened {
            TunnResult::WriteToTunnelV4(packet, source) => (packet.len(), source.into()),
            TunnResult::WriteToTunnelV6(packet, source) => (packet.len(), source.into()),
            TunnResult::Done | TunnResult::WriteToNetwork(_) => {
                // It keeps the session alive.
                self.merger.cancel();
                return self.peers.heard(number, from, datagram.len());
            }
            TunnResult::Err(err) => {
                self.merger.cancel();
                return self.drops.count(reason_of(&err));
            }
        };
        let group = tunnel.group;
        let length = datagram.len();
        self.peers.heard(number, from, length);
        if self.peers.behind(source) == Some(group) {
            let emit = &mut |packet: &[u8]| deliver(tun, drops, packet);
            self.merger.accept(bytes, more, emit);
        } else {
            self.merger.cancel();
            drops.count(DropReason::ForeignSource);
        }
    }

    /// Any other message.
    fn handshake(&mut self, place: std::ops::Range<usize>, from: SocketAddr) {
        let datagram = &self.from_udp[place];
        let mut cookie = [0; MESSAGE_ROOM];
        let limiter = &self.own.limiter;
        let parsed = match limiter.verify_packet(Some(from.ip()), datagram, &mut cookie) {
            Ok(parsed) => parsed,
            Err(TunnResult::WriteToNetwork(answer)) => {
                return answer_to(&self.udp, &mut self.drops, from, answer);
            }
            Err(_) => return self.drops.count(DropReason::Unauthentic),
        };
        let number = match &parsed {
            Packet::HandshakeInit(init) => {
                let half = parse_handshake_anon(&self.own.secret, &self.own.public, init).ok();
                half.and_then(|half| self.peers.with_key(&half.peer_static_public))
            }
            Packet::HandshakeResponse(response) => Some((response.receiver_idx >> 8) as usize),
            Packet::PacketCookieReply(reply) => Some((reply.receiver_idx >> 8) as usize),
            Packet::PacketData(_) => None,
        };
        let answers = matches!(parsed, Packet::HandshakeResponse(_));
        let Some((number, tunnel)) =
            number.and_then(|number| Some((number, self.peers.tunnel(number)?)))
        else {
            return self.drops.count(DropReason::Unauthentic);
        };
        let opened = tunnel
            .tunn
            .decapsulate(Some(from.ip()), datagram, &mut self.message);
        match opened {
            TunnResult::WriteToNetwork(answer) => {
                answer_to(&self.udp, &mut self.drops, from, answer);
            }
            TunnResult::Err(err) => return self.drops.count(reason_of(&err)),
            // A cookie: it is not the peer who is heard, and the address may be anybody's.
            _ => return,
        }
        let length = datagram.len();
        if answers {
            self.peers.heard(number, from, length);
            self.send_waiting(number, from);
        } else if let Some((_, group)) = self.peers.both(number) {
            // The initiator proved its key, not yet that it is where it seems to be: the first packet by the session
            // does. It is answered where it is, and that is where it is looked for until then.
            group.endpoint.get_or_insert(from);
        }
    }

    /// Packets that waited for a session.
    fn send_waiting(&mut self, number: usize, to: SocketAddr) {
        let Some((tunnel, group)) = self.peers.both(number) else {
            return;
        };
        while let TunnResult::WriteToNetwork(datagram) =
            tunnel.tunn.decapsulate(None, &[], &mut self.message)
        {
            group.tx_bytes += datagram.len() as u64;
            answer_to(&self.udp, &mut self.drops, to, datagram);
        }
    }

    fn on_timer(&mut self) {
        self.own.limiter.reset_count();
        for number in self.peers.tunnel_numbers() {
            let Some((tunnel, group)) = self.peers.both(number) else {
                continue;
            };
            if let TunnResult::WriteToNetwork(message) =
                tunnel.tunn.update_timers(&mut self.message)
                && group.active == number
                && let Some(endpoint) = group.endpoint
            {
                group.tx_bytes += message.len() as u64;
                answer_to(&self.udp, &mut self.drops, endpoint, message);
            }
        }
        let now = Instant::now();
        let mut due = self.peers.without_session();
        due.retain(|group| {
            let tried = self.peers.group(*group).and_then(|group| group.tried);
            tried.is_none_or(|tried| now.duration_since(tried) >= HANDSHAKE_PATIENCE)
        });
        // Those that waited longest are first.
        due.sort_by_key(|group| self.peers.group(*group).and_then(|group| group.tried));
        for group in due.into_iter().take(HANDSHAKES_PER_PERIOD) {
            self.begin_handshake(group);
        }
    }

    /// Begins handshakes with a node by every key that it may use now: when both ends change theirs at the same time,
    /// neither is answered by the old one.
    fn begin_handshake(&mut self, group: usize) {
        for number in self.peers.tunnels_of(group) {
            let Some((tunnel, group)) = self.peers.both(number) else {
                continue;
            };
            let Some(endpoint) = group.endpoint else {
                return;
            };
            group.tried = Some(Instant::now());
            if let TunnResult::WriteToNetwork(message) = tunnel
                .tunn
                .format_handshake_initiation(&mut self.message, true)
            {
                group.tx_bytes += message.len() as u64;
                answer_to(&self.udp, &mut self.drops, endpoint, message);
            }
        }
    }
}

fn done(answer: oneshot::Sender<()>) {
    if answer.send(()).is_err() {
        tracing::debug!("nobody waits for an answer any more");
    }
}

fn open_port(port: u16) -> Result<Udp, UserDeviceError> {
    Udp::open(port).map_err(|err| UserDeviceError::Port { port, err })
}

fn reason_of(err: &WireGuardError) -> DropReason {
    match err {
        WireGuardError::DuplicateCounter | WireGuardError::InvalidCounter => DropReason::Replay,
        WireGuardError::InvalidPacket | WireGuardError::IncorrectPacketLength => {
            DropReason::Malformed
        }
        _ => DropReason::Unauthentic,
    }
}

fn deliver(tun: &Tun, drops: &mut Drops, packet: &[u8]) {
    if let Err(errno) = tun.write(packet) {
        tracing::trace!(%errno, "the kernel did not take a packet");
        drops.count(DropReason::Kernel);
    }
}

fn answer_to(udp: &Udp, drops: &mut Drops, to: SocketAddr, message: &[u8]) {
    if let Err(errno) = udp.send(to, message, message.len(), &mut false) {
        tracing::trace!(%errno, %to, "a message could not be sent");
        drops.count(DropReason::Kernel);
    }
}

/// Gives trains to the socket.
struct Sender<'a> {
    udp: &'a Udp,
    peers: &'a mut Peers,
    drops: &'a mut Drops,
}

impl Sender<'_> {
    fn send(&mut self, load: Load<'_>) {
        let Some(group) = self.peers.group(load.to.group) else {
            return;
        };
        group.tx_bytes += load.bytes.len() as u64;
        let (to, size) = (load.to.endpoint, load.datagram_bytes);
        if let Err(errno) = self.udp.send(to, load.bytes, size, &mut group.segmented) {
            tracing::trace!(%errno, %to, "datagrams could not be sent");
            self.drops.count(DropReason::Kernel);
        }
    }
}

/// Encrypts the segments of one packet.
struct Outbound<'a> {
    group: usize,
    udp: &'a Udp,
    peers: &'a mut Peers,
    drops: &'a mut Drops,
    train: &'a mut Train,
}

impl Outbound<'_> {
    fn encrypt(&mut self, packet: &[u8]) {
        let endpoint = self
            .peers
            .group(self.group)
            .and_then(|group| group.endpoint);
        let Some(endpoint) = endpoint else {
            return self.drops.count(DropReason::NoEndpoint);
        };
        let to = Destination {
            group: self.group,
            endpoint,
        };
        let room = (packet.len() + DATA_OVERHEAD).max(MESSAGE_ROOM);
        let mut sender = Sender {
            udp: self.udp,
            peers: self.peers,
            drops: self.drops,
        };
        let slot = self.train.slot(to, room, &mut |load| sender.send(load));
        let Some((tunnel, _)) = sender.peers.active(self.group) else {
            return self.drops.count(DropReason::NoPeer);
        };
        match tunnel.tunn.encapsulate(packet, slot) {
            TunnResult::WriteToNetwork(message) if message[0] == DATA_MESSAGE => {
                let bytes = message.len();
                self.train.push(bytes, &mut |load| sender.send(load));
            }
            // The packet waits in the tunnel, and a handshake begins.
            TunnResult::WriteToNetwork(message) => {
                answer_to(self.udp, sender.drops, endpoint, message);
            }
            TunnResult::Err(err) => sender.drops.count(reason_of(&err)),
            // It waits for the handshake that is under way.
            _ => {}
        }
    }
}

impl From<Errno> for UserDeviceError {
    fn from(errno: Errno) -> Self {
        Self::Thread(io::Error::from(errno))
    }
}
