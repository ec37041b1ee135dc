//! Join tokens: the digest of the root certificate, and a secret that managers compare.
//!
//! The text is `SHTKN-1-<digest, 50 digits of base 36>-<secret, 25 digits of base 36>`. The digest lets the joining
//! node verify the cluster before it sends the secret; the secret says which role it gets.

use shoal_model::cluster::Redacted;
use shoal_model::id::ID_TEXT_LEN;
use std::fmt;
use std::str::FromStr;
use subtle::ConstantTimeEq;

/// What every token starts with: the kind and the version of the format.
pub const TOKEN_PREFIX: &str = "SHTKN-1-";

/// Digits of base 36 that hold 256 bits.
const DIGEST_TEXT_LEN: usize = 50;

/// Why a text is not a join token, in words for the user. The text itself is not repeated: it holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseTokenError {
    /// It is something else.
    #[error(
        "the join token does not start with `SHTKN-`: copy the whole token that `shoal join-token` prints"
    )]
    NotAToken,
    /// A later format.
    #[error(
        "the join token has a format that this version does not know: use the same version as the cluster"
    )]
    UnknownVersion,
    /// Cut off, or with something added.
    #[error(
        "the join token is incomplete or damaged: copy the whole token that `shoal join-token` prints"
    )]
    Damaged,
}

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the DER of the cluster's root certificate.
    pub root_digest: [u8; 32],
    /// 25 digits of base 36, 128 bits.
    pub secret: Redacted<String>,
}

impl JoinToken {
    /// A new secret half, made from 128 random bits of the caller.
    pub fn secret_from_bits(bits: u128) -> Redacted<String> {
        Redacted(shoal_model::TaskId::from_bits(bits).to_string())
    }
}

/// Compares two secrets in a time that does not depend on where they differ.
pub fn secrets_match(left: &Redacted<String>, right: &Redacted<String>) -> bool {
    left.0.as_bytes().ct_eq(right.0.as_bytes()).into()
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{TOKEN_PREFIX}{}-{}",
            digest_text(&self.root_digest),
            self.secret.0
        )
    }
}

impl FromStr for JoinToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let text = text.trim();
        if !text.starts_with("SHTKN-") {
            return Err(ParseTokenError::NotAToken);
        }
        let rest = text
            .strip_prefix(TOKEN_PREFIX)
            .ok_or(ParseTokenError::UnknownVersion)?;
        let (digest, secret) = rest.split_once('-').ok_or(ParseTokenError::Damaged)?;
        let is_base36 = |text: &str| {
            text.bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'z'))
        };
        if secret.len() != ID_TEXT_LEN || !is_base36(secret) {
            return Err(ParseTokenError::Damaged);
        }
        Ok(Self {
            root_digest: parse_digest(digest).ok_or(ParseTokenError::Damaged)?,
            secret: Redacted(secret.to_owned()),
        })
    }
}

/// Writes 256 bits in base 36 by long division.
fn digest_text(digest: &[u8; 32]) -> String {
    let mut number = *digest;
    let mut text = [b'0'; DIGEST_TEXT_LEN];
    for place in text.iter_mut().rev() {
        let mut rest = 0u32;
        for byte in &mut number {
            let value = rest << 8 | u32::from(*byte);
            *byte = u8::try_from(value / 36).unwrap_or(u8::MAX);
            rest = value % 36;
        }
        *place = b"0123456789abcdefghijklmnopqrstuvwxyz"[rest as usize];
    }
    text.iter().map(|&byte| char::from(byte)).collect()
}

fn parse_digest(text: &str) -> Option<[u8; 32]> {
    if text.len() != DIGEST_TEXT_LEN {
        return None;
    }
    let mut number = [0u8; 32];
    for byte in text.bytes() {
        let mut carry = match byte {
            b'0'..=b'9' => u32::from(byte - b'0'),
            b'a'..=b'z' => u32::from(byte - b'a') + 10,
            _ => return None,
        };
        for place in number.iter_mut().rev() {
            let value = u32::from(*place) * 36 + carry;
            *place = (value & 0xff) as u8;
            carry = value >> 8;
        }
        if carry != 0 {
            return None;
        }
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check_refused(text: &str, expected: ParseTokenError) {
        assert_eq!(text.parse::<JoinToken>(), Err(expected), "{text}");
    }

    #[test]
    fn damaged_tokens_are_refused() {
        let token = JoinToken {
            root_digest: [0xff; 32],
            secret: JoinToken::secret_from_bits(7),
        };
        let text = token.to_string();
        check_refused("", ParseTokenError::NotAToken);
        check_refused("SWMTKN-1-abc-def", ParseTokenError::NotAToken);
        check_refused("SHTKN-2-abc-def", ParseTokenError::UnknownVersion);
        check_refused("SHTKN-1-abc", ParseTokenError::Damaged);
        check_refused(&text[..text.len() - 1], ParseTokenError::Damaged);
        check_refused(&format!("{text}0"), ParseTokenError::Damaged);
        check_refused(&text.replacen("-1-", "-1-z", 1), ParseTokenError::Damaged);
        // The largest text has more than 256 bits.
        let too_large = format!("{TOKEN_PREFIX}{}-{}", "z".repeat(50), "0".repeat(25));
        check_refused(&too_large, ParseTokenError::Damaged);
    }

    #[test]
    fn debug_output_hides_the_secret() {
        let token = JoinToken {
            root_digest: [1; 32],
            secret: Redacted("0123456789abcdefghijklmno".to_owned()),
        };
        assert!(!format!("{token:?}").contains("abcdefgh"));
    }

    proptest! {
        #[test]
        fn tokens_survive_text(root_digest in any::<[u8; 32]>(), bits in any::<u128>()) {
            let token = JoinToken { root_digest, secret: JoinToken::secret_from_bits(bits) };
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }
    }
}
