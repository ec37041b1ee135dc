//! Files in and out of containers, as tar streams.

use crate::error::{ApiError, ApiResult};
use crate::request::Params;
use crate::server::Api;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::IntoResponse;
use axum::routing::head;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::TryStreamExt;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;
use shoal_engine::{ArchivePutOptions, PathStat};
use tokio_util::io::StreamReader;

const PATH_STAT: HeaderName = HeaderName::from_static("x-docker-container-path-stat");

pub(super) fn routes() -> Router<Api> {
    Router::new().route(
        "/containers/{id}/archive",
        head(archive_stat).get(archive_get).put(archive_put),
    )
}

fn path(params: &Params) -> ApiResult<&str> {
    params
        .get("path")
        .ok_or_else(|| ApiError::bad_request("bad parameter: path cannot be empty"))
}

async fn archive_stat(State(api): State<Api>, Path(id): Path<String>, params: Params) -> ApiResult {
    let stat = api.engine.archive_stat(&id, path(&params)?).await?;
    Ok(([(PATH_STAT, stat_header(&stat)?)], StatusCode::OK).into_response())
}

async fn archive_get(State(api): State<Api>, Path(id): Path<String>, params: Params) -> ApiResult {
    let (stat, tar) = api.engine.archive_get(&id, path(&params)?).await?;
    let headers = [
        (PATH_STAT, stat_header(&stat)?),
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/x-tar"),
        ),
    ];
    Ok((headers, Body::from_stream(tar)).into_response())
}

async fn archive_put(
    State(api): State<Api>,
    Path(id): Path<String>,
    params: Params,
    request: Request,
) -> ApiResult {
    let options = ArchivePutOptions {
        no_overwrite_dir_non_dir: params.flag("noOverwriteDirNonDir"),
        copy_uid_gid: params.flag("copyUIDGID"),
    };
    let tar = request.into_body().into_data_stream();
    let tar = StreamReader::new(tar.map_err(std::io::Error::other));
    api.engine
        .archive_put(&id, path(&params)?, Box::pin(tar), options)
        .await?;
    Ok(StatusCode::OK.into_response())
}

fn stat_header(stat: &PathStat) -> ApiResult<HeaderValue> {
    let text = json!({
        "name": stat.name,
        "size": stat.size,
        "mode": go_mode(stat.mode),
        "mtime": crate::time::rfc3339(stat.modified),
        "linkTarget": stat.link_target,
    });
    HeaderValue::from_str(&STANDARD.encode(text.to_string()))
        .map_err(|err| ApiError::internal(format!("failed to write the path's facts: {err}")))
}

/// Go's own mode bits for those of stat(2).
fn go_mode(mode: u32) -> u32 {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => 1 << 31,
        libc::S_IFLNK => 1 << 27,
        libc::S_IFBLK => 1 << 26,
        libc::S_IFCHR => 1 << 26 | 1 << 21,
        libc::S_IFIFO => 1 << 25,
        libc::S_IFSOCK => 1 << 24,
        _ => 0,
    };
    let bit = |from: u32, to: u32| if mode & from != 0 { 1 << to } else { 0 };
    let special = bit(libc::S_ISUID, 23) | bit(libc::S_ISGID, 22) | bit(libc::S_ISVTX, 20);
    kind | special | (mode & 0o777)
}

#[cfg(test)]
mod tests {
    use super::go_mode;

    #[test]
    fn modes_are_written_as_go_has_them() {
        for (mode, expected) in [
            (libc::S_IFREG | 0o644, 0o644),
            (libc::S_IFDIR | 0o1777, (1 << 31) | (1 << 20) | 0o777),
            (libc::S_IFLNK | 0o777, (1 << 27) | 0o777),
            (libc::S_IFREG | 0o4755, (1 << 23) | 0o755),
        ] {
            assert_eq!(go_mode(mode), expected, "{mode:o}");
        }
    }
}
