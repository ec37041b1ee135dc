//! What containers and services share: mounts, health checks, limits of processes.

use crate::error::ApiResult;
use crate::fields::Fields;
use serde_json::{Value, json};
use shoal_model::Meta;
use shoal_model::spec::{Healthcheck, Mount, MountKind, Ulimit};

/// Reads `Mounts`.
pub(crate) fn mounts(fields: &mut Fields) -> ApiResult<Vec<Mount>> {
    fields.objects("Mounts")?.into_iter().map(mount).collect()
}

#[derive(Clone, Copy)]
enum MountType {
    Bind,
    Volume,
    Tmpfs,
    Unsupported,
}

fn mount(mut fields: Fields) -> ApiResult<Mount> {
    let kind = fields.word(
        "Type",
        &[
            ("bind", MountType::Bind),
            ("volume", MountType::Volume),
            ("tmpfs", MountType::Tmpfs),
            ("image", MountType::Unsupported),
            ("cluster", MountType::Unsupported),
            ("npipe", MountType::Unsupported),
        ],
    )?;
    let source = fields.string("Source")?;
    let target = fields.string("Target")?;
    if !target.starts_with('/') {
        return Err(fields.error("Target", format!("`{target}` is not an absolute path")));
    }
    let read_only = fields.bool("ReadOnly")?;
    let consistency = fields.string("Consistency")?;
    if !matches!(consistency.as_str(), "" | "default" | "consistent") {
        return Err(fields.error(
            "Consistency",
            format!("`{consistency}` has no meaning here"),
        ));
    }
    let bind = fields.object("BindOptions")?;
    let volume = fields.object("VolumeOptions")?;
    let tmpfs = fields.object("TmpfsOptions")?;
    let kind = match kind {
        None => return Err(fields.error("Type", "expected bind, volume or tmpfs")),
        Some(MountType::Unsupported) => {
            return Err(fields.error("Type", "only bind, volume and tmpfs are supported"));
        }
        Some(MountType::Bind) => {
            none_left(&mut [volume, tmpfs])?;
            if !source.starts_with('/') {
                return Err(fields.error("Source", format!("`{source}` is not an absolute path")));
            }
            bind_mount(source, bind)?
        }
        Some(MountType::Volume) => {
            none_left(&mut [bind, tmpfs])?;
            volume_mount(source, volume)?
        }
        Some(MountType::Tmpfs) => {
            none_left(&mut [bind, volume])?;
            if !source.is_empty() {
                return Err(fields.error("Source", "must be empty for a tmpfs mount"));
            }
            tmpfs_mount(tmpfs)?
        }
    };
    fields.done()?;
    Ok(Mount {
        kind,
        target,
        read_only,
    })
}

/// Options of another kind of mount must say nothing.
fn none_left(options: &mut [Option<Fields>]) -> ApiResult<()> {
    options
        .iter_mut()
        .filter_map(Option::take)
        .try_for_each(Fields::done)
}

fn bind_mount(source: String, options: Option<Fields>) -> ApiResult<MountKind> {
    let mut propagation = String::new();
    if let Some(mut options) = options {
        let words = [
            "private", "rprivate", "shared", "rshared", "slave", "rslave",
        ]
        .map(|word| (word, word));
        propagation = options
            .word("Propagation", &words)?
            .unwrap_or_default()
            .to_owned();
        options.refuse(&[
            ("NonRecursive", "binds are recursive"),
            ("CreateMountpoint", "make the source directory first"),
            ("ReadOnlyNonRecursive", "not done yet"),
            ("ReadOnlyForceRecursive", "not done yet"),
        ])?;
        options.done()?;
    }
    Ok(MountKind::Bind {
        source,
        propagation,
    })
}

fn volume_mount(name: String, options: Option<Fields>) -> ApiResult<MountKind> {
    let (mut driver, mut driver_options) = (String::new(), Default::default());
    let (mut labels, mut no_copy) = (Default::default(), false);
    if let Some(mut options) = options {
        no_copy = options.bool("NoCopy")?;
        labels = options.labels("Labels")?;
        if let Some(mut config) = options.object("DriverConfig")? {
            driver = config.string("Name")?;
            driver_options = config.labels("Options")?;
            if !matches!(driver.as_str(), "" | "local") {
                return Err(config.error("Name", format!("`{driver}`: only `local` is supported")));
            }
            config.done()?;
        }
        options.refuse(&[("Subpath", "not done yet")])?;
        options.done()?;
    }
    Ok(MountKind::Volume {
        name,
        driver,
        options: driver_options,
        labels,
        no_copy,
    })
}

fn tmpfs_mount(options: Option<Fields>) -> ApiResult<MountKind> {
    let (mut size_bytes, mut mode) = (0, 0);
    if let Some(mut options) = options {
        size_bytes = options.int("SizeBytes")?;
        mode = options.int("Mode")?;
        options.refuse(&[("Options", "use SizeBytes and Mode")])?;
        options.done()?;
    }
    Ok(MountKind::Tmpfs { size_bytes, mode })
}

/// Writes one element of `Mounts`.
pub(crate) fn mount_json(mount: &Mount) -> Value {
    let mut out = json!({ "Target": mount.target });
    match &mount.kind {
        MountKind::Bind {
            source,
            propagation,
        } => {
            out["Type"] = json!("bind");
            out["Source"] = json!(source);
            if !propagation.is_empty() {
                out["BindOptions"] = json!({ "Propagation": propagation });
            }
        }
        MountKind::Volume {
            name,
            driver,
            options,
            labels,
            no_copy,
        } => {
            out["Type"] = json!("volume");
            if !name.is_empty() {
                out["Source"] = json!(name);
            }
            let mut inner = json!({});
            if *no_copy {
                inner["NoCopy"] = json!(true);
            }
            if !labels.is_empty() {
                inner["Labels"] = json!(labels);
            }
            if !driver.is_empty() || !options.is_empty() {
                inner["DriverConfig"] = json!({ "Name": driver, "Options": options });
            }
            if inner != json!({}) {
                out["VolumeOptions"] = inner;
            }
        }
        MountKind::Tmpfs { size_bytes, mode } => {
            out["Type"] = json!("tmpfs");
            if *size_bytes != 0 || *mode != 0 {
                out["TmpfsOptions"] = json!({ "SizeBytes": size_bytes, "Mode": mode });
            }
        }
    }
    if mount.read_only {
        out["ReadOnly"] = json!(true);
    }
    out
}

/// Reads `Healthcheck`.
pub(crate) fn healthcheck(fields: &mut Fields, name: &str) -> ApiResult<Option<Healthcheck>> {
    let Some(mut inner) = fields.object(name)? else {
        return Ok(None);
    };
    let test = inner.strings("Test")?;
    if let Some(first) = test.first()
        && !matches!(first.as_str(), "" | "NONE" | "CMD" | "CMD-SHELL")
    {
        let reason = format!("`{first}`: the first word must be NONE, CMD or CMD-SHELL");
        return Err(inner.error("Test", reason));
    }
    let check = Healthcheck {
        test,
        interval_ns: inner.int("Interval")?,
        timeout_ns: inner.int("Timeout")?,
        retries: inner.int("Retries")?,
        start_period_ns: inner.int("StartPeriod")?,
        start_interval_ns: inner.int("StartInterval")?,
    };
    inner.done()?;
    Ok(Some(check))
}

/// Writes `Healthcheck`.
pub(crate) fn healthcheck_json(check: &Healthcheck) -> Value {
    let mut out = json!({});
    if !check.test.is_empty() {
        out["Test"] = json!(check.test);
    }
    for (name, value) in [
        ("Interval", check.interval_ns),
        ("Timeout", check.timeout_ns),
        ("Retries", check.retries),
        ("StartPeriod", check.start_period_ns),
        ("StartInterval", check.start_interval_ns),
    ] {
        if value != 0 {
            out[name] = json!(value);
        }
    }
    out
}

/// Reads `Ulimits`.
pub(crate) fn ulimits(fields: &mut Fields) -> ApiResult<Vec<Ulimit>> {
    let read = |mut inner: Fields| {
        let ulimit = Ulimit {
            name: inner.string("Name")?,
            soft: inner.int("Soft")?,
            hard: inner.int("Hard")?,
        };
        inner.done()?;
        Ok(ulimit)
    };
    fields.objects("Ulimits")?.into_iter().map(read).collect()
}

/// Writes `Ulimits`.
pub(crate) fn ulimits_json(ulimits: &[Ulimit]) -> Value {
    let write =
        |ulimit: &Ulimit| json!({"Name": ulimit.name, "Soft": ulimit.soft, "Hard": ulimit.hard});
    ulimits.iter().map(write).collect()
}

/// Writes `Version`, `CreatedAt` and `UpdatedAt` into an object of the cluster.
pub(crate) fn put_meta(out: &mut Value, meta: &Meta) {
    out["Version"] = json!({ "Index": meta.version.0 });
    out["CreatedAt"] = json!(crate::time::rfc3339(meta.created_at));
    out["UpdatedAt"] = json!(crate::time::rfc3339(meta.updated_at));
}
