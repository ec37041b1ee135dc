//! Names of images, read and shown exactly as Docker does it.
//!
//! `busybox` means `docker.io/library/busybox:latest`; the first component is a registry only if it has a dot, a
//! colon, an upper-case letter, or is `localhost`.

use crate::digest::{Digest, DigestError};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// Most characters that the path of a repository may have, without its registry.
pub const PATH_CHARS_MAX: usize = 255;
/// Most characters of a tag.
pub const TAG_CHARS_MAX: usize = 128;

const DEFAULT_REGISTRY: &str = "docker.io";
const LEGACY_REGISTRY: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";

/// A normalised image name: registry, repository path, and a tag or a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image name. The wording is Docker's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The text does not follow the grammar.
    #[error("invalid reference format")]
    Format,
    /// The repository has upper-case letters.
    #[error("invalid reference format: repository name ({path}) must be lowercase")]
    Uppercase {
        /// The repository as written.
        path: String,
    },
    /// A full image id where a name is needed.
    #[error("invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")]
    Identifier {
        /// The id as written.
        text: String,
    },
    /// The repository is longer than [`PATH_CHARS_MAX`].
    #[error("repository name must not be more than {PATH_CHARS_MAX} characters")]
    TooLong,
    /// The part behind `@` is not a digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl Reference {
    /// Reads a name as a user writes it; without tag and digest it gets the tag `latest`.
    ///
    /// # Errors
    /// [`ReferenceError`], in Docker's words.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let mut reference = Self::parse_name(text)?;
        if reference.tag.is_none() && reference.digest.is_none() {
            reference.tag = Some(DEFAULT_TAG.to_owned());
        }
        Ok(reference)
    }

    /// Like [`Self::parse`] without adding a tag: a bare repository stays one.
    ///
    /// # Errors
    /// [`ReferenceError`], in Docker's words.
    pub fn parse_name(text: &str) -> Result<Self, ReferenceError> {
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ReferenceError::Identifier {
                text: text.to_owned(),
            });
        }
        let (registry, remainder) = split_registry(text);
        let before_tag = remainder.split(':').next().unwrap_or_default();
        if before_tag.chars().any(char::is_uppercase) {
            return Err(ReferenceError::Uppercase {
                path: before_tag.to_owned(),
            });
        }
        let (named, digest) = match remainder.split_once('@') {
            Some((named, digest)) => (named, Some(parse_digest(digest)?)),
            None => (remainder.as_str(), None),
        };
        let (path, tag) = match named.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (named, None),
        };
        if !is_registry(registry)
            || !path.split('/').all(is_path_component)
            || !tag.is_none_or(is_tag)
        {
            return Err(ReferenceError::Format);
        }
        if path.len() > PATH_CHARS_MAX {
            return Err(ReferenceError::TooLong);
        }
        Ok(Self {
            registry: registry.to_owned(),
            path: path.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// `docker.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository within its registry: `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, unless the name has only a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest behind `@`.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and path: `docker.io/library/busybox`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.registry, self.path)
    }

    /// The repository as Docker shows it: `busybox`, `grafana/grafana`, `localhost:5000/web`.
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return self.repository();
        }
        match self.path.strip_prefix(OFFICIAL_PREFIX) {
            Some(official) if !official.contains('/') => official.to_owned(),
            // `a.b/c` alone would be read as a repository of the registry `a.b`.
            _ if split_registry(&self.path).0 != DEFAULT_REGISTRY => self.repository(),
            _ => self.path.clone(),
        }
    }

    /// The whole name as Docker shows it: `busybox:latest`.
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_name())
    }

    /// The same name with this digest and without a tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// The same name with its tag and without a digest; `latest` if there is no tag.
    #[must_use]
    pub fn without_digest(&self) -> Self {
        Self {
            tag: Some(self.tag.clone().unwrap_or_else(|| DEFAULT_TAG.to_owned())),
            digest: None,
            ..self.clone()
        }
    }

    fn with_suffix(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(&digest.to_string());
        }
        name
    }
}

/// The registry and the rest; fills in `docker.io` and `library/`.
fn split_registry(text: &str) -> (&str, String) {
    let (registry, remainder) = match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.chars().any(char::is_uppercase) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_REGISTRY, text),
    };
    let registry = if registry == LEGACY_REGISTRY {
        DEFAULT_REGISTRY
    } else {
        registry
    };
    if registry == DEFAULT_REGISTRY && !remainder.contains('/') {
        return (registry, format!("{OFFICIAL_PREFIX}{remainder}"));
    }
    (registry, remainder.to_owned())
}

/// Checks the reference grammar first, so that garbage is a format error and only a near miss is a digest error.
fn parse_digest(text: &str) -> Result<Digest, ReferenceError> {
    let (algorithm, hex) = text.split_once(':').ok_or(ReferenceError::Format)?;
    let algorithm_ok = algorithm.split(['-', '_', '+', '.']).all(|part| {
        part.starts_with(|c: char| c.is_ascii_alphabetic())
            && part.bytes().all(|b| b.is_ascii_alphanumeric())
    });
    if !algorithm_ok || hex.len() < 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(ReferenceError::Format);
    }
    Ok(text.parse()?)
}

fn is_registry(text: &str) -> bool {
    let (host, port) = if text.starts_with('[') {
        match text.split_once(']') {
            Some((host, "")) => (host, None),
            Some((host, rest)) => match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None => return false,
            },
            None => return false,
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let host_ok = match host.strip_prefix('[') {
        Some(v6) => !v6.is_empty() && v6.bytes().all(|b| b.is_ascii_hexdigit() || b == b':'),
        None => host.split('.').all(is_host_component),
    };
    host_ok && port.is_none_or(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
}

fn is_host_component(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// `[a-z0-9]+` groups with one of `.`, `_`, `__` or any number of `-` between them.
fn is_path_component(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let mut at = 0;
    loop {
        let word = bytes[at..].iter().take_while(|b| is_word(**b)).count();
        if word == 0 {
            return false;
        }
        at += word;
        let separator = bytes[at..].iter().take_while(|b| !is_word(**b)).count();
        match &bytes[at..at + separator] {
            [] => return at == bytes.len(),
            b"." | b"_" | b"__" => {}
            dashes if dashes.iter().all(|b| *b == b'-') => {}
            _ => return false,
        }
        at += separator;
    }
}

fn is_tag(text: &str) -> bool {
    text.len() <= TAG_CHARS_MAX
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

impl fmt::Display for Reference {
    /// The canonical form, with the registry: `docker.io/library/busybox:latest`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.repository()))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse_name(&text).map_err(|err| de::Error::custom(format!("`{text}`: {err}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn check(text: &str, canonical: &str, familiar: &str) {
        let reference = Reference::parse(text).unwrap_or_else(|err| panic!("{text}: {err}"));
        assert_eq!(reference.to_string(), canonical, "{text}");
        assert_eq!(reference.familiar(), familiar, "{text}");
    }

    fn refused(text: &str, message: &str) {
        assert_eq!(
            Reference::parse(text).unwrap_err().to_string(),
            message,
            "{text}"
        );
    }

    #[test]
    fn names_are_normalised_as_docker_does() {
        check(
            "busybox",
            "docker.io/library/busybox:latest",
            "busybox:latest",
        );
        check(
            "busybox:1.36",
            "docker.io/library/busybox:1.36",
            "busybox:1.36",
        );
        check(
            "grafana/grafana",
            "docker.io/grafana/grafana:latest",
            "grafana/grafana:latest",
        );
        check(
            "index.docker.io/busybox",
            "docker.io/library/busybox:latest",
            "busybox:latest",
        );
        check(
            "docker.io/library/a/b:x",
            "docker.io/library/a/b:x",
            "library/a/b:x",
        );
        check(
            "localhost/web",
            "localhost/web:latest",
            "localhost/web:latest",
        );
        check(
            "localhost:5000/web:1",
            "localhost:5000/web:1",
            "localhost:5000/web:1",
        );
        check(
            "[::1]:5000/web",
            "[::1]:5000/web:latest",
            "[::1]:5000/web:latest",
        );
        check("Registry/web", "Registry/web:latest", "Registry/web:latest");
        check(
            "a__b/c-----d.e_f",
            "docker.io/a__b/c-----d.e_f:latest",
            "a__b/c-----d.e_f:latest",
        );
        let digest = format!("busybox@sha256:{HEX}");
        check(&digest, &format!("docker.io/library/{digest}"), &digest);
        let both = format!("busybox:1@sha256:{HEX}");
        check(&both, &format!("docker.io/library/{both}"), &both);
    }

    #[test]
    fn malformed_names_are_refused_in_dockers_words() {
        const FORMAT: &str = "invalid reference format";
        for text in [
            "",
            "/",
            ":",
            "a:",
            "a/",
            "/a",
            "a//b",
            "a_-b",
            "a___b",
            "a..b",
            "-a",
            "a-",
            "a b",
            "a:b:c",
            "a@b",
            "a:-x",
            "http://x/y",
            "x.y:port/z",
            "ä",
            "a/../b",
            "./a",
            "x.-y/z",
            "localhost:/x",
            "[::1/x",
            "[]:5/x",
        ] {
            refused(text, FORMAT);
        }
        refused(&format!("a:{}", "t".repeat(129)), FORMAT);
        refused(
            &"p".repeat(256),
            "repository name must not be more than 255 characters",
        );
        refused(
            "Busybox",
            "invalid reference format: repository name (library/Busybox) must be lowercase",
        );
        refused(
            HEX,
            &format!("invalid repository name ({HEX}), cannot specify 64-byte hexadecimal strings"),
        );
        refused(
            &format!("a@sha256:{}", "ab".repeat(20)),
            "invalid checksum digest length",
        );
        refused(
            &format!("a@md5:{}", "ab".repeat(16)),
            "unsupported digest algorithm",
        );
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_round_trips(text in "\\PC{0,80}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(&Reference::parse(&reference.to_string()).unwrap(), &reference);
                prop_assert_eq!(&Reference::parse(&reference.familiar()).unwrap(), &reference);
            }
        }

        #[test]
        fn well_formed_names_round_trip(
            host in "([a-z][a-z0-9]{0,8}\\.[a-z]{2,3}(:[0-9]{1,5})?/)?",
            path in "[a-z][a-z0-9]{0,8}([_-][a-z0-9]{1,9}){0,2}(/[a-z0-9]{1,9}[.][a-z0-9]{1,9})?(/[a-z0-9]{1,9}(__[a-z0-9]{1,9})?){0,3}",
            tag in "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})?",
        ) {
            let text = format!("{host}{path}{tag}");
            let reference = Reference::parse(&text).unwrap();
            prop_assert_eq!(&Reference::parse(&reference.to_string()).unwrap(), &reference);
            prop_assert_eq!(&Reference::parse(&reference.familiar()).unwrap(), &reference);
        }
    }
}
