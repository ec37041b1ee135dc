//! Multi-host tests: the real binary on the real kernel, hosts as namespaces of this machine.
//!
//! They need root and the packages that `cargo xtask test` installs. Tests that use several hosts run one after the
//! other: they share two cores, and a starved cluster says nothing about a healthy one.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod busybox;
mod crashes;
mod damage;
mod docker;
mod failover;
mod files;
mod full_disk;
mod harness;
mod identities;
mod interrupts;
mod membership;
mod metrics;
mod networks;
mod placement;
mod pulls;
mod registry;
mod services;
mod terminals;
mod volumes;
