//! Terminals: made inside the container's own devpts, so that their names make sense there.

use super::sync::{ChildSide, Message};
use super::sys::SysResult;
use crate::{Failure, Stage};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

/// Sets the size of the terminal behind `fd`, either side.
pub(crate) fn set_window_size(fd: RawFd, columns: u16, rows: u16) -> Result<(), Errno> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the request reads one structure, which outlives the call.
    Errno::result(unsafe { libc::ioctl(fd, libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// Opens a new terminal, sends its master to the shim, and makes the other side the standard streams and the
/// controlling terminal. The caller must lead a session. Returns the terminal's number.
pub(super) fn open_terminal(
    sync: &ChildSide,
    size: Option<(u16, u16)>,
    user: u32,
) -> Result<u32, Failure> {
    let failed = |what: &str, errno: Errno| Failure::os(Stage::Devices, what, errno as i32);
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = open("/dev/ptmx", flags, Mode::empty())
        .map_err(|errno| failed("open `/dev/ptmx`", errno))?;
    let (slave, number) =
        other_side(&master).map_err(|errno| failed("open the terminal's other side", errno))?;
    if let Some((columns, rows)) = size {
        set_window_size(master.as_raw_fd(), columns, rows)
            .map_err(|errno| failed("set the size of the terminal", errno))?;
    }
    nix::unistd::fchown(&slave, Some(user.into()), None)
        .map_err(|errno| failed("give the terminal to the user", errno))?;
    sync.send(&Message::Terminal, &[master.as_fd()])
        .map_err(|errno| failed("send the terminal to the shim", errno))?;
    // SAFETY: the request takes an integer and touches no memory.
    Errno::result(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) })
        .map_err(|errno| failed("take the terminal as controlling terminal", errno))?;
    set_streams([slave.as_fd(), slave.as_fd(), slave.as_fd()])
        .map_err(|errno| failed("set up the standard streams", errno))?;
    Ok(number)
}

/// Unlocks and opens the slave of `master` by the master itself: no path is looked up.
fn other_side(master: &OwnedFd) -> SysResult<(OwnedFd, u32)> {
    let unlock: libc::c_int = 0;
    let mut number: libc::c_uint = 0;
    let raw = master.as_raw_fd();
    // SAFETY: the request reads one integer, which outlives the call.
    Errno::result(unsafe { libc::ioctl(raw, libc::TIOCSPTLCK, &raw const unlock) })?;
    // SAFETY: the request writes one integer, which outlives the call.
    Errno::result(unsafe { libc::ioctl(raw, libc::TIOCGPTN, &raw mut number) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the request takes an integer and touches no memory.
    let slave = Errno::result(unsafe { libc::ioctl(raw, libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok((unsafe { OwnedFd::from_raw_fd(slave) }, number))
}

/// Puts the descriptors in the places of the standard streams.
pub(super) fn set_streams(streams: [BorrowedFd<'_>; 3]) -> SysResult<()> {
    for (stream, place) in streams.into_iter().zip(0..) {
        if stream.as_raw_fd() == place {
            // dup2 onto itself would leave it to be closed at execution.
            // SAFETY: the call takes integers and touches no memory.
            Errno::result(unsafe { libc::fcntl(place, libc::F_SETFD, 0) })?;
        } else {
            // SAFETY: the call takes integers; what was in that place is not used by anybody any more.
            Errno::result(unsafe { libc::dup2(stream.as_raw_fd(), place) })?;
        }
    }
    Ok(())
}
