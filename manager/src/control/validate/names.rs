//! Names by Docker's rules.

use super::{Invalid, ensure};

/// Most characters of a service's name: it is a DNS label.
const SERVICE_NAME_CHARS_MAX: usize = 63;

/// Most characters of a network's name: containers find it in their search domains.
const NETWORK_NAME_CHARS_MAX: usize = 63;

/// Most characters of a volume's name: it is a directory.
const VOLUME_NAME_CHARS_MAX: usize = 255;

/// Most characters of an image reference.
const IMAGE_CHARS_MAX: usize = 4_096;

/// A service's name: letters, digits, `-` and `_`, the first and the last a letter or digit, at most 63.
///
/// # Errors
/// [`Invalid`] naming `Name`.
pub fn service_name(name: &str) -> Result<(), Invalid> {
    ensure(!name.is_empty(), "Name", || {
        "the name is empty: give one with `--name`".to_owned()
    })?;
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let edges = [name.bytes().next(), name.bytes().last()];
    let well_formed = name.bytes().all(inner)
        && edges.iter().flatten().all(u8::is_ascii_alphanumeric)
        && name.len() <= SERVICE_NAME_CHARS_MAX;
    ensure(well_formed, "Name", || {
        format!(
            "`{}` is not a service name: use at most {SERVICE_NAME_CHARS_MAX} letters, digits, `-` and `_`, \
             beginning and ending with a letter or digit",
            name.escape_debug()
        )
    })
}

/// A network's name: letters, digits, `-`, `_` and `.`, the first and the last a letter or digit, at most 63.
///
/// # Errors
/// [`Invalid`] naming `Name`.
pub fn network_name(name: &str) -> Result<(), Invalid> {
    ensure(!name.is_empty(), "Name", || {
        "the name is empty: give one".to_owned()
    })?;
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let edges = [name.bytes().next(), name.bytes().last()];
    let well_formed = name.bytes().all(inner)
        && edges.iter().flatten().all(u8::is_ascii_alphanumeric)
        && name.len() <= NETWORK_NAME_CHARS_MAX;
    ensure(well_formed, "Name", || {
        format!(
            "`{}` is not a network name: use at most {NETWORK_NAME_CHARS_MAX} letters, digits, `-`, `_` and `.`, \
             beginning and ending with a letter or digit",
            name.escape_debug()
        )
    })
}

/// A volume's name: letters, digits, `_`, `.` and `-`, the first a letter or digit, at least two.
///
/// # Errors
/// [`Invalid`] naming `field`.
pub fn volume_name(field: &str, name: &str) -> Result<(), Invalid> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let well_formed = name.bytes().all(inner)
        && name
            .bytes()
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric())
        && (2..=VOLUME_NAME_CHARS_MAX).contains(&name.len());
    ensure(well_formed, field, || {
        format!(
            "`{}` is not a volume name: use 2 to {VOLUME_NAME_CHARS_MAX} letters, digits, `_`, `.` and `-`, \
             beginning with a letter or digit; for a directory of the host use a mount of type bind",
            name.escape_debug()
        )
    })
}

/// An image reference that could name something; the node that pulls parses it in full.
///
/// # Errors
/// [`Invalid`] naming `TaskTemplate.ContainerSpec.Image`.
pub fn image_reference(image: &str) -> Result<(), Invalid> {
    const FIELD: &str = "TaskTemplate.ContainerSpec.Image";
    ensure(!image.is_empty(), FIELD, || {
        "no image is given: name one, such as `nginx:1.29`".to_owned()
    })?;
    let well_formed = image.len() <= IMAGE_CHARS_MAX
        && image.bytes().all(|byte| byte.is_ascii_graphic())
        && image.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '[');
    ensure(well_formed, FIELD, || {
        let shown: String = image.chars().take(80).collect();
        format!(
            "`{}` is not an image reference: use [REGISTRY/]NAME[:TAG][@DIGEST] without spaces",
            shown.escape_debug()
        )
    })
}
