//! What client and shim say to each other: frames of `u32 LE length | codec bytes` on a unix stream socket.
//!
//! A connection carries requests and answers in turn. `Wait`, `Exec` and `Attach` take their connection over: `Wait`
//! answers when the container ends, `Exec` answers twice (started, ended), and after `Attach` both sides send raw
//! data frames: `kind (1) | u32 LE length | data`.

use crate::{Exit, Failure, Stats};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use shoal_model::codec::{self, CodecError};

/// Most bytes of one frame: 4 MiB. An exec's environment is the largest thing that travels.
pub(crate) const FRAME_BYTES_MAX: usize = 4 << 20;

/// Most bytes of one data frame after `Attach`: 64 KiB.
pub(crate) const DATA_BYTES_MAX: usize = 64 << 10;

/// Bytes of the length in front of a frame.
pub(crate) const FRAME_HEADER_BYTES: usize = 4;

/// Bytes in front of the data of a data frame.
pub(crate) const DATA_HEADER_BYTES: usize = 5;

/// Data frame kinds.
pub(crate) const DATA_STDIN: u8 = 0;
pub(crate) const DATA_STDOUT: u8 = 1;
pub(crate) const DATA_STDERR: u8 = 2;
/// From the client: no more input. From the shim: the container has ended, all output was sent.
pub(crate) const DATA_END: u8 = 3;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Request {
    Status,
    Start,
    Kill {
        signal: i32,
        all: bool,
    },
    Pause,
    Resume,
    Resize {
        columns: u16,
        rows: u16,
    },
    Wait,
    Exec(ExecRequest),
    /// On an exec's own connection.
    KillExec {
        signal: i32,
    },
    Attach {
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    RenewDeadline {
        boottime_ns: Option<u64>,
    },
    Stats,
    /// `LinuxResources` as JSON.
    Update {
        resources: String,
    },
    /// Removes the cgroups and run files; the shim ends after its answer.
    Delete {
        force: bool,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ExecRequest {
    /// The OCI `Process` as JSON: OCI types leave fields out, which only a self-describing format can carry.
    pub(crate) process: String,
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Response {
    Done,
    /// The container exists and waits for `Start`; also the answer to `Status`.
    Status(ShimStatus),
    Failed(Failure),
    Refused(Refusal),
    Exited(Exit),
    ExecStarted {
        pid: u32,
    },
    ExecExited {
        code: i32,
        signal: Option<i32>,
    },
    Attached,
    Stats(Stats),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ShimStatus {
    pub(crate) shim_pid: u32,
    pub(crate) init_pid: u32,
    pub(crate) phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    SettingUp,
    Ready,
    Starting,
    Running,
    Paused,
    Exited,
}

/// Why the shim does not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) kind: RefusalKind,
    pub(crate) message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RefusalKind {
    /// The container is in the wrong phase.
    WrongState,
    /// The request makes no sense.
    Invalid,
    /// This host lacks what is needed.
    Unsupported,
    /// The kernel refused.
    Kernel,
}

/// `value` as one frame.
pub(crate) fn frame<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![0; FRAME_HEADER_BYTES];
    codec::encode_into(value, &mut bytes)?;
    let length = u32::try_from(bytes.len() - FRAME_HEADER_BYTES).unwrap_or(u32::MAX);
    bytes[..FRAME_HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// Why bytes on a connection are not a frame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of {length} bytes is over the limit of {FRAME_BYTES_MAX}")]
    TooLong { length: usize },
    #[error("a frame can't be decoded")]
    Decode(#[from] CodecError),
}

/// Takes one complete frame off the front of `bytes`; `None` while it is incomplete.
pub(crate) fn take_frame<T: DeserializeOwned>(
    bytes: &mut Vec<u8>,
) -> Result<Option<T>, FrameError> {
    let Some(header) = bytes.first_chunk::<FRAME_HEADER_BYTES>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*header) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong { length });
    }
    let end = FRAME_HEADER_BYTES + length;
    if bytes.len() < end {
        return Ok(None);
    }
    let value = codec::decode(&bytes[FRAME_HEADER_BYTES..end])?;
    bytes.drain(..end);
    Ok(Some(value))
}

/// The header of a data frame.
pub(crate) fn data_header(kind: u8, length: usize) -> [u8; DATA_HEADER_BYTES] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    [kind, a, b, c, d]
}

/// Where the next data frame of `bytes` ends, and its kind; `None` while it is incomplete.
pub(crate) fn data_frame(bytes: &[u8]) -> Result<Option<(u8, usize)>, FrameError> {
    let Some(&[kind, a, b, c, d]) = bytes.first_chunk::<DATA_HEADER_BYTES>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > DATA_BYTES_MAX {
        return Err(FrameError::TooLong { length });
    }
    let end = DATA_HEADER_BYTES + length;
    Ok((bytes.len() >= end).then_some((kind, end)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_arrive_in_pieces() {
        let whole = frame(&Request::Kill {
            signal: 15,
            all: true,
        })
        .unwrap();
        let mut bytes = Vec::new();
        for (index, byte) in whole.iter().enumerate() {
            bytes.push(*byte);
            let taken = take_frame::<Request>(&mut bytes).unwrap();
            assert_eq!(taken.is_some(), index + 1 == whole.len());
        }
        assert!(bytes.is_empty());
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let mut copy = bytes.clone();
            drop(take_frame::<Request>(&mut copy));
            drop(data_frame(&bytes));
        }
    }
}
