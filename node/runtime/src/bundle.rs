//! The bundle: a directory that holds all that is known of one container on disk.
//!
//! `config.json` is the OCI runtime configuration (`runc` runs it too, once the root file system is mounted) and
//! `shoal.json` is what OCI has no word for. The shim adds `state.json` when the container exists, `exit.json` when
//! it is over, and listens on `shim.sock`.

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use shoal_model::Timestamp;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The version of `shoal.json`, `state.json` and `exit.json` that this binary reads and writes.
pub const RECORD_VERSION: u32 = 1;

/// Most bytes of a record that are read: 16 MiB. A larger one is damaged, or not ours.
pub const RECORD_BYTES_MAX: u64 = 16 << 20;

/// What the shim must know beyond the OCI configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShimSpec {
    /// Always [`RECORD_VERSION`].
    pub version: u32,
    /// The container's id, for messages and for the default cgroup.
    pub container_id: String,
    /// What becomes `/`. It is mounted inside the container's own mount namespace, never on the host.
    pub rootfs: Rootfs,
    /// What the container's standard input is. Whether there is a terminal stands in `config.json`.
    pub stdio: StdioSpec,
    /// Where output goes besides attached clients.
    pub log: LogConfig,
    /// `CLOCK_BOOTTIME` nanoseconds at which the container is killed without grace, unless renewed before.
    pub fencing_deadline_ns: Option<u64>,
    /// Run a small reaper as process 1, and the program as its child (`docker run --init`).
    pub init: bool,
}

impl ShimSpec {
    /// A plain container without stdin, log and deadline on `rootfs`.
    pub fn new(container_id: impl Into<String>, rootfs: Rootfs) -> Self {
        Self {
            version: RECORD_VERSION,
            container_id: container_id.into(),
            rootfs,
            stdio: StdioSpec::default(),
            log: LogConfig::None,
            fencing_deadline_ns: None,
            init: false,
        }
    }
}

/// The root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rootfs {
    /// An overlayfs of image layers and a writable layer; its mount point is `config.json`'s `root.path`.
    Overlay {
        /// Read-only layers, top first.
        lower: Vec<PathBuf>,
        /// The writable layer.
        upper: PathBuf,
        /// overlayfs' work directory, on the file system of `upper`.
        work: PathBuf,
    },
    /// The directory `root.path` of `config.json`, as it is.
    Directory,
}

/// The container's standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StdioSpec {
    /// A pipe that attached clients write to; otherwise `/dev/null`. With a terminal: whether input is let in.
    pub open_stdin: bool,
    /// Close the pipe when the first client that attached to it leaves.
    pub stdin_once: bool,
}

/// The log driver of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogConfig {
    /// Nothing is kept.
    None,
    /// Docker's json-file format.
    JsonFile {
        /// The newest file; older ones are `<path>.1`, `<path>.2` and so on.
        path: PathBuf,
        /// Start a new file when this many bytes are reached; `None` never does.
        max_size_bytes: Option<u64>,
        /// Files kept, the newest included; at least 1.
        max_files: u32,
        /// Written into every line (`attrs`), from the options `labels` and `env`.
        attrs: BTreeMap<String, String>,
    },
}

/// How a container ended. On disk as `exit.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The code as docker shows it: the program's own, or 128 + signal.
    pub code: i32,
    /// The signal that ended the program, if one did.
    pub signal: Option<i32>,
    /// The kernel's out-of-memory killer chose a process of the container.
    pub oom_killed: bool,
    /// The fencing deadline passed and the shim killed the container.
    pub fenced: bool,
    /// When, by the host's wall clock.
    pub at: Timestamp,
}

/// What the shim writes once the container's first process exists. On disk as `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateRecord {
    pub(crate) version: u32,
    /// `/proc/sys/kernel/random/boot_id`: process ids of another boot mean nothing.
    pub(crate) boot_id: String,
    pub(crate) shim_pid: u32,
    pub(crate) shim_start_ticks: u64,
    /// Zero until the container's first process was cloned.
    pub(crate) init_pid: u32,
    pub(crate) init_start_ticks: u64,
    /// Every directory that was made for the container in a cgroup hierarchy.
    pub(crate) cgroups: Vec<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct ExitRecord {
    version: u32,
    #[serde(flatten)]
    exit: Exit,
}

/// Why a bundle can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file can't be read.
    #[error("failed to read `{path}`")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file can't be written.
    #[error("failed to write `{path}`")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("`{path}` is not a valid record")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A file is larger than [`RECORD_BYTES_MAX`].
    #[error("`{path}` has more than {RECORD_BYTES_MAX} bytes")]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// A newer binary wrote it.
    #[error("`{path}` has version {found}, and this binary reads version {RECORD_VERSION}")]
    UnknownVersion {
        /// Which.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
}

/// The directory of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    dir: PathBuf,
}

impl Bundle {
    /// Names the directory; nothing is read or made.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The OCI configuration.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    /// What the shim must know beyond it.
    pub fn shim_spec_path(&self) -> PathBuf {
        self.dir.join("shoal.json")
    }

    /// How the container ended.
    pub fn exit_path(&self) -> PathBuf {
        self.dir.join("exit.json")
    }

    /// Who runs the container.
    pub fn state_path(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    /// The shim's control socket.
    pub fn socket_path(&self) -> PathBuf {
        self.dir.join(SOCKET_NAME)
    }

    /// Writes both files that a shim needs; the directory must exist.
    ///
    /// # Errors
    /// [`BundleError::Write`] when the disk refuses.
    pub fn write(&self, spec: &Spec, shim: &ShimSpec) -> Result<(), BundleError> {
        write_json(&self.config_path(), spec)?;
        write_json(&self.shim_spec_path(), shim)
    }

    /// Reads the OCI configuration.
    ///
    /// # Errors
    /// When it is missing or not OCI.
    pub fn read_config(&self) -> Result<Spec, BundleError> {
        read_json(&self.config_path())
    }

    /// Reads what the shim must know.
    ///
    /// # Errors
    /// When it is missing, damaged or of another version.
    pub fn read_shim_spec(&self) -> Result<ShimSpec, BundleError> {
        let path = self.shim_spec_path();
        let spec: ShimSpec = read_json(&path)?;
        check_version(path, spec.version)?;
        Ok(spec)
    }

    /// Reads the exit record; `None` when the container never ended under a shim.
    ///
    /// # Errors
    /// When it is damaged or of another version.
    pub fn read_exit(&self) -> Result<Option<Exit>, BundleError> {
        let path = self.exit_path();
        let Some(record) = missing_is_none(read_json::<ExitRecord>(&path))? else {
            return Ok(None);
        };
        check_version(path, record.version)?;
        Ok(Some(record.exit))
    }

    pub(crate) fn write_exit(&self, exit: Exit) -> Result<(), BundleError> {
        let record = ExitRecord {
            version: RECORD_VERSION,
            exit,
        };
        write_json(&self.exit_path(), &record)
    }

    pub(crate) fn read_state(&self) -> Result<Option<StateRecord>, BundleError> {
        let path = self.state_path();
        let Some(record) = missing_is_none(read_json::<StateRecord>(&path))? else {
            return Ok(None);
        };
        check_version(path, record.version)?;
        Ok(Some(record))
    }

    pub(crate) fn write_state(&self, state: &StateRecord) -> Result<(), BundleError> {
        write_json(&self.state_path(), state)
    }

    /// Removes what a shim leaves behind: state, exit record and socket.
    pub(crate) fn remove_run_files(&self) -> Result<(), BundleError> {
        for path in [self.state_path(), self.exit_path(), self.socket_path()] {
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(BundleError::Write { path, source }),
            }
        }
        Ok(())
    }
}

/// The control socket's name within the bundle.
pub(crate) const SOCKET_NAME: &str = "shim.sock";

fn check_version(path: PathBuf, found: u32) -> Result<(), BundleError> {
    if found == RECORD_VERSION {
        Ok(())
    } else {
        Err(BundleError::UnknownVersion { path, found })
    }
}

fn missing_is_none<T>(read: Result<T, BundleError>) -> Result<Option<T>, BundleError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(BundleError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, BundleError> {
    let failed = |source| BundleError::Read {
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).map_err(failed)?.len() > RECORD_BYTES_MAX {
        return Err(BundleError::TooLarge {
            path: path.to_owned(),
        });
    }
    let bytes = fs::read(path).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|source| BundleError::Parse {
        path: path.to_owned(),
        source,
    })
}

/// Writes to a temporary name and renames. Not synced: these records tell one boot's processes from each other, and
/// a boot that ends takes the processes along.
fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), BundleError> {
    let failed = |source| BundleError::Write {
        path: path.to_owned(),
        source,
    };
    let bytes = serde_json::to_vec(value).map_err(|e| failed(e.into()))?;
    let temporary = path.with_extension("tmp");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(failed)?;
    file.write_all(&bytes).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::new(dir.path());
        assert!(bundle.read_exit().unwrap().is_none());
        let exit = Exit {
            code: 137,
            signal: Some(9),
            oom_killed: true,
            fenced: false,
            at: Timestamp(5),
        };
        bundle.write_exit(exit).unwrap();
        assert_eq!(bundle.read_exit().unwrap(), Some(exit));
        let spec = ShimSpec::new("abc", Rootfs::Directory);
        bundle.write(&Spec::default(), &spec).unwrap();
        assert_eq!(bundle.read_shim_spec().unwrap(), spec);
        bundle.remove_run_files().unwrap();
        assert!(bundle.read_exit().unwrap().is_none());
    }

    #[test]
    fn version_1_records_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::new(dir.path());
        fs::write(
            bundle.exit_path(),
            r#"{"version":1,"code":0,"signal":null,"oom_killed":false,"fenced":false,"at":7}"#,
        )
        .unwrap();
        assert_eq!(bundle.read_exit().unwrap().unwrap().at, Timestamp(7));
        fs::write(
            bundle.shim_spec_path(),
            r#"{"version":1,"container_id":"c","rootfs":{"overlay":{"lower":["/a"],"upper":"/u","work":"/w"}},
               "stdio":{"open_stdin":true,"stdin_once":false},
               "log":{"json_file":{"path":"/l","max_size_bytes":10,"max_files":2,"attrs":{}}},
               "fencing_deadline_ns":null,"init":false}"#,
        )
        .unwrap();
        assert!(bundle.read_shim_spec().unwrap().stdio.open_stdin);
    }

    #[test]
    fn newer_and_damaged_records_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::new(dir.path());
        let newer =
            r#"{"version":2,"code":0,"signal":null,"oom_killed":false,"fenced":false,"at":7}"#;
        fs::write(bundle.exit_path(), newer).unwrap();
        assert!(matches!(
            bundle.read_exit(),
            Err(BundleError::UnknownVersion { found: 2, .. })
        ));
        fs::write(bundle.exit_path(), "{\"versi").unwrap();
        assert!(matches!(bundle.read_exit(), Err(BundleError::Parse { .. })));
    }
}
