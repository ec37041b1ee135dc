//! The TUN device: packets of up to 64 KiB in both directions, with the kernel's header before each.

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

// From linux/if_tun.h; not all are in libc.
const TUN_F_CSUM: libc::c_uint = 0x01;
const TUN_F_TSO4: libc::c_uint = 0x02;
const TUN_F_TSO6: libc::c_uint = 0x04;
const TUN_F_TSO_ECN: libc::c_uint = 0x08;
const TUN_F_USO4: libc::c_uint = 0x20;
const TUN_F_USO6: libc::c_uint = 0x40;
const TSO: libc::c_uint = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
const USO: libc::c_uint = TUN_F_USO4 | TUN_F_USO6;

nix::ioctl_write_ptr_bad!(tun_set_iff, request(0xca), libc::ifreq);
nix::ioctl_write_int_bad!(tun_set_persist, request(0xcb));
nix::ioctl_write_int_bad!(tun_set_offload, request(0xd0));

/// `_IOW('T', number, int)`.
const fn request(number: u32) -> libc::c_ulong {
    ((1 << 30) | (4 << 16) | ((b'T' as u32) << 8) | number) as libc::c_ulong
}

/// An open TUN device. The link persists when this is dropped, with its addresses and routes.
#[derive(Debug)]
pub(super) struct Tun {
    fd: OwnedFd,
    udp_offload: bool,
}

impl Tun {
    /// Opens the device `name`, and makes it if it is not there.
    pub(super) fn open(name: &str) -> io::Result<Self> {
        if name.len() >= libc::IFNAMSIZ {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open("/dev/net/tun", flags, Mode::empty())?;
        // SAFETY: an ifreq is plain data for which all zeroes is valid.
        let mut wanted: libc::ifreq = unsafe { std::mem::zeroed() };
        for (place, byte) in wanted.ifr_name.iter_mut().zip(name.bytes()) {
            *place = byte as libc::c_char;
        }
        let kind = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        wanted.ifr_ifru.ifru_flags = kind as libc::c_short;
        // SAFETY: TUNSETIFF reads an ifreq, which `wanted` is, and the descriptor is open.
        unsafe { tun_set_iff(fd.as_raw_fd(), &raw const wanted) }?;
        // SAFETY: TUNSETOFFLOAD takes its flags by value.
        let udp_offload =
            unsafe { tun_set_offload(fd.as_raw_fd(), (TSO | USO) as libc::c_int) }.is_ok();
        if !udp_offload {
            // Before Linux 6.2 there is no segmentation of UDP.
            // SAFETY: as above.
            unsafe { tun_set_offload(fd.as_raw_fd(), TSO as libc::c_int) }?;
        }
        // SAFETY: TUNSETPERSIST takes a number by value.
        unsafe { tun_set_persist(fd.as_raw_fd(), 1) }?;
        Ok(Self { fd, udp_offload })
    }

    /// The link goes when this is dropped.
    pub(super) fn forget(&self) -> io::Result<()> {
        // SAFETY: TUNSETPERSIST takes a number by value.
        unsafe { tun_set_persist(self.fd.as_raw_fd(), 0) }?;
        Ok(())
    }

    /// It takes and gives large packets of UDP.
    pub(super) fn udp_offload(&self) -> bool {
        self.udp_offload
    }

    pub(super) fn read(&self, buffer: &mut [u8]) -> nix::Result<usize> {
        nix::unistd::read(&self.fd, buffer)
    }

    pub(super) fn write(&self, bytes: &[u8]) -> nix::Result<usize> {
        nix::unistd::write(&self.fd, bytes)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
