//! How nodes talk: QUIC with mutual TLS 1.3, certificates, join tokens, and remote calls on streams.
//!
//! One call is one bidirectional stream; its first bytes are [`rpc::TRANSPORT_VERSION`] and the method's number. The
//! server checks the caller's certificate against the one table of [`shoal_model::rpc::Method::access`] before a
//! handler sees anything. A peer without a certificate of the cluster may call the open methods and gets nothing
//! else. This crate knows no service and no task, and keeps no global state: several endpoints live in one process.
//!
//! [`rpc::Connector`] and [`rpc::RpcHandler`] are the seam "network" of the simulation: [`stream::RpcStream`] works
//! over any pair of byte streams, [`endpoint::Endpoint`] is the implementation over QUIC.
#![forbid(unsafe_code)]

pub mod ca;
pub mod endpoint;
pub mod files;
pub mod identity;
pub mod join;
mod pool;
pub mod renewal;
pub mod rpc;
mod server;
pub mod stream;
mod tls;
pub mod token;

pub use endpoint::{Endpoint, EndpointOptions};
pub use identity::{Identity, IdentityHandle, NodeKey, PeerIdentity};
pub use join::join;
pub use rpc::{CallError, Connector, Expect, Peer, RpcHandler, TransportError, call};
pub use stream::{RpcReceiver, RpcSender, RpcStream, StreamError};
pub use token::JoinToken;
