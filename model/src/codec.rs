//! The one codec: bincode 2 behind a leading format version.
//!
//! Everything on disk and on the wire that is not JSON goes through here. Bytes are `version (1) | bincode`. A reader
//! refuses a version that it does not know: it never guesses. Types evolve by appending enum variants; a change of a
//! struct's fields needs a new format version and a frozen copy of the old struct.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::{Serialize, de::DeserializeOwned};

/// The format version that this binary writes.
pub const FORMAT_VERSION: u8 = 1;

/// Most bytes that one encoded value may have: 64 MiB. Larger things are streamed in pieces.
pub const VALUE_BYTES_MAX: usize = 64 << 20;

type Config = Configuration<LittleEndian, Varint, Limit<VALUE_BYTES_MAX>>;

fn config() -> Config {
    bincode::config::standard().with_limit::<VALUE_BYTES_MAX>()
}

/// Why bytes could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The value can't be encoded, or is larger than [`VALUE_BYTES_MAX`].
    #[error("failed to encode a value")]
    Encode(#[source] bincode::error::EncodeError),
    /// The bytes are not a value of the expected type.
    #[error("failed to decode a value")]
    Decode(#[source] bincode::error::DecodeError),
    /// There is not even a version byte.
    #[error("the value is empty")]
    Empty,
    /// A newer (or damaged) format.
    #[error(
        "format version {found} is not known to this binary, which reads version {FORMAT_VERSION}"
    )]
    UnknownVersion {
        /// The version byte that was found.
        found: u8,
    },
    /// Bytes follow the value: it was cut from something else, or is damaged.
    #[error("{count} bytes follow the value")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
}

/// Encodes `value` behind the format version.
///
/// # Errors
/// [`CodecError::Encode`] when serde refuses the value or it passes [`VALUE_BYTES_MAX`].
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::with_capacity(128);
    encode_into(value, &mut bytes)?;
    Ok(bytes)
}

/// Like [`encode`], appending to `bytes`.
///
/// # Errors
/// As [`encode`]; `bytes` may then hold part of the value.
pub fn encode_into<T: Serialize + ?Sized>(
    value: &T,
    bytes: &mut Vec<u8>,
) -> Result<(), CodecError> {
    bytes.push(FORMAT_VERSION);
    bincode::serde::encode_into_std_write(value, bytes, config()).map_err(CodecError::Encode)?;
    Ok(())
}

/// Decodes one value that fills `bytes` exactly.
///
/// # Errors
/// Every [`CodecError`] but `Encode`; hostile bytes never panic nor allocate more than [`VALUE_BYTES_MAX`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (&version, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if version != FORMAT_VERSION {
        return Err(CodecError::UnknownVersion { found: version });
    }
    let (value, read) =
        bincode::serde::decode_from_slice(body, config()).map_err(CodecError::Decode)?;
    if read != body.len() {
        return Err(CodecError::TrailingBytes {
            count: body.len() - read,
        });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Service, Task};
    use proptest::prelude::*;

    #[test]
    fn unknown_version_is_named() {
        let error = decode::<u32>(&[9, 1]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "format version 9 is not known to this binary, which reads version 1"
        );
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&7u32).unwrap();
        bytes.push(0);
        assert!(matches!(
            decode::<u32>(&bytes),
            Err(CodecError::TrailingBytes { count: 1 })
        ));
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_an_error_or_a_value(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let mut framed = vec![FORMAT_VERSION];
            framed.extend(bytes);
            drop(decode::<Task>(&framed));
            drop(decode::<Service>(&framed));
            drop(decode::<crate::command::Command>(&framed));
            drop(decode::<crate::session::NodeMessage>(&framed));
        }
    }
}
