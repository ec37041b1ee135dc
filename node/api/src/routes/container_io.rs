//! Containers: what goes in and out of them.

use crate::convert::{container_in, container_out, local_out};
use crate::error::{ApiError, ApiResult};
use crate::hijack::{Client, DetachKeys};
use crate::request::{JsonBody, Params};
use crate::server::Api;
use crate::stream::{frame, json_lines, output_type, streaming};
use axum::extract::{FromRequest, Path, Request, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::StatusCode;
use serde_json::json;
use shoal_engine::info::ContainerStats;
use shoal_engine::{
    AttachOptions, AttachStreams, EngineError, LogEntry, LogOptions, OutputChunk, StdStream,
};
use std::time::Duration;

/// Time between two samples of statistics.
const STATS_PERIOD: Duration = Duration::from_secs(1);

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/containers/{id}/attach", post(attach))
        .route("/containers/{id}/logs", get(logs))
        .route("/containers/{id}/stats", get(stats))
        .route("/containers/{id}/top", get(top))
        .route("/containers/{id}/exec", post(exec_create))
        .route("/exec/{id}/start", post(exec_start))
        .route("/exec/{id}/json", get(exec_inspect))
        .route("/exec/{id}/resize", post(exec_resize))
}

async fn attach(
    State(api): State<Api>,
    Path(id): Path<String>,
    params: Params,
    request: Request,
) -> ApiResult {
    let keys = DetachKeys::parse(params.get("detachKeys"))?;
    let options = AttachOptions {
        stdin: params.flag("stdin"),
        stdout: params.flag("stdout"),
        stderr: params.flag("stderr"),
        logs: params.flag("logs"),
        stream: params.flag("stream"),
    };
    let streams = api.engine.attach(&id, options).await?;
    Ok(Client::of(request).join(&api, streams, keys))
}

/// Reads which part of a log is wanted.
pub(super) fn log_options(params: &Params) -> ApiResult<LogOptions> {
    let options = LogOptions {
        follow: params.flag("follow"),
        stdout: params.flag("stdout"),
        stderr: params.flag("stderr"),
        since: params.time("since")?,
        until: params.time("until")?,
        tail: tail(params)?,
    };
    if !options.stdout && !options.stderr {
        return Err(ApiError::bad_request(
            "Bad parameters: you must choose at least one stream",
        ));
    }
    Ok(options)
}

/// Reads `tail`: a number, `all`, or nothing. As in Docker, what is no number means all.
fn tail(params: &Params) -> ApiResult<Option<usize>> {
    match params.get("tail") {
        None | Some("all") => Ok(None),
        Some(text) if text.starts_with('-') => Ok(None),
        Some(_) => params.number("tail"),
    }
}

async fn logs(State(api): State<Api>, Path(id): Path<String>, params: Params) -> ApiResult {
    let options = log_options(&params)?;
    let (timestamps, details) = (params.flag("timestamps"), params.flag("details"));
    let tty = api.engine.inspect(&id).await?.config.tty;
    let entries = api.engine.logs(&id, options).await?;
    let body = entries.map(move |entry| log_bytes(tty, timestamps, details, entry));
    Ok(streaming(&api, output_type(tty), body))
}

fn log_bytes(
    tty: bool,
    timestamps: bool,
    details: bool,
    entry: Result<LogEntry, EngineError>,
) -> Bytes {
    match entry {
        Ok(entry) => {
            let mut head = String::new();
            if timestamps {
                head.push_str(&crate::time::rfc3339(entry.time));
                head.push(' ');
            }
            if details {
                // The log driver keeps no attributes: their list is empty, its separator stays.
                head.push(' ');
            }
            frame(tty, entry.stream, &[head.as_bytes(), &entry.line])
        }
        Err(err) => {
            let text = format!("Error grabbing logs: {}\n", crate::error::chain(&err));
            frame(tty, StdStream::Stderr, &[text.as_bytes()])
        }
    }
}

async fn stats(State(api): State<Api>, Path(id): Path<String>, params: Params) -> ApiResult {
    let info = api.engine.inspect(&id).await?;
    let (id, name) = (info.id.to_string(), info.name.clone());
    let first = api.engine.stats(&id).await?;
    if params.flag_or("stream", true) {
        let engine = api.engine.clone();
        let start = (engine, id, name, None::<ContainerStats>);
        let samples = stream::unfold(Some(start), move |state| async move {
            let (engine, id, name, before) = state?;
            if before.is_some() {
                tokio::time::sleep(STATS_PERIOD).await;
            }
            match engine.stats(&id).await {
                Ok(sample) => {
                    let line = local_out::stats(&id, &name, &sample, before.as_ref());
                    Some((Ok(line), Some((engine, id, name, Some(sample)))))
                }
                Err(err) => Some((Err(err.into()), None)),
            }
        });
        return Ok(json_lines(&api, samples));
    }
    if params.flag("one-shot") {
        return Ok(Json(local_out::stats(&id, &name, &first, None)).into_response());
    }
    tokio::time::sleep(STATS_PERIOD).await;
    let second = api.engine.stats(&id).await?;
    Ok(Json(local_out::stats(&id, &name, &second, Some(&first))).into_response())
}

async fn top(State(api): State<Api>, Path(id): Path<String>, params: Params) -> ApiResult {
    if let Some(args) = params.get("ps_args")
        && args != "-ef"
    {
        let reason = format!("`{args}`: only `-ef` is supported");
        return Err(ApiError::field("ps_args", reason));
    }
    let table = api.engine.top(&id).await?;
    Ok(Json(json!({ "Titles": table.titles, "Processes": table.rows })).into_response())
}

async fn exec_create(
    State(api): State<Api>,
    Path(id): Path<String>,
    JsonBody(body): JsonBody,
) -> ApiResult {
    let config = container_in::exec_config(body)?;
    let exec_id = api.engine.exec_create(&id, config).await?;
    Ok((StatusCode::CREATED, Json(json!({ "Id": exec_id }))).into_response())
}

async fn exec_start(
    State(api): State<Api>,
    Path(id): Path<String>,
    mut request: Request,
) -> ApiResult {
    let upgrade = request
        .headers()
        .contains_key(http::header::UPGRADE)
        .then(|| hyper::upgrade::on(&mut request));
    let JsonBody(mut body) = JsonBody::from_request(request, &()).await?;
    let detach = body.bool("Detach")?;
    // The terminal was chosen when the exec was made; clients repeat it here.
    body.bool("Tty")?;
    let size = container_in::console_size(&mut body)?;
    body.done()?;
    let keys = DetachKeys::parse(None)?;
    let streams = match api.engine.exec_start(&id, detach).await {
        Ok(streams) => streams,
        Err(err @ EngineError::Start { .. }) if !detach => {
            let tty = api.engine.exec_inspect(&id).await?.config.tty;
            let streams = failure_streams(&err, tty);
            return Ok(Client::with_upgrade(upgrade).join(&api, streams, DetachKeys::parse(None)?));
        }
        Err(err) => return Err(err.into()),
    };
    if detach {
        return Ok(StatusCode::OK.into_response());
    }
    if let Some(size) = size
        && streams.tty
    {
        api.engine.exec_resize(&id, size).await?;
    }
    Ok(Client::with_upgrade(upgrade).join(&api, streams, keys))
}

/// A program that can't be executed: clients read why as its output and then, with [`exec_inspect`], code 126 or 127.
fn failure_streams(err: &EngineError, tty: bool) -> AttachStreams {
    let chunk = OutputChunk {
        stream: if tty {
            StdStream::Stdout
        } else {
            StdStream::Stderr
        },
        bytes: format!("{err}\r\n").into(),
    };
    AttachStreams {
        stdin: None,
        output: futures_util::stream::once(std::future::ready(Ok(chunk))).boxed(),
        tty,
    }
}

async fn exec_inspect(State(api): State<Api>, Path(id): Path<String>) -> ApiResult {
    let info = api.engine.exec_inspect(&id).await?;
    Ok(Json(container_out::exec(&info)).into_response())
}

async fn exec_resize(State(api): State<Api>, Path(id): Path<String>, params: Params) -> ApiResult {
    let size = super::containers::terminal_size(&params)?;
    api.engine.exec_resize(&id, size).await?;
    Ok(StatusCode::OK.into_response())
}
