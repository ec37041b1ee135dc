//! `shoal daemon`: wires engine, agent, manager and API together.

use crate::args::daemon::DaemonArgs;
use std::process::ExitCode;

pub(crate) fn main(_args: DaemonArgs) -> ExitCode {
    ExitCode::FAILURE
}
