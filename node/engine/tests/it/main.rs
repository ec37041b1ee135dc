//! The engine on the real kernel with the real runtime. Needs root; the binary of these tests is its own shim.
//!
//! The engines of the tests share this machine: each has its own data root, run root, cgroup parent, instance tag and
//! bridge subnet, and removes what it has made.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod bench;
mod containers;
mod objects;
mod options;
mod restart;
mod support;

use std::path::PathBuf;
use std::process::ExitCode;

/// The harness is our own, so that the same binary can be the shim: a shim must be single-threaded from its start.
fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("shim") {
        let bundle = args.nth(1).map(PathBuf::from).unwrap_or_default();
        return shoal_runtime::shim_main(shoal_runtime::ShimArgs { bundle });
    }
    if std::env::args().nth(1).as_deref() == Some("engine") {
        return restart::engine_process();
    }
    support::run_all(&[
        containers::TESTS,
        options::TESTS,
        objects::TESTS,
        restart::TESTS,
        bench::TESTS,
    ])
}
