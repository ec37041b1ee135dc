//! `shoal netd`: the part of a node's data plane that must not blink.
//!
//! It holds the userspace WireGuard device, the resolvers of containers, and the responder to other nodes' probes. The
//! daemon starts it, tells it what to do over `netd.sock` below its run root, and may end or crash at any time: netd
//! goes on with what it was told last. It decides nothing by itself, and keeps nothing on disk.

mod client;
mod process;
mod protocol;
mod server;

pub use client::{Netd, NetdError, NetdOptions};
pub use process::{NetdArgs, NetdMainError, main};
pub use protocol::{
    DeviceInfo, DevicePeer, DevicePeerStatus, DeviceSpec, DeviceStatus, FrameError, NetdReply,
    NetdRequest, PROTOCOL_VERSION, PeerUpdate, Refusal,
};

/// Name of the control socket below the run root.
pub const SOCKET: &str = "netd.sock";
/// Name of the file whose lock says that a netd runs.
const LOCK: &str = "netd.lock";
/// What netd prints once its socket is there.
const READY_LINE: &[u8; 6] = b"ready\n";

/// An error with all its causes in one line.
pub fn chain(err: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(err), |err| err.source());
    let words: Vec<String> = causes.map(ToString::to_string).collect();
    words.join(": ")
}
