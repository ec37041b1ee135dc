//! What happened, in Docker's words.

use shoal_model::Timestamp;
use std::collections::BTreeMap;

/// Kind of object that an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventType {
    /// A container.
    Container,
    /// An image.
    Image,
    /// A volume.
    Volume,
    /// A network.
    Network,
    /// The daemon.
    Daemon,
}

impl EventType {
    /// The word in Docker's API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
            Self::Volume => "volume",
            Self::Network => "network",
            Self::Daemon => "daemon",
        }
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Kind of object.
    pub kind: EventType,
    /// `create`, `start`, `die`, `health_status: healthy`…
    pub action: String,
    /// Id or name of the object.
    pub actor_id: String,
    /// Name, image, labels, exit code…
    pub attributes: BTreeMap<String, String>,
    /// When.
    pub time: Timestamp,
}

impl Event {
    /// An event without attributes.
    pub fn new(
        kind: EventType,
        action: impl Into<String>,
        actor_id: impl Into<String>,
        time: Timestamp,
    ) -> Self {
        Self {
            kind,
            action: action.into(),
            actor_id: actor_id.into(),
            attributes: BTreeMap::new(),
            time,
        }
    }

    /// Adds an attribute.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.attributes.insert(key.into(), value.into());
        self
    }

    /// Whether Docker's filters let this event through: any value within a key, all keys.
    pub fn matches(&self, filters: &BTreeMap<String, Vec<String>>) -> bool {
        filters
            .iter()
            .all(|(key, values)| values.is_empty() || self.matches_one(key, values))
    }

    fn matches_one(&self, key: &str, values: &[String]) -> bool {
        let is = |value: &String, name: &str| {
            self.actor_id == *value
                || (value.len() >= shoal_model::ContainerId::SHORT_LEN
                    && self.actor_id.starts_with(value.as_str()))
                || self.attributes.get(name) == Some(value)
        };
        let about = |kind: EventType, name: &str| {
            self.kind == kind && values.iter().any(|value| is(value, name))
        };
        match key {
            "type" => values.iter().any(|value| value == self.kind.as_str()),
            "event" => values.iter().any(|value| {
                self.action == *value
                    || self
                        .action
                        .split_once(':')
                        .is_some_and(|(head, _)| head == value)
            }),
            "container" => about(EventType::Container, "name"),
            "image" => {
                about(EventType::Image, "name") || {
                    self.kind == EventType::Container
                        && values
                            .iter()
                            .any(|value| self.attributes.get("image") == Some(value))
                }
            }
            "volume" => about(EventType::Volume, "name"),
            "network" => about(EventType::Network, "name"),
            "label" => values.iter().all(|value| match value.split_once('=') {
                Some((name, wanted)) => self.attributes.get(name).is_some_and(|v| v == wanted),
                None => self.attributes.contains_key(value),
            }),
            "daemon" => self.kind == EventType::Daemon,
            _ => false,
        }
    }
}

/// Filter keys that [`Event::matches`] understands.
pub const EVENT_FILTER_KEYS: [&str; 8] = [
    "type",
    "event",
    "container",
    "image",
    "volume",
    "network",
    "label",
    "daemon",
];
