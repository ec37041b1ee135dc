//! Names inside containers.
//!
//! [`DnsTable`] is what names there are: a pure function of the network state that this node has applied, minus the
//! nodes that it suspects. [`DnsServer`] answers from it, inside each container's network namespace; it lives in the
//! process that outlives the daemon and keeps answering from its last table. There is no second source of names, and
//! no answer is remembered. [`Names`] is the daemon's hold on it.

mod feeder;
mod message;
mod options;
mod redirect;
mod server;
mod sockets;
mod table;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;
mod upstream;
mod zone;

pub use feeder::Names;
pub use options::{DnsOptions, RESOLVER, resolv_conf};
pub use server::{DnsContainer, DnsCounters, DnsError, DnsServer, DnsServerOptions};
pub use table::{
    Addresses, DnsChange, DnsKey, DnsMember, DnsNames, DnsNetwork, DnsTable, DnsUpdate, NameOwner,
};
