//! The log as Raft sees it: entries in memory, and a writer that makes them durable.

use super::journal::LogImage;
use super::types::{Entry, LogId, TypeConfig, Vote};
use super::wire::{Record, log_id_to_wire};
use super::writer::{Done, Job, WriterHandle};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Most bytes of commands in one message to a follower, unless a single entry has more.
const APPEND_BYTES_MAX: usize = 1 << 20;

/// The log. Clones are the same log.
#[derive(Clone)]
pub(crate) struct LogStore {
    image: Arc<Mutex<LogImage>>,
    writer: WriterHandle,
}

impl LogStore {
    /// A log that starts as `image` and is written by `writer`.
    pub(crate) fn new(image: LogImage, writer: WriterHandle) -> Self {
        Self {
            image: Arc::new(Mutex::new(image)),
            writer,
        }
    }

    /// Bytes of the commands that are held in memory.
    pub(crate) fn command_bytes(&self) -> usize {
        self.image().command_bytes
    }

    fn image(&self) -> MutexGuard<'_, LogImage> {
        self.image.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write(&self, records: Vec<Record>, bytes: usize, done: Done) -> io::Result<()> {
        self.writer
            .send(Job {
                records,
                bytes,
                done,
            })
            .await
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        Ok(self.image().range(start, end).cloned().collect())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let image = self.image();
        let mut bytes = 0;
        let mut entries = Vec::new();
        for entry in image.range(start, end) {
            if let super::types::Payload::Normal(proposal) = &entry.payload {
                bytes += proposal.len();
            }
            if bytes > APPEND_BYTES_MAX && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.image().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let image = self.image();
        Ok(LogState {
            last_purged_log_id: image.purged,
            last_log_id: image.last_log_id(),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (sender, written) = oneshot::channel();
        self.write(vec![Record::Vote(vote.into())], 0, Done::Waiter(sender))
            .await?;
        written.await.map_err(io::Error::other)??;
        self.image().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        // Kept with the next thing that is written: a restarted manager that remembers an older one waits for its
        // leader to tell it what was committed since, and serves no linearizable read before.
        self.image().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.image().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let (records, bytes) = {
            let mut image = self.image();
            let before = image.command_bytes;
            let committed = log_id_to_wire(image.committed.as_ref());
            let mut records = vec![Record::Committed(committed)];
            for entry in entries {
                records.push(Record::Entry((&entry).into()));
                image.push(entry);
            }
            (records, image.command_bytes - before)
        };
        self.write(records, bytes, Done::Flushed(callback)).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.image().truncate_after(last.as_ref());
        let record = Record::TruncateAfter(log_id_to_wire(last.as_ref()));
        // What replaces the dropped entries is written after this record, in the same order.
        self.write(vec![record], 0, Done::Nobody).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.image().purge(upto);
        self.write(vec![Record::Purge((&upto).into())], 0, Done::DeletePurged)
            .await
    }
}
