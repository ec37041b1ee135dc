//! Writes the journal off Raft's own thread: many requests, one frame, one sync.
//!
//! In production the writer is a thread. In simulation it is a task on the caller's runtime, which waits for as long as
//! the simulated disk says a sync takes.

use super::error::StartError;
use super::journal::Journal;
use super::runtime::Executor;
use super::segment::FRAME_BYTES_TARGET;
use super::stop::StopCause;
use super::types::TypeConfig;
use super::wire::Record;
use std::io;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Requests that wait for the writer; Raft waits when it is full.
const QUEUE_CAPACITY: usize = 4_096;

/// Something to write, and whom to tell that it is durable.
pub(crate) struct Job {
    /// What.
    pub(crate) records: Vec<Record>,
    /// Bytes of the commands in it.
    pub(crate) bytes: usize,
    /// Then.
    pub(crate) done: Done,
}

/// Whom to tell.
pub(crate) enum Done {
    /// Raft, of appended entries.
    Flushed(openraft::storage::IOFlushed<TypeConfig>),
    /// Whoever waits.
    Waiter(oneshot::Sender<io::Result<()>>),
    /// Nobody: it rides with the next sync.
    Nobody,
    /// Nobody; afterwards segments that are no longer needed are deleted.
    DeletePurged,
}

impl Done {
    fn tell(self, result: io::Result<()>) {
        match self {
            Self::Flushed(callback) => callback.io_completed(result),
            Self::Waiter(waiter) => {
                // Who does not wait any more does not need the answer.
                drop(waiter.send(result));
            }
            Self::Nobody | Self::DeletePurged => {}
        }
    }
}

/// The sending end of the writer.
#[derive(Clone)]
pub(crate) struct WriterHandle {
    jobs: mpsc::Sender<Job>,
}

impl WriterHandle {
    /// Starts a writer. It ends, after a last sync, when all handles are gone.
    pub(crate) fn start(
        journal: Journal,
        executor: &Executor,
        sync_time: Duration,
        stop: StopCause,
    ) -> Result<(Self, oneshot::Receiver<()>), StartError> {
        let (jobs, queue) = mpsc::channel(QUEUE_CAPACITY);
        // Whoever waits for the end is told by the drop of the sender.
        let (ended, end) = oneshot::channel();
        let writer = Writer {
            journal,
            stop,
            failed: None,
        };
        if executor.has_threads() {
            executor.start_thread("shoal-raft-log", move || {
                writer.run_blocking(queue);
                drop(ended);
            })?;
        } else {
            executor.spawn(async move {
                writer.run(queue, sync_time).await;
                drop(ended);
            });
        }
        Ok((Self { jobs }, end))
    }

    /// Hands a job over.
    pub(crate) async fn send(&self, job: Job) -> io::Result<()> {
        self.jobs.send(job).await.map_err(|_| stopped())
    }
}

fn stopped() -> io::Error {
    io::Error::other("the log writer has stopped")
}

struct Writer {
    journal: Journal,
    stop: StopCause,
    /// After a failed write or sync nothing is known about the file: every later request fails with the same error.
    failed: Option<String>,
}

impl Writer {
    fn run_blocking(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut batch = Vec::new();
        while let Some(first) = queue.blocking_recv() {
            fill(&mut batch, first, &mut queue);
            let written = self.write(&batch);
            let result = written.and_then(|()| self.journal.sync());
            self.tell(&mut batch, result);
        }
        self.finish();
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Job>, sync_time: Duration) {
        let mut batch = Vec::new();
        while let Some(first) = queue.recv().await {
            fill(&mut batch, first, &mut queue);
            let written = self.write(&batch);
            tokio::time::sleep(sync_time).await;
            let result = written.and_then(|()| self.journal.sync());
            self.tell(&mut batch, result);
        }
        self.finish();
    }

    fn write(&mut self, batch: &[Job]) -> io::Result<()> {
        if let Some(reason) = &self.failed {
            return Err(io::Error::other(reason.clone()));
        }
        let records: Vec<Record> = batch
            .iter()
            .flat_map(|job| job.records.iter().cloned())
            .collect();
        self.journal.write(&records)
    }

    fn tell(&mut self, batch: &mut Vec<Job>, result: io::Result<()>) {
        let mut result = result;
        if result.is_ok()
            && batch
                .iter()
                .any(|job| matches!(job.done, Done::DeletePurged))
        {
            result = self.journal.delete_purged();
        }
        if let Err(err) = &result
            && self.failed.is_none()
        {
            tracing::error!(%err, "the Raft log can't be written");
            self.stop.set_failed_write("the Raft log", err);
            self.failed = Some(format!("the Raft log can't be written: {err}"));
        }
        for job in batch.drain(..) {
            let answer = match &result {
                Ok(()) => Ok(()),
                Err(err) => Err(io::Error::new(err.kind(), err.to_string())),
            };
            job.done.tell(answer);
        }
    }

    fn finish(mut self) {
        if self.failed.is_none()
            && let Err(err) = self.journal.sync()
        {
            tracing::warn!(%err, "failed to sync the Raft log at the end");
        }
    }
}

/// Takes what waits already, up to a frame's size.
fn fill(batch: &mut Vec<Job>, first: Job, queue: &mut mpsc::Receiver<Job>) {
    let mut bytes = first.bytes;
    batch.push(first);
    while bytes < FRAME_BYTES_TARGET {
        let Ok(job) = queue.try_recv() else { break };
        bytes += job.bytes;
        batch.push(job);
    }
}
