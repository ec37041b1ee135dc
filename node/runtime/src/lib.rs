//! One container: our own OCI runtime, the shim that parents it, and the client of that shim.
//!
//! Three sides live here. [`ShimHandle`] is what a daemon holds: it spawns a shim, or finds one that outlived an
//! earlier daemon. [`shim_main`] is the shim: one single-threaded process per container that holds stdio, writes the
//! log, reaps, records the exit and enforces the fencing deadline. `container` is what the shim runs to make the
//! container: namespaces, cgroups, mounts, credentials, seccomp, exec.
//!
//! The contract between the sides is a directory, the [`Bundle`]: an OCI `config.json`, our `shoal.json`, and what
//! the shim writes (`state.json`, `exit.json`, `shim.sock`). The shim and everything below it never starts a thread
//! and never uses tokio: it clones processes, and a clone of a multi-threaded process may run almost nothing.

pub mod bundle;
pub mod capabilities;
mod cgroup;
pub mod client;
mod container;
pub mod failure;
pub mod logs;
mod proto;
pub mod seccomp;
mod shim;
pub mod spec;
pub mod stats;

pub use bundle::{Bundle, BundleError, Exit, LogConfig, Rootfs, ShimSpec, StdioSpec};
pub use client::{
    AttachInput, AttachOptions, AttachOutput, AttachStreams, ExecExit, ExecHandle, ExecSpec,
    ExecStdio, Existing, PtyMaster, ShimError, ShimHandle, SpawnOptions, StartError,
};
pub use failure::{Failure, Stage};
pub use shim::{ShimArgs, shim_main};
pub use spec::default_spec;
pub use stats::Stats;
