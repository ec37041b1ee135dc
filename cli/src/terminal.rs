//! The user's terminal.

use crate::error::{CliError, Result};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::io;

/// Raw mode for as long as it lives; the terminal is given back as it was.
pub(crate) struct RawMode(Termios);

impl RawMode {
    pub(crate) fn enter() -> Result<Self> {
        let failed =
            |errno: nix::errno::Errno| CliError::io("set the terminal to raw mode")(errno.into());
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Without a terminal any more there is nothing to give back.
        tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0).unwrap_or_default();
    }
}

/// Rows and columns.
pub(crate) fn size() -> Option<(u16, u16)> {
    nix::ioctl_read_bad!(window_size, libc::TIOCGWINSZ, libc::winsize);
    // SAFETY: a winsize is plain data for which all zeroes is valid.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ fills a winsize, which `size` is.
    unsafe { window_size(libc::STDOUT_FILENO, &mut size) }.ok()?;
    Some((size.ws_row, size.ws_col))
}
