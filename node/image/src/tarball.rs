//! Reads the headers of a tar stream: ustar, GNU and PAX, long names, sparse files, extended attributes.
//!
//! The `tar` crate knows the header block; the loop around it is here because a hostile archive must meet a bound
//! before it meets the allocator. Nothing in this module touches the file system.

use std::io::{self, BufRead};
use tar::{GnuExtSparseHeader, Header};

/// Most bytes of a path or of a link target.
pub(crate) const PATH_BYTES_MAX: usize = 4095;
/// Most bytes of one PAX header, attributes included.
pub(crate) const PAX_BYTES_MAX: u64 = 1 << 20;
/// Most pieces of one sparse file.
pub(crate) const SPARSE_PIECES_MAX: usize = 65_536;

const BLOCK: usize = 512;

/// Why a stream is not a tar archive that we read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream itself failed, or ended in the middle.
    #[error("failed to read the archive")]
    Read(#[source] io::Error),
    /// A header does not have its own checksum.
    #[error("the header of entry {entry} is damaged (wrong checksum)")]
    Checksum {
        /// Which entry, counted from zero.
        entry: u64,
    },
    /// A header field has no meaning.
    #[error("the header of entry {entry} has a malformed {field}")]
    Malformed {
        /// Which entry, counted from zero.
        entry: u64,
        /// The field.
        field: &'static str,
    },
    /// A header field is over its bound.
    #[error("the header of entry {entry} has a {field} over the limit of {limit}")]
    TooLarge {
        /// Which entry, counted from zero.
        entry: u64,
        /// The field.
        field: &'static str,
        /// The bound.
        limit: u64,
    },
    /// An entry type that container layers do not have.
    #[error("entry {entry} (`{path}`) has the unsupported type {kind:#04x}")]
    Unsupported {
        /// Which entry, counted from zero.
        entry: u64,
        /// Its path.
        path: String,
        /// The type byte.
        kind: u8,
    },
}

/// A name and its value.
type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry with everything that the archive says about it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    /// Bytes of the file once unpacked, holes included.
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Pairs,
    /// Offset and length of each piece that the archive stores; `None`: everything.
    pub(crate) sparse: Option<Vec<(u64, u64)>>,
}

/// What meta entries said about the next real one.
#[derive(Default)]
struct Pending {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Pairs,
}

impl Pending {
    fn pax(&self, key: &str) -> Option<&[u8]> {
        let found = self.pax.iter().rev().find(|(k, _)| k == key.as_bytes());
        found.map(|(_, value)| value.as_slice())
    }
}

/// A tar stream, one entry after the other.
pub(crate) struct TarReader<R> {
    source: R,
    /// Data of the current entry that nobody has read yet.
    remaining: u64,
    padding: u64,
    entry: u64,
}

impl<R: BufRead> TarReader<R> {
    pub(crate) fn new(source: R) -> Self {
        Self {
            source,
            remaining: 0,
            padding: 0,
            entry: 0,
        }
    }

    /// The stream behind the entries; after the last one the rest of the archive is still in it.
    pub(crate) fn source(&mut self) -> &mut R {
        &mut self.source
    }

    /// The next entry; `None` at the end marker or at a clean end of the stream.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut pending = Pending::default();
        loop {
            self.skip_data()?;
            let Some(header) = self.read_header()? else {
                return Ok(None);
            };
            let size = self.number(&header.as_old().size, "size")?;
            let kind = header.entry_type().as_byte();
            match kind {
                b'L' => pending.long_name = Some(self.read_name(size)?),
                b'K' => pending.long_link = Some(self.read_name(size)?),
                b'x' => {
                    let bytes = self.read_meta(size, PAX_BYTES_MAX, "extended header")?;
                    pending.pax = self.parse_pax(&bytes)?;
                }
                b'g' => drop(self.read_meta(size, PAX_BYTES_MAX, "global header")?),
                _ => {
                    let entry = self.finish_entry(&header, kind, size, &pending)?;
                    self.entry += 1;
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// A piece of the current entry's data as it lies in the buffer; empty at its end. Follow with [`Self::consume`].
    pub(crate) fn data(&mut self) -> io::Result<&[u8]> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let buffer = self.source.fill_buf()?;
        if buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let count = usize::try_from(self.remaining)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        Ok(&buffer[..count])
    }

    /// Marks `count` bytes of [`Self::data`] as read.
    pub(crate) fn consume(&mut self, count: usize) {
        self.source.consume(count);
        self.remaining -= count as u64;
    }

    fn skip_data(&mut self) -> Result<(), TarError> {
        let mut left = self.remaining + self.padding;
        (self.remaining, self.padding) = (0, 0);
        while left > 0 {
            let buffer = self.source.fill_buf().map_err(TarError::Read)?;
            if buffer.is_empty() {
                return Err(TarError::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            let count = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            self.source.consume(count);
            left -= count as u64;
        }
        Ok(())
    }

    fn read_header(&mut self) -> Result<Option<Header>, TarError> {
        if self.source.fill_buf().map_err(TarError::Read)?.is_empty() {
            return Ok(None);
        }
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        self.source.read_exact(block).map_err(TarError::Read)?;
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let sum: u64 = (block.iter().enumerate())
            .map(|(at, b)| {
                if (148..156).contains(&at) {
                    32
                } else {
                    u64::from(*b)
                }
            })
            .sum();
        if self.number(&header.as_old().cksum, "checksum")? != sum {
            return Err(TarError::Checksum { entry: self.entry });
        }
        Ok(Some(header))
    }

    fn read_meta(
        &mut self,
        size: u64,
        limit: u64,
        field: &'static str,
    ) -> Result<Vec<u8>, TarError> {
        if size > limit {
            return Err(TarError::TooLarge {
                entry: self.entry,
                field,
                limit,
            });
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        self.source.read_exact(&mut bytes).map_err(TarError::Read)?;
        self.padding = padding(size);
        Ok(bytes)
    }

    fn read_name(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let mut name = self.read_meta(size, PATH_BYTES_MAX as u64 + 1, "path")?;
        while name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn parse_pax(&self, bytes: &[u8]) -> Result<Pairs, TarError> {
        let malformed = || self.malformed("extended header");
        let mut records = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let space = rest.iter().position(|b| *b == b' ').ok_or_else(malformed)?;
            let length = decimal(&rest[..space]).ok_or_else(malformed)?;
            let length = usize::try_from(length).map_err(|_| malformed())?;
            let record = rest.get(space + 1..length).ok_or_else(malformed)?;
            let record = record.strip_suffix(b"\n").ok_or_else(malformed)?;
            let equals = record
                .iter()
                .position(|b| *b == b'=')
                .ok_or_else(malformed)?;
            records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
            rest = &rest[length..];
        }
        Ok(records)
    }

    fn finish_entry(
        &mut self,
        header: &Header,
        type_byte: u8,
        header_size: u64,
        pending: &Pending,
    ) -> Result<Entry, TarError> {
        let old = header.as_old();
        let path = pending.pax("GNU.sparse.name").or(pending.pax("path"));
        let path = path
            .map(<[u8]>::to_vec)
            .or_else(|| pending.long_name.clone());
        let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = pending.pax("linkpath").map(<[u8]>::to_vec);
        let link = link.or_else(|| pending.long_link.clone());
        let link =
            link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        for name in [&path, &link] {
            self.check_name(name)?;
        }
        let kind = self.kind(type_byte, &path)?;
        let stored = match pending.pax("size") {
            _ if kind != Kind::File => 0,
            Some(size) => decimal(size).ok_or_else(|| self.malformed("size"))?,
            None => header_size,
        };
        self.remaining = stored;
        self.padding = padding(stored);
        let id = |field: &'static str, bytes: &[u8]| -> Result<u32, TarError> {
            let value = match pending.pax(field) {
                Some(value) => decimal(value).ok_or_else(|| self.malformed(field))?,
                None => self.number(bytes, field)?,
            };
            u32::try_from(value).map_err(|_| self.malformed(field))
        };
        let (uid, gid) = (id("uid", &old.uid)?, id("gid", &old.gid)?);
        let mode = u32::try_from(self.number(&old.mode, "mode")? & 0o7777).unwrap_or(0);
        let mtime = match pending.pax("mtime") {
            Some(text) => pax_time(text).ok_or_else(|| self.malformed("mtime"))?,
            None => (
                signed_number(&old.mtime).ok_or_else(|| self.malformed("mtime"))?,
                0,
            ),
        };
        let device = (
            header.device_major().ok().flatten().unwrap_or(0),
            header.device_minor().ok().flatten().unwrap_or(0),
        );
        let (size, sparse) = self.sparse(header, type_byte, stored, pending)?;
        let xattrs = pending.pax.iter().filter_map(|(key, value)| {
            let name = key.strip_prefix(b"SCHILY.xattr.")?;
            Some((name.to_vec(), value.clone()))
        });
        Ok(Entry {
            path,
            link,
            kind,
            mode,
            uid,
            gid,
            mtime,
            size,
            device,
            xattrs: xattrs.collect(),
            sparse,
        })
    }

    fn check_name(&self, name: &[u8]) -> Result<(), TarError> {
        if name.len() > PATH_BYTES_MAX {
            return Err(TarError::TooLarge {
                entry: self.entry,
                field: "path",
                limit: PATH_BYTES_MAX as u64,
            });
        }
        if name.contains(&0) {
            return Err(self.malformed("path"));
        }
        Ok(())
    }

    fn kind(&self, type_byte: u8, path: &[u8]) -> Result<Kind, TarError> {
        Ok(match type_byte {
            // Before ustar a directory was a file whose name ends in a slash.
            0 | b'0' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            kind => {
                return Err(TarError::Unsupported {
                    entry: self.entry,
                    path: String::from_utf8_lossy(path).into_owned(),
                    kind,
                });
            }
        })
    }

    /// The logical size and, for a sparse file, where its stored pieces go.
    #[expect(
        clippy::type_complexity,
        reason = "a size and a list of pieces, used in one place"
    )]
    fn sparse(
        &mut self,
        header: &Header,
        type_byte: u8,
        stored: u64,
        pending: &Pending,
    ) -> Result<(u64, Option<Vec<(u64, u64)>>), TarError> {
        let (size, pieces) = if type_byte == b'S' {
            self.gnu_sparse(header)?
        } else if pending
            .pax
            .iter()
            .any(|(key, _)| key.starts_with(b"GNU.sparse."))
        {
            self.pax_sparse(pending)?
        } else {
            return Ok((stored, None));
        };
        let mut end = 0_u64;
        let mut total = 0_u64;
        for (offset, length) in &pieces {
            let piece_end = offset.checked_add(*length);
            if *offset < end || piece_end.is_none_or(|e| e > size) {
                return Err(self.malformed("sparse map"));
            }
            end = offset + length;
            total += length;
        }
        if total != self.remaining {
            return Err(self.malformed("sparse map"));
        }
        Ok((size, Some(pieces)))
    }

    fn gnu_sparse(&mut self, header: &Header) -> Result<(u64, Vec<(u64, u64)>), TarError> {
        let gnu = header
            .as_gnu()
            .ok_or_else(|| self.malformed("sparse map"))?;
        let size = self.number(&gnu.realsize, "sparse size")?;
        let mut pieces = Vec::new();
        let mut take = |reader: &Self, piece: &tar::GnuSparseHeader| -> Result<(), TarError> {
            if !piece.is_empty() {
                let offset = reader.number(&piece.offset, "sparse map")?;
                pieces.push((offset, reader.number(&piece.numbytes, "sparse map")?));
            }
            reader.bound_pieces(pieces.len())
        };
        for piece in &gnu.sparse {
            take(self, piece)?;
        }
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            self.source
                .read_exact(block.as_mut_bytes())
                .map_err(TarError::Read)?;
            for piece in block.sparse() {
                take(self, piece)?;
            }
            more = block.is_extended();
        }
        pieces.retain(|(_, length)| *length > 0);
        Ok((size, pieces))
    }

    fn pax_sparse(&mut self, pending: &Pending) -> Result<(u64, Vec<(u64, u64)>), TarError> {
        let size = pending
            .pax("GNU.sparse.realsize")
            .or(pending.pax("GNU.sparse.size"));
        let size = size
            .and_then(decimal)
            .ok_or_else(|| self.malformed("sparse size"))?;
        let numbers = if pending.pax("GNU.sparse.major") == Some(b"1") {
            self.read_sparse_map()?
        } else if let Some(map) = pending.pax("GNU.sparse.map") {
            let numbers: Option<Vec<u64>> = map.split(|b| *b == b',').map(decimal).collect();
            numbers.ok_or_else(|| self.malformed("sparse map"))?
        } else {
            let keys: [&[u8]; 2] = [b"GNU.sparse.offset", b"GNU.sparse.numbytes"];
            let fields = pending
                .pax
                .iter()
                .filter(|(key, _)| keys.contains(&key.as_slice()));
            let numbers: Option<Vec<u64>> = fields.map(|(_, value)| decimal(value)).collect();
            numbers.ok_or_else(|| self.malformed("sparse map"))?
        };
        self.bound_pieces(numbers.len() / 2)?;
        let (pairs, rest) = numbers.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.malformed("sparse map"));
        }
        let pieces = pairs.iter().filter(|p| p[1] > 0).map(|p| (p[0], p[1]));
        Ok((size, pieces.collect()))
    }

    /// The map of PAX sparse format 1.0: decimal lines in front of the data, filled up to a block.
    fn read_sparse_map(&mut self) -> Result<Vec<u64>, TarError> {
        let mut used = 0_u64;
        let mut line = |reader: &mut Self| -> Result<u64, TarError> {
            let mut value = Vec::new();
            loop {
                let mut byte = [0];
                if reader.remaining == 0 || value.len() > 20 {
                    return Err(reader.malformed("sparse map"));
                }
                reader
                    .source
                    .read_exact(&mut byte)
                    .map_err(TarError::Read)?;
                reader.remaining -= 1;
                used += 1;
                if byte[0] == b'\n' {
                    return decimal(&value).ok_or_else(|| reader.malformed("sparse map"));
                }
                value.push(byte[0]);
            }
        };
        let count = usize::try_from(line(self)?).unwrap_or(usize::MAX);
        self.bound_pieces(count)?;
        let mut numbers = Vec::with_capacity(count * 2);
        for _ in 0..count * 2 {
            numbers.push(line(self)?);
        }
        let fill = padding(used);
        if fill > self.remaining {
            return Err(self.malformed("sparse map"));
        }
        let mut skipped = [0; BLOCK];
        let fill_bytes = usize::try_from(fill).unwrap_or(0);
        self.source
            .read_exact(&mut skipped[..fill_bytes])
            .map_err(TarError::Read)?;
        self.remaining -= fill;
        Ok(numbers)
    }

    fn bound_pieces(&self, count: usize) -> Result<(), TarError> {
        if count > SPARSE_PIECES_MAX {
            return Err(TarError::TooLarge {
                entry: self.entry,
                field: "sparse map",
                limit: SPARSE_PIECES_MAX as u64,
            });
        }
        Ok(())
    }

    fn number(&self, field: &[u8], name: &'static str) -> Result<u64, TarError> {
        let value = signed_number(field).and_then(|v| u64::try_from(v).ok());
        value.ok_or_else(|| self.malformed(name))
    }

    fn malformed(&self, field: &'static str) -> TarError {
        TarError::Malformed {
            entry: self.entry,
            field,
        }
    }
}

fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// An octal field, blank meaning zero, or GNU's big-endian two's complement behind a set high bit.
fn signed_number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let start: i128 = if first & 0x40 != 0 { -1 } else { 0 };
        let mut value = (start << 6) | i128::from(first & 0x3f);
        for byte in rest {
            value = (value << 8) | i128::from(*byte);
        }
        return i64::try_from(value).ok();
    }
    let text = field.split(|b| *b == 0).next()?;
    let text = std::str::from_utf8(text).ok()?.trim();
    if text.is_empty() {
        return Some(0);
    }
    i64::from_str_radix(text, 8).ok()
}

/// `seconds[.fraction]`, possibly negative, as seconds and nanoseconds that count upwards.
fn pax_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = seconds.parse().ok()?;
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: u32 = digits.parse().ok()?;
    if nanos > 0 && seconds.starts_with('-') {
        return Some((whole.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((whole, nanos))
}
