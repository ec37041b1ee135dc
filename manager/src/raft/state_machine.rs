//! Raft's view of the replicated store: apply, take a snapshot, install one.

use super::crypt::RaftKey;
use super::disk::Disk;
use super::error::{LogError, chain};
use super::runtime::Executor;
use super::snapshot::{self, SnapshotContent, SnapshotWriter};
use super::stop::StopCause;
use super::types::{
    LogId, Payload, Proposal, Response, SnapshotMeta, StoredMembership, TypeConfig,
};
use crate::store::snapshot::{ImportError, Importer, export};
use crate::store::{State, Store};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use shoal_model::codec;
use shoal_model::command::{Command, FEATURE_LEVEL};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Entries that are applied before their changes are shown and their proposers answered.
const ENTRIES_PER_BATCH_MAX: usize = 256;

type RaftSnapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotFile>;

/// A complete snapshot file, the current one or one that was just received.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotFile {
    pub(crate) path: PathBuf,
}

/// What the files of one member need.
#[derive(Clone)]
pub(crate) struct Files {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) directory: PathBuf,
    pub(crate) key: RaftKey,
    pub(crate) executor: Executor,
    /// Last entry in the current snapshot. A builder that was overtaken by a received snapshot must not replace it.
    newest: Arc<Mutex<Option<LogId>>>,
}

impl Files {
    /// The files in `directory`.
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        directory: PathBuf,
        key: RaftKey,
        executor: Executor,
    ) -> Self {
        Self {
            disk,
            directory,
            key,
            executor,
            newest: Arc::default(),
        }
    }

    /// Reads a snapshot away from Raft's thread; the error is its whole chain of causes.
    pub(crate) async fn read_elsewhere(
        &self,
        path: PathBuf,
    ) -> io::Result<Option<SnapshotContent>> {
        let files = self.clone();
        let read = move || {
            files
                .read(&path)
                .map_err(|err| io::Error::other(chain(&err)))
        };
        self.executor.heavy(read).await
    }

    /// Makes a finished file the current snapshot, unless that is newer.
    fn adopt(&self, finished: &Path, last: Option<LogId>) -> io::Result<()> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if last < *newest {
            return self.disk.remove(finished);
        }
        snapshot::adopt(&*self.disk, &self.directory, finished)?;
        *newest = last;
        Ok(())
    }

    /// Reads a snapshot.
    pub(crate) fn read(&self, path: &Path) -> Result<Option<SnapshotContent>, LogError> {
        snapshot::read(&*self.disk, path, &self.key)
    }
}

fn decode_state(pages: &[Bytes]) -> Result<State, ImportError> {
    let mut importer = Importer::new();
    for page in pages {
        importer.push(page)?;
    }
    importer.finish()
}

/// The commands of an entry; the error says to the user why this binary can't read it.
fn decode_commands(index: u64, proposal: &Proposal) -> Result<Vec<Command>, String> {
    if proposal.level > FEATURE_LEVEL {
        return Err(format!(
            "entry {index} needs store feature level {}, and this binary reads up to {FEATURE_LEVEL}: upgrade this node",
            proposal.level
        ));
    }
    let commands = proposal.commands.iter().map(|bytes| codec::decode(bytes));
    commands
        .collect::<Result<_, _>>()
        .map_err(|err| format!("entry {index} can't be decoded: {}", chain(&err)))
}

/// The adapter.
pub(crate) struct Applier {
    store: Store,
    files: Files,
    stop: StopCause,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl Applier {
    /// Loads the current snapshot, if there is one.
    pub(crate) fn open(store: Store, files: Files, stop: StopCause) -> Result<Self, LogError> {
        snapshot::remove_unfinished(&*files.disk, &files.directory)?;
        let path = snapshot::current_path(&files.directory);
        let mut applier = Self {
            store,
            files,
            stop,
            applied: None,
            membership: StoredMembership::default(),
        };
        if let Some(content) = applier.files.read(&path)? {
            let state =
                decode_state(&content.pages).map_err(|err| LogError::State { path, err })?;
            applier.store.install(state);
            applier.applied = content.meta.last_log_id;
            applier.membership = content.meta.last_membership;
            *applier
                .files
                .newest
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = applier.applied;
        }
        Ok(applier)
    }

    /// Applies entries in a row, up to the first that can't be, and answers to their proposers.
    fn apply_batch(&mut self, entries: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let mut answers = Vec::with_capacity(entries.len());
        let mut failure = None;
        let mut batch = self.store.batch();
        for (entry, responder) in entries {
            let response = match &entry.payload {
                Payload::Blank => Response::default(),
                Payload::Normal(proposal) => match decode_commands(entry.log_id.index, proposal) {
                    Ok(commands) => Response(batch.apply(entry.log_id.index, &commands)),
                    Err(reason) => {
                        failure = Some(reason);
                        break;
                    }
                },
                Payload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                    Response::default()
                }
            };
            self.applied = Some(entry.log_id);
            if let Some(responder) = responder {
                answers.push((responder, response));
            }
        }
        batch.publish();
        for (responder, response) in answers {
            responder.send(response);
        }
        failure.map_or(Ok(()), |reason| Err(self.fail(reason)))
    }

    fn fail(&self, reason: String) -> io::Error {
        tracing::error!(reason, "this manager can't go on");
        self.stop.set(reason.clone());
        io::Error::other(reason)
    }
}

impl RaftStateMachine<TypeConfig> for Applier {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut batches = entries.ready_chunks(ENTRIES_PER_BATCH_MAX);
        while let Some(batch) = batches.next().await {
            self.apply_batch(batch.into_iter().collect::<io::Result<_>>()?)?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let meta = SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
        };
        Builder {
            state: self.store.view(),
            meta,
            files: self.files.clone(),
            stop: self.stop.clone(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        data: SnapshotFile,
    ) -> io::Result<()> {
        let files = self.files.clone();
        let path = data.path.clone();
        let installed = self
            .files
            .executor
            .heavy(move || {
                let content = files
                    .read(&path)
                    .map_err(|err| io::Error::other(chain(&err)))?
                    .ok_or_else(|| io::Error::other("the received snapshot is gone"))?;
                let state =
                    decode_state(&content.pages).map_err(|err| io::Error::other(chain(&err)))?;
                if path != snapshot::current_path(&files.directory) {
                    files.adopt(&path, content.meta.last_log_id)?;
                }
                Ok(state)
            })
            .await;
        let state =
            installed.map_err(|err| self.fail(format!("a snapshot can't be installed: {err}")))?;
        self.store.install(state);
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<RaftSnapshot>> {
        let path = snapshot::current_path(&self.files.directory);
        // The file may be newer than what this adapter last heard of: a builder runs beside it.
        let content = self.files.read_elsewhere(path.clone()).await?;
        Ok(content.map(|content| RaftSnapshot {
            meta: content.meta,
            snapshot: SnapshotFile { path },
        }))
    }
}

/// Writes a snapshot of the state as it was when the builder was made.
pub(crate) struct Builder {
    state: Arc<State>,
    meta: SnapshotMeta,
    files: Files,
    stop: StopCause,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<RaftSnapshot> {
        let state = Arc::clone(&self.state);
        let files = self.files.clone();
        let meta = self.meta.clone();
        let written = self
            .files
            .executor
            .heavy(move || {
                let mut writer =
                    SnapshotWriter::create(&*files.disk, &files.directory, &files.key, &meta)?;
                for page in export(&state) {
                    writer.page(&page.map_err(io::Error::other)?)?;
                }
                let finished = writer.finish()?;
                files.adopt(&finished, meta.last_log_id)?;
                Ok(snapshot::current_path(&files.directory))
            })
            .await;
        let path = written.inspect_err(|err| self.stop.set_failed_write("a snapshot", err))?;
        Ok(RaftSnapshot {
            meta: self.meta.clone(),
            snapshot: SnapshotFile { path },
        })
    }
}
