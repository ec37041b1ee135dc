//! The fast level of failure detection: peers in the mesh that do not answer.
//!
//! Suspicion is this node's own. It is never stored nor passed on; it only takes the suspect's tasks out of this
//! node's virtual addresses and names until the suspect answers again ([`Outlook::rotation`]). Nothing is moved or
//! replaced because of it: that is for the managers, who judge by leases. [`Detector`] decides (no clock, no socket),
//! [`Prober`] sends and receives, [`Responder`] answers others and lives in the process that outlives the daemon.

mod detector;
mod packet;
mod prober;
mod responder;
mod rotation;
#[cfg(test)]
mod tests;

pub use detector::{Detector, DetectorOptions, PeerProbe, Ping};
pub use packet::PROBE_PORT;
pub use prober::{Prober, ProberOptions, Suspects};
pub use responder::{Responder, ResponderError};
pub use rotation::Outlook;
