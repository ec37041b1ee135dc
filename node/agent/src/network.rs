//! The seam "network": what the agent needs of the node's overlay, and what it remembers for it.

use crate::disk::{AgentDisk, DiskError};
use async_trait::async_trait;
use shoal_model::Version;
use shoal_model::codec;
use shoal_model::netstate::NetState;
use std::sync::Arc;

/// Why the overlay could not do something; it may work later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct SinkError {
    /// The whole chain, for the log.
    pub reason: String,
}

/// Makes the node's network what the managers say.
#[async_trait]
pub trait NetworkSink: Send + Sync + 'static {
    /// Brings `state` into force, and answers which version then is.
    async fn apply(&self, state: Arc<NetState>) -> Result<Version, SinkError>;

    /// Every node with a live lease has applied that version.
    async fn confirmed(&self, version: Version);

    /// The node has a lease with the managers from now on, or has none.
    async fn lease(&self, live: bool);

    /// Makes a new key, which peers learn before it is used.
    async fn rotate_key(&self) -> Result<(), SinkError>;
}

/// What the agent needs to keep the node's network up to date.
pub struct AgentNetwork {
    /// The overlay.
    pub sink: Arc<dyn NetworkSink>,
    /// Where the last state is kept for the next start. A save that a loss of power takes back does no harm.
    pub disk: Arc<dyn AgentDisk>,
}

/// Bytes of the checksum before the state.
const CHECKSUM_BYTES: usize = 8;

/// Writes the state. A state that can't be encoded can't have been received.
pub(crate) async fn keep(state: &NetState, disk: &dyn AgentDisk) -> Result<(), DiskError> {
    let encoded = codec::encode(state).map_err(DiskError::Record)?;
    let mut bytes = Vec::with_capacity(CHECKSUM_BYTES + encoded.len());
    bytes.extend(checksum(&encoded).to_le_bytes());
    bytes.extend(encoded);
    disk.save(bytes).await
}

/// Reads the last state. One that is damaged is none: the managers send it again.
pub(crate) async fn kept(disk: &dyn AgentDisk) -> Option<NetState> {
    let bytes = match disk.load().await {
        Ok(bytes) => bytes?,
        Err(err) => {
            let err = &err as &dyn std::error::Error;
            tracing::warn!(err, "the last state of the networks can't be read");
            return None;
        }
    };
    let state = bytes
        .split_first_chunk::<CHECKSUM_BYTES>()
        .filter(|(sum, encoded)| u64::from_le_bytes(**sum) == checksum(encoded))
        .and_then(|(_, encoded)| codec::decode(encoded).ok());
    if state.is_none() {
        tracing::warn!("the last state of the networks is damaged; the managers are asked for it");
    }
    state
}

/// FNV-1a, 64 bits: finds what was not written to its end.
fn checksum(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes.iter().fold(OFFSET, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(PRIME)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FileDisk;

    #[tokio::test]
    async fn a_kept_state_comes_back_and_a_damaged_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let disk = FileDisk::hasty(folder.path(), "network");
        assert_eq!(kept(&disk).await, None);
        let state = NetState {
            version: Version(7),
            ..NetState::default()
        };
        keep(&state, &disk).await.unwrap();
        assert_eq!(kept(&disk).await, Some(state));
        let path = folder.path().join("network");
        let bytes = std::fs::read(&path).unwrap();
        for damaged in [
            &bytes[..bytes.len() - 1],
            &bytes[..3],
            &vec![0; bytes.len()],
        ] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(kept(&disk).await, None);
        }
    }
}
