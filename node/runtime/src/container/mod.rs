//! Making a container: the code that runs between the clone and the program's first instruction.
//!
//! The shim calls [`spawn_init`] and [`spawn_exec`]; both clone a process that reports over its [`Sync`] socket:
//! first the terminal, then "ready" or a failure. The socket closes at execution, which is how success is seen.

mod credentials;
mod devices;
mod init;
mod mounts;
mod program;
mod reaper;
mod rootfs;
mod sync;
mod sys;
mod terminal;
mod validate;

pub(crate) use init::{InitContext, own_namespaces, spawn_init};
pub(crate) use program::{ExecContext, spawn_exec};
pub(crate) use sync::{Message, ShimSide};
pub(crate) use sys::pidfd_send_signal;
pub(crate) use terminal::set_window_size;
pub(crate) use validate::{validate, validate_resources};

use std::os::fd::OwnedFd;

/// The standard streams of a process that is made.
#[derive(Debug)]
pub(crate) enum ChildStdio {
    /// The three descriptors that it gets.
    Pipes(OwnedFd, OwnedFd, OwnedFd),
    /// A new terminal of the container, with its size (columns, rows); the shim gets the other side.
    Terminal(Option<(u16, u16)>),
}

/// A cloned process.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) sync: ShimSide,
}
