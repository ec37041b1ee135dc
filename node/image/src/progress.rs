//! What a pull or a load tells while it runs.

use std::fmt;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Events that wait for a slow reader of [`ProgressSink::channel`]; byte counts are left out when it is half full.
pub const PROGRESS_EVENTS_MAX: usize = 1024;

/// One piece of news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// About the whole operation: `Pulling from library/busybox`, with the tag as id.
    Status {
        /// What the message is about, as Docker's progress ids: the tag, or empty.
        id: String,
        /// The sentence.
        message: String,
    },
    /// About one layer.
    Layer {
        /// The first twelve digits of the layer's digest.
        id: String,
        /// How far it is.
        state: LayerState,
    },
}

/// How far a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerState {
    /// Known, nothing done yet.
    Pending,
    /// Waits for a free slot, or for another pull that already works on it.
    Waiting,
    /// Bytes are coming; unpacking goes on at the same time.
    Downloading {
        /// Compressed bytes so far.
        current: u64,
        /// Compressed bytes of the layer.
        total: u64,
    },
    /// The transfer broke and is taken up again where it stopped.
    Retrying {
        /// Which retry this is, from 1.
        attempt: u32,
    },
    /// All bytes are here and have the right digest.
    DownloadComplete,
    /// Unpacking, where it is not part of the download.
    Extracting {
        /// Compressed bytes read so far.
        current: u64,
        /// Compressed bytes of the layer.
        total: u64,
    },
    /// Unpacked and visible.
    Complete,
    /// It was there already.
    AlreadyExists,
}

impl LayerState {
    /// Docker's word for it.
    pub fn status(&self) -> &'static str {
        match self {
            Self::Pending => "Pulling fs layer",
            Self::Waiting => "Waiting",
            Self::Downloading { .. } => "Downloading",
            Self::Retrying { .. } => "Retrying",
            Self::DownloadComplete => "Download complete",
            Self::Extracting { .. } => "Extracting",
            Self::Complete => "Pull complete",
            Self::AlreadyExists => "Already exists",
        }
    }

    /// Current and total bytes, where the state counts them.
    pub fn counts(&self) -> Option<(u64, u64)> {
        match self {
            Self::Downloading { current, total } | Self::Extracting { current, total } => {
                Some((*current, *total))
            }
            Self::Pending
            | Self::Waiting
            | Self::Retrying { .. }
            | Self::DownloadComplete
            | Self::Complete
            | Self::AlreadyExists => None,
        }
    }
}

/// Where progress goes. Cheap to clone; never blocks the work it reports on.
#[derive(Clone, Default)]
pub struct ProgressSink(Option<Arc<dyn Fn(Progress) + Send + Sync>>);

impl ProgressSink {
    /// Nobody listens.
    pub fn none() -> Self {
        Self(None)
    }

    /// Calls `listen` for each event, on the working thread: it must return at once.
    pub fn new(listen: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(listen)))
    }

    /// A bounded channel. When the reader is slow, byte counts are dropped first.
    pub fn channel() -> (Self, mpsc::Receiver<Progress>) {
        let (sender, receiver) = mpsc::channel(PROGRESS_EVENTS_MAX);
        let sink = Self::new(move |event| {
            let is_count =
                matches!(&event, Progress::Layer { state, .. } if state.counts().is_some());
            if is_count && sender.capacity() < PROGRESS_EVENTS_MAX / 2 {
                return;
            }
            // A full or closed channel loses news, never work.
            drop(sender.try_send(event));
        });
        (sink, receiver)
    }

    pub(crate) fn status(&self, id: impl Into<String>, message: impl Into<String>) {
        if let Some(listen) = &self.0 {
            listen(Progress::Status {
                id: id.into(),
                message: message.into(),
            });
        }
    }

    pub(crate) fn layer(&self, id: &str, state: LayerState) {
        if let Some(listen) = &self.0 {
            listen(Progress::Layer {
                id: id.to_owned(),
                state,
            });
        }
    }
}

impl fmt::Debug for ProgressSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProgressSink")
            .field(&self.0.is_some())
            .finish()
    }
}
