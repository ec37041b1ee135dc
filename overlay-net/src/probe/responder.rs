//! Answers other nodes' probes.

use super::prober::ProbeError;
use shoal_model::network::MeshAddress;

/// A running responder; it ends when it is dropped.
#[derive(Debug)]
pub struct Responder {}

impl Responder {
    /// Answers at the node's mesh addresses, on its mesh device. The addresses need not be there yet. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn start(_mesh: MeshAddress, _device: &str) -> Result<Self, ProbeError> {
        Ok(Self {})
    }
}
