//! All networking of a node: now the local bridges, network namespaces, NAT and published ports.
//!
//! A plan (pure data: [`local::LocalPlan`]) says which links and rules there should be; the applier reads the kernel,
//! and adds or removes what differs. Everything goes through netlink, nftables included: no process is spawned and a
//! bare machine needs nothing but this binary. Every kernel object carries the instance's tag in its name, and only
//! such objects are ever deleted. This crate invents no address: subnets and addresses are given to it.

pub mod local;
mod nft;
mod overlay;

pub use local::netns;
pub use local::{
    AttachSpec, Attachment, BridgeSpec, InstanceTag, LocalNet, LocalNetError, LocalPlan,
    PortPublish, Transport,
};
pub use nft::NftError;
pub use overlay::{
    ATTACH_WAIT, DnsOptions, OverlayAttach, OverlayAttached, OverlayError, OverlayHandle,
    OverlayInterface, OverlayMetrics, OverlayOptions, PeerCheck, PeerPath, WireGuardChoice,
};
