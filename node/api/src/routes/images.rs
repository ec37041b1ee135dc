//! Images.

use crate::convert::image_out;
use crate::error::{ApiError, ApiResult};
use crate::request::{Filters, Params, labels_match, passes};
use crate::server::Api;
use crate::stream::json_lines;
use axum::extract::{Path, Request, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt, TryStreamExt};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use shoal_engine::image::{
    Image, PROGRESS_EVENTS_MAX, Progress, ProgressSink, Reference, RegistryAuth,
};
use shoal_engine::{EngineError, ListFilter};
use shoal_model::spec::Platform;
use std::collections::BTreeMap;
use std::future::Future;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/images/json", get(list))
        .route("/images/create", post(create))
        .route("/images/load", post(load))
        .route("/images/prune", post(prune))
        .route("/images/search", get(no_search))
        .route("/images/get", get(no_save))
        .route("/images/{*rest}", axum::routing::any(by_name))
        .route("/distribution/{*rest}", get(no_distribution))
        .route("/build", post(no_build))
        .route("/commit", post(no_commit))
        .route("/system/df", get(disk_usage))
}

async fn no_search() -> ApiError {
    ApiError::not_implemented("searching a registry is not supported: ask the registry itself")
}

async fn no_save() -> ApiError {
    ApiError::not_implemented("saving images to an archive is not supported yet")
}

async fn no_distribution() -> ApiError {
    ApiError::not_implemented("asking a registry for a manifest is not supported yet")
}

async fn no_build() -> ApiError {
    ApiError::not_implemented(
        "building images is not supported yet: build elsewhere, then load or pull",
    )
}

async fn no_commit() -> ApiError {
    ApiError::not_implemented("making an image of a container is not supported yet")
}

/// Names of images contain slashes, so the verb behind the name is split off by hand.
async fn by_name(
    State(api): State<Api>,
    method: Method,
    Path(rest): Path<String>,
    params: Params,
) -> ApiResult {
    if method == Method::DELETE {
        return remove(&api, &rest, &params).await;
    }
    match (method, rest.rsplit_once('/')) {
        (Method::GET | Method::HEAD, Some((name, "json"))) => {
            let image = api.engine.image_inspect(name)?;
            Ok(Json(image_out::inspect(&image)).into_response())
        }
        (Method::GET, Some((name, "history"))) => {
            let image = api.engine.image_inspect(name)?;
            Ok(Json(image_out::history(&image)).into_response())
        }
        (Method::GET, Some((_, "get"))) => Err(no_save().await),
        (Method::POST, Some((name, "tag"))) => tag(&api, name, &params).await,
        (Method::POST, Some((_, "push"))) => Err(ApiError::not_implemented(
            "pushing images is not supported yet",
        )),
        (method, _) => Err(ApiError::not_found(format!(
            "page not found: {method} /images/{rest}"
        ))),
    }
}

async fn list(State(api): State<Api>, params: Params) -> ApiResult {
    let known = ["before", "dangling", "label", "reference", "since"];
    let filters = params.filters(&known)?;
    let images = api.engine.image_list();
    let before = limit(&api, &filters, "before")?;
    let since = limit(&api, &filters, "since")?;
    let mut used: BTreeMap<String, usize> = BTreeMap::new();
    let everything = ListFilter {
        all: true,
        ..ListFilter::default()
    };
    for container in api.engine.list(everything).await? {
        *used.entry(container.image_id).or_default() += 1;
    }
    let mut rows: Vec<&Image> = images
        .iter()
        .filter(|image| matches(image, &filters))
        .filter(|image| {
            before
                .as_ref()
                .is_none_or(|limit| image_out::is_newer(limit, image.created))
        })
        .filter(|image| {
            since
                .as_ref()
                .is_none_or(|limit| image_out::is_newer(image, limit.created))
        })
        .collect();
    rows.sort_by_key(|image| std::cmp::Reverse(image.created));
    let rows: Vec<Value> = rows
        .into_iter()
        .map(|image| {
            let containers = used.get(&image.id.to_string()).copied().unwrap_or(0);
            image_out::summary(image, containers)
        })
        .collect();
    Ok(Json(rows).into_response())
}

/// The image that a filter names.
fn limit(api: &Api, filters: &Filters, key: &str) -> ApiResult<Option<Image>> {
    match filters.get(key).and_then(|values| values.first()) {
        None => Ok(None),
        Some(name) => Ok(Some(api.engine.image_inspect(name)?)),
    }
}

fn matches(image: &Image, filters: &Filters) -> bool {
    let is_on = |value: &str| matches!(value, "1" | "true" | "True");
    passes(filters, "dangling", |value| {
        is_on(value) == image.repo_tags.is_empty()
    }) && labels_match(&image_out::labels(image), filters.get("label"))
        && passes(filters, "reference", |pattern| {
            image
                .repo_tags
                .iter()
                .any(|tag| reference_matches(pattern, tag))
        })
}

/// Docker's patterns: with or without the tag, `*` and `?` for anything but a slash.
fn reference_matches(pattern: &str, tag: &str) -> bool {
    let repository = tag
        .rsplit_once(':')
        .map_or(tag, |(repository, _)| repository);
    glob(pattern.as_bytes(), tag.as_bytes()) || glob(pattern.as_bytes(), repository.as_bytes())
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            let ends = text
                .iter()
                .position(|byte| *byte == b'/')
                .unwrap_or(text.len());
            (0..=ends).any(|skip| glob(rest, &text[skip..]))
        }
        (Some((b'?', rest)), Some((byte, tail))) => *byte != b'/' && glob(rest, tail),
        (Some((wanted, rest)), Some((byte, tail))) => wanted == byte && glob(rest, tail),
        _ => false,
    }
}

async fn create(
    State(api): State<Api>,
    params: Params,
    headers: HeaderMap,
    request: Request,
) -> ApiResult {
    match (params.get("fromImage"), params.get("fromSrc")) {
        (Some(image), None) => pull(&api, image, &params, &headers),
        (None, Some("-")) => import(&api, &params, request).await,
        (None, Some(_)) => Err(ApiError::not_implemented(
            "importing from an address is not supported: send the archive itself (`-`)",
        )),
        _ => Err(ApiError::bad_request(
            "either `fromImage` or `fromSrc` is needed",
        )),
    }
}

fn pull(api: &Api, image: &str, params: &Params, headers: &HeaderMap) -> ApiResult {
    let name = match params.get("tag") {
        None => image.to_owned(),
        Some(tag) if tag.contains(':') => format!("{image}@{tag}"),
        Some(tag) => format!("{image}:{tag}"),
    };
    // A malformed name is told by the status, not in the stream.
    Reference::parse(&name).map_err(|err| ApiError::bad_request(crate::error::chain(&err)))?;
    let platform = platform(params.get("platform"))?;
    let auth = registry_auth(headers)?;
    let (sink, progress) = mpsc::channel(PROGRESS_EVENTS_MAX);
    let engine = api.engine.clone();
    let work = async move {
        engine.image_pull(&name, platform, auth, sink).await?;
        Ok(Vec::new())
    };
    Ok(json_lines(api, with_result(progress_lines(progress), work)))
}

/// Reads `os/architecture`; nothing: this machine's.
fn platform(text: Option<&str>) -> ApiResult<Platform> {
    let Some(text) = text else {
        return Ok(Platform::default());
    };
    match text.split('/').collect::<Vec<_>>().as_slice() {
        [os, architecture] if !os.is_empty() && !architecture.is_empty() => Ok(Platform {
            os: (*os).to_owned(),
            architecture: (*architecture).to_owned(),
        }),
        _ => Err(ApiError::field(
            "platform",
            format!("`{text}`: expected os/architecture"),
        )),
    }
}

fn progress_lines(progress: mpsc::Receiver<Progress>) -> BoxStream<'static, Value> {
    ReceiverStream::new(progress)
        .map(|event| image_out::progress(&event))
        .boxed()
}

/// Progress while the work goes on, then its result.
fn with_result(
    progress: BoxStream<'static, Value>,
    work: impl Future<Output = Result<Vec<Value>, EngineError>> + Send + 'static,
) -> impl Stream<Item = ApiResult<Value>> + Send {
    // The work goes on if the client leaves: what is half downloaded would be lost.
    let work = tokio::spawn(work);
    let result = stream::once(work).flat_map(|joined| {
        let lines = match joined {
            Ok(Ok(lines)) => lines.into_iter().map(Ok).collect(),
            Ok(Err(err)) => vec![Err(ApiError::from(err))],
            Err(err) => vec![Err(ApiError::internal(format!("the work was lost: {err}")))],
        };
        stream::iter(lines)
    });
    // The work owns the sink, so the progress ends when the work does.
    progress.map(Ok).chain(result)
}

async fn load(State(api): State<Api>, params: Params, request: Request) -> ApiResult {
    if params.get("platform").is_some() {
        return Err(ApiError::not_implemented(
            "`platform` is not supported for a load",
        ));
    }
    let quiet = params.flag("quiet");
    let tar = body_reader(request);
    let (sink, progress) = ProgressSink::channel();
    let engine = api.engine.clone();
    let progress = progress_lines(progress)
        .filter(move |_| std::future::ready(!quiet))
        .boxed();
    let work = async move {
        let mut lines = Vec::new();
        for loaded in engine.image_load(tar, sink).await? {
            for name in &loaded.names {
                lines.push(json!({ "stream": format!("Loaded image: {}\n", name.familiar()) }));
            }
            if loaded.names.is_empty() {
                lines.push(json!({ "stream": format!("Loaded image ID: {}\n", loaded.image.id) }));
            }
        }
        Ok(lines)
    };
    Ok(json_lines(&api, with_result(progress, work)))
}

fn body_reader(request: Request) -> impl tokio::io::AsyncRead + Send + Unpin + 'static {
    let data = request.into_body().into_data_stream();
    Box::pin(StreamReader::new(data.map_err(std::io::Error::other)))
}

async fn import(api: &Api, params: &Params, request: Request) -> ApiResult {
    let reference = params.get("repo").map(|repo| match params.get("tag") {
        None => repo.to_owned(),
        Some(tag) => format!("{repo}:{tag}"),
    });
    let changes: Vec<String> = params
        .all("changes")
        .into_iter()
        .map(str::to_owned)
        .collect();
    let message = params.text("message");
    let tar = body_reader(request);
    let engine = api.engine.clone();
    let work = async move {
        let image = engine
            .image_import(tar, reference.as_deref(), &changes, &message)
            .await?;
        Ok(vec![json!({ "status": image.id.to_string() })])
    };
    Ok(json_lines(api, with_result(stream::empty().boxed(), work)))
}

/// Reads the credentials of a pull.
fn registry_auth(headers: &HeaderMap) -> ApiResult<Option<RegistryAuth>> {
    let Some(header) = headers.get("x-registry-auth") else {
        return Ok(None);
    };
    // What is no text is no base64 either.
    RegistryAuth::from_header(header.to_str().unwrap_or("?"))
        .map_err(|err| ApiError::bad_request(err.to_string()))
}

async fn tag(api: &Api, name: &str, params: &Params) -> ApiResult {
    let Some(repo) = params.get("repo") else {
        return Err(ApiError::bad_request("`repo` is needed: the new name"));
    };
    let text = match params.get("tag") {
        None => repo.to_owned(),
        Some(tag) => format!("{repo}:{tag}"),
    };
    api.engine.image_tag(name, &text).await?;
    Ok(StatusCode::CREATED.into_response())
}

async fn remove(api: &Api, name: &str, params: &Params) -> ApiResult {
    let removed = api.engine.image_remove(name, params.flag("force")).await?;
    Ok(Json(image_out::removed(&removed)).into_response())
}

/// Removes what nobody uses: images without a name, or, with `dangling=false`, all.
async fn prune(State(api): State<Api>, params: Params) -> ApiResult {
    let filters = params.filters(&["dangling", "label"])?;
    let all = filters.get("dangling").is_some_and(|values| {
        values
            .iter()
            .any(|value| matches!(value.as_str(), "0" | "false"))
    });
    let everything = ListFilter {
        all: true,
        ..ListFilter::default()
    };
    let used: Vec<String> = api
        .engine
        .list(everything)
        .await?
        .into_iter()
        .map(|container| container.image_id)
        .collect();
    let (mut steps, mut reclaimed) = (Vec::new(), 0);
    for image in api.engine.image_list() {
        let id = image.id.to_string();
        let wanted = all || image.repo_tags.is_empty();
        let labelled = labels_match(&image_out::labels(&image), filters.get("label"));
        if !wanted || !labelled || used.contains(&id) {
            continue;
        }
        match api.engine.image_remove(&id, true).await {
            Ok(removed) => {
                steps.extend(removed);
                reclaimed += image.size;
            }
            // A container has come to use it meanwhile.
            Err(err) => tracing::debug!(%err, image = %id, "an image was not pruned"),
        }
    }
    let answer = json!({
        "ImagesDeleted": image_out::removed(&steps),
        "SpaceReclaimed": reclaimed,
    });
    Ok(Json(answer).into_response())
}

async fn disk_usage(State(api): State<Api>) -> ApiResult {
    let images = api.engine.image_list();
    let everything = ListFilter {
        all: true,
        ..ListFilter::default()
    };
    let containers = api.engine.list(everything).await?;
    let volumes = api.engine.volume_list(Filters::new()).await?;
    let layers: u64 = images.iter().map(|image| image.size).sum();
    let now = crate::time::now();
    let rows = |image: &Image| {
        let id = image.id.to_string();
        let users = containers
            .iter()
            .filter(|container| container.image_id == id)
            .count();
        image_out::summary(image, users)
    };
    Ok(Json(json!({
        "LayersSize": layers,
        "Images": images.iter().map(rows).collect::<Value>(),
        "Containers": containers
            .iter()
            .map(|info| crate::convert::container_out::summary(info, now))
            .collect::<Value>(),
        "Volumes": volumes
            .iter()
            .map(|volume| {
                let mut out = crate::convert::local_out::volume(volume);
                out["UsageData"] = json!({ "Size": -1, "RefCount": volume.used_by.len() });
                out
            })
            .collect::<Value>(),
        "BuildCache": [],
    }))
    .into_response())
}

#[cfg(test)]
mod tests {
    use super::reference_matches;

    #[test]
    fn references_match_with_and_without_tag() {
        for (pattern, tag, expected) in [
            ("busybox", "busybox:latest", true),
            ("busybox:latest", "busybox:latest", true),
            ("busy*", "busybox:1", true),
            ("busy*:?", "busybox:1", true),
            ("*", "a/b:1", false),
            ("*/*", "a/b:1", true),
            ("busy", "busybox:1", false),
        ] {
            assert_eq!(reference_matches(pattern, tag), expected, "{pattern} {tag}");
        }
    }
}
