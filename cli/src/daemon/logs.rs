//! Calls to the manager in this process, and reading the frames of any call.

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use shoal_api::ControlFrames;
use shoal_manager::ManagerHandle;
use shoal_model::NodeId;
use shoal_model::control::{ControlRequest, ControlResponse, WatchEvent, WatchRequest};
use shoal_model::rpc::{ErrorCode, Method, RpcError};
use shoal_transport::{RpcStream, StreamError};

/// Bytes between this process's API and its manager.
const PIPE_BYTES: usize = 64 << 10;

/// Frames of a stream until it ends.
pub(crate) fn frames<T>(stream: RpcStream) -> BoxStream<'static, Result<T, RpcError>>
where
    T: serde::de::DeserializeOwned + Send + 'static,
{
    let next = |mut stream: RpcStream| async {
        match stream.recv::<Result<T, RpcError>>().await {
            Ok(Some(frame)) => Some((frame, stream)),
            Ok(None) => None,
            Err(err) => Some((Err(broken(&err)), stream)),
        }
    };
    // After an error there is nothing more to read.
    let mut failed = false;
    stream::unfold(stream, next)
        .take_while(move |frame| {
            let go_on = !failed;
            failed = frame.is_err();
            std::future::ready(go_on)
        })
        .boxed()
}

fn broken(err: &StreamError) -> RpcError {
    RpcError::new(
        ErrorCode::Unavailable,
        format!("the answer was cut off: {}", super::chain(err)),
    )
}

/// Asks the manager in this process.
pub(crate) async fn control(
    manager: ManagerHandle,
    caller: NodeId,
    request: ControlRequest,
) -> Result<ControlFrames, RpcError> {
    let mut client = local_call(manager, caller, Method::Control);
    client.send(&request).await.map_err(|err| broken(&err))?;
    let mut answer = frames::<ControlResponse>(client);
    // The first frame tells whether the request was taken at all.
    let first = match answer.next().await {
        Some(Err(error)) => return Err(error),
        Some(Ok(ControlResponse::End)) | None => return Ok(stream::empty().boxed()),
        Some(Ok(first)) => first,
    };
    let rest =
        answer.take_while(|frame| std::future::ready(!matches!(frame, Ok(ControlResponse::End))));
    Ok(stream::iter([Ok(first)]).chain(rest).boxed())
}

/// Watches the store of the manager in this process.
pub(crate) async fn watch(
    manager: ManagerHandle,
    caller: NodeId,
    request: WatchRequest,
) -> Result<BoxStream<'static, Result<WatchEvent, RpcError>>, RpcError> {
    let mut client = local_call(manager, caller, Method::ControlWatch);
    client.send(&request).await.map_err(|err| broken(&err))?;
    Ok(frames(client))
}

/// A stream to the manager in this process, served as if it came from the network with this node's own identity.
fn local_call(manager: ManagerHandle, caller: NodeId, method: Method) -> RpcStream {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let (read, write) = tokio::io::split(theirs);
    let served = RpcStream::new(Box::new(read), Box::new(write));
    tokio::spawn(async move {
        let control = manager.control();
        let outcome = match method {
            Method::ControlWatch => control.serve_watch(served).await,
            _ => control.serve(caller, served).await,
        };
        if let Err(err) = outcome {
            tracing::debug!(
                err = &err as &dyn std::error::Error,
                "a local call ended early"
            );
        }
    });
    let (read, write) = tokio::io::split(ours);
    RpcStream::new(Box::new(read), Box::new(write))
}
