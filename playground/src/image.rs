//! The demo's image, made of nothing but this program.

use crate::PlaygroundError;
use std::fs::File;
use std::path::Path;

/// Writes a root file system for `shoal import`: the program itself at `/shoal`, an empty `/tmp`, and a passwd file.
///
/// # Errors
/// When the program can't be read or `to` can't be written.
pub fn write_demo_image(exe: &Path, to: &Path) -> Result<(), PlaygroundError> {
    let failed = |err| PlaygroundError::File {
        action: "write",
        path: to.to_owned(),
        err,
    };
    let mut tar = tar::Builder::new(File::create(to).map_err(failed)?);
    let mut add = |path: &str, mode: u32, kind: tar::EntryType, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        header.set_mtime(0);
        tar.append_data(&mut header, path, data)
    };
    let dir = tar::EntryType::Directory;
    let file = tar::EntryType::Regular;
    add("tmp/", 0o1777, dir, &[]).map_err(failed)?;
    add("etc/", 0o755, dir, &[]).map_err(failed)?;
    add("etc/passwd", 0o644, file, b"root:x:0:0:root:/:/shoal\n").map_err(failed)?;
    let program = std::fs::read(exe).map_err(|err| PlaygroundError::File {
        action: "read",
        path: exe.to_owned(),
        err,
    })?;
    add("shoal", 0o755, file, &program).map_err(failed)?;
    tar.finish().map_err(failed)
}
