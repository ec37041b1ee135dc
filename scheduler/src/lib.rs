//! Placement: which node runs which task, and why not the others.
//!
//! A [`Cluster`] is an incremental view of nodes, tasks and volumes. [`schedule()`] takes it and the tasks that wait for
//! a node, and returns a [`Plan`]: a node for each task, or the reasons of the refusal in words that a user can act
//! on. The same view and the same requests, in whatever order, give the same plan.
//!
//! This crate has no clock, no randomness, no I/O and no tokio: the time is an argument, ties go by node id.
#![forbid(unsafe_code)]

mod cluster;
pub mod constraint;
mod eligibility;
mod filter;
mod node;
mod request;
mod schedule;
mod spread;

pub use cluster::{Cluster, FAILURE_WINDOW, FAILURES_MAX};
pub use filter::platform_matches;
pub use request::{Plan, TaskRequest};
pub use schedule::{eligible, explain, fits, schedule};
