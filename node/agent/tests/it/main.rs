//! Tasks on the real engine and the real shim. Needs root; the binary of these tests is its own shim.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod site;
mod tasks;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// A test: its name and what it does.
type Test = (&'static str, fn());

/// The harness is our own, so that the same binary can be the shim: a shim must be single-threaded from its start.
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "shim") {
        let bundle = args.get(2).map(PathBuf::from).unwrap_or_default();
        return shoal_runtime::shim_main(shoal_runtime::ShimArgs { bundle });
    }
    let filter = args.iter().find(|arg| !arg.starts_with('-'));
    let wanted = tasks::TESTS
        .iter()
        .filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter.as_str())));
    if args.iter().any(|arg| arg == "--list") {
        wanted.for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: these tests need root");
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    for (name, test) in wanted {
        let started = Instant::now();
        let passed = std::panic::catch_unwind(AssertUnwindSafe(test)).is_ok();
        let word = if passed { "ok" } else { "FAILED" };
        println!("test {name} ... {word} ({:?})", started.elapsed());
        failed += u32::from(!passed);
    }
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
