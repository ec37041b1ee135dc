//! The engine of one node: containers, images, volumes, networks, events.
//!
//! Inside are actors (actix, on arbiters of their own), one per long-lived thing; outside everybody sees only
//! [`EngineHandle`]. The engine never forks, unshares or enters a namespace on a thread that lives on: containers
//! belong to their shims, and outlive it.

pub mod config;
mod error;
pub mod event;
mod handle;
pub mod info;
mod options;
pub mod requests;
mod status_text;

pub use config::{
    ContainerConfig, ContainerPort, DeviceMapping, Fencing, HostConfig, LogConfig, NamespaceMode,
    NetworkMode, PortBinding, ResourceLimits, RestartPolicy,
};
pub use error::{EngineError, ErrorKind};
pub use event::{Event, EventType};
pub use handle::EngineHandle;
pub use info::{ContainerInfo, ContainerState, ContainerStatus, EngineInfo};
pub use options::{BRIDGE_MTU_DEFAULT, EngineOptions};
pub use requests::{
    ArchivePutOptions, AttachOptions, AttachStreams, ContainerUpdate, Created, EventFilter,
    ExecConfig, ListFilter, LogEntry, LogOptions, OutputChunk, PathStat, ProcessTable, Pruned,
    RemoveOptions, STOP_TIMEOUT_DEFAULT, StdStream, TerminalSize, VolumeCreate, WaitCondition,
    WaitResult,
};

/// Probes that a container's health log keeps.
pub const HEALTH_PROBES_KEPT_MAX: usize = 5;
