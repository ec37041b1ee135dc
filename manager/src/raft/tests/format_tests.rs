//! Files and messages of format 1 as they were committed. `SHOAL_UPDATE_GOLDEN=1` rewrites the fixtures; do that for a
//! new format version only, under new names.

use crate::raft::RaftKey;
use crate::raft::disk::RealDisk;
use crate::raft::segment::{self, SegmentWriter};
use crate::raft::snapshot::{self, SnapshotWriter};
use crate::raft::types::{Entry, Payload, Proposal, Vote};
use crate::raft::types::{LeaderId, LogId, Membership, RaftPeer, SnapshotMeta, StoredMembership};
use crate::raft::wire::{
    AppendReply, AppendRequest, Hello, Record, SnapshotMessage, SnapshotReply, TransferReply,
    TransferRequest, VoteReply, VoteRequest, WireLogId,
};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_model::{NodeId, RaftNodeId, codec};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::PathBuf;

const KEY: [u8; 32] = [7; 32];

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("src/raft/tests/fixtures")
        .join(name)
}

fn is_update() -> bool {
    std::env::var_os("SHOAL_UPDATE_GOLDEN").is_some()
}

/// The bytes of a fixture; `written` replaces it in an update.
fn committed(name: &str, written: &[u8]) -> Vec<u8> {
    let lines = |bytes: &[u8]| {
        let lines = bytes.chunks(60).map(|line| hex::encode(line) + "\n");
        lines.collect::<String>()
    };
    if is_update() {
        std::fs::write(fixture(name), lines(written)).unwrap();
    }
    let text = std::fs::read_to_string(fixture(name)).unwrap();
    hex::decode(text.split_whitespace().collect::<String>()).unwrap()
}

fn log_id(index: u64) -> LogId {
    LogId {
        leader_id: LeaderId {
            term: 300,
            node_id: RaftNodeId(2),
        },
        index,
    }
}

fn wire_id(index: u64) -> WireLogId {
    (&log_id(index)).into()
}

fn vote() -> Vote {
    Vote {
        leader_id: log_id(0).leader_id,
        committed: true,
    }
}

fn membership() -> Membership {
    let peer = |id: u64, addr: &str| {
        let peer = RaftPeer {
            node_id: NodeId::from_bits(u128::from(id) << 100),
            addr: addr.parse().unwrap(),
        };
        (RaftNodeId(id), peer)
    };
    let members = BTreeMap::from([
        peer(1, "192.0.2.1:2377"),
        peer(2, "[2001:db8::2]:2377"),
        peer(3, "192.0.2.3:1"),
    ]);
    let voters = [[1, 2].as_slice(), &[2, 3]]
        .map(|set| set.iter().copied().map(RaftNodeId).collect::<BTreeSet<_>>());
    Membership::new(voters.to_vec(), members).unwrap()
}

fn entries() -> Vec<Entry> {
    let payloads = [
        Payload::Blank,
        Payload::Normal(Proposal {
            level: 1,
            commands: vec![Bytes::from_static(b"a command")],
        }),
        Payload::Membership(membership()),
    ];
    let numbered = (500..).zip(payloads);
    numbered
        .map(|(index, payload)| Entry {
            log_id: log_id(index),
            payload,
        })
        .collect()
}

fn records() -> Vec<Record> {
    let mut records = vec![
        Record::State {
            vote: Some((&vote()).into()),
            committed: Some(wire_id(498)),
            purged: Some(wire_id(7)),
            last: Some(wire_id(499)),
        },
        Record::Vote((&vote()).into()),
        Record::Committed(None),
    ];
    records.extend(entries().iter().map(|entry| Record::Entry(entry.into())));
    records.push(Record::TruncateAfter(Some(wire_id(501))));
    records.push(Record::Purge(wire_id(499)));
    records
}

#[test]
fn log_segment_of_format_1_is_read() {
    let (disk, key) = (RealDisk, RaftKey::from_bytes(KEY));
    let dir = tempfile::tempdir().unwrap();
    let mut writer = SegmentWriter::create(&disk, dir.path(), 3, 0, &key).unwrap();
    let records = records();
    let (head, tail) = records.split_at(4);
    for frame in [head, tail] {
        writer.write(&codec::encode(frame).unwrap()).unwrap();
    }
    writer.sync().unwrap();
    let path = dir.path().join(segment::file_name(3));
    let written = std::fs::read(&path).unwrap();
    let full_size = written.len();
    let end = written.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    // A segment is filled up with zeros, which the fixture leaves out.
    let mut bytes = committed("segment-v1.hex", &written[..end]);
    bytes.resize(full_size, 0);
    std::fs::write(&path, bytes).unwrap();
    let content = segment::read(&disk, &path, 3, true, &key).unwrap();
    assert_eq!(content.records, records);
    assert_eq!(content.torn_at, None);
}

#[test]
fn snapshot_file_of_format_1_is_read() {
    let (disk, key) = (RealDisk, RaftKey::from_bytes(KEY));
    let dir = tempfile::tempdir().unwrap();
    let meta = SnapshotMeta {
        last_log_id: Some(log_id(501)),
        last_membership: StoredMembership::new(Some(log_id(500)), membership()),
    };
    let mut writer = SnapshotWriter::create(&disk, dir.path(), &key, &meta).unwrap();
    writer.page(b"first page").unwrap();
    writer.page(b"second page").unwrap();
    let path = writer.finish().unwrap();
    let bytes = committed("snapshot-v1.hex", &std::fs::read(&path).unwrap());
    std::fs::write(&path, bytes).unwrap();
    let content = snapshot::read(&disk, &path, &key).unwrap().unwrap();
    assert_eq!(content.meta, meta);
    assert_eq!(content.pages, [&b"first page"[..], b"second page"]);
}

/// Messages by name, checked against the committed lines one by one.
struct Messages {
    committed: BTreeMap<String, String>,
    written: String,
}

impl Messages {
    fn open() -> Self {
        let text = std::fs::read_to_string(fixture("wire-v1.txt")).unwrap_or_default();
        let line = |line: &str| {
            let (name, bytes) = line.split_once(' ').unwrap();
            (name.to_owned(), bytes.to_owned())
        };
        Self {
            committed: text.lines().map(line).collect(),
            written: String::new(),
        }
    }

    fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(
        &mut self,
        name: &str,
        value: &T,
    ) {
        let written = hex::encode(codec::encode(value).unwrap());
        self.written += &format!("{name} {written}\n");
        if is_update() {
            return;
        }
        let committed = self.committed.remove(name).unwrap();
        assert_eq!(committed, written, "{name}");
        let read: T = codec::decode(&hex::decode(committed).unwrap()).unwrap();
        assert_eq!(read, *value, "{name}");
    }

    fn close(self) {
        if is_update() {
            std::fs::write(fixture("wire-v1.txt"), self.written).unwrap();
        } else {
            assert!(self.committed.is_empty(), "{:?}", self.committed.keys());
        }
    }
}

#[test]
fn messages_of_format_1_are_read_and_written_byte_by_byte() {
    let mut messages = Messages::open();
    let (from, to) = (RaftNodeId(1), RaftNodeId(2));
    messages.check("hello", &Hello { from, to });
    let append = AppendRequest {
        vote: (&vote()).into(),
        prev: Some(wire_id(499)),
        entries: entries().iter().map(Into::into).collect(),
        committed: Some(wire_id(498)),
    };
    messages.check("append", &append);
    messages.check(
        "append-matching",
        &AppendReply::Matching(Some(wire_id(502))),
    );
    messages.check("append-conflict", &AppendReply::Conflict(wire_id(12)));
    messages.check("append-vote", &AppendReply::HigherVote((&vote()).into()));
    messages.check("append-stopped", &AppendReply::Stopped("why".to_owned()));
    let ask = VoteRequest {
        vote: (&vote()).into(),
        last: Some(wire_id(1)),
        transfer: true,
    };
    messages.check("vote", &ask);
    let reply = VoteReply {
        vote: (&vote()).into(),
        granted: true,
        last: None,
    };
    messages.check("vote-reply", &reply);
    let transfer = TransferRequest {
        from_leader: (&vote()).into(),
        to,
        last: Some(wire_id(9)),
    };
    messages.check("transfer", &transfer);
    messages.check::<TransferReply>("transfer-done", &Ok(()));
    messages.check::<TransferReply>("transfer-refused", &Err("why".to_owned()));
    let meta = SnapshotMeta {
        last_log_id: Some(log_id(501)),
        last_membership: StoredMembership::new(Some(log_id(500)), membership()),
    };
    let head = SnapshotMessage::Head {
        vote: (&vote()).into(),
        meta: (&meta).into(),
    };
    messages.check("snapshot-head", &head);
    messages.check(
        "snapshot-page",
        &SnapshotMessage::Page(Bytes::from_static(b"page")),
    );
    messages.check("snapshot-end", &SnapshotMessage::End { pages: 300 });
    messages.check::<SnapshotReply>("snapshot-done", &Ok((&vote()).into()));
    messages.check::<SnapshotReply>("snapshot-refused", &Err("why".to_owned()));
    messages.close();
}
