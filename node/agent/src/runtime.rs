//! The seam "container runtime": what the agent needs of the engine.

use async_trait::async_trait;
use shoal_model::cluster::Redacted;
use shoal_model::spec::PortConfig;
use shoal_model::{ContainerId, Task, TaskId, Timestamp};

/// Why the runtime could not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// The task can't run on this node as it is specified: no retry helps.
    #[error("{reason}")]
    Rejected {
        /// The whole chain, for the user.
        reason: String,
    },
    /// The container's program could not be started.
    #[error("{reason}")]
    Start {
        /// 126: not executable; 127: not found; 128: else.
        exit_code: i32,
        /// The whole chain, for the user.
        reason: String,
    },
    /// It may work later.
    #[error("{reason}")]
    Unavailable {
        /// The whole chain, for the user.
        reason: String,
    },
}

/// Health of a running container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Nothing checks it.
    Unchecked,
    /// No result yet.
    Starting,
    /// The last probe succeeded.
    Healthy,
    /// So many probes in a row failed.
    Unhealthy,
}

/// A container that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Process id on this node.
    pub pid: u32,
    /// Host ports, with the numbers that were chosen.
    pub ports: Vec<PortConfig>,
    /// Health.
    pub health: Health,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 + n for signal n.
    pub exit_code: i32,
    /// The kernel killed it for memory.
    pub oom_killed: bool,
    /// When.
    pub at: Timestamp,
    /// Why it could not be started or was killed; empty if nothing is known.
    pub reason: String,
}

/// Where a container stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerPhase {
    /// Made, never started.
    Created,
    /// Has a process.
    Running(Running),
    /// Ended.
    Exited(Exit),
}

/// A container that carries a task's labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The container.
    pub container_id: ContainerId,
    /// Its task.
    pub task_id: TaskId,
    /// When it was made: of several containers of a task the newest counts.
    pub created: Timestamp,
    /// Where it stands.
    pub phase: ContainerPhase,
}

/// What happens to a running container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerChange {
    /// Its health has changed.
    Health(Health),
    /// It ended.
    Exited(Exit),
}

/// Runs the containers of tasks.
#[async_trait]
pub trait TaskRuntime: Send + Sync + 'static {
    /// Makes ready what the container needs: the image, and that volumes which must exist do exist. May take long;
    /// dropping the future gives up. `auth` is for the registry of the image, as clients send it.
    async fn prepare(
        &self,
        task: &Task,
        auth: Option<&Redacted<String>>,
    ) -> Result<(), RuntimeError>;

    /// Makes the container. `attempt` counts the task's containers from 0; `deadline` is until when it may run
    /// (nanoseconds of CLOCK_BOOTTIME).
    async fn create(
        &self,
        task: &Task,
        attempt: u32,
        deadline: Option<u64>,
    ) -> Result<ContainerId, RuntimeError>;

    /// Starts it.
    async fn start(&self, id: ContainerId) -> Result<Running, RuntimeError>;

    /// Waits until a running container ends or its health is another than `known`. Dropping the future is harmless.
    async fn changed(
        &self,
        id: ContainerId,
        known: Health,
    ) -> Result<ContainerChange, RuntimeError>;

    /// Asks it to stop, kills it after its grace, and answers once it has ended. Not running is no error.
    async fn stop(&self, id: ContainerId) -> Result<(), RuntimeError>;

    /// Removes it with its anonymous volumes. A missing one is no error.
    async fn remove(&self, id: ContainerId) -> Result<(), RuntimeError>;

    /// Sets until when it may run.
    async fn renew(&self, id: ContainerId, deadline: u64) -> Result<(), RuntimeError>;

    /// All containers with a task's labels.
    async fn found(&self) -> Result<Vec<Found>, RuntimeError>;

    /// Names of the volumes on this node.
    async fn volumes(&self) -> Result<Vec<String>, RuntimeError>;
}
