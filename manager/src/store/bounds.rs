//! Upper bounds of what one object may hold.

use shoal_model::codec::{self, CodecError};
use shoal_model::{NodeSpec, ServiceSpec};

/// Most bytes of one encoded service spec: 1 MiB, as the log entry of a task carries a copy of it.
pub const SERVICE_SPEC_BYTES_MAX: usize = 1 << 20;

/// Most bytes of one encoded node spec.
pub const NODE_SPEC_BYTES_MAX: usize = 256 << 10;

/// Most bytes of a message or error text in a status; longer ones are cut.
pub const STATUS_TEXT_BYTES_MAX: usize = 4 << 10;

/// Encoded size of a service spec, or why it has none.
///
/// # Errors
/// The spec is over [`codec::VALUE_BYTES_MAX`].
pub fn service_spec_bytes(spec: &ServiceSpec) -> Result<usize, CodecError> {
    codec::encode(spec).map(|bytes| bytes.len())
}

/// Encoded size of a node spec, or why it has none.
///
/// # Errors
/// The spec is over [`codec::VALUE_BYTES_MAX`].
pub fn node_spec_bytes(spec: &NodeSpec) -> Result<usize, CodecError> {
    codec::encode(spec).map(|bytes| bytes.len())
}

/// Cuts `text` to [`STATUS_TEXT_BYTES_MAX`] at a character boundary.
pub(super) fn cut_text(text: &mut String) {
    if text.len() > STATUS_TEXT_BYTES_MAX {
        let end = text.floor_char_boundary(STATUS_TEXT_BYTES_MAX);
        text.truncate(end);
    }
}
