//! The log on disk: segments in a row, read once at start and then only appended to.
//!
//! The journal is a history of steps (entries, votes, truncations, purges). Nothing in it is ever changed in place;
//! what the log is now follows from playing it back. A segment starts with the state so far, so that the ones before it
//! can be deleted as soon as all their entries are in a snapshot.

use super::crypt::RaftKey;
use super::disk::Disk;
use super::error::LogError;
use super::segment::{self, SegmentWriter};
use super::types::{Entry, LogId, Vote};
use super::wire::{Record, log_id_from_wire, log_id_to_wire};
use shoal_model::codec;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The log as it stands after playing back the journal. Entries stay in memory until they are purged: followers and
/// `apply` read them from there, never from the disk.
#[derive(Debug, Default)]
pub(crate) struct LogImage {
    pub(crate) entries: VecDeque<Entry>,
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    /// Bytes of the commands in `entries`.
    pub(crate) command_bytes: usize,
}

impl LogImage {
    /// The id of the last entry, purged or not.
    pub(crate) fn last_log_id(&self) -> Option<LogId> {
        self.entries
            .back()
            .map(|entry| entry.log_id)
            .or(self.purged)
    }

    /// The index that the next entry gets.
    pub(crate) fn next_index(&self) -> u64 {
        self.last_log_id().map_or(0, |id| id.index + 1)
    }

    /// Adds an entry.
    pub(crate) fn push(&mut self, entry: Entry) {
        self.command_bytes += command_bytes(&entry);
        self.entries.push_back(entry);
    }

    /// Drops entries behind `last`.
    pub(crate) fn truncate_after(&mut self, last: Option<&LogId>) {
        let keep_to = last.map_or(0, |id| id.index + 1);
        while self
            .entries
            .back()
            .is_some_and(|entry| entry.log_id.index >= keep_to)
        {
            if let Some(entry) = self.entries.pop_back() {
                self.command_bytes -= command_bytes(&entry);
            }
        }
    }

    /// Drops entries up to `upto`.
    pub(crate) fn purge(&mut self, upto: LogId) {
        while self
            .entries
            .front()
            .is_some_and(|entry| entry.log_id.index <= upto.index)
        {
            if let Some(entry) = self.entries.pop_front() {
                self.command_bytes -= command_bytes(&entry);
            }
        }
        if self.purged.is_none_or(|purged| purged.index < upto.index) {
            self.purged = Some(upto);
        }
    }

    /// Entries in `[start, end)` that are there.
    pub(crate) fn range(&self, start: u64, end: u64) -> impl Iterator<Item = &Entry> {
        let first = self.entries.front().map_or(0, |entry| entry.log_id.index);
        let skip = usize::try_from(start.saturating_sub(first)).unwrap_or(usize::MAX);
        let end = usize::try_from(end.saturating_sub(first)).unwrap_or(usize::MAX);
        let end = end.min(self.entries.len());
        self.entries.range(skip.min(end)..end)
    }

    fn state_record(&self) -> Record {
        Record::State {
            vote: self.vote.as_ref().map(Into::into),
            committed: log_id_to_wire(self.committed.as_ref()),
            purged: log_id_to_wire(self.purged.as_ref()),
            last: log_id_to_wire(self.last_log_id().as_ref()),
        }
    }

    fn play(&mut self, path: &Path, record: Record) -> Result<(), LogError> {
        match record {
            Record::State {
                vote,
                committed,
                purged,
                last: _,
            } => {
                self.vote = vote.map(Into::into).or(self.vote);
                self.committed = log_id_from_wire(committed).or(self.committed);
                if let Some(purged) = log_id_from_wire(purged) {
                    self.purge(purged);
                }
            }
            Record::Vote(vote) => self.vote = Some(vote.into()),
            Record::Committed(id) => self.committed = log_id_from_wire(id),
            Record::Entry(entry) => {
                let entry = entry.into_entry().map_err(|err| LogError::Damaged {
                    path: path.to_owned(),
                    offset: 0,
                    reason: err.to_string(),
                })?;
                let found = entry.log_id.index;
                if found != self.next_index() {
                    let last = self.next_index().saturating_sub(1);
                    return Err(LogError::Gap {
                        path: path.to_owned(),
                        last,
                        found,
                    });
                }
                self.push(entry);
            }
            Record::TruncateAfter(last) => self.truncate_after(log_id_from_wire(last).as_ref()),
            Record::Purge(upto) => self.purge(upto.into()),
        }
        Ok(())
    }
}

fn command_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        super::types::Payload::Normal(proposal) => proposal.len(),
        super::types::Payload::Blank | super::types::Payload::Membership(_) => 0,
    }
}

/// State that a new segment starts with, kept beside the writer.
#[derive(Debug, Clone, Copy, Default)]
struct Carried {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
}

impl Carried {
    fn record(&self) -> Record {
        Record::State {
            vote: self.vote.as_ref().map(Into::into),
            committed: log_id_to_wire(self.committed.as_ref()),
            purged: log_id_to_wire(self.purged.as_ref()),
            last: log_id_to_wire(self.last.as_ref()),
        }
    }

    fn note(&mut self, record: &Record) -> Option<u64> {
        match record {
            Record::State { .. } => None,
            Record::Vote(vote) => {
                self.vote = Some((*vote).into());
                None
            }
            Record::Committed(id) => {
                self.committed = log_id_from_wire(*id);
                None
            }
            Record::Entry(entry) => {
                let id = entry.log_id();
                self.last = Some(id);
                Some(id.index)
            }
            Record::TruncateAfter(last) => {
                self.last = log_id_from_wire(*last);
                None
            }
            Record::Purge(upto) => {
                let upto = LogId::from(*upto);
                self.purged = Some(upto);
                self.last = self.last.max(Some(upto));
                None
            }
        }
    }
}

/// The writing end of the log. Used by one thread or task.
pub(crate) struct Journal {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    key: RaftKey,
    writer: SegmentWriter,
    number: u64,
    carried: Carried,
    /// Highest entry index in each segment that is still there; `None` without entries.
    segments: BTreeMap<u64, Option<u64>>,
}

impl Journal {
    /// Reads the log in `directory`, cuts an incomplete last record off, and starts a new segment.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        directory: &Path,
        key: &RaftKey,
    ) -> Result<(Self, LogImage), LogError> {
        disk.create_dir_all(directory)
            .map_err(|err| LogError::io("create", directory, err))?;
        let names = disk
            .list(directory)
            .map_err(|err| LogError::io("list", directory, err))?;
        let numbers: Vec<u64> = names
            .iter()
            .filter_map(|name| segment::parse_file_name(name))
            .collect();
        let mut image = LogImage::default();
        let mut segments = BTreeMap::new();
        for (place, &number) in numbers.iter().enumerate() {
            let path = directory.join(segment::file_name(number));
            if place > 0 && number != numbers[place - 1] + 1 {
                let missing = directory.join(segment::file_name(numbers[place - 1] + 1));
                return Err(LogError::Missing { path: missing });
            }
            let is_last = place + 1 == numbers.len();
            let highest = play_segment(&*disk, &path, number, is_last, key, &mut image)?;
            segments.insert(number, highest);
        }
        let number = numbers.last().map_or(0, |last| last + 1);
        let state =
            encode(&[image.state_record()]).map_err(|err| LogError::io("write", directory, err))?;
        let mut writer = SegmentWriter::create(&*disk, directory, number, state.len(), key)
            .map_err(|err| LogError::io("create a segment in", directory, err))?;
        writer
            .write(&state)
            .and_then(|()| writer.sync())
            .map_err(|err| LogError::io("write", writer.path(), err))?;
        segments.insert(number, None);
        let carried = Carried {
            vote: image.vote,
            committed: image.committed,
            purged: image.purged,
            last: image.last_log_id(),
        };
        let mut journal = Self {
            disk,
            directory: directory.to_owned(),
            key: key.clone(),
            writer,
            number,
            carried,
            segments,
        };
        journal
            .delete_purged()
            .map_err(|err| LogError::io("delete a segment in", directory, err))?;
        Ok((journal, image))
    }

    /// Writes records as one frame; they are durable after [`Self::sync`].
    pub(crate) fn write(&mut self, records: &[Record]) -> io::Result<()> {
        let body = encode(records)?;
        if !self.writer.fits(body.len()) {
            self.rotate(body.len())?;
        }
        for record in records {
            if let Some(index) = self.carried.note(record) {
                let highest = self.segments.entry(self.number).or_default();
                *highest = (*highest).max(Some(index));
            }
        }
        self.writer.write(&body)
    }

    /// Makes everything written durable.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.writer.sync()
    }

    /// Deletes segments whose entries were all purged. Call it after the purge is durable.
    pub(crate) fn delete_purged(&mut self) -> io::Result<()> {
        let Some(purged) = self.carried.purged else {
            return Ok(());
        };
        let mut deleted = false;
        while let Some((&number, &highest)) = self.segments.first_key_value() {
            if number == self.number || highest.is_some_and(|highest| highest > purged.index) {
                break;
            }
            self.disk
                .remove(&self.directory.join(segment::file_name(number)))?;
            self.segments.remove(&number);
            deleted = true;
        }
        if deleted {
            self.disk.sync_dir(&self.directory)
        } else {
            Ok(())
        }
    }

    /// Starts the next segment. What the last one holds must be durable before the next one is there.
    fn rotate(&mut self, body_bytes: usize) -> io::Result<()> {
        self.writer.sync()?;
        let state = encode(&[self.carried.record()])?;
        let number = self.number + 1;
        let room = body_bytes + state.len() + 1024;
        let mut writer =
            SegmentWriter::create(&*self.disk, &self.directory, number, room, &self.key)?;
        writer.write(&state)?;
        writer.sync()?;
        self.writer = writer;
        self.number = number;
        self.segments.insert(number, None);
        Ok(())
    }
}

fn play_segment(
    disk: &dyn Disk,
    path: &Path,
    number: u64,
    is_last: bool,
    key: &RaftKey,
    image: &mut LogImage,
) -> Result<Option<u64>, LogError> {
    let content = segment::read(disk, path, number, is_last, key)?;
    if let Some(at) = content.torn_at {
        tracing::warn!(path = %path.display(), offset = at, "cut an incomplete record off the log");
        segment::cut(disk, path, at).map_err(|err| LogError::io("write", path, err))?;
    } else if let Some(frame) = content.last_frame.filter(|_| is_last) {
        // A frame is written only after the sync of the one before: no other can be in doubt.
        segment::make_durable(disk, path, frame).map_err(|err| LogError::io("write", path, err))?;
    }
    let mut highest = None;
    for record in content.records {
        if let Record::Entry(entry) = &record {
            highest = highest.max(Some(entry.log_id().index));
        }
        image.play(path, record)?;
    }
    Ok(highest)
}

fn encode(records: &[Record]) -> io::Result<Vec<u8>> {
    codec::encode(records).map_err(io::Error::other)
}
