//! What went wrong while a container or an exec'ed process was being made: which stage, and docker's exit code for it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The named steps on the way to the first instruction of a container, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// Reading `config.json` and `shoal.json`.
    Bundle,
    /// Checking that the configuration asks for nothing that this runtime or host lacks.
    Validate,
    /// Opening the control socket, the log and the stdio pipes.
    Stdio,
    /// Making the cgroups and setting their limits.
    Cgroup,
    /// Cloning the process, making and joining namespaces, mapping users.
    Namespaces,
    /// Mounting the root file system.
    Rootfs,
    /// Mounting what `mounts` lists.
    Mounts,
    /// Making device nodes and the terminal.
    Devices,
    /// Kernel settings inside: sysctls, host name, read-only and masked paths.
    Kernel,
    /// Limits, user, groups, capabilities, working directory.
    Credentials,
    /// Loading the seccomp filter.
    Seccomp,
    /// Finding and executing the program.
    Exec,
}

impl Stage {
    /// The word for messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bundle => "bundle",
            Self::Validate => "validate",
            Self::Stdio => "stdio",
            Self::Cgroup => "cgroup",
            Self::Namespaces => "namespaces",
            Self::Rootfs => "rootfs",
            Self::Mounts => "mounts",
            Self::Devices => "devices",
            Self::Kernel => "kernel settings",
            Self::Credentials => "credentials",
            Self::Seccomp => "seccomp",
            Self::Exec => "exec",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a process was not started. Travels from the half-made container to the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The step that failed.
    pub stage: Stage,
    /// What was attempted and why it failed, in one line and complete.
    pub message: String,
    /// The kernel's error number, when a system call failed.
    pub errno: Option<i32>,
}

/// The exit code of a container whose program can't be executed.
pub const EXIT_NOT_EXECUTABLE: i32 = 126;
/// The exit code of a container whose program does not exist.
pub const EXIT_NOT_FOUND: i32 = 127;
/// The exit code of a container that could not be made.
pub const EXIT_NOT_CREATED: i32 = 128;

impl Failure {
    /// A failure without a system call.
    pub fn new(stage: Stage, message: impl Into<String>) -> Self {
        Self {
            stage,
            message: message.into(),
            errno: None,
        }
    }

    /// A failed system call: `attempt` says what was attempted, on which object.
    pub fn os(stage: Stage, attempt: impl fmt::Display, errno: i32) -> Self {
        Self {
            stage,
            message: format!("{attempt}: {}", describe(errno)),
            errno: Some(errno),
        }
    }

    /// The code that `docker run` ends with for this failure: 127 when the program (or a path that it needs) does
    /// not exist, 126 when it can't be executed, 128 for everything else.
    pub fn exit_code(&self) -> i32 {
        match (self.stage, self.errno) {
            (Stage::Exec, Some(libc::ENOENT | libc::ENOTDIR)) => EXIT_NOT_FOUND,
            (Stage::Exec, _) => EXIT_NOT_EXECUTABLE,
            (Stage::Credentials, Some(libc::EACCES | libc::ENOTDIR)) => EXIT_NOT_EXECUTABLE,
            (
                Stage::Bundle
                | Stage::Validate
                | Stage::Stdio
                | Stage::Cgroup
                | Stage::Namespaces
                | Stage::Rootfs
                | Stage::Mounts
                | Stage::Devices
                | Stage::Kernel
                | Stage::Credentials
                | Stage::Seccomp,
                _,
            ) => EXIT_NOT_CREATED,
        }
    }
}

/// The kernel's words for `errno`, as Go (and so docker) writes them: lower case.
pub(crate) fn describe(errno: i32) -> String {
    let text = nix::errno::Errno::from_raw(errno).desc();
    let mut chars = text.chars();
    match chars.next() {
        // Words such as "I/O error" keep their capital.
        Some(first) if chars.as_str().starts_with(|c: char| c.is_ascii_lowercase()) => {
            first.to_lowercase().chain(chars).collect()
        }
        Some(_) | None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_dockers() {
        let check = |stage, errno, code| {
            let failure = Failure {
                stage,
                message: String::new(),
                errno,
            };
            assert_eq!(failure.exit_code(), code, "{stage} {errno:?}");
        };
        check(Stage::Exec, Some(libc::ENOENT), 127);
        check(Stage::Exec, Some(libc::EACCES), 126);
        check(Stage::Exec, Some(libc::ENOEXEC), 126);
        check(Stage::Mounts, Some(libc::ENOENT), 128);
        check(Stage::Credentials, Some(libc::EACCES), 126);
    }

    #[test]
    fn system_errors_read_as_docker_writes_them() {
        assert_eq!(describe(libc::ENOENT), "no such file or directory");
        assert_eq!(describe(libc::EACCES), "permission denied");
        assert_eq!(describe(libc::EIO), "I/O error");
    }
}
