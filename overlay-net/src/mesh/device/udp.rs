//! The UDP port of a device, in both address families, with many datagrams per system call.

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn,
    SockaddrIn6, SockaddrLike, SockaddrStorage, bind, getsockname, recvmsg, sendmsg, setsockopt,
    socket, sockopt,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Buffers of each socket in bytes: some milliseconds of a fast link.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// How often another free port is tried when only one family has it.
const PORT_ATTEMPTS: usize = 8;
/// How long a full socket is waited for before a datagram is dropped.
const SEND_PATIENCE: Duration = Duration::from_millis(5);

/// One socket per family at the same port.
#[derive(Debug)]
pub(super) struct Udp {
    ipv4: UdpEnd,
    /// Absent where the kernel has no IPv6.
    ipv6: Option<UdpEnd>,
    port: u16,
}

#[derive(Debug)]
pub(super) struct UdpEnd {
    fd: OwnedFd,
    control: Vec<u8>,
}

/// Datagrams of one sender, one behind the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Received {
    pub(super) from: SocketAddr,
    pub(super) bytes: usize,
    /// Size of each but the last.
    pub(super) datagram_bytes: usize,
}

impl Udp {
    /// Opens `port`, or any that is free in both families.
    pub(super) fn open(port: u16) -> io::Result<Self> {
        let mut attempts = PORT_ATTEMPTS;
        loop {
            let ipv4 = UdpEnd::open_ipv4(port)?;
            let given = port_of(&ipv4)?;
            attempts -= 1;
            match UdpEnd::open_ipv6(given) {
                Ok(ipv6) => {
                    return Ok(Self {
                        ipv4,
                        ipv6: Some(ipv6),
                        port: given,
                    });
                }
                Err(Errno::EADDRINUSE) if port == 0 && attempts > 0 => {}
                Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => {
                    return Ok(Self {
                        ipv4,
                        ipv6: None,
                        port: given,
                    });
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn ends(&self) -> impl Iterator<Item = &UdpEnd> {
        std::iter::once(&self.ipv4).chain(self.ipv6.as_ref())
    }

    pub(super) fn end(&mut self, ipv6: bool) -> Option<&mut UdpEnd> {
        if ipv6 {
            self.ipv6.as_mut()
        } else {
            Some(&mut self.ipv4)
        }
    }

    /// Sends `bytes` as datagrams of `datagram_bytes` each. `segmented` says whether the kernel may cut them; it is
    /// cleared when the kernel can't on the way to this peer.
    pub(super) fn send(
        &self,
        to: SocketAddr,
        bytes: &[u8],
        datagram_bytes: usize,
        segmented: &mut bool,
    ) -> nix::Result<()> {
        let end = match to {
            SocketAddr::V4(_) => &self.ipv4,
            SocketAddr::V6(_) => self.ipv6.as_ref().ok_or(Errno::EAFNOSUPPORT)?,
        };
        if bytes.len() > datagram_bytes && *segmented {
            match end.send(to, bytes, Some(datagram_bytes as u16)) {
                // No checksum offload on that way, or a smaller MTU than that of the device.
                Err(Errno::EIO | Errno::EINVAL | Errno::EMSGSIZE | Errno::EOPNOTSUPP) => {
                    *segmented = false;
                }
                other => return other,
            }
        }
        for datagram in bytes.chunks(datagram_bytes) {
            end.send(to, datagram, None)?;
        }
        Ok(())
    }
}

fn port_of(end: &UdpEnd) -> nix::Result<u16> {
    let name: SockaddrStorage = getsockname(end.fd.as_raw_fd())?;
    let ipv4 = name.as_sockaddr_in().map(SockaddrIn::port);
    let ipv6 = name.as_sockaddr_in6().map(SockaddrIn6::port);
    ipv4.or(ipv6).ok_or(Errno::EAFNOSUPPORT)
}

/// An option of a socket that nix does not know.
fn set_number(fd: &OwnedFd, level: i32, option: i32, value: i32) -> nix::Result<()> {
    // SAFETY: the descriptor is open, and pointer and length are those of `value`.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}

impl UdpEnd {
    fn open_ipv4(port: u16) -> nix::Result<Self> {
        let address = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port));
        Self::open(AddressFamily::Inet, &address)
    }

    fn open_ipv6(port: u16) -> nix::Result<Self> {
        let address = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
        Self::open(AddressFamily::Inet6, &SockaddrIn6::from(address))
    }

    fn open(family: AddressFamily, address: &dyn SockaddrLike) -> nix::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(family, SockType::Datagram, flags, None)?;
        // As WireGuard in the kernel does: a packet that is too large for the way is cut by routers, not dropped.
        if family == AddressFamily::Inet6 {
            setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
            set_number(
                &fd,
                libc::IPPROTO_IPV6,
                libc::IPV6_MTU_DISCOVER,
                libc::IPV6_PMTUDISC_DONT,
            )?;
        } else {
            set_number(
                &fd,
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                libc::IP_PMTUDISC_DONT,
            )?;
        }
        // Beyond the limit of unprivileged sockets.
        setsockopt(&fd, sockopt::SndBufForce, &SOCKET_BUFFER_BYTES)?;
        setsockopt(&fd, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES)?;
        setsockopt(&fd, sockopt::UdpGroSegment, &true)?;
        bind(fd.as_raw_fd(), address)?;
        Ok(Self {
            fd,
            control: cmsg_space!(i32),
        })
    }

    fn send(&self, to: SocketAddr, bytes: &[u8], datagram_bytes: Option<u16>) -> nix::Result<()> {
        let to = SockaddrStorage::from(to);
        let pieces = [IoSlice::new(bytes)];
        let cut = datagram_bytes.as_ref().map(ControlMessage::UdpGsoSegments);
        let controls = cut.as_slice();
        let flags = MsgFlags::MSG_NOSIGNAL;
        let mut waited = false;
        loop {
            match sendmsg(self.fd.as_raw_fd(), &pieces, controls, flags, Some(&to)) {
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN | Errno::ENOBUFS) if !waited => {
                    waited = true;
                    self.wait_for_room()?;
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    fn wait_for_room(&self) -> nix::Result<()> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut wanted = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
        let patience = PollTimeout::try_from(SEND_PATIENCE).unwrap_or(PollTimeout::ZERO);
        poll(&mut wanted, patience).map(drop)
    }

    /// Receives what is there; `EAGAIN` if nothing is.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> nix::Result<Received> {
        let mut pieces = [IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrStorage>(
            self.fd.as_raw_fd(),
            &mut pieces,
            Some(&mut self.control),
            MsgFlags::empty(),
        )?;
        let bytes = message.bytes;
        let size = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
            _ => None,
        });
        let from = message.address.as_ref().and_then(|address| {
            let ipv4 = address
                .as_sockaddr_in()
                .map(|v4| SocketAddr::V4((*v4).into()));
            let ipv6 = address
                .as_sockaddr_in6()
                .map(|v6| SocketAddr::V6((*v6).into()));
            ipv4.or(ipv6)
        });
        Ok(Received {
            from: from.ok_or(Errno::EAFNOSUPPORT)?,
            bytes,
            datagram_bytes: size.filter(|size| *size > 0).unwrap_or(bytes.max(1)),
        })
    }
}

impl AsFd for UdpEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
