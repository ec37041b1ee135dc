//! The shim: the parent of one container. Single-threaded, without an asynchronous runtime, and it outlives the
//! daemon that started it.
//!
//! It sits in one poll(2) loop over its control socket, connections, the container's streams, child signals and the
//! fencing deadline. Nothing in the loop may wait for the container, a client or the daemon: the deadline must be
//! met whatever they do.

mod connection;
mod execs;
mod poll;
mod requests;
mod setup;
mod state;
mod streams;

use crate::Bundle;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

/// The arguments of `shoal shim`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShimArgs {
    /// The directory with `config.json` and `shoal.json`.
    pub bundle: PathBuf,
}

/// Runs the shim; its standard input is the first control connection. Must be called before the process has
/// started any thread: it clones processes that go on in Rust code.
///
/// The exit code is that of the shim, not of the container: 0 when it was told to end, or had told why there is no
/// container; 1 when it could not even do that.
pub fn shim_main(args: ShimArgs) -> ExitCode {
    let bundle = Bundle::new(args.bundle);
    if setup::become_shim().is_err() {
        return ExitCode::FAILURE;
    }
    match setup::start(bundle) {
        Ok(Some(mut shim)) => match shim.run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        // There is no container, and the daemon knows why.
        Ok(None) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The id of the present boot.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// When process `pid` started, in clock ticks since boot; with the number it names one process of this boot.
pub(crate) fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the 20th field behind it is the start time.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}
