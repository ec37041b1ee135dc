//! Refuses what this runtime does not do, before anything is made: nothing in a configuration is ignored.

use crate::{Failure, Stage};
use nix::errno::Errno;
use oci_spec::runtime::{Linux, LinuxNamespaceType, LinuxResources, Process, Spec};

/// Checks the whole configuration.
pub(crate) fn validate(spec: &Spec) -> Result<(), Failure> {
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| refuse("process is missing"))?;
    validate_process(process)?;
    if spec.root().is_none() {
        return Err(refuse("root is missing"));
    }
    if spec
        .hooks()
        .as_ref()
        .is_some_and(|hooks| *hooks != oci_spec::runtime::Hooks::default())
    {
        return Err(refuse("hooks are not supported"));
    }
    for mount in spec.mounts().iter().flatten() {
        let mapped = mount.uid_mappings().as_ref().is_some_and(|m| !m.is_empty())
            || mount.gid_mappings().as_ref().is_some_and(|m| !m.is_empty());
        if mapped {
            return Err(refuse(
                "mounts: uidMappings and gidMappings are not supported",
            ));
        }
    }
    let linux = spec.linux().as_ref();
    let linux = linux.ok_or_else(|| refuse("linux is missing"))?;
    validate_namespaces(linux)?;
    validate_linux(linux)
}

fn validate_namespaces(linux: &Linux) -> Result<(), Failure> {
    let kinds: Vec<_> = linux
        .namespaces()
        .iter()
        .flatten()
        .map(|n| (n.typ(), n.path()))
        .collect();
    if !kinds
        .iter()
        .any(|(typ, path)| *typ == LinuxNamespaceType::Mount && path.is_none())
    {
        return Err(refuse(
            "linux.namespaces: a new mount namespace is required",
        ));
    }
    for (typ, path) in kinds {
        let fresh_only = matches!(typ, LinuxNamespaceType::User | LinuxNamespaceType::Time);
        if fresh_only && path.is_some() {
            return Err(refuse(&format!(
                "linux.namespaces: `{typ}` can't be joined by path"
            )));
        }
        if typ == LinuxNamespaceType::Time {
            return Err(refuse("linux.namespaces: `time` is not supported"));
        }
    }
    Ok(())
}

fn validate_linux(linux: &Linux) -> Result<(), Failure> {
    for (field, present) in [
        (
            "linux.mountLabel",
            linux.mount_label().as_ref().is_some_and(|l| !l.is_empty()),
        ),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("linux.personality", linux.personality().is_some()),
        (
            "linux.timeOffsets",
            linux.time_offsets().as_ref().is_some_and(|t| !t.is_empty()),
        ),
        (
            "linux.netDevices",
            linux.net_devices().as_ref().is_some_and(|d| !d.is_empty()),
        ),
    ] {
        if present {
            return Err(refuse(&format!("{field} is not supported")));
        }
    }
    linux
        .resources()
        .as_ref()
        .map_or(Ok(()), validate_resources)
}

/// Checks a process, the container's or an exec'ed one.
pub(super) fn validate_process(process: &Process) -> Result<(), Failure> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(refuse("process.args is empty"));
    }
    if !process.cwd().is_absolute() {
        return Err(refuse("process.cwd must be absolute"));
    }
    let text = |value: &Option<String>| value.as_ref().is_some_and(|text| !text.is_empty());
    for (field, present) in [
        ("process.apparmorProfile", text(process.apparmor_profile())),
        ("process.selinuxLabel", text(process.selinux_label())),
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.scheduler", process.scheduler().is_some()),
        (
            "process.execCPUAffinity",
            process.exec_cpu_affinity().is_some(),
        ),
    ] {
        if present {
            return Err(refuse(&format!("{field} is not supported")));
        }
    }
    Ok(())
}

/// Checks limits, at the start or for an update.
pub(crate) fn validate_resources(resources: &LinuxResources) -> Result<(), Failure> {
    for (field, present) in [
        (
            "hugepageLimits",
            resources
                .hugepage_limits()
                .as_ref()
                .is_some_and(|l| !l.is_empty()),
        ),
        ("network", resources.network().is_some()),
        (
            "rdma",
            resources.rdma().as_ref().is_some_and(|r| !r.is_empty()),
        ),
    ] {
        if present {
            return Err(refuse(&format!("linux.resources.{field} is not supported")));
        }
    }
    Ok(())
}

fn refuse(message: &str) -> Failure {
    let mut failure = Failure::new(Stage::Validate, message);
    failure.errno = Some(Errno::EINVAL as i32);
    failure
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::default_spec;
    use std::path::Path;

    #[test]
    fn what_is_not_supported_is_named() {
        let check = |json: &str, expected: &str| {
            let spec = default_spec("/r", vec!["true".into()], Path::new("/x"));
            let mut value = serde_json::to_value(&spec).unwrap();
            let patch: serde_json::Value = serde_json::from_str(json).unwrap();
            merge(&mut value, patch);
            let spec = serde_json::from_value(value).unwrap();
            assert_eq!(validate(&spec).unwrap_err().message, expected);
        };
        check(r#"{"process":{"args":[]}}"#, "process.args is empty");
        check(
            r#"{"process":{"apparmorProfile":"docker-default"}}"#,
            "process.apparmorProfile is not supported",
        );
        check(
            r#"{"linux":{"namespaces":[{"type":"pid"}]}}"#,
            "linux.namespaces: a new mount namespace is required",
        );
        check(
            r#"{"linux":{"resources":{"hugepageLimits":[{"pageSize":"2MB","limit":1}]}}}"#,
            "linux.resources.hugepageLimits is not supported",
        );
        check(
            r#"{"hooks":{"poststop":[{"path":"/bin/true"}]}}"#,
            "hooks are not supported",
        );
    }

    fn merge(into: &mut serde_json::Value, patch: serde_json::Value) {
        match (into, patch) {
            (serde_json::Value::Object(into), serde_json::Value::Object(patch)) => {
                for (key, value) in patch {
                    merge(into.entry(key).or_insert(serde_json::Value::Null), value);
                }
            }
            (into, patch) => *into = patch,
        }
    }
}
