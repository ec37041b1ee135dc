//! Identifiers. Each kind is a type of its own, so that a task's id can't be passed where a node's is wanted.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::fmt;
use std::str::FromStr;

/// Characters in the text form of an object id, as in SwarmKit: 25 digits of base 36 hold 128 bits.
pub const ID_TEXT_LEN: usize = 25;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an id: expected {expected}")]
pub struct ParseIdError {
    text: String,
    expected: &'static str,
}

fn write_base36(mut value: u128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut text = [b'0'; ID_TEXT_LEN];
    for place in text.iter_mut().rev() {
        let digit = (value % 36) as u8;
        *place = if digit < 10 {
            b'0' + digit
        } else {
            b'a' + digit - 10
        };
        value /= 36;
    }
    f.pad(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
}

fn parse_base36(text: &str) -> Result<u128, ParseIdError> {
    let refuse = || ParseIdError {
        text: text.to_owned(),
        expected: "25 digits of base 36 (0-9, a-z)",
    };
    if text.len() != ID_TEXT_LEN {
        return Err(refuse());
    }
    text.bytes().try_fold(0u128, |value, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'z' => byte - b'a' + 10,
            _ => return Err(refuse()),
        };
        value
            .checked_mul(36)
            .and_then(|v| v.checked_add(u128::from(digit)))
            .ok_or_else(refuse)
    })
}

macro_rules! object_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// 128 random bits, written as 25 digits of base 36.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(u128);

        impl $name {
            /// The smallest id, the lower bound of a range over all ids of this kind.
            pub const MIN: Self = Self(0);
            /// The largest id, the upper bound of a range over all ids of this kind.
            pub const MAX: Self = Self(u128::MAX);

            /// Makes an id from random bits; the caller owns the random source.
            pub const fn from_bits(bits: u128) -> Self {
                Self(bits)
            }

            /// The bits of the id.
            pub const fn bits(self) -> u128 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_base36(self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_base36(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0.to_be_bytes())
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
                } else {
                    let bytes = <serde_bytes_16::Bytes16>::deserialize(deserializer)?;
                    Ok(Self(u128::from_be_bytes(bytes.0)))
                }
            }
        }
    };
}

mod serde_bytes_16 {
    //! Sixteen bytes as a serde byte string.
    use serde::{Deserialize, Deserializer, de};

    pub(super) struct Bytes16(pub(super) [u8; 16]);

    impl<'de> Deserialize<'de> for Bytes16 {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl de::Visitor<'_> for Visitor {
                type Value = Bytes16;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("16 bytes of an id")
                }
                fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Bytes16, E> {
                    bytes
                        .try_into()
                        .map(Bytes16)
                        .map_err(|_| E::invalid_length(bytes.len(), &self))
                }
                fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Bytes16, E> {
                    self.visit_bytes(&bytes)
                }
            }
            deserializer.deserialize_byte_buf(Visitor)
        }
    }
}

object_id!(
    /// A cluster.
    ClusterId
);
object_id!(
    /// A machine in the cluster. Derived from nothing: made by the CA when the node joins.
    NodeId
);
object_id!(
    /// A service.
    ServiceId
);
object_id!(
    /// A task.
    TaskId
);
object_id!(
    /// A volume: one object per (name, node).
    VolumeId
);
object_id!(
    /// A network across hosts.
    NetworkId
);
object_id!(
    /// One connection of a node to the dispatcher; a new one invalidates the one before.
    SessionId
);

/// A manager in Raft's own numbering. Never reused within a cluster.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct RaftNodeId(pub u64);

impl fmt::Display for RaftNodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A container: 256 random bits, written as 64 hexadecimal digits, as Docker does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId([u8; 32]);

impl ContainerId {
    /// Characters of the short form that tables show.
    pub const SHORT_LEN: usize = 12;

    /// Makes an id from random bytes; the caller owns the random source.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes of the id.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first twelve digits, as `docker ps` shows them.
    pub fn short(&self) -> String {
        self.to_string()[..Self::SHORT_LEN].to_owned()
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ContainerId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let refuse = || ParseIdError {
            text: text.to_owned(),
            expected: "64 hexadecimal digits",
        };
        if text.len() != 64 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(refuse());
        }
        let mut bytes = [0u8; 32];
        for (place, byte) in bytes.iter_mut().enumerate() {
            let digits = &text[place * 2..place * 2 + 2];
            *byte = u8::from_str_radix(digits, 16).map_err(|_| refuse())?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for ContainerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContainerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_text_and_codec() {
        for bits in [0, 1, 35, 36, u128::MAX] {
            let id = TaskId::from_bits(bits);
            assert_eq!(id.to_string().len(), ID_TEXT_LEN);
            assert_eq!(id.to_string().parse(), Ok(id));
            let bytes = crate::codec::encode(&id).unwrap();
            assert_eq!(crate::codec::decode::<TaskId>(&bytes).unwrap(), id);
        }
    }

    #[test]
    fn wrong_ids_are_refused() {
        for text in [
            "",
            "abc",
            "zzzzzzzzzzzzzzzzzzzzzzzzz",
            "ABCDEFGHIJKLMNOPQRSTUVWXY",
        ] {
            assert!(text.parse::<TaskId>().is_err(), "{text}");
        }
    }

    #[test]
    fn container_id_text_is_64_digits() {
        let id = ContainerId::from_bytes([0xab; 32]);
        assert_eq!(id.to_string(), "ab".repeat(32));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.short(), "abababababab");
    }
}
