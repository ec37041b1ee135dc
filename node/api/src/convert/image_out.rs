//! Writes images and what happens to them.

use super::common;
use crate::time::{rfc3339, unix_seconds};
use serde_json::{Map, Value, json};
use shoal_engine::image::{Image, Progress, Removed};
use shoal_model::Timestamp;
use shoal_model::spec::Healthcheck;

/// Writes one row of `GET /images/json`.
pub(crate) fn summary(image: &Image, containers: usize) -> Value {
    let labels = labels(image);
    let mut out = json!({
        "Id": image.id.to_string(),
        "ParentId": "",
        "RepoTags": image.repo_tags,
        "RepoDigests": image.repo_digests,
        "Created": unix_seconds(image.created),
        "Size": image.size,
        "VirtualSize": image.size,
        "SharedSize": -1,
        "Labels": labels,
        "Containers": containers,
    });
    if labels.is_empty() {
        out["Labels"] = Value::Null;
    }
    out
}

/// Labels of an image.
pub(crate) fn labels(image: &Image) -> std::collections::BTreeMap<String, String> {
    image
        .config
        .config()
        .as_ref()
        .and_then(|config| config.labels().clone())
        .unwrap_or_default()
        .into_iter()
        .collect()
}

/// Writes `GET /images/{name}/json`.
pub(crate) fn inspect(image: &Image) -> Value {
    let layers: Vec<String> = image
        .layers
        .iter()
        .map(|layer| layer.diff_id.to_string())
        .collect();
    json!({
        "Id": image.id.to_string(),
        "RepoTags": image.repo_tags,
        "RepoDigests": image.repo_digests,
        "Parent": "",
        "Comment": comment(image),
        "Created": rfc3339(image.created),
        "DockerVersion": "",
        "Author": image.config.author().clone().unwrap_or_default(),
        "Config": config(image),
        "Architecture": image.config.architecture().to_string(),
        "Os": image.config.os().to_string(),
        "Size": image.size,
        "VirtualSize": image.size,
        "GraphDriver": { "Name": "overlay2", "Data": null },
        "RootFS": { "Type": "layers", "Layers": layers },
        "Metadata": { "LastTagTime": crate::time::NEVER },
    })
}

fn comment(image: &Image) -> String {
    image
        .config
        .history()
        .iter()
        .flatten()
        .last()
        .and_then(|entry| entry.comment().clone())
        .unwrap_or_default()
}

fn config(image: &Image) -> Value {
    let set = |keys: &Option<Vec<String>>| -> Value {
        match keys {
            None => Value::Null,
            Some(keys) => keys
                .iter()
                .map(|key| (key.clone(), json!({})))
                .collect::<Map<_, _>>()
                .into(),
        }
    };
    let Some(config) = image.config.config() else {
        return json!({});
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let mut out = json!({
        "Hostname": "",
        "Domainname": "",
        "User": text(config.user()),
        "AttachStdin": false,
        "AttachStdout": false,
        "AttachStderr": false,
        "Tty": false,
        "OpenStdin": false,
        "StdinOnce": false,
        "Env": config.env(),
        "Cmd": config.cmd(),
        "Image": "",
        "Volumes": set(config.volumes()),
        "WorkingDir": text(config.working_dir()),
        "Entrypoint": config.entrypoint(),
        "OnBuild": image.docker.on_build,
        "Labels": labels(image),
    });
    if config.exposed_ports().is_some() {
        out["ExposedPorts"] = set(config.exposed_ports());
    }
    if let Some(signal) = config.stop_signal() {
        out["StopSignal"] = json!(signal);
    }
    if let Some(shell) = &image.docker.shell {
        out["Shell"] = json!(shell);
    }
    if let Some(check) = &image.docker.healthcheck {
        let positive = |value: i64| u64::try_from(value).unwrap_or(0);
        out["Healthcheck"] = common::healthcheck_json(&Healthcheck {
            test: check.test.clone(),
            interval_ns: positive(check.interval),
            timeout_ns: positive(check.timeout),
            retries: positive(check.retries),
            start_period_ns: positive(check.start_period),
            start_interval_ns: positive(check.start_interval),
        });
    }
    out
}

/// Writes `GET /images/{name}/history`: newest first.
pub(crate) fn history(image: &Image) -> Value {
    let mut layers = image.layers.iter();
    let mut rows: Vec<Value> = image
        .config
        .history()
        .iter()
        .flatten()
        .map(|entry| {
            let is_empty = entry.empty_layer().unwrap_or(false);
            let size = if is_empty {
                0
            } else {
                layers.next().map_or(0, |l| l.unpacked_bytes)
            };
            let created = entry
                .created()
                .as_deref()
                .and_then(|text| text.parse::<jiff::Timestamp>().ok())
                .map_or(0, |time| time.as_second());
            json!({
                "Id": "<missing>",
                "Created": created,
                "CreatedBy": entry.created_by().clone().unwrap_or_default(),
                "Tags": null,
                "Size": size,
                "Comment": entry.comment().clone().unwrap_or_default(),
            })
        })
        .collect();
    rows.extend(layers.map(|layer| {
        json!({
            "Id": "<missing>",
            "Created": unix_seconds(image.created),
            "CreatedBy": "",
            "Tags": null,
            "Size": layer.unpacked_bytes,
            "Comment": "",
        })
    }));
    rows.reverse();
    if let Some(top) = rows.first_mut() {
        top["Id"] = json!(image.id.to_string());
        if !image.repo_tags.is_empty() {
            top["Tags"] = json!(image.repo_tags);
        }
    }
    Value::Array(rows)
}

/// Writes what a removal did.
pub(crate) fn removed(removed: &[Removed]) -> Value {
    removed
        .iter()
        .map(|step| match step {
            Removed::Untagged(name) => json!({ "Untagged": name }),
            Removed::Deleted(id) => json!({ "Deleted": id.to_string() }),
        })
        .collect()
}

/// Writes one line of a pull's progress.
pub(crate) fn progress(event: &Progress) -> Value {
    match event {
        Progress::Status { id, message } if id.is_empty() => json!({ "status": message }),
        Progress::Status { id, message } => json!({ "status": message, "id": id }),
        Progress::Layer { id, state } => {
            let detail = match state.counts() {
                Some((current, total)) => json!({ "current": current, "total": total }),
                None => json!({}),
            };
            let mut out = json!({ "status": state.status(), "progressDetail": detail, "id": id });
            if let Some((current, total)) = state.counts() {
                out["progress"] = json!(bar(current, total));
            }
            out
        }
    }
}

/// The bar that Docker's daemon draws for clients without a terminal.
fn bar(current: u64, total: u64) -> String {
    const WIDTH: u64 = 50;
    let done = current
        .saturating_mul(WIDTH)
        .checked_div(total)
        .unwrap_or(0)
        .min(WIDTH) as usize;
    let rest = WIDTH as usize - done;
    format!(
        "[{}>{}] {} / {}",
        "=".repeat(done),
        " ".repeat(rest),
        bytes(current),
        bytes(total)
    )
}

fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return format!("{value:.4}")
                .trim_end_matches('0')
                .trim_end_matches('.')
                .to_owned()
                + unit;
        }
        value /= 1000.0;
    }
    format!("{value:.3}TB")
}

/// Whether an image is newer than a time, for the filters `before` and `since`.
pub(crate) fn is_newer(image: &Image, than: Timestamp) -> bool {
    image.created > than
}
