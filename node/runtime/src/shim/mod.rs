//! The shim.
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

/// The arguments of `shoal shim`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShimArgs {
    /// The directory with `config.json` and `shoal.json`.
    pub bundle: PathBuf,
}

/// Runs the shim. Must be called before the process has started any thread.
pub fn shim_main(_args: ShimArgs) -> ExitCode {
    ExitCode::FAILURE
}

pub(crate) fn boot_id() -> io::Result<String> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn start_ticks(_pid: u32) -> Option<u64> {
    None
}
