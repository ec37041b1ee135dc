//! Services as they are stored.

use crate::network::ServiceVip;
use crate::spec::PortConfig;
use crate::{Meta, ServiceId, ServiceSpec, Timestamp};
use serde::{Deserialize, Serialize};

/// Where the update of a service stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum UpdateState {
    /// Tasks are being replaced.
    #[default]
    Updating,
    /// Stopped after a failure; waits for the user.
    Paused,
    /// Every slot runs the newest spec.
    Completed,
}

impl UpdateState {
    /// The word in Docker's API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Updating => "updating",
            Self::Paused => "paused",
            Self::Completed => "completed",
        }
    }
}

/// The progress of an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    /// Where it stands.
    pub state: UpdateState,
    /// When the newest spec arrived.
    pub started_at: Timestamp,
    /// When it was completed.
    pub completed_at: Option<Timestamp>,
    /// Why, in words for the user.
    pub message: String,
}

/// A service: what the user declared, and what the managers keep about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Identity.
    pub id: ServiceId,
    /// Version and times.
    pub meta: Meta,
    /// What the user wants.
    pub spec: ServiceSpec,
    /// The spec before the last update, for `rollback`.
    pub previous_spec: Option<Box<ServiceSpec>>,
    /// Counts the changes of [`ServiceSpec::task`]; a task made from an older count is out of date.
    pub spec_version: u64,
    /// Progress of the last update, if there was one.
    pub update_status: Option<UpdateStatus>,
    /// Its virtual addresses, one per network of its tasks; none with `dnsrr`.
    pub vips: Vec<ServiceVip>,
    /// Its published ports, with the numbers that were chosen.
    pub ports: Vec<PortConfig>,
    /// Being removed: tasks are stopped first, then the object goes.
    pub pending_delete: bool,
}
