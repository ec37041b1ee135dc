//! Questions to servers outside: one after the other until one answers, and the one that did first the next time.

use super::message::{self, Judged, Transport, UDP_BYTES_MAX};
use super::options::RESOLVER;
use super::sockets::Origin;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{timeout, timeout_at};

/// How long one server has for an answer.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);
/// When a question by UDP is sent to the same server once more: one lost packet is no dead server.
const RESEND_AFTER: Duration = Duration::from_millis(800);
/// Most servers that are asked for one question.
const SERVERS_MAX: usize = 4;
/// Most bytes of the host's resolver settings that are read.
const RESOLV_BYTES_MAX: usize = 64 << 10;
const DNS_PORT: u16 = 53;

/// Servers outside, the order in which they are asked, and where from.
#[derive(Debug)]
pub(super) struct Upstreams {
    servers: Vec<SocketAddr>,
    origin: Origin,
    /// The server that answered last.
    first: AtomicUsize,
}

impl Upstreams {
    pub(super) fn new(servers: Vec<SocketAddr>, origin: Origin) -> Self {
        Self {
            servers,
            origin,
            first: AtomicUsize::new(0),
        }
    }

    /// The servers that a container's user named, asked from within the container's namespace: they may be in its
    /// networks. `None` if there are none. The resolver itself is not one of them: it would ask itself.
    pub(super) fn of_container(nameservers: &[IpAddr], netns: &Path) -> Option<Self> {
        if nameservers.is_empty() {
            return None;
        }
        let others = nameservers.iter().filter(|address| **address != RESOLVER);
        let servers = others.map(|address| (*address, DNS_PORT).into());
        Some(Self::new(
            servers.take(SERVERS_MAX).collect(),
            Origin::Namespace(netns.to_owned()),
        ))
    }

    /// An answer to `question`, with its id; `None` if no server gives one. A server that says that it can't answer
    /// is passed over, and its words are the answer only if no other server has a better one.
    pub(super) async fn ask(&self, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let count = self.servers.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut refusal = None;
        for turn in 0..count {
            let place = (first + turn) % count;
            match self.ask_one(self.servers[place], question, transport).await {
                Ok((Judged::Good { .. }, answer)) => {
                    if turn > 0 {
                        self.first.store(place, Ordering::Relaxed);
                    }
                    return Some(answer);
                }
                Ok((_, answer)) => refusal = refusal.or(Some(answer)),
                Err(err) => {
                    tracing::debug!(server = %self.servers[place], %err, "a name server did not answer");
                }
            }
        }
        refusal
    }

    async fn ask_one(
        &self,
        server: SocketAddr,
        question: &[u8],
        transport: Transport,
    ) -> io::Result<(Judged, Vec<u8>)> {
        // An id of our own: whoever can guess the client's must not be able to answer for the server.
        let mut own = question.to_vec();
        message::set_id(&mut own, rand::random());
        let asked = async {
            match transport {
                Transport::Udp => self.ask_udp(server, &own).await,
                Transport::Tcp => self.ask_tcp(server, &own).await,
            }
        };
        let (judged, mut answer) = timeout(SERVER_TIMEOUT, asked).await??;
        message::set_id(&mut answer, message::id_of(question));
        Ok((judged, answer))
    }

    async fn ask_udp(&self, server: SocketAddr, question: &[u8]) -> io::Result<(Judged, Vec<u8>)> {
        let socket = self.origin.udp(server).await?;
        socket.send(question).await?;
        let resend_at = tokio::time::Instant::now() + RESEND_AFTER;
        let mut resent = false;
        let mut buffer = vec![0; UDP_BYTES_MAX];
        loop {
            let length = if resent {
                socket.recv(&mut buffer).await?
            } else {
                match timeout_at(resend_at, socket.recv(&mut buffer)).await {
                    Ok(length) => length?,
                    Err(_) => {
                        resent = true;
                        socket.send(question).await?;
                        continue;
                    }
                }
            };
            match message::judge(question, &buffer[..length]) {
                Judged::Foreign => {}
                judged => {
                    buffer.truncate(length);
                    return Ok((judged, buffer));
                }
            }
        }
    }

    async fn ask_tcp(&self, server: SocketAddr, question: &[u8]) -> io::Result<(Judged, Vec<u8>)> {
        let mut stream = self.origin.tcp(server).await?;
        let length = u16::try_from(question.len()).map_err(io::Error::other)?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend(question);
        stream.write_all(&framed).await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await?;
        match message::judge(question, &answer) {
            Judged::Foreign => Err(io::Error::other("the answer is to another question")),
            judged => Ok((judged, answer)),
        }
    }
}

/// The host's resolvers, read again when their file changes.
#[derive(Debug)]
pub(super) struct HostResolvers {
    path: PathBuf,
    read: Mutex<Read>,
}

#[derive(Debug)]
struct Read {
    state: Option<FileState>,
    upstreams: Arc<Upstreams>,
}

/// What changes with a file's content.
#[derive(Debug, PartialEq, Eq)]
struct FileState {
    modified: SystemTime,
    inode: u64,
    bytes: u64,
}

impl HostResolvers {
    pub(super) fn new(path: PathBuf) -> Self {
        let upstreams = Arc::new(Upstreams::new(Vec::new(), Origin::Host));
        let read = Read {
            state: None,
            upstreams,
        };
        Self {
            path,
            read: Mutex::new(read),
        }
    }

    /// The resolvers as the file says now. A file that can't be read changes nothing.
    pub(super) fn current(&self) -> Arc<Upstreams> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.state().ok();
        if state.is_some() && state != read.state {
            match std::fs::read(&self.path) {
                Ok(mut bytes) => {
                    bytes.truncate(RESOLV_BYTES_MAX);
                    let servers = nameservers(&String::from_utf8_lossy(&bytes));
                    read.upstreams = Arc::new(Upstreams::new(servers, Origin::Host));
                    read.state = state;
                }
                Err(err) => {
                    tracing::warn!(path = %self.path.display(), %err, "the host's resolver settings can't be read");
                }
            }
        }
        Arc::clone(&read.upstreams)
    }

    fn state(&self) -> io::Result<FileState> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(&self.path)?;
        Ok(FileState {
            modified: metadata.modified()?,
            inode: metadata.ino(),
            bytes: metadata.len(),
        })
    }
}

/// The servers of a resolv.conf(5).
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == "nameserver").then(|| words.next())?
    });
    lines.filter_map(server).take(SERVERS_MAX).collect()
}

/// `ADDRESS` or `ADDRESS%INTERFACE`.
fn server(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some((address, DNS_PORT).into());
    }
    let (address, interface) = text.split_once('%')?;
    let scope = nix::net::if_::if_nametoindex(interface).ok()?;
    let address = address.parse().ok()?;
    Some(SocketAddrV6::new(address, DNS_PORT, 0, scope).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_resolver_libraries_read_them() {
        let text = "# nameserver 1.1.1.1\n;nameserver 1.1.1.2\nnameserver 10.0.0.1 # first\n\tnameserver\tfd00::1\n\
                    nameserverx 1.1.1.3\nnameserver\nnameserver nonsense\nsearch a.b\nnameserver ::1%lo\n";
        let expected: Vec<SocketAddr> = vec![
            "10.0.0.1:53".parse().unwrap(),
            "[fd00::1]:53".parse().unwrap(),
            "[::1%1]:53".parse().unwrap(),
        ];
        assert_eq!(nameservers(text), expected);
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_missing_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let host = HostResolvers::new(path.clone());
        assert!(host.current().servers.is_empty());
        std::fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        assert_eq!(host.current().servers, ["10.0.0.1:53".parse().unwrap()]);
        let same = host.current();
        assert!(
            Arc::ptr_eq(&same, &host.current()),
            "the last server is remembered"
        );
        std::fs::write(&path, "nameserver 10.0.0.1\nnameserver 10.0.0.2\n").unwrap();
        assert_eq!(host.current().servers.len(), 2);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(host.current().servers.len(), 2);
    }

    #[test]
    fn the_resolver_is_never_its_own_upstream() {
        let netns = Path::new("/nowhere");
        let own = IpAddr::V4(RESOLVER);
        let other = "10.0.0.9".parse().unwrap();
        let upstreams = Upstreams::of_container(&[own, other], netns).unwrap();
        assert_eq!(upstreams.servers, ["10.0.0.9:53".parse().unwrap()]);
        assert!(Upstreams::of_container(&[], netns).is_none());
    }
}
