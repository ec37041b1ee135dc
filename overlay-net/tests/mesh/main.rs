//! The mesh between hosts that are network namespaces, on the real kernel. Needs root; the binary of these tests is its
//! own `shoal netd`.
//!
//! `SHOAL_TEST_WIREGUARD=kernel` runs them on the kernel's device, where there is one.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod bench;
mod flows;
mod hosts;
mod keys;
mod life;
mod paths;
mod traffic;

use std::process::ExitCode;

/// A test and its name.
type Test = (&'static str, fn());

/// The harness is our own, so that the same binary can be netd.
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).map(String::as_str) == Some("netd") {
        return netd(args.get(3).map_or("", String::as_str));
    }
    if args.get(1).map(String::as_str) == Some("bench") {
        bench::run();
        return ExitCode::SUCCESS;
    }
    let lists: [&[Test]; 4] = [traffic::TESTS, life::TESTS, keys::TESTS, paths::TESTS];
    let tests: Vec<Test> = lists.into_iter().flatten().copied().collect();
    if args.iter().any(|arg| arg == "--list") {
        for (name, _) in tests {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = args[1..]
        .iter()
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let mut failed = 0;
    let (mut ran, mut skipped) = (0, 0);
    for (name, test) in tests {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        if hosts::on_kernel() && USERSPACE_ONLY.contains(&name) {
            println!("test {name} ... skipped: it is about the userspace device");
            skipped += 1;
            continue;
        }
        let began = std::time::Instant::now();
        let outcome = std::panic::catch_unwind(test);
        ran += 1;
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!(
            "test {name} ... {word} ({:.1} s)",
            began.elapsed().as_secs_f64()
        );
        failed += u32::from(outcome.is_err());
    }
    println!("\n{ran} tests, {failed} failed, {skipped} skipped");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Tests of what the kernel's device does not do: count drops, end, and start again.
const USERSPACE_ONLY: &[&str] = &[
    "replayed_and_foreign_packets_are_dropped_and_counted",
    "a_killed_netd_is_back_within_a_second",
    "netd_ends_with_its_run_root",
    "a_daemon_that_starts_again_finds_its_netd",
];

fn netd(run_root: &str) -> ExitCode {
    let args = shoal_overlay_net::netd::NetdArgs {
        run_root: run_root.into(),
    };
    match shoal_overlay_net::netd::main(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("netd: {}", shoal_overlay_net::netd::chain(&err));
            ExitCode::FAILURE
        }
    }
}
