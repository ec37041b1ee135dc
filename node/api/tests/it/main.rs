//! The API over a real socket: real clients, a real engine, and a cluster that stands in for the managers. Needs root;
//! the binary of these tests is its own shim, so the harness is our own: a shim is single-threaded from its start.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking; without the built-in harness clippy does not know that this is one"
)]

mod cluster;
mod containers;
mod docker_cli;
mod harness;
mod refusals;

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("shim") {
        let bundle = args.nth(1).map(PathBuf::from).unwrap_or_default();
        return shoal_runtime::shim_main(shoal_runtime::ShimArgs { bundle });
    }
    harness::run_all(&[containers::TESTS, docker_cli::TESTS, refusals::TESTS])
}
