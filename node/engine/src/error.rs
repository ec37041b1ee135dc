//! What can go wrong, in words that the user reads. Texts follow Docker's, so that tools that match on them work.

use shoal_model::ContainerId;
use std::net::IpAddr;
use std::path::PathBuf;

/// What class of answer an error is; the API maps it to a status code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The named object does not exist.
    NotFound,
    /// The object's state or another object forbids it.
    Conflict,
    /// The request itself is wrong: the user must change it.
    InvalidArgument,
    /// The object is already in the wanted state.
    NotModified,
    /// Can't be done now: the engine stops, the disk is full, a registry can't be reached. Trying later may help.
    Unavailable,
    /// Not permitted.
    Forbidden,
    /// A valid request for something that this engine does not do.
    NotImplemented,
    /// Our fault or the machine's.
    Internal,
}

/// An error of the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No object of that kind has that name.
    #[error("No such {object}: {name}")]
    NoSuch {
        /// `container`, `image`, `exec instance`…
        object: &'static str,
        /// What was asked for.
        name: String,
    },
    /// A prefix of an id that several objects share.
    #[error("multiple IDs found with provided prefix: {prefix}")]
    AmbiguousPrefix {
        /// What was asked for.
        prefix: String,
    },
    /// The name belongs to another container.
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{holder}\". You have to remove \
         (or rename) that container to be able to reuse that name."
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        holder: ContainerId,
    },
    /// Not a name for a container.
    #[error("Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")]
    BadName {
        /// What was given.
        name: String,
    },
    /// A host port belongs to somebody else.
    #[error("Bind for {address}:{port} failed: port is already allocated by {holder}")]
    PortTaken {
        /// Host address.
        address: IpAddr,
        /// Host port.
        port: u16,
        /// Container name, or `another process on this host`.
        holder: String,
    },
    /// The object's state forbids it.
    #[error("{message}")]
    Conflict {
        /// A sentence that names the object.
        message: String,
    },
    /// A field of the request is wrong.
    #[error("invalid {field}: {reason}")]
    Invalid {
        /// The field in the user's words.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A valid request for something that this engine does not do.
    #[error("{field} is not supported: {reason}")]
    Unsupported {
        /// The field in the user's words.
        field: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The object is already in the wanted state.
    #[error("container {name} is already {state}")]
    NotModified {
        /// The container.
        name: String,
        /// `running`, `stopped`…
        state: &'static str,
    },
    /// The container's process could not be started.
    #[error("failed to create task for container: {reason}")]
    Start {
        /// 126: not executable; 127: not found; 128: else.
        exit_code: i32,
        /// The whole reason.
        reason: String,
    },
    /// A file or directory of ours could not be read or written.
    #[error("failed to {action} `{path}`")]
    Disk {
        /// `write`, `create`…
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        err: std::io::Error,
    },
    /// A record on disk is not what this version understands.
    #[error("the record `{path}` can't be used: {reason}")]
    Record {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The image store refused.
    #[error("{message}")]
    Image {
        /// Class of the error.
        kind: ErrorKind,
        /// The whole chain.
        message: String,
    },
    /// The network could not be set up.
    #[error("failed to {action}: {reason}")]
    Network {
        /// What was attempted.
        action: &'static str,
        /// The whole chain.
        reason: String,
    },
    /// A network that neither this engine nor the cluster has.
    #[error("network {name} not found")]
    NoNetwork {
        /// What was asked for.
        name: String,
    },
    /// The managers gave the container no addresses.
    #[error("could not attach to network {name}: {reason}")]
    Attach {
        /// The networks.
        name: String,
        /// Class of the error.
        kind: ErrorKind,
        /// What the managers, or those on the way to them, say.
        reason: String,
    },
    /// The node has no networks of the cluster, for now.
    #[error("the networks of the cluster are not available on this node: {reason}")]
    NoOverlay {
        /// Why.
        reason: &'static str,
    },
    /// This machine can't have the cluster's networks.
    #[error("this node has no networks of the cluster: {reason}")]
    OverlayRefused {
        /// Why.
        reason: String,
    },
    /// The container's shim did not do what it was asked to.
    #[error("failed to {action} container {id}: {reason}")]
    Runtime {
        /// What was attempted.
        action: &'static str,
        /// Which container.
        id: ContainerId,
        /// The whole chain.
        reason: String,
    },
    /// A listener was too slow for the bounded queue.
    #[error(
        "{missed} events were lost because the listener was too slow; list again and listen anew"
    )]
    EventsMissed {
        /// How many.
        missed: u64,
    },
    /// The engine is stopping, or has stopped.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// Work on a blocking thread did not come back.
    #[error("the engine lost the work `{what}`")]
    WorkLost {
        /// What was being done.
        what: &'static str,
    },
}

impl EngineError {
    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuch { .. } | Self::NoNetwork { .. } => ErrorKind::NotFound,
            Self::NameTaken { .. } | Self::Conflict { .. } => ErrorKind::Conflict,
            Self::AmbiguousPrefix { .. } | Self::BadName { .. } | Self::Invalid { .. } => {
                ErrorKind::InvalidArgument
            }
            Self::Unsupported { .. } => ErrorKind::NotImplemented,
            Self::NotModified { .. } => ErrorKind::NotModified,
            Self::Start { exit_code, .. } => {
                // Docker answers 400 when the image's command is at fault, 500 when the machine is.
                if matches!(exit_code, 126 | 127) {
                    ErrorKind::InvalidArgument
                } else {
                    ErrorKind::Internal
                }
            }
            Self::Image { kind, .. } | Self::Attach { kind, .. } => *kind,
            Self::OverlayRefused { .. } => ErrorKind::Forbidden,
            Self::NoOverlay { .. } | Self::ShuttingDown | Self::EventsMissed { .. } => {
                ErrorKind::Unavailable
            }
            Self::Disk { err, .. } if err.kind() == std::io::ErrorKind::StorageFull => {
                ErrorKind::Unavailable
            }
            Self::PortTaken { .. }
            | Self::Disk { .. }
            | Self::Record { .. }
            | Self::Network { .. }
            | Self::Runtime { .. }
            | Self::WorkLost { .. } => ErrorKind::Internal,
        }
    }

    /// No such container.
    pub(crate) fn no_container(name: impl Into<String>) -> Self {
        Self::NoSuch {
            object: "container",
            name: name.into(),
        }
    }

    /// A field of the request is wrong.
    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// A field of the request asks for something that is not there.
    pub(crate) fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// The object's state forbids it.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::Conflict {
            message: message.into(),
        }
    }

    /// Adapter for `map_err` on file operations.
    pub(crate) fn disk(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |err| Self::Disk { action, path, err }
    }
}

impl From<actix::MailboxError> for EngineError {
    fn from(_: actix::MailboxError) -> Self {
        Self::ShuttingDown
    }
}

/// An error with all its causes on one line.
pub(crate) fn chain(err: &(dyn std::error::Error + 'static)) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Shorthand used throughout the crate.
pub(crate) type Result<T, E = EngineError> = std::result::Result<T, E>;
