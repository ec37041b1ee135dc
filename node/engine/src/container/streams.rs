//! Attached clients: to a running container, or to one that is about to start.

use crate::error::{EngineError, Result, chain};
use crate::requests::{
    AttachOptions, AttachStreams, InputSink, OutputChunk, OutputStream, StdStream,
};
use futures_util::StreamExt as _;
use futures_util::stream;
use shoal_runtime::logs::StreamKind;
use shoal_runtime::{AttachInput, AttachOutput, ShimHandle};
use std::sync::{Arc, Mutex};
use tokio::io::AsyncReadExt as _;
use tokio::sync::oneshot;

/// Bytes of input on their way to a container: 64 KiB.
const INPUT_BYTES_MAX: usize = 64 << 10;

/// Held by the reader of the output too: a shim whose client has shut its side takes it for gone.
type SharedInput = Arc<tokio::sync::Mutex<AttachInput>>;

type Connected = Result<shoal_runtime::AttachStreams>;

/// A client that attached before the start.
#[derive(Debug)]
pub(crate) struct PendingAttach {
    options: AttachOptions,
    /// Taken at the first start.
    reply: Mutex<Option<oneshot::Sender<Connected>>>,
}

impl PendingAttach {
    /// Attaches the client before the first instruction, so that it misses nothing.
    pub(crate) async fn connect(&self, shim: &ShimHandle) {
        let reply = self.reply.lock().ok().and_then(|mut reply| reply.take());
        if let Some(reply) = reply {
            // A client that has left meanwhile wants nothing any more.
            drop(reply.send(connect(shim, self.options).await));
        }
    }
}

async fn connect(shim: &ShimHandle, options: AttachOptions) -> Connected {
    let options = shoal_runtime::AttachOptions {
        stdin: options.stdin,
        stdout: options.stdout,
        stderr: options.stderr,
    };
    shim.attach(options)
        .await
        .map_err(|err| EngineError::Conflict {
            message: format!("cannot attach: {}", chain(&err)),
        })
}

/// Attaches to a running container.
pub(crate) async fn attach(
    shim: &ShimHandle,
    options: AttachOptions,
    tty: bool,
) -> Result<AttachStreams> {
    let connected = connect(shim, options).await?;
    let (sender, receiver) = oneshot::channel();
    // The receiver is in our hands: this can't fail.
    drop(sender.send(Ok(connected)));
    Ok(streams(receiver, options, tty))
}

/// Attaches to a container that is not started yet: the streams come alive with its start.
pub(crate) fn attach_later(options: AttachOptions, tty: bool) -> (PendingAttach, AttachStreams) {
    let (sender, receiver) = oneshot::channel();
    let pending = PendingAttach {
        options,
        reply: Mutex::new(Some(sender)),
    };
    (pending, streams(receiver, options, tty))
}

fn streams(
    receiver: oneshot::Receiver<Connected>,
    options: AttachOptions,
    tty: bool,
) -> AttachStreams {
    let (input_sender, input_receiver) = oneshot::channel();
    let stdin = options.stdin.then(|| {
        let (ours, mut theirs) = tokio::io::duplex(INPUT_BYTES_MAX);
        tokio::spawn(async move {
            if let Ok(input) = input_receiver.await
                && let Err(err) = forward(&mut theirs, input).await
            {
                tracing::debug!(%err, "input for a container was not taken");
            }
        });
        Box::pin(ours) as InputSink
    });
    let start = Output::Waiting(receiver, Some(input_sender));
    let output: OutputStream = stream::unfold(start, next).boxed();
    AttachStreams { stdin, output, tty }
}

/// From the client's side of the pipe to the container, until either ends.
async fn forward(from: &mut tokio::io::DuplexStream, to: SharedInput) -> std::io::Result<()> {
    let mut to = to.lock().await;
    let mut buffer = vec![0; INPUT_BYTES_MAX / 4];
    loop {
        match from.read(&mut buffer).await? {
            0 => return to.close().await,
            count => to.write(&buffer[..count]).await?,
        }
    }
}

enum Output {
    Waiting(
        oneshot::Receiver<Connected>,
        Option<oneshot::Sender<SharedInput>>,
    ),
    Live(AttachOutput, SharedInput),
    Ended,
}

async fn next(mut state: Output) -> Option<(Result<OutputChunk>, Output)> {
    loop {
        state = match state {
            Output::Ended => return None,
            Output::Waiting(receiver, input) => match receiver.await {
                Ok(Ok(connected)) => {
                    let shared = Arc::new(tokio::sync::Mutex::new(connected.input));
                    if let Some(input) = input {
                        // Nobody may want to write.
                        drop(input.send(Arc::clone(&shared)));
                    }
                    Output::Live(connected.output, shared)
                }
                Ok(Err(err)) => return Some((Err(err), Output::Ended)),
                // The container was removed, or its start failed.
                Err(_) => return None,
            },
            Output::Live(mut output, input) => match output.next().await {
                Ok(Some((kind, bytes))) => {
                    let stream = match kind {
                        StreamKind::Stdout => StdStream::Stdout,
                        StreamKind::Stderr => StdStream::Stderr,
                    };
                    return Some((
                        Ok(OutputChunk { stream, bytes }),
                        Output::Live(output, input),
                    ));
                }
                Ok(None) => return None,
                Err(err) if err.kind() == std::io::ErrorKind::UnexpectedEof => return None,
                Err(err) => {
                    let err =
                        EngineError::conflict(format!("the container's output broke off: {err}"));
                    return Some((Err(err), Output::Ended));
                }
            },
        };
    }
}
