//! All networking of a node: now the local bridges, network namespaces, NAT and published ports.
//!
//! A plan (pure data: [`local::LocalPlan`]) says which links and rules there should be; the applier reads the kernel,
//! and adds or removes what differs. Everything goes through netlink, nftables included: no process is spawned and a
//! bare machine needs nothing but this binary. Every kernel object carries the instance's tag in its name, and only
//! such objects are ever deleted. This crate invents no address: subnets and addresses are given to it.

pub mod apply;
pub mod check;
pub mod dns;
pub mod local;
pub mod mesh;
pub mod metrics;
pub mod netd;
mod nft;
mod overlay;
pub mod plan;
pub mod probe;

pub use check::{PeerCheck, PeerPath};
pub use dns::DnsOptions;
pub use local::netns;
pub use local::{
    AttachSpec, Attachment, BridgeSpec, InstanceTag, LocalNet, LocalNetError, LocalPlan,
    PortPublish, Transport,
};
pub use metrics::OverlayMetrics;
pub use nft::NftError;
pub use overlay::{
    ATTACH_WAIT, OverlayAttach, OverlayAttached, OverlayError, OverlayHandle, OverlayInterface,
    OverlayOptions, WireGuardChoice,
};
