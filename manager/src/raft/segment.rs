//! One file of the log: a head, then frames, then zeros up to its full size.
//!
//! ```text
//! head, one block:  "SHOALLOG" | format 1 | cipher 1 | 6 zeros | number u64 | size u64 | salt 32 | key id 16 | crc u32
//! frame, blocks:    "SFRM" | number u64 | body length u32 | crc u32 | sealed body | zeros up to a block's end
//! ```
//! A block has 512 bytes, which devices write as a whole, and a frame starts a block of its own, so that no write ever
//! touches a block that holds acknowledged entries. A frame is what one sync makes durable, and the next one is
//! written only after that sync: so at most one frame, the last, can be incomplete after a crash, and then nothing
//! that was acknowledged is in it. Everything else that does not read back is damage, and is never cut off silently.

use super::crypt::{FileKey, KEY_ID_BYTES, RaftKey, SALT_BYTES, TAG_BYTES, crc32c, random};
use super::disk::{Disk, DiskFile, read_all};
use super::error::LogError;
use super::wire::Record;
use shoal_model::codec;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Bytes that a device writes as a whole.
const BLOCK_BYTES: usize = 512;
/// Size of a segment, unless one frame needs more.
pub(crate) const SEGMENT_BYTES: u64 = 8 << 20;
/// Most bytes of records in one frame; an entry alone may have more.
pub(crate) const FRAME_BYTES_TARGET: usize = 1 << 20;

const HEAD_MAGIC: &[u8; 8] = b"SHOALLOG";
const HEAD_BYTES: usize = 84;
const FORMAT: u8 = 1;
const CIPHER_AES_256_GCM: u8 = 1;
const FRAME_MAGIC: &[u8; 4] = b"SFRM";
const FRAME_HEAD_BYTES: usize = 20;
const PURPOSE: &[u8] = b"shoal raft log segment";

/// The file name of a segment.
pub(crate) fn file_name(number: u64) -> String {
    format!("log-{number:016x}")
}

/// The number in a segment's file name.
pub(crate) fn parse_file_name(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("log-")?;
    (digits.len() == 16)
        .then(|| u64::from_str_radix(digits, 16).ok())
        .flatten()
}

const fn blocks_up(bytes: usize) -> usize {
    bytes.div_ceil(BLOCK_BYTES) * BLOCK_BYTES
}

/// A segment that this process made and appends to.
pub(crate) struct SegmentWriter {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    key: FileKey,
    size: u64,
    end: u64,
    next_frame: u64,
    buffer: Vec<u8>,
}

impl SegmentWriter {
    /// Makes segment `number`, with room for a first frame of `body_bytes`; it is durable when this returns.
    pub(crate) fn create(
        disk: &dyn Disk,
        directory: &Path,
        number: u64,
        body_bytes: usize,
        key: &RaftKey,
    ) -> io::Result<Self> {
        let needed = BLOCK_BYTES + blocks_up(FRAME_HEAD_BYTES + body_bytes + TAG_BYTES);
        let size = SEGMENT_BYTES.max(needed as u64);
        let salt = random::<SALT_BYTES>()?;
        let path = directory.join(file_name(number));
        let temporary = directory.join("log.tmp");
        let mut file = disk.create(&temporary, size)?;
        file.write_at(0, &encode_head(number, size, &salt, key))?;
        file.sync()?;
        disk.rename(&temporary, &path)?;
        disk.sync_dir(directory)?;
        Ok(Self {
            path,
            file,
            key: key.file_key(&salt, PURPOSE),
            size,
            end: BLOCK_BYTES as u64,
            next_frame: 0,
            buffer: Vec::new(),
        })
    }

    /// Whether a frame with a body of that many bytes still fits.
    pub(crate) fn fits(&self, body_bytes: usize) -> bool {
        let frame = blocks_up(FRAME_HEAD_BYTES + body_bytes + TAG_BYTES) as u64;
        self.end + frame <= self.size
    }

    /// Writes a frame; it is not durable before [`Self::sync`].
    pub(crate) fn write(&mut self, body: &[u8]) -> io::Result<()> {
        let buffer = &mut self.buffer;
        buffer.clear();
        let length = u32::try_from(body.len() + TAG_BYTES).map_err(io::Error::other)?;
        buffer.extend_from_slice(FRAME_MAGIC);
        buffer.extend_from_slice(&self.next_frame.to_le_bytes());
        buffer.extend_from_slice(&length.to_le_bytes());
        let crc = crc32c(buffer);
        buffer.extend_from_slice(&crc.to_le_bytes());
        let mut head = [0; FRAME_HEAD_BYTES];
        head.copy_from_slice(buffer);
        buffer.extend_from_slice(body);
        self.key
            .seal(self.next_frame, &head, buffer, FRAME_HEAD_BYTES);
        buffer.resize(blocks_up(buffer.len()), 0);
        self.file.write_at(self.end, buffer)?;
        self.end += buffer.len() as u64;
        self.next_frame += 1;
        Ok(())
    }

    /// Makes all frames durable.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }

    /// Its file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn encode_head(number: u64, size: u64, salt: &[u8; SALT_BYTES], key: &RaftKey) -> Vec<u8> {
    let mut head = Vec::with_capacity(BLOCK_BYTES);
    head.extend_from_slice(HEAD_MAGIC);
    head.extend_from_slice(&[FORMAT, CIPHER_AES_256_GCM, 0, 0, 0, 0, 0, 0]);
    head.extend_from_slice(&number.to_le_bytes());
    head.extend_from_slice(&size.to_le_bytes());
    head.extend_from_slice(salt);
    head.extend_from_slice(&key.id()[..]);
    debug_assert_eq!(head.len() + 4, HEAD_BYTES);
    let crc = crc32c(&head);
    head.extend_from_slice(&crc.to_le_bytes());
    head.resize(BLOCK_BYTES, 0);
    head
}

/// What a segment holds.
pub(crate) struct SegmentContent {
    /// All records, in order.
    pub(crate) records: Vec<Record>,
    /// Where an incomplete last frame starts, if there is one.
    pub(crate) torn_at: Option<u64>,
    /// Where the last complete frame is, if there is one.
    pub(crate) last_frame: Option<Range<u64>>,
}

/// Reads a segment. Only the last one may end in an incomplete frame.
pub(crate) fn read(
    disk: &dyn Disk,
    path: &Path,
    number: u64,
    is_last: bool,
    key: &RaftKey,
) -> Result<SegmentContent, LogError> {
    let mut bytes = disk
        .open(path)
        .and_then(|file| read_all(&*file))
        .map_err(|err| LogError::io("read", path, err))?;
    let file_key = check_head(path, &bytes, number, key)?;
    let damaged = |offset: usize, reason: &str| LogError::Damaged {
        path: path.to_owned(),
        offset: offset as u64,
        reason: reason.to_owned(),
    };
    let mut records = Vec::new();
    let mut at = BLOCK_BYTES;
    let mut next_frame = 0;
    let mut last_frame = None;
    loop {
        match inspect(&bytes, at, next_frame) {
            Frame::Complete { body } => {
                let (head, rest) = bytes[at..body.end].split_at_mut(FRAME_HEAD_BYTES);
                let Some(plain) = file_key.open(next_frame, head, rest) else {
                    // The frame is encrypted in place, so what was read is gone: look at the file once more.
                    let again = disk
                        .open(path)
                        .and_then(|file| read_all(&*file))
                        .map_err(|err| LogError::io("read", path, err))?;
                    if is_last && is_torn(&again, at, body.end, next_frame) {
                        return Ok(SegmentContent {
                            records,
                            torn_at: Some(at as u64),
                            last_frame,
                        });
                    }
                    return Err(damaged(at, "a record does not match its checksum"));
                };
                let frame: Vec<Record> =
                    codec::decode(plain).map_err(|err| LogError::Undecodable {
                        path: path.to_owned(),
                        err,
                    })?;
                records.extend(frame);
                let end = blocks_up(body.end);
                last_frame = Some(at as u64..end as u64);
                at = end;
                next_frame += 1;
            }
            Frame::None => {
                return Ok(SegmentContent {
                    records,
                    torn_at: None,
                    last_frame,
                });
            }
            Frame::Unreadable
                if is_last && !later_frame(&bytes, at, next_frame) && has_hole(&bytes, at) =>
            {
                return Ok(SegmentContent {
                    records,
                    torn_at: Some(at as u64),
                    last_frame,
                });
            }
            Frame::Unreadable => return Err(damaged(at, "the head of a record is damaged")),
        }
    }
}

/// Overwrites an incomplete last frame with zeros, so that its segment reads as complete from now on.
pub(crate) fn cut(disk: &dyn Disk, path: &Path, at: u64) -> io::Result<()> {
    let mut file = disk.open(path)?;
    let len = file.len()?;
    let zeros = vec![0; 1 << 16];
    // From the end to the front: as long as its head stands, the frame is seen as incomplete.
    let mut end = len;
    while end > at {
        let start = at.max(end.saturating_sub(zeros.len() as u64));
        file.write_at(start, &zeros[..(end - start) as usize])?;
        end = start;
    }
    file.sync()
}

/// Writes the last frame again and syncs it, so that what was read is on the device.
///
/// The process before may have died before the sync, or its sync may have failed: the system still shows the frame, and
/// loses it with its power. After a failed sync another one does nothing, as the kernel takes the pages for clean.
pub(crate) fn make_durable(disk: &dyn Disk, path: &Path, frame: Range<u64>) -> io::Result<()> {
    let mut file = disk.open(path)?;
    let len = usize::try_from(frame.end - frame.start).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        let read = file.read_at(frame.start + filled as u64, &mut bytes[filled..])?;
        if read == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        filled += read;
    }
    file.write_at(frame.start, &bytes)?;
    file.sync()
}

fn check_head(path: &Path, bytes: &[u8], number: u64, key: &RaftKey) -> Result<FileKey, LogError> {
    let damaged = |reason: &str| LogError::Damaged {
        path: path.to_owned(),
        offset: 0,
        reason: reason.to_owned(),
    };
    if bytes.len() < BLOCK_BYTES || &bytes[..8] != HEAD_MAGIC {
        return Err(damaged("it does not start as a log segment does"));
    }
    if bytes[8] != FORMAT || bytes[9] != CIPHER_AES_256_GCM {
        return Err(LogError::UnknownFormat {
            path: path.to_owned(),
            format: bytes[8],
            cipher: bytes[9],
        });
    }
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    let crc = u32::from_le_bytes(std::array::from_fn(|i| bytes[HEAD_BYTES - 4 + i]));
    if crc != crc32c(&bytes[..HEAD_BYTES - 4]) {
        return Err(damaged("its head does not match its checksum"));
    }
    if word(16) != number {
        return Err(damaged("it is another segment than its name says"));
    }
    if word(24) != bytes.len() as u64 {
        return Err(damaged("its size is not the one that it was made with"));
    }
    let salt: [u8; SALT_BYTES] = std::array::from_fn(|i| bytes[32 + i]);
    let key_id: [u8; KEY_ID_BYTES] = std::array::from_fn(|i| bytes[32 + SALT_BYTES + i]);
    if key_id != key.id() {
        return Err(LogError::WrongKey {
            path: path.to_owned(),
        });
    }
    Ok(key.file_key(&salt, PURPOSE))
}

enum Frame {
    /// A head that matches its checksum; the sealed body may still be incomplete.
    Complete { body: Range<usize> },
    /// Only zeros follow.
    None,
    /// Something else.
    Unreadable,
}

fn inspect(bytes: &[u8], at: usize, number: u64) -> Frame {
    let Some(head) = bytes.get(at..at + FRAME_HEAD_BYTES) else {
        return Frame::None;
    };
    if let Some(length) = parse_frame_head(head, |found| found == number) {
        let start = at + FRAME_HEAD_BYTES;
        let end = start + length;
        if length >= TAG_BYTES && end <= bytes.len() {
            return Frame::Complete { body: start..end };
        }
        return Frame::Unreadable;
    }
    if bytes[at..].iter().all(|&byte| byte == 0) {
        Frame::None
    } else {
        Frame::Unreadable
    }
}

fn parse_frame_head(head: &[u8], accept: impl Fn(u64) -> bool) -> Option<usize> {
    let number = u64::from_le_bytes(head.get(4..12)?.try_into().ok()?);
    let length = u32::from_le_bytes(head.get(12..16)?.try_into().ok()?);
    let crc = u32::from_le_bytes(head.get(16..20)?.try_into().ok()?);
    let whole = &head[..4] == FRAME_MAGIC && crc == crc32c(&head[..16]) && accept(number);
    whole.then_some(length as usize)
}

/// Whether a frame that follows frame `number` stands behind `at`: then `number` was synced once.
fn later_frame(bytes: &[u8], at: usize, number: u64) -> bool {
    bytes[at..].chunks(BLOCK_BYTES).skip(1).any(|block| {
        block.len() >= FRAME_HEAD_BYTES && parse_frame_head(block, |found| found > number).is_some()
    })
}

/// Whether some block of an interrupted write never reached the disk: the file was zeros before. Sealed bytes have no
/// such block, so that a flipped bit is never taken for an interrupted write.
fn is_torn(bytes: &[u8], at: usize, end: usize, number: u64) -> bool {
    if later_frame(bytes, at, number) {
        return false;
    }
    let blocks = bytes[at..end].chunks(BLOCK_BYTES);
    let missing_block = blocks
        .filter(|block| block.len() == BLOCK_BYTES)
        .any(|block| block.iter().all(|&byte| byte == 0));
    let missing_tail = bytes[end - TAG_BYTES..end].iter().all(|&byte| byte == 0);
    missing_block || missing_tail
}

/// Whether the first block of a frame never reached the disk although later ones did.
fn has_hole(bytes: &[u8], at: usize) -> bool {
    bytes[at..]
        .chunks(BLOCK_BYTES)
        .next()
        .is_some_and(|block| block.iter().all(|&byte| byte == 0))
}
