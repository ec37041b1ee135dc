//! What a playground is made of, on disk, so that a later command finds it.

use crate::host::{Host, wait_until};
use crate::{PlaygroundError, Switch, cgroups};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest time for the kernel to end all processes of all hosts.
const HOSTS_END_MAX: Duration = Duration::from_secs(20);

/// The cgroup below which all hosts of the playground in `dir` are: two playgrounds do not meet.
pub(crate) fn cgroup_root(dir: &Path) -> String {
    let tag = shoal_overlay_net::InstanceTag::derive(&dir.to_string_lossy());
    format!("/shoal-playground-{}", tag.as_str())
}

/// SIGKILL for every process in a pinned network namespace, until there is none.
async fn kill_inhabitants(pins: &Path) -> Result<(), PlaygroundError> {
    let namespaces: Vec<_> = match std::fs::read_dir(pins) {
        Ok(entries) => entries
            .flatten()
            .filter_map(|pin| namespace(&pin.path()))
            .collect(),
        Err(_) => Vec::new(),
    };
    wait_until("the end of the hosts' processes", HOSTS_END_MAX, || {
        let left = inhabitants(&namespaces);
        // One that has ended meanwhile is what is wanted.
        let refused: Vec<_> = left
            .iter()
            .filter_map(|pid| kill(Pid::from_raw(*pid), Signal::SIGKILL).err())
            .filter(|errno| *errno != Errno::ESRCH)
            .collect();
        match left.is_empty() {
            true => Ok(()),
            false => Err(format!("processes {left:?} are left {refused:?}")),
        }
    })
    .await
}

/// What tells one namespace from another.
fn namespace(path: &Path) -> Option<(u64, u64)> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

fn inhabitants(namespaces: &[(u64, u64)]) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let inside = namespace(&entry.path().join("ns/net"))?;
            namespaces.contains(&inside).then_some(pid)
        })
        .collect()
}

/// A playground as it is written down.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// Format of this file.
    pub version: u32,
    /// Where everything is.
    pub dir: PathBuf,
    /// The hosts, in order.
    pub hosts: Vec<Host>,
}

impl State {
    const VERSION: u32 = 1;

    /// An empty playground in `dir`, which must not exist or be empty.
    ///
    /// # Errors
    /// When there is one already, or `dir` can't be made.
    pub fn create(dir: &Path) -> Result<Self, PlaygroundError> {
        if dir.join("playground.json").exists() {
            let way_out = "remove it first with `shoal playground down`";
            let dir = dir.display();
            return Err(PlaygroundError::State(format!(
                "there is a playground in `{dir}`: {way_out}"
            )));
        }
        std::fs::create_dir_all(dir.join("netns")).map_err(|err| PlaygroundError::File {
            action: "make",
            path: dir.to_owned(),
            err,
        })?;
        let state = Self {
            version: Self::VERSION,
            dir: dir.to_owned(),
            hosts: Vec::new(),
        };
        state.save()?;
        Ok(state)
    }

    /// Finds the playground in `dir`.
    ///
    /// # Errors
    /// When there is none, or its file can't be read.
    pub fn load(dir: &Path) -> Result<Self, PlaygroundError> {
        let path = dir.join("playground.json");
        let text = std::fs::read_to_string(&path).map_err(|_| {
            let dir = dir.display();
            PlaygroundError::State(format!(
                "there is no playground in `{dir}`: start one with `shoal playground up`"
            ))
        })?;
        serde_json::from_str(&text).map_err(|err| PlaygroundError::File {
            action: "read",
            path,
            err: err.into(),
        })
    }

    /// Writes it down.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn save(&self) -> Result<(), PlaygroundError> {
        let path = self.dir.join("playground.json");
        let text = serde_json::to_string_pretty(self).map_err(std::io::Error::from);
        let temporary = path.with_extension("json.new");
        text.and_then(|text| std::fs::write(&temporary, text))
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|err| PlaygroundError::File {
                action: "write",
                path,
                err,
            })
    }

    /// The host of that name.
    ///
    /// # Errors
    /// Names the hosts that there are.
    pub fn host(&self, name: &str) -> Result<&Host, PlaygroundError> {
        self.hosts
            .iter()
            .find(|host| host.name == name)
            .ok_or_else(|| self.no_host(name))
    }

    /// The host of that name.
    ///
    /// # Errors
    /// Names the hosts that there are.
    pub fn host_mut(&mut self, name: &str) -> Result<&mut Host, PlaygroundError> {
        let error = self.no_host(name);
        self.hosts
            .iter_mut()
            .find(|host| host.name == name)
            .ok_or(error)
    }

    fn no_host(&self, name: &str) -> PlaygroundError {
        let known: Vec<_> = self.hosts.iter().map(|host| host.name.as_str()).collect();
        PlaygroundError::NoHost {
            name: name.to_owned(),
            known: known.join(", "),
        }
    }

    /// Ends the hosts and removes every trace of the playground.
    ///
    /// # Errors
    /// The first failure; everything else is removed all the same.
    pub async fn remove(&mut self) -> Result<(), PlaygroundError> {
        let mut first = Ok(());
        let mut note = |result: Result<(), PlaygroundError>| {
            if first.is_ok() {
                first = result;
            }
        };
        // Whatever was written down: a process id may be another's by now, and a host may have started without a note of
        // it. In these namespaces is nothing else than the playground's.
        note(kill_inhabitants(&self.dir.join("netns")).await);
        for host in &mut self.hosts {
            host.forget();
        }
        note(Switch::remove(&self.dir).await);
        note(cgroups::remove_tree(&cgroup_root(&self.dir)));
        note(
            std::fs::remove_dir_all(&self.dir).map_err(|err| PlaygroundError::File {
                action: "remove",
                path: self.dir.clone(),
                err,
            }),
        );
        first
    }
}
