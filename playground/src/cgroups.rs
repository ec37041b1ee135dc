//! Removing what a killed host left in the cgroup hierarchies.

use crate::PlaygroundError;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the kernel may take to let go of a killed process's cgroup.
const EMPTY_MAX: Duration = Duration::from_secs(5);

/// Removes `parent` with all below it from every hierarchy.
pub(crate) fn remove_tree(parent: &str) -> Result<(), PlaygroundError> {
    let relative = parent.trim_start_matches('/');
    for root in hierarchies() {
        let dir = root.join(relative);
        if dir.is_dir() {
            remove(&dir).map_err(|err| PlaygroundError::File {
                action: "remove cgroup",
                path: dir,
                err,
            })?;
        }
    }
    Ok(())
}

/// The root of each hierarchy: one for pure cgroup v2, one per controller otherwise.
fn hierarchies() -> Vec<PathBuf> {
    let base = Path::new("/sys/fs/cgroup");
    let mut roots = vec![base.to_owned()];
    if let Ok(entries) = std::fs::read_dir(base) {
        let dirs = entries.flatten().map(|entry| entry.path());
        roots.extend(dirs.filter(|path| path.join("cgroup.procs").exists()));
    }
    roots
}

fn remove(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    let start = Instant::now();
    loop {
        match std::fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(err) if err.raw_os_error() == Some(libc::EBUSY) && start.elapsed() < EMPTY_MAX => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(err) => return Err(err),
        }
    }
}
