//! Commands on images.

use crate::args::image::{ImagesArgs, ImportArgs, LoadArgs, PullArgs, RmiArgs, TagArgs};
use crate::client::Client;
use crate::commands::{filters, for_each, print, short_id};
use crate::error::{CliError, Result};
use crate::render::human;
use crate::render::list::{self, Column, ListStyle, Row};
use bollard::body_try_stream;
use bollard::models::{CreateImageInfo, ImageSummary};
use bollard::query_parameters::{
    CreateImageOptions, ImportImageOptions, ListImagesOptions, RemoveImageOptions, TagImageOptions,
};
use futures_util::{Stream, StreamExt};
use hyper::body::Bytes;
use jiff::Timestamp;
use serde_json::json;
use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::Path;
use tokio_util::io::ReaderStream;

/// Bytes of one piece of an archive on its way to the daemon.
const PIECE_BYTES: usize = 256 << 10;

const COLUMNS: &[Column] = &[
    ("REPOSITORY", "Repository"),
    ("TAG", "Tag"),
    ("IMAGE ID", "ID"),
    ("CREATED", "CreatedSince"),
    ("SIZE", "Size"),
];
const DIGEST_COLUMN: Column = ("DIGEST", "Digest");
const HEADERS: &[Column] = &[("CREATED AT", "CreatedAt"), DIGEST_COLUMN];

pub(crate) async fn pull(client: &Client, args: PullArgs) -> Result<()> {
    pull_reference(client, &args.image, args.platform.as_deref(), args.quiet).await?;
    print(&format!("{}\n", canonical(&args.image)))
}

/// What docker prints last: the reference in full.
fn canonical(image: &str) -> String {
    let (host, rest) = image.split_once('/').unwrap_or(("", image));
    let has_host = host.contains(['.', ':']) || host == "localhost";
    let name = match (has_host, rest.is_empty() || host.is_empty()) {
        (true, _) => image.to_owned(),
        (false, true) => format!("docker.io/library/{image}"),
        (false, false) => format!("docker.io/{image}"),
    };
    let last = name.rsplit('/').next().unwrap_or_default();
    if last.contains([':', '@']) {
        name
    } else {
        format!("{name}:latest")
    }
}

/// Lets the daemon download an image, with its progress on standard error.
pub(crate) async fn pull_reference(
    client: &Client,
    image: &str,
    platform: Option<&str>,
    quiet: bool,
) -> Result<()> {
    let options = CreateImageOptions {
        from_image: Some(image.to_owned()),
        // Without a tag the API means every tag.
        tag: Some(if has_tag(image) {
            String::new()
        } else {
            "latest".to_owned()
        }),
        platform: platform.unwrap_or_default().to_owned(),
        ..CreateImageOptions::default()
    };
    let auth = super::registry::credentials(image)?;
    let progress = client.docker.create_image(Some(options), None, auth);
    show_progress(progress, quiet).await
}

fn has_tag(image: &str) -> bool {
    image
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .contains([':', '@'])
}

/// Shows a line per layer: written over on a terminal, only milestones otherwise.
async fn show_progress(
    progress: impl Stream<Item = std::result::Result<CreateImageInfo, bollard::errors::Error>>,
    quiet: bool,
) -> Result<()> {
    let mut progress = std::pin::pin!(progress);
    let live = std::io::stderr().is_terminal();
    let mut lines: Vec<String> = Vec::new();
    while let Some(info) = progress.next().await {
        let info = info?;
        if let Some(message) = info.error_detail.and_then(|detail| detail.message) {
            return Err(CliError::Daemon {
                status: 500,
                message,
            });
        }
        let Some(status) = info.status.filter(|_| !quiet) else {
            continue;
        };
        let detail = info.progress_detail.unwrap_or_default();
        match (info.id, detail.current.filter(|current| *current > 0)) {
            (None, _) => eprintln!("{status}"),
            (Some(id), None) => {
                lines.retain(|line| *line != id);
                eprintln!("{id}: {status}");
                lines.push(id);
            }
            (Some(id), Some(current)) if live => {
                let total = detail.total.unwrap_or(0);
                eprint!(
                    "\r\x1b[K{id}: {status} {}/{}\r",
                    human::size(current),
                    human::size(total)
                );
            }
            (Some(_), Some(_)) => {}
        }
    }
    Ok(())
}

pub(crate) async fn images(client: &Client, args: ImagesArgs) -> Result<()> {
    let mut wanted = filters(&args.list.filters)?.unwrap_or_default();
    if let Some(repository) = &args.repository {
        wanted
            .entry("reference".to_owned())
            .or_default()
            .push(repository.clone());
    }
    let options = ListImagesOptions {
        all: args.all,
        filters: (!wanted.is_empty()).then_some(wanted),
        digests: args.digests,
        ..ListImagesOptions::default()
    };
    let mut images = client.docker.list_images(Some(options)).await?;
    images.sort_by_key(|image| std::cmp::Reverse(image.created));
    let now = Timestamp::now();
    let rows: Vec<Row> = images
        .iter()
        .flat_map(|image| rows_of(image, now, args.list.no_trunc))
        .filter_map(|row| row.as_object().cloned())
        .collect();
    let mut columns = COLUMNS.to_vec();
    if args.digests {
        columns.insert(2, DIGEST_COLUMN);
    }
    let quiet = args.list.quiet.then_some("ID");
    let style = ListStyle {
        format: args.list.format.as_deref(),
        quiet,
    };
    print(&list::render(&rows, &columns, HEADERS, &style)?)
}

/// One row for each name of an image; one without a name if it has none.
fn rows_of(image: &ImageSummary, now: Timestamp, no_trunc: bool) -> Vec<serde_json::Value> {
    let created = Timestamp::from_second(image.created).unwrap_or(now);
    let digests: HashMap<&str, &str> = image
        .repo_digests
        .iter()
        .filter_map(|text| text.split_once('@'))
        .collect();
    let names: Vec<(String, String)> = match image.repo_tags.as_slice() {
        [] => {
            let repository = digests.keys().next().copied().unwrap_or("<none>");
            vec![(repository.to_owned(), "<none>".to_owned())]
        }
        tags => tags
            .iter()
            .map(|tag| {
                let (repository, tag) = tag.rsplit_once(':').unwrap_or((tag, "<none>"));
                (repository.to_owned(), tag.to_owned())
            })
            .collect(),
    };
    let row = |(repository, tag): (String, String)| {
        let digest = digests
            .get(repository.as_str())
            .copied()
            .unwrap_or("<none>");
        json!({
            "Digest": digest,
            "Repository": repository,
            "Tag": tag,
            "ID": if no_trunc { image.id.clone() } else { short_id(&image.id) },
            "CreatedSince": format!("{} ago", human::since(created, now)),
            "CreatedAt": human::absolute(created),
            "Size": human::size(image.size),
        })
    };
    names.into_iter().map(row).collect()
}

pub(crate) async fn rmi(client: &Client, args: RmiArgs) -> Result<()> {
    for_each(&args.images, async |name| {
        let options = RemoveImageOptions {
            force: args.force,
            ..RemoveImageOptions::default()
        };
        let removed = client
            .docker
            .remove_image(name, Some(options), None)
            .await?;
        for item in removed {
            if let Some(untagged) = item.untagged {
                print(&format!("Untagged: {untagged}\n"))?;
            }
            if let Some(deleted) = item.deleted {
                print(&format!("Deleted: {deleted}\n"))?;
            }
        }
        Ok(())
    })
    .await
}

pub(crate) async fn tag(client: &Client, args: TagArgs) -> Result<()> {
    let (repository, tag) = split_tag(&args.target);
    let options = TagImageOptions {
        repo: Some(repository),
        tag: Some(tag),
    };
    Ok(client.docker.tag_image(&args.source, Some(options)).await?)
}

fn split_tag(reference: &str) -> (String, String) {
    match reference.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository.to_owned(), tag.to_owned()),
        _ => (reference.to_owned(), "latest".to_owned()),
    }
}

/// An archive in pieces.
async fn pieces(
    path: Option<&Path>,
) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + 'static + use<>> {
    let reader: Box<dyn tokio::io::AsyncRead + Send + Unpin> = match path {
        None => Box::new(tokio::io::stdin()),
        Some(path) => {
            let opened = tokio::fs::File::open(path).await;
            Box::new(opened.map_err(CliError::io(format!("open `{}`", path.display())))?)
        }
    };
    Ok(ReaderStream::with_capacity(reader, PIECE_BYTES))
}

pub(crate) async fn load(client: &Client, args: LoadArgs) -> Result<()> {
    if args.input.is_none() && std::io::stdin().is_terminal() {
        let text = "requested load from stdin, but stdin is empty";
        return Err(CliError::Usage(text.to_owned()));
    }
    let options = ImportImageOptions {
        quiet: args.quiet,
        ..ImportImageOptions::default()
    };
    let body = body_try_stream(pieces(args.input.as_deref()).await?);
    let mut answers = std::pin::pin!(client.docker.import_image(options, body, None));
    while let Some(answer) = answers.next().await {
        let answer = answer?;
        if let Some(message) = answer.error_detail.and_then(|detail| detail.message) {
            return Err(CliError::Daemon {
                status: 500,
                message,
            });
        }
        if let Some(text) = answer.stream {
            print(&text)?;
        }
    }
    Ok(())
}

pub(crate) async fn import(client: &Client, args: ImportArgs) -> Result<()> {
    let (repo, tag) = match &args.reference {
        Some(reference) => {
            let (repository, tag) = split_tag(reference);
            (Some(repository), Some(tag))
        }
        None => (None, None),
    };
    let options = CreateImageOptions {
        from_src: Some("-".to_owned()),
        repo,
        tag,
        message: Some(args.message.clone()),
        changes: args.changes.clone(),
        ..CreateImageOptions::default()
    };
    let path = (args.file.as_os_str() != "-").then_some(args.file.as_path());
    let body = body_try_stream(pieces(path).await?);
    let mut answers = std::pin::pin!(client.docker.create_image(Some(options), Some(body), None));
    while let Some(answer) = answers.next().await {
        let answer = answer?;
        if let Some(message) = answer.error_detail.and_then(|detail| detail.message) {
            return Err(CliError::Daemon {
                status: 500,
                message,
            });
        }
        if let Some(status) = answer.status.filter(|status| status.starts_with("sha256:")) {
            print(&format!("{status}\n"))?;
        }
    }
    Ok(())
}
