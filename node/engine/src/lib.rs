//! The engine of one node: containers, images, volumes, networks, events.
//!
//! Inside are actors (actix, on arbiters of their own), one per long-lived thing; outside everybody sees only
//! [`EngineHandle`]. The engine never forks, unshares or enters a namespace on a thread that lives on: containers
//! belong to their shims, and outlive it.

mod actors;
mod clock;
pub mod config;
mod container;
mod copy;
mod devices;
mod disk;
mod engine;
mod env;
mod error;
mod etc_files;
pub mod event;
mod event_bus;
mod handle;
mod host;
mod images;
pub mod info;
mod join;
mod list;
mod merge;
mod mounts;
mod names;
mod network;
mod objects;
mod oci;
mod options;
pub mod requests;
mod rootfs;
mod signal;
mod status_text;
mod supervisor;
mod user;
mod volume;

pub use clock::parse_time;
pub use config::{
    ContainerConfig, ContainerPort, DeviceMapping, Fencing, HostConfig, LogConfig, NamespaceMode,
    NetworkMode, PortBinding, ResourceLimits, RestartPolicy,
};
pub use error::{EngineError, ErrorKind};
pub use event::{Event, EventType};
pub use handle::EngineHandle;
pub use info::{ContainerInfo, ContainerState, ContainerStatus, EngineInfo};
pub use network::Attacher;
pub use options::{BRIDGE_MTU_DEFAULT, EngineOptions};
pub use requests::{
    ArchivePutOptions, AttachOptions, AttachStreams, ContainerUpdate, Created, EventFilter,
    ExecConfig, ListFilter, LogEntry, LogOptions, OutputChunk, PathStat, ProcessTable, Pruned,
    RemoveOptions, STOP_TIMEOUT_DEFAULT, StdStream, TerminalSize, VolumeCreate, WaitCondition,
    WaitResult,
};

/// The image store's own types: images, references, progress.
pub use shoal_image as image;

/// Probes that a container's health log keeps.
pub const HEALTH_PROBES_KEPT_MAX: usize = 5;
