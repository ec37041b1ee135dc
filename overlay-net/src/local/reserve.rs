//! Keeping a host port from others while NAT serves it.
//!
//! NAT takes packets before any socket sees them, so two owners of one port would go unnoticed. A bound socket that
//! never listens makes the kernel refuse everybody else with EADDRINUSE.

use super::{LocalNetError, PortPublish, Transport};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A reserved port: free again when dropped.
pub(super) struct Reservation {
    port: u16,
    _socket: OwnedFd,
}

impl Reservation {
    /// Binds the port; `holder` names who has it when it is taken.
    pub(super) fn take(
        wanted: &PortPublish,
        holder: impl FnOnce() -> String,
    ) -> Result<Self, LocalNetError> {
        let IpAddr::V4(_) = wanted.host_ip else {
            return Err(LocalNetError::Unsupported {
                what: "publishing on an IPv6 address",
            });
        };
        let address = SocketAddr::new(wanted.host_ip, wanted.host_port);
        let bound = match wanted.transport {
            Transport::Tcp => bind_without_listening(address),
            Transport::Udp => bind_udp(address),
        };
        match bound {
            Ok((port, socket)) => Ok(Self {
                port,
                _socket: socket,
            }),
            Err(err) if err.kind() == io::ErrorKind::AddrInUse => Err(LocalNetError::PortTaken {
                host_ip: wanted.host_ip,
                host_port: wanted.host_port,
                transport: wanted.transport,
                holder: holder(),
            }),
            Err(err) => Err(LocalNetError::Reserve {
                host_ip: wanted.host_ip,
                host_port: wanted.host_port,
                transport: wanted.transport,
                err,
            }),
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

fn bind_udp(address: SocketAddr) -> io::Result<(u16, OwnedFd)> {
    let socket = UdpSocket::bind(address)?;
    Ok((socket.local_addr()?.port(), socket.into()))
}

/// A TCP socket that is bound but does not listen: a packet that slips past NAT gets a reset, not a backlog.
fn bind_without_listening(address: SocketAddr) -> io::Result<(u16, OwnedFd)> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
    };
    let fd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // Connections of a former holder in TIME_WAIT must not keep the port.
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    // With SO_REUSEADDR two sockets may be bound as long as neither listens; clearing it now makes this one exclusive.
    setsockopt(&fd, sockopt::ReuseAddr, &false)?;
    // SAFETY: the descriptor is open and owned by `fd`, which is forgotten right away.
    let listener = unsafe { TcpListener::from_raw_fd(fd.as_raw_fd()) };
    std::mem::forget(fd);
    let port = listener.local_addr()?.port();
    Ok((port, listener.into()))
}
