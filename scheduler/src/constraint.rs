//! Placement constraints: `key == value`, `key != value`.
//!
//! The rules are SwarmKit's: keys (but for the name of a label) and values are compared without case; a label that a
//! node does not have is the empty text, so `!=` holds for it; `node.ip` takes an address or a network.

use shoal_model::{Node, NodeDescription};
use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// The keys that are understood, for error texts.
const KEYS: &str = "node.id, node.hostname, node.ip, node.role, node.platform.os, node.platform.arch, \
                    node.labels.NAME, engine.labels.NAME";

/// Why a text is not a constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// Neither `==` nor `!=`.
    #[error("constraint `{0}` has no operator: expected `KEY == VALUE` or `KEY != VALUE`")]
    NoOperator(String),
    /// A key that no node has.
    #[error("constraint `{text}`: unknown key `{key}`; known are {KEYS}")]
    UnknownKey {
        /// The constraint.
        text: String,
        /// Its key.
        key: String,
    },
    /// No value, or a character that values do not have.
    #[error(
        "constraint `{text}`: `{value}` is not a value; letters, digits and `:-_./ *()?+[]\\^$|` are"
    )]
    Value {
        /// The constraint.
        text: String,
        /// Its value.
        value: String,
    },
    /// `node.ip` with something else than an address.
    #[error(
        "constraint `{text}`: `{value}` is neither an address nor a network such as 10.0.0.0/8"
    )]
    Address {
        /// The constraint.
        text: String,
        /// Its value.
        value: String,
    },
}

/// A property of a node, the left side of a constraint or the descriptor of a spread.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// `node.id`.
    Id,
    /// `node.hostname`.
    Hostname,
    /// `node.ip`.
    Ip,
    /// `node.role`.
    Role,
    /// `node.platform.os`.
    Os,
    /// `node.platform.arch`.
    Architecture,
    /// `node.labels.NAME`.
    NodeLabel(String),
    /// `engine.labels.NAME`.
    EngineLabel(String),
}

impl Key {
    /// Reads a key; `None` if there is none of that name.
    pub fn parse(text: &str) -> Option<Self> {
        const NODE_LABELS: &str = "node.labels.";
        const ENGINE_LABELS: &str = "engine.labels.";
        let label = |prefix: &str| {
            let (head, name) = text.split_at_checked(prefix.len())?;
            (head.eq_ignore_ascii_case(prefix) && is_label_name(name)).then(|| name.to_owned())
        };
        if let Some(name) = label(NODE_LABELS) {
            return Some(Self::NodeLabel(name));
        }
        if let Some(name) = label(ENGINE_LABELS) {
            return Some(Self::EngineLabel(name));
        }
        match text.to_ascii_lowercase().as_str() {
            "node.id" => Some(Self::Id),
            "node.hostname" => Some(Self::Hostname),
            "node.ip" => Some(Self::Ip),
            "node.role" => Some(Self::Role),
            "node.platform.os" => Some(Self::Os),
            "node.platform.arch" => Some(Self::Architecture),
            _ => None,
        }
    }

    /// What `node` has under this key; empty where it has nothing.
    pub fn value<'a>(&self, node: &'a Node) -> Cow<'a, str> {
        let described =
            |pick: fn(&NodeDescription) -> &str| node.description.as_ref().map_or("", pick);
        match self {
            Self::Id => Cow::Owned(node.id.to_string()),
            Self::Hostname => Cow::Borrowed(described(|d| &d.hostname)),
            Self::Ip => Cow::Borrowed(&node.status.addr),
            Self::Role => Cow::Borrowed(node.role.as_str()),
            Self::Os => Cow::Borrowed(described(|d| &d.os)),
            Self::Architecture => Cow::Borrowed(architecture(described(|d| &d.architecture))),
            Self::NodeLabel(name) => {
                Cow::Borrowed(node.spec.labels.get(name).map_or("", String::as_str))
            }
            Self::EngineLabel(name) => Cow::Borrowed(
                node.description
                    .as_ref()
                    .and_then(|d| d.engine_labels.get(name))
                    .map_or("", String::as_str),
            ),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id => f.write_str("node.id"),
            Self::Hostname => f.write_str("node.hostname"),
            Self::Ip => f.write_str("node.ip"),
            Self::Role => f.write_str("node.role"),
            Self::Os => f.write_str("node.platform.os"),
            Self::Architecture => f.write_str("node.platform.arch"),
            Self::NodeLabel(name) => write!(f, "node.labels.{name}"),
            Self::EngineLabel(name) => write!(f, "engine.labels.{name}"),
        }
    }
}

/// `==` or `!=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `==`.
    Equal,
    /// `!=`.
    NotEqual,
}

impl Operator {
    fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "==",
            Self::NotEqual => "!=",
        }
    }
}

/// One constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    /// The property.
    pub key: Key,
    /// How it is compared.
    pub operator: Operator,
    /// With what.
    pub value: String,
}

impl Constraint {
    /// Whether it holds for `node`.
    pub fn matches(&self, node: &Node) -> bool {
        let found = self.key.value(node);
        let equal = match self.key {
            Key::Ip => address_matches(&found, &self.value),
            Key::Architecture => found.eq_ignore_ascii_case(architecture(&self.value)),
            Key::Id
            | Key::Hostname
            | Key::Role
            | Key::Os
            | Key::NodeLabel(_)
            | Key::EngineLabel(_) => eq_fold(&found, &self.value),
        };
        match self.operator {
            Operator::Equal => equal,
            Operator::NotEqual => !equal,
        }
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.key, self.operator.as_str(), self.value)
    }
}

impl FromStr for Constraint {
    type Err = ConstraintError;

    fn from_str(text: &str) -> Result<Self, ConstraintError> {
        let (key, operator, value) =
            split(text).ok_or_else(|| ConstraintError::NoOperator(text.to_owned()))?;
        let key = Key::parse(key).ok_or_else(|| ConstraintError::UnknownKey {
            text: text.to_owned(),
            key: key.to_owned(),
        })?;
        if value.is_empty() || !value.chars().all(is_value_char) {
            return Err(ConstraintError::Value {
                text: text.to_owned(),
                value: value.to_owned(),
            });
        }
        if key == Key::Ip && parse_network(value).is_none() {
            return Err(ConstraintError::Address {
                text: text.to_owned(),
                value: value.to_owned(),
            });
        }
        Ok(Self {
            key,
            operator,
            value: value.to_owned(),
        })
    }
}

/// Reads all constraints of a service.
///
/// # Errors
/// The first text that is not a constraint.
pub fn parse<S: AsRef<str>>(texts: &[S]) -> Result<Vec<Constraint>, ConstraintError> {
    texts.iter().map(|text| text.as_ref().parse()).collect()
}

/// `amd64` for `x86_64` and so on: machines and images use both families of names.
pub(crate) fn architecture(name: &str) -> &str {
    match name {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "armhf" | "armel" => "arm",
        other => other,
    }
}

/// Splits at the operator that comes first.
fn split(text: &str) -> Option<(&str, Operator, &str)> {
    let at = |operator: Operator| text.find(operator.as_str()).map(|at| (at, operator));
    let (at, operator) = match (at(Operator::Equal), at(Operator::NotEqual)) {
        (Some(equal), Some(not_equal)) if not_equal.0 < equal.0 => not_equal,
        (Some(equal), _) => equal,
        (None, not_equal) => not_equal?,
    };
    Some((text[..at].trim(), operator, text[at + 2..].trim()))
}

fn is_label_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'))
}

fn is_value_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c.is_ascii_whitespace() || ":-_./*()?+[]\\^$|".contains(c)
}

fn eq_fold(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b) || a.to_lowercase() == b.to_lowercase()
}

/// An address with the length of its prefix.
fn parse_network(text: &str) -> Option<(IpAddr, u8)> {
    let (addr, prefix) = match text.split_once('/') {
        Some((addr, prefix)) => (
            addr.parse::<IpAddr>().ok()?,
            Some(prefix.parse::<u8>().ok()?),
        ),
        None => (text.parse::<IpAddr>().ok()?, None),
    };
    let bits = if addr.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.unwrap_or(bits);
    (prefix <= bits).then_some((addr, prefix))
}

fn address_matches(found: &str, wanted: &str) -> bool {
    let (Ok(found), Some((network, prefix))) = (found.parse::<IpAddr>(), parse_network(wanted))
    else {
        return false;
    };
    match (found, network) {
        (IpAddr::V4(found), IpAddr::V4(network)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            found.to_bits() & mask == network.to_bits() & mask
        }
        (IpAddr::V6(found), IpAddr::V6(network)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            found.to_bits() & mask == network.to_bits() & mask
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_model::{Labels, Meta, NodeId, NodeRole, NodeSpec, NodeStatus};

    fn node() -> Node {
        Node {
            id: NodeId::from_bits(7),
            meta: Meta::default(),
            spec: NodeSpec {
                labels: Labels::from([("zone".to_owned(), "East".to_owned())]),
                ..NodeSpec::default()
            },
            description: Some(NodeDescription {
                hostname: "Web-1".to_owned(),
                os: "linux".to_owned(),
                architecture: "amd64".to_owned(),
                engine_labels: Labels::from([("disk".to_owned(), "ssd".to_owned())]),
                ..NodeDescription::default()
            }),
            status: NodeStatus {
                addr: "10.1.2.3".to_owned(),
                ..NodeStatus::default()
            },
            role: NodeRole::Manager,
            manager: None,
            public_key_digest: [0; 32],
            hold_until: None,
            mesh: None,
        }
    }

    fn check(text: &str, holds: bool) {
        let constraint: Constraint = text.parse().unwrap();
        assert_eq!(constraint.matches(&node()), holds, "{text}");
    }

    #[test]
    fn constraints_hold_as_in_swarm() {
        check("node.hostname==web-1", true);
        check("NODE.HOSTNAME == WEB-1", true);
        check("node.hostname != web-1", false);
        check("node.id==0000000000000000000000007", true);
        check("node.role==manager", true);
        check("node.role!=manager", false);
        check("node.platform.os==Linux", true);
        check("node.platform.arch==x86_64", true);
        check("node.platform.arch==amd64", true);
        check("node.platform.arch==arm64", false);
        check("node.labels.zone==east", true);
        check("node.labels.ZONE==east", false);
        check("node.labels.gpu!=yes", true);
        check("node.labels.gpu==yes", false);
        check("engine.labels.disk==SSD", true);
        check("node.ip==10.1.2.3", true);
        check("node.ip==10.0.0.0/8", true);
        check("node.ip==0.0.0.0/0", true);
        check("node.ip!=10.1.0.0/16", false);
        check("node.ip==fe80::/10", false);
    }

    #[test]
    fn wrong_constraints_say_what_is_wrong() {
        let refuse = |text: &str, part: &str| {
            let error = text.parse::<Constraint>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        };
        refuse("node.role=manager", "has no operator");
        refuse("", "has no operator");
        refuse("node.color==red", "unknown key `node.color`");
        refuse("node.labels.==red", "unknown key `node.labels.`");
        refuse("node.role==", "is not a value");
        refuse("node.labels.a==b;c", "is not a value");
        refuse("node.ip==10.0.0.0/33", "neither an address");
    }
}
