//! What a node tells the API of any manager: logs of the tasks that it runs, its ways to its peers.

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use shoal_agent::engine::TASK_ID_LABEL;
use shoal_engine::{EngineHandle, ListFilter, LogOptions, StdStream};
use shoal_model::control::{LogLine, LogsRequest};
use shoal_model::rpc::{ErrorCode, Method, RpcError};
use shoal_model::{Labels, TaskId};
use shoal_overlay_net::PeerCheck;
use shoal_transport::{Peer, RpcHandler, RpcStream, StreamError};
use std::collections::BTreeMap;

/// Lines of one log.
type Lines = BoxStream<'static, Result<LogLine, RpcError>>;

/// Serves the bulk port.
pub(crate) struct LogsHandler {
    engine: EngineHandle,
}

impl LogsHandler {
    pub(crate) const fn new(engine: EngineHandle) -> Self {
        Self { engine }
    }

    async fn serve(&self, mut stream: RpcStream) -> Result<(), StreamError> {
        let Some(request) = stream.recv::<LogsRequest>().await? else {
            return Ok(());
        };
        match read(&self.engine, request).await {
            Err(error) => stream.reply::<LogLine>(&Err(error)).await,
            Ok(mut lines) => {
                while let Some(line) = lines.next().await {
                    stream.send(&line).await?;
                }
                stream.finish().await
            }
        }
    }
}

#[async_trait]
impl RpcHandler for LogsHandler {
    async fn handle(&self, peer: Peer, method: Method, mut stream: RpcStream) {
        let served = match method {
            Method::TaskLogs => self.serve(stream).await,
            Method::NetCheck => stream.reply(&net_check(&self.engine).await).await,
            _ => {
                return super::handler::refuse(stream, "this is the port for bulk transfers").await;
            }
        };
        // A broken stream concerns its caller only, who knows.
        if let Err(err) = served {
            tracing::debug!(addr = %peer.addr, err = %super::chain(&err), "a bulk transfer ended early");
        }
    }
}

/// This node's ways to its peers.
pub(crate) async fn net_check(engine: &EngineHandle) -> Result<Vec<PeerCheck>, RpcError> {
    match engine.overlay() {
        Some(overlay) => Ok(overlay.check().await),
        None => Err(RpcError::new(
            ErrorCode::Unavailable,
            "the node has no overlay network now",
        )),
    }
}

/// The lines of the tasks' containers, each log in its own order. A task may have had several containers.
pub(crate) async fn read(engine: &EngineHandle, request: LogsRequest) -> Result<Lines, RpcError> {
    let mut logs: Vec<Lines> = Vec::new();
    for task_id in &request.task_ids {
        let label = vec![format!("{TASK_ID_LABEL}={task_id}")];
        let filter = ListFilter {
            all: true,
            filters: BTreeMap::from([("label".to_owned(), label)]),
            ..ListFilter::default()
        };
        for container in engine.list(filter).await.map_err(failed)? {
            logs.push(one(engine, &container.id.to_string(), *task_id, &request).await?);
        }
    }
    Ok(stream::select_all(logs).boxed())
}

async fn one(
    engine: &EngineHandle,
    container: &str,
    task_id: TaskId,
    request: &LogsRequest,
) -> Result<Lines, RpcError> {
    let options = LogOptions {
        follow: request.follow,
        stdout: request.stdout,
        stderr: request.stderr,
        since: request.since,
        until: request.until,
        tail: request
            .tail
            .map(|lines| usize::try_from(lines).unwrap_or(usize::MAX)),
    };
    let lines = engine.logs(container, options).await.map_err(failed)?;
    Ok(lines
        .map(move |entry| {
            let entry = entry.map_err(failed)?;
            Ok(LogLine {
                task_id,
                at: entry.time,
                stderr: entry.stream == StdStream::Stderr,
                data: entry.line.to_vec(),
                attributes: Labels::new(),
            })
        })
        .boxed())
}

fn failed(err: shoal_engine::EngineError) -> RpcError {
    RpcError::new(ErrorCode::Internal, super::chain(&err))
}
