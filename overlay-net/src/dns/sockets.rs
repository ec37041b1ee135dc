//! Sockets inside other network namespaces, made by threads that end afterwards.

use super::options::RESOLVER;
use super::redirect;
use crate::local::netns;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Which namespace is pinned at a path: another one may take the path later.
pub(super) fn identity(netns: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::metadata(netns)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Runs `work` on a thread of its own inside the namespace at `path`.
async fn inside<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    netns::on_own_thread(move || {
        setns(File::open(&path)?, CloneFlags::CLONE_NEWNET)?;
        work()
    })
    .await
}

/// The resolver's sockets in the namespace at `netns`, with the rules that lead to them.
pub(super) async fn listen(
    netns: PathBuf,
) -> io::Result<(tokio::net::UdpSocket, tokio::net::TcpListener)> {
    let (udp, tcp) = inside(netns, || {
        let udp = UdpSocket::bind((RESOLVER, 0))?;
        let tcp = TcpListener::bind((RESOLVER, 0))?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        redirect::install(udp.local_addr()?.port(), tcp.local_addr()?.port())
            .map_err(io::Error::other)?;
        Ok((udp, tcp))
    })
    .await?;
    Ok((
        tokio::net::UdpSocket::from_std(udp)?,
        tokio::net::TcpListener::from_std(tcp)?,
    ))
}

/// Where questions to servers outside are asked from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// The host.
    Host,
    /// A container's namespace.
    Namespace(PathBuf),
}

impl Origin {
    /// A socket that is connected to `server`, at a port of chance.
    pub(super) async fn udp(&self, server: SocketAddr) -> io::Result<tokio::net::UdpSocket> {
        let open = move || {
            let any: SocketAddr = match server {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            let socket = UdpSocket::bind(any)?;
            socket.set_nonblocking(true)?;
            socket.connect(server)?;
            Ok(socket)
        };
        let socket = match self {
            Self::Host => open()?,
            Self::Namespace(netns) => inside(netns.clone(), open).await?,
        };
        tokio::net::UdpSocket::from_std(socket)
    }

    /// A connection to `server`.
    pub(super) async fn tcp(&self, server: SocketAddr) -> io::Result<tokio::net::TcpStream> {
        let open = move || stream_socket(&server);
        let socket = match self {
            Self::Host => open()?,
            Self::Namespace(netns) => inside(netns.clone(), open).await?,
        };
        let stream = std::net::TcpStream::from(socket);
        tokio::net::TcpSocket::from_std_stream(stream)
            .connect(server)
            .await
    }
}

/// A TCP socket that is not connected yet. It belongs to the calling thread's namespace for good.
fn stream_socket(server: &SocketAddr) -> io::Result<OwnedFd> {
    let family = match server {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    Ok(socket(family, SockType::Stream, flags, None)?)
}
