//! Making a container.
use nix::errno::Errno;
use std::os::fd::RawFd;
pub(crate) fn set_window_size(_fd: RawFd, _columns: u16, _rows: u16) -> Result<(), Errno> {
    Err(Errno::ENOSYS)
}
