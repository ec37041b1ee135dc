//! The agent: one node's session with the managers, and the life of the tasks that they assign to it.
//!
//! It works without managers: assignments are on disk, crashed containers are restarted here, and after a restart of
//! the daemon running containers are found again. What managers want is never guessed: a container that no record
//! names is removed only after a complete set of assignments has come.
//!
//! * [`step`]: the next action of one task, pure. [`repair`]: what an exit means, pure.
//! * `task`: one loop per task that carries actions out through the [`runtime::TaskRuntime`] seam.
//! * `tasks`: all of them, and what they report. [`disk`]: what survives a restart.
//! * `session`: the stream to the leader. `netfeed`: the stream of the node's networks, for the [`network`] seam. [`lease`]: until when `stop` tasks may run.
//!
//! Secrets and their payloads never touch the disk here; time, randomness, network, disk and containers come in
//! through seams, so that many agents run in one simulated process.
#![forbid(unsafe_code)]

pub mod agent;
pub mod disk;
pub mod engine;
pub mod lease;
mod netfeed;
pub mod network;
pub mod repair;
mod reports;
pub mod runtime;
mod session;
pub mod step;
mod task;
mod tasks;
#[cfg(test)]
mod tests;

pub use agent::{Agent, AgentClock, AgentHandle, AgentOptions};
pub use disk::{AgentDisk, FileDisk};
pub use engine::EngineRuntime;
pub use network::{AgentNetwork, NetworkSink, SinkError};
pub use runtime::{RuntimeError, TaskRuntime};
