//! The one door into the engine.

use crate::config::{ContainerConfig, Fencing};
use crate::error::{EngineError, Result};
use crate::event::Event;
use crate::info::{ContainerInfo, ContainerStats, EngineInfo, ExecInfo, NetworkInfo, VolumeInfo};
use crate::options::EngineOptions;
use crate::requests::{
    ArchivePutOptions, AttachOptions, AttachStreams, ContainerUpdate, Created, EventFilter,
    ExecConfig, ListFilter, LogEntry, LogOptions, PathStat, ProcessTable, Pruned, RemoveOptions,
    TerminalSize, VolumeCreate, WaitCondition, WaitResult,
};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use shoal_model::ContainerId;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::io::AsyncRead;

/// A running engine. Cheap to clone; the containers outlive it.
#[derive(Clone, Debug)]
pub struct EngineHandle {}

impl EngineHandle {
    /// Finds everything again that an earlier engine left, cleans up what it had half done, and starts.
    pub async fn start(_options: EngineOptions) -> Result<Self> {
        Err(EngineError::ShuttingDown)
    }
    /// Makes a container. Without a name it gets a generated one.
    pub async fn create(&self, _name: Option<String>, _config: ContainerConfig) -> Result<Created> {
        Err(EngineError::ShuttingDown)
    }
    /// Starts a container.
    pub async fn start_container(&self, _name: &str) -> Result<()> {
        Err(EngineError::ShuttingDown)
    }
    /// Asks it to stop and kills it after the grace. `None`: the container's own grace and signal.
    pub async fn stop(
        &self,
        _name: &str,
        _grace: Option<Duration>,
        _signal: Option<&str>,
    ) -> Result<()> {
        Err(EngineError::ShuttingDown)
    }
    /// Sends a signal (`KILL`, `SIGTERM`, `9`).
    pub async fn kill(&self, _name: &str, _signal: &str) -> Result<()> {
        Err(EngineError::ShuttingDown)
    }
    /// Stops if it runs, then starts.
    pub async fn restart(
        &self,
        _name: &str,
        _grace: Option<Duration>,
        _signal: Option<&str>,
    ) -> Result<()> {
        Err(EngineError::ShuttingDown)
    }
    /// Freezes it.
    pub async fn pause(&self, _name: &str) -> Result<()> {
        Err(EngineError::ShuttingDown)
    }
    /// Thaws it.
    pub async fn unpause(&self, _name: &str) -> Result<()> {
        Err(EngineError::ShuttingDown)
    }
    /// Gives it another name.
    pub async fn rename(&self, _name: &str, _new_name: &str) -> Result<()> {
        Err(EngineError::ShuttingDown)
    }
    /// Waits until the condition holds. An unknown container is refused at the first poll.
    pub async fn wait(&self, _name: &str, _condition: WaitCondition) -> Result<WaitResult> {
        Err(EngineError::ShuttingDown)
    }
    /// Removes it.
    pub async fn remove(&self, _name: &str, _options: RemoveOptions) -> Result<()> {
        Err(EngineError::ShuttingDown)
    }
    /// Everything about one container; by id, name, or unique prefix of an id.
    pub async fn inspect(&self, _name: &str) -> Result<ContainerInfo> {
        Err(EngineError::ShuttingDown)
    }
    /// Containers, newest first.
    pub async fn list(&self, _filter: ListFilter) -> Result<Vec<ContainerInfo>> {
        Err(EngineError::ShuttingDown)
    }
    /// Its log.
    pub async fn logs(
        &self,
        _name: &str,
        _options: LogOptions,
    ) -> Result<BoxStream<'static, Result<LogEntry>>> {
        Err(EngineError::ShuttingDown)
    }
    /// Its standard streams.
    pub async fn attach(&self, _name: &str, _options: AttachOptions) -> Result<AttachStreams> {
        Err(EngineError::ShuttingDown)
    }
    /// Sets the size of its terminal.
    pub async fn resize(&self, _name: &str, _size: TerminalSize) -> Result<()> {
        Err(EngineError::ShuttingDown)
    }
    /// Prepares a further process.
    pub async fn exec_create(&self, _name: &str, _config: ExecConfig) -> Result<String> {
        Err(EngineError::ShuttingDown)
    }
    /// Starts it; with `detach` nothing is attached and the streams are empty.
    pub async fn exec_start(&self, _exec_id: &str, _detach: bool) -> Result<AttachStreams> {
        Err(EngineError::ShuttingDown)
    }
    /// What is known of it.
    pub async fn exec_inspect(&self, _exec_id: &str) -> Result<ExecInfo> {
        Err(EngineError::ShuttingDown)
    }
    /// Sets the size of its terminal.
    pub async fn exec_resize(&self, _exec_id: &str, _size: TerminalSize) -> Result<()> {
        Err(EngineError::ShuttingDown)
    }
    /// Its processes.
    pub async fn top(&self, _name: &str) -> Result<ProcessTable> {
        Err(EngineError::ShuttingDown)
    }
    /// One sample of its use of resources.
    pub async fn stats(&self, _name: &str) -> Result<ContainerStats> {
        Err(EngineError::ShuttingDown)
    }
    /// Changes limits or restart policy; warnings come back.
    pub async fn update(&self, _name: &str, _update: ContainerUpdate) -> Result<Vec<String>> {
        Err(EngineError::ShuttingDown)
    }
    /// Sets until when a fenced container may run; `None`: for ever.
    pub async fn renew_fencing(&self, _name: &str, _fencing: Option<Fencing>) -> Result<()> {
        Err(EngineError::ShuttingDown)
    }
    /// Facts about a file in the container.
    pub async fn archive_stat(&self, _name: &str, _path: &str) -> Result<PathStat> {
        Err(EngineError::ShuttingDown)
    }
    /// A file or directory of the container as a tar stream.
    pub async fn archive_get(
        &self,
        _name: &str,
        _path: &str,
    ) -> Result<(PathStat, BoxStream<'static, Result<Bytes>>)> {
        Err(EngineError::ShuttingDown)
    }
    /// Unpacks a tar stream (plain, gzip) into a directory of the container.
    pub async fn archive_put(
        &self,
        _name: &str,
        _path: &str,
        _tar: impl AsyncRead + Send + Unpin + 'static,
        _options: ArchivePutOptions,
    ) -> Result<()> {
        Err(EngineError::ShuttingDown)
    }
    /// Removes the containers that have ended and match (`label`, `until`).
    pub async fn prune_containers(
        &self,
        _filters: BTreeMap<String, Vec<String>>,
    ) -> Result<Pruned> {
        Err(EngineError::ShuttingDown)
    }
    /// Makes a volume; an existing one of the same name and driver is given back.
    pub async fn volume_create(&self, _request: VolumeCreate) -> Result<VolumeInfo> {
        Err(EngineError::ShuttingDown)
    }
    /// A volume by name.
    pub async fn volume_inspect(&self, _name: &str) -> Result<VolumeInfo> {
        Err(EngineError::ShuttingDown)
    }
    /// Volumes by name; filters `name label dangling driver`.
    pub async fn volume_list(
        &self,
        _filters: BTreeMap<String, Vec<String>>,
    ) -> Result<Vec<VolumeInfo>> {
        Err(EngineError::ShuttingDown)
    }
    /// Removes a volume that nobody uses; with `force` a missing one is no error.
    pub async fn volume_remove(&self, _name: &str, _force: bool) -> Result<()> {
        Err(EngineError::ShuttingDown)
    }
    /// Removes unused anonymous volumes; with filter `all=true` named ones too.
    pub async fn volume_prune(&self, _filters: BTreeMap<String, Vec<String>>) -> Result<Pruned> {
        Err(EngineError::ShuttingDown)
    }
    /// Networks by name; filters `name id driver type scope label`.
    pub async fn network_list(
        &self,
        _filters: BTreeMap<String, Vec<String>>,
    ) -> Result<Vec<NetworkInfo>> {
        Err(EngineError::ShuttingDown)
    }
    /// A network by name or id.
    pub async fn network_inspect(&self, _name: &str) -> Result<NetworkInfo> {
        Err(EngineError::ShuttingDown)
    }
    /// What happens from now on (or, with `since`, from the buffer first). A reader that falls behind is told so by
    /// an error and the end of the stream.
    pub async fn events(&self, _filter: EventFilter) -> Result<BoxStream<'static, Result<Event>>> {
        Err(EngineError::ShuttingDown)
    }
    /// Counts and facts of the machine.
    pub async fn info(&self) -> Result<EngineInfo> {
        Err(EngineError::ShuttingDown)
    }
    /// Ends the actors. The containers live on.
    pub async fn shutdown(&self) {}
    /// The id of the container with that name or unique prefix.
    pub async fn resolve(&self, _name: &str) -> Result<ContainerId> {
        Err(EngineError::ShuttingDown)
    }
}
