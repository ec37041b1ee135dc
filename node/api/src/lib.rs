//! The one door: Docker's Engine API on a unix socket, over the engine of this node and the managers of the cluster.
//!
//! What Docker's API lacks has its own prefix, `/shoal/v1/`, on the same socket. This crate decides nothing about
//! containers or the cluster: it reads a request into the types of the engine and of the model, asks, and writes the
//! answer in Docker's words. What it does not understand it refuses by name; it never drops a field unseen.

// Docker's larger objects are written as one literal each.
#![recursion_limit = "256"]

mod cluster;
mod convert;
mod error;
mod fields;
mod hijack;
mod metrics;
mod ops;
mod peer;
mod request;
mod routes;
mod server;
mod stream;
mod time;

pub use error::ApiError;
pub use metrics::{MetricsBindError, MetricsServer};
pub use ops::{ClusterOps, ControlFrames, InitOptions, JoinOptions, LocalNode, LocalState};
pub use server::{
    API_VERSION, API_VERSION_MIN, ApiOptions, ApiServer, BindError, SOCKET_MODE_DEFAULT,
};
