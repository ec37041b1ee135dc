//! One layer, from a stream of bytes to a snapshot that waits to become visible.
//!
//! Hashing, storing, decompressing, hashing again and unpacking happen in one pass over the stream, on one blocking
//! thread per layer, with no more of the layer in memory than a few buffers.

use crate::content::{BlobStage, Content, ContentError, READ_BYTES, StagedBlob, TmpPath};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::snapshot::SnapshotInfo;
use crate::tarball::{TarError, TarReader};
use crate::unpack::{UnpackError, UnpackLimits, unpack};
use bytes::Bytes;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;

/// Pieces of a download that wait for the unpacking thread.
pub(crate) const DOWNLOAD_CHUNKS_MAX: usize = 32;
/// The largest zstd window that is accepted, as a power of two: 128 MiB, the format's own recommendation.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Why a layer could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The store's own files.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The tar in it.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The bytes are not those that the manifest names.
    #[error("layer has the digest {found}, but its manifest says {expected}")]
    BlobDigest {
        /// From the manifest.
        expected: Digest,
        /// Of what came.
        found: Digest,
    },
    /// The unpacked tar is not the one that the configuration names.
    #[error("layer unpacks to the digest {found}, but the image configuration says {expected}")]
    DiffId {
        /// From the configuration.
        expected: Digest,
        /// Of what came.
        found: Digest,
    },
    /// More bytes than the manifest says.
    #[error("layer has more than the {expected} bytes that its manifest says")]
    TooLong {
        /// From the manifest.
        expected: u64,
    },
    /// A compression that container layers do not use.
    #[error("layer is compressed with {name}, which is not supported (gzip and zstd are)")]
    Compression {
        /// Its name.
        name: &'static str,
    },
    /// The source of the bytes failed.
    #[error("failed to read the layer")]
    Read(#[source] io::Error),
    /// The caller gave up.
    #[error("cancelled")]
    Cancelled,
    /// The working thread died.
    #[error("the unpacking thread failed")]
    Thread(#[source] tokio::task::JoinError),
}

/// Where a layer's bytes come from.
pub(crate) enum Source {
    /// A download; the channel closes at its end, with an error in it if the download failed.
    Stream(mpsc::Receiver<Result<Bytes, io::Error>>),
    /// A file on this machine.
    File(File),
}

/// What to do with a layer.
pub(crate) struct LayerJob {
    pub(crate) source: Source,
    /// The digest of the bytes, if known beforehand.
    pub(crate) blob: Option<Digest>,
    /// How many bytes there are, if known beforehand.
    pub(crate) blob_bytes: Option<u64>,
    /// The digest of the tar, if known beforehand.
    pub(crate) diff_id: Option<Digest>,
    /// Whether the bytes are kept as a new blob.
    pub(crate) keep: bool,
    pub(crate) limits: UnpackLimits,
    pub(crate) cancelled: Arc<AtomicBool>,
    /// Called with the number of compressed bytes read so far.
    pub(crate) on_bytes: Box<dyn FnMut(u64) + Send>,
}

/// A layer that is complete and verified, under temporary names.
pub(crate) struct StagedLayer {
    pub(crate) blob: Option<StagedBlob>,
    pub(crate) blob_digest: Digest,
    pub(crate) blob_bytes: u64,
    pub(crate) diff_id: Digest,
    pub(crate) media_type: &'static str,
    pub(crate) info: SnapshotInfo,
    pub(crate) implicit: Vec<Vec<u8>>,
    pub(crate) dir: TmpPath,
}

/// Reads, verifies and unpacks one layer; blocks. Leaves nothing behind when it fails.
pub(crate) fn stage_layer(
    content: &Arc<Content>,
    job: LayerJob,
) -> Result<StagedLayer, LayerError> {
    let dir = TmpPath(content.tmp_path());
    let tree = dir.0.join("fs");
    crate::content::make_dir(&tree)?;
    set_root_mode(&tree)?;
    let algorithm = job
        .blob
        .as_ref()
        .map_or(Algorithm::Sha256, Digest::algorithm);
    let stage = job
        .keep
        .then(|| content.stage_blob(algorithm))
        .transpose()?;
    let mut intake = Intake::new(job.source, stage, algorithm, job.cancelled, job.on_bytes);
    intake.bytes_max = job.blob_bytes;
    let diff_algorithm = job
        .diff_id
        .as_ref()
        .map_or(Algorithm::Sha256, Digest::algorithm);
    let unpacked = decode_and_unpack(&mut intake, diff_algorithm, &tree, &job.limits);
    // The digest covers whatever follows the compressed tar.
    let unpacked = unpacked.and_then(|unpacked| {
        drain(&mut intake).map_err(LayerError::Read)?;
        Ok(unpacked)
    });
    // What is wrong with the stream explains whatever the unpacker made of it.
    if let Some(failure) = intake.failure.take() {
        return Err(failure);
    }
    let unpacked = match unpacked {
        Ok(unpacked) => unpacked,
        // Damaged bytes are reported as such, not as the nonsense that they decode to.
        Err(err) => return Err(intake.blame(job.blob, err)),
    };
    let (blob, blob_digest, blob_bytes) = intake.finish()?;
    if let Some(expected) = job.blob
        && expected != blob_digest
    {
        return Err(LayerError::BlobDigest {
            expected,
            found: blob_digest,
        });
    }
    if let Some(expected) = job.diff_id
        && expected != unpacked.diff_id
    {
        return Err(LayerError::DiffId {
            expected,
            found: unpacked.diff_id,
        });
    }
    Ok(StagedLayer {
        blob,
        blob_digest,
        blob_bytes,
        diff_id: unpacked.diff_id,
        media_type: unpacked.compression.media_type(),
        info: unpacked.info,
        implicit: unpacked.implicit,
        dir,
    })
}

/// The root directory of a container is readable by its users.
fn set_root_mode(tree: &std::path::Path) -> Result<(), ContentError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(tree, std::fs::Permissions::from_mode(0o755))
        .map_err(|err| ContentError::io("set the mode of", tree, err))
}

struct Decoded {
    diff_id: Digest,
    compression: Compression,
    info: SnapshotInfo,
    implicit: Vec<Vec<u8>>,
}

fn decode_and_unpack(
    intake: &mut Intake,
    algorithm: Algorithm,
    tree: &std::path::Path,
    limits: &UnpackLimits,
) -> Result<Decoded, LayerError> {
    let mut magic = Vec::new();
    (&mut *intake)
        .take(6)
        .read_to_end(&mut magic)
        .map_err(LayerError::Read)?;
    let compression = Compression::of(&magic)?;
    let whole = Cursor::new(magic).chain(&mut *intake);
    let decoder: Box<dyn Read + '_> = match compression {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        Compression::Zstd => {
            let mut decoder =
                zstd::stream::read::Decoder::with_buffer(whole).map_err(LayerError::Read)?;
            decoder
                .window_log_max(ZSTD_WINDOW_LOG_MAX)
                .map_err(LayerError::Read)?;
            Box::new(decoder)
        }
    };
    let mut counted = Counted {
        inner: decoder,
        hasher: algorithm.hasher(),
        bytes: 0,
        bytes_max: limits.total_bytes_max,
        over: false,
    };
    let unpacked = unpack_all(&mut counted, tree, limits);
    let Counted {
        inner,
        hasher,
        over,
        ..
    } = counted;
    drop(inner);
    if over {
        return Err(LayerError::Unpack(UnpackError::Limit {
            what: "bytes",
            limit: limits.total_bytes_max,
        }));
    }
    let unpacked = unpacked?;
    let diff_id = hasher.finish();
    Ok(Decoded {
        diff_id,
        compression,
        info: SnapshotInfo {
            bytes: unpacked.bytes,
            entries: unpacked.entries,
            opaque_root: unpacked.opaque_root,
        },
        implicit: unpacked.implicit,
    })
}

fn unpack_all<R: Read>(
    counted: &mut Counted<R>,
    tree: &std::path::Path,
    limits: &UnpackLimits,
) -> Result<crate::unpack::Unpacked, LayerError> {
    let mut tar = TarReader::new(BufReader::with_capacity(READ_BYTES, counted));
    let unpacked = unpack(&mut tar, tree, limits)?;
    // The digest covers the padding behind the end marker too.
    drain(tar.source()).map_err(|err| LayerError::Unpack(TarError::Read(err).into()))?;
    Ok(unpacked)
}

fn drain(source: &mut impl BufRead) -> io::Result<()> {
    loop {
        let count = source.fill_buf()?.len();
        if count == 0 {
            return Ok(());
        }
        source.consume(count);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub(crate) fn of(magic: &[u8]) -> Result<Self, LayerError> {
        match magic {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Self::Zstd),
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Err(LayerError::Compression { name: "bzip2" }),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(LayerError::Compression { name: "xz" }),
            _ => Ok(Self::None),
        }
    }

    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// The compressed bytes on their way in: hashed, counted and stored as they pass.
struct Intake {
    source: Source,
    chunk: Bytes,
    file_buffer: Vec<u8>,
    stage: Option<BlobStage>,
    hasher: Option<Hasher>,
    bytes: u64,
    bytes_max: Option<u64>,
    cancelled: Arc<AtomicBool>,
    on_bytes: Box<dyn FnMut(u64) + Send>,
    failure: Option<LayerError>,
}

impl Intake {
    fn new(
        source: Source,
        stage: Option<BlobStage>,
        algorithm: Algorithm,
        cancelled: Arc<AtomicBool>,
        on_bytes: Box<dyn FnMut(u64) + Send>,
    ) -> Self {
        Self {
            source,
            chunk: Bytes::new(),
            file_buffer: vec![0; READ_BYTES],
            hasher: stage.is_none().then(|| algorithm.hasher()),
            stage,
            bytes: 0,
            bytes_max: None,
            cancelled,
            on_bytes,
            failure: None,
        }
    }

    fn next_chunk(&mut self) -> Result<Bytes, LayerError> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(LayerError::Cancelled);
        }
        let chunk = match &mut self.source {
            Source::Stream(receiver) => match receiver.blocking_recv() {
                Some(chunk) => chunk.map_err(LayerError::Read)?,
                None if self.cancelled.load(Ordering::Relaxed) => {
                    return Err(LayerError::Cancelled);
                }
                None => Bytes::new(),
            },
            Source::File(file) => {
                let count = file.read(&mut self.file_buffer).map_err(LayerError::Read)?;
                Bytes::copy_from_slice(&self.file_buffer[..count])
            }
        };
        self.bytes += chunk.len() as u64;
        if let Some(expected) = self.bytes_max
            && self.bytes > expected
        {
            return Err(LayerError::TooLong { expected });
        }
        if let Some(stage) = &mut self.stage {
            stage.write(&chunk)?;
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&chunk);
        }
        if !chunk.is_empty() {
            (self.on_bytes)(self.bytes);
        }
        Ok(chunk)
    }

    /// If the bytes are not the expected ones, that is the cause of `err`.
    fn blame(mut self, expected: Option<Digest>, err: LayerError) -> LayerError {
        let local = !matches!(
            err,
            LayerError::Unpack(UnpackError::Tar(_)) | LayerError::Read(_)
        );
        let Some(expected) = expected else { return err };
        if local || drain(&mut self).is_err() {
            return self.failure.take().unwrap_or(err);
        }
        match self.finish() {
            Ok((_, found, _)) if found != expected => LayerError::BlobDigest { expected, found },
            _ => err,
        }
    }

    fn finish(self) -> Result<(Option<StagedBlob>, Digest, u64), LayerError> {
        match (self.stage, self.hasher) {
            (Some(stage), _) => {
                let staged = stage.finish();
                let (digest, bytes) = (staged.digest.clone(), staged.bytes);
                Ok((Some(staged), digest, bytes))
            }
            (None, Some(hasher)) => Ok((None, hasher.finish(), self.bytes)),
            (None, None) => Err(LayerError::Cancelled),
        }
    }
}

impl BufRead for Intake {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.chunk.is_empty() {
            if self.failure.is_some() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            match self.next_chunk() {
                Ok(chunk) => self.chunk = chunk,
                Err(failure) => {
                    self.failure = Some(failure);
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
            }
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, count: usize) {
        bytes::Buf::advance(&mut self.chunk, count);
    }
}

impl Read for Intake {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// The decompressed bytes, hashed and bounded.
struct Counted<R> {
    inner: R,
    hasher: Hasher,
    bytes: u64,
    bytes_max: u64,
    over: bool,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        if self.bytes > self.bytes_max {
            self.over = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(count)
    }
}
