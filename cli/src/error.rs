//! What can go wrong in a client command, and which exit code it has.

use std::process::ExitCode;

/// Exit code of a command that SIGINT ended, as shells have it.
pub(crate) const INTERRUPTED: u8 = 130;

/// A failed command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The daemon answered with an error.
    #[error("Error response from daemon: {message}")]
    Daemon { status: u16, message: String },
    /// There is no answer at all.
    #[error(
        "cannot connect to the shoal daemon at {socket}: {cause}\nIs it running? Start it with `shoal daemon`, or name its socket with `--host unix://PATH`."
    )]
    Connect { socket: String, cause: String },
    /// The user's words.
    #[error("{0}")]
    Usage(String),
    /// A file or a stream of the client.
    #[error("failed to {action}")]
    Io {
        action: String,
        #[source]
        err: std::io::Error,
    },
    /// The answer can't be read.
    #[error("unexpected answer from the daemon: {0}")]
    Protocol(String),
    /// A format template.
    #[error("template parsing error: {0}")]
    Template(String),
    /// The service did not converge.
    #[error("{0}")]
    NotConverged(String),
    /// A container of `run` or `exec` ended with this code; everything was said already.
    #[error("exit code {0}")]
    Exit(u8),
    /// Several objects were named and some failed; each was told.
    #[error("{0}")]
    Several(String),
}

impl CliError {
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |err| Self::Io { action, err }
    }

    /// As `docker`: 1 for an error, 125 for an error of the daemon in `run`, the container's own code otherwise.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Exit(code) => *code,
            Self::Usage(_) => 125,
            Self::Daemon { .. }
            | Self::Connect { .. }
            | Self::Io { .. }
            | Self::Protocol(_)
            | Self::Template(_)
            | Self::NotConverged(_)
            | Self::Several(_) => 1,
        })
    }

    /// The message with its causes, or nothing when everything was said.
    pub(crate) fn text(&self) -> Option<String> {
        if let Self::Exit(_) = self {
            return None;
        }
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        Some(text)
    }
}

impl From<bollard::errors::Error> for CliError {
    fn from(error: bollard::errors::Error) -> Self {
        use bollard::errors::Error;
        match error {
            Error::DockerResponseServerError {
                status_code,
                message,
            } => Self::Daemon {
                status: status_code,
                message,
            },
            Error::DockerStreamError { error } => Self::Daemon {
                status: 500,
                message: error,
            },
            Error::IOError { err } => Self::Io {
                action: "talk to the daemon".to_owned(),
                err,
            },
            other => Self::Protocol(chain(&other)),
        }
    }
}

/// Says what is wrong with the command line, or the help that was asked for. Exit codes as docker's: 125 for a flag or
/// its value, 1 for the wrong words or too few of them.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    // A closed standard error leaves nobody to tell.
    drop(error.print());
    let about_flag = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(arg)) => arg.starts_with('-'),
        _ => false,
    };
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => ExitCode::SUCCESS,
        ErrorKind::MissingRequiredArgument
        | ErrorKind::InvalidSubcommand
        | ErrorKind::MissingSubcommand => ExitCode::FAILURE,
        ErrorKind::UnknownArgument if !about_flag => ExitCode::FAILURE,
        _ => ExitCode::from(125),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

pub(crate) type Result<T> = std::result::Result<T, CliError>;
