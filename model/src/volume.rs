//! Volumes: where data lives.

use crate::{Labels, Meta, NodeId, ServiceId, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The numbered place of a replica of a service; for a global service the slot is 0 and the node decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlotKey {
    /// The service.
    pub service_id: ServiceId,
    /// Slot number from 1.
    pub slot: u64,
}

/// A named volume on one node. There is one object per (name, node); the data never moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Identity.
    pub id: VolumeId,
    /// Version and times.
    pub meta: Meta,
    /// Unique on its node.
    pub name: String,
    /// Where the data is.
    pub node_id: NodeId,
    /// `local`.
    pub driver: String,
    /// Set by the user.
    pub labels: Labels,
    /// Driver options.
    pub options: Labels,
    /// Slots that run only where this volume is.
    pub bound_slots: BTreeSet<SlotKey>,
    /// The node has reported that the directory exists. From then on a task that finds it missing is rejected: it
    /// never gets a silently empty one.
    pub materialized: bool,
}
