//! The image of tests and benchmarks.

/// A root file system: Debian's static busybox under the names that tests use.
pub(crate) fn busybox_root() -> Vec<u8> {
    const APPLETS: &[&str] = &[
        "sh", "sleep", "true", "false", "cat", "echo", "ls", "id", "hostname", "wget", "timeout",
        "httpd", "nc", "ip", "ps", "kill", "touch", "rm", "mkdir", "mount", "dd", "sync", "env",
        "stat", "grep", "head", "seq", "test", "ping", "trap", "chmod", "nslookup", "wc", "tail",
    ];
    let program = std::fs::read("/bin/busybox")
        .or_else(|_| std::fs::read("/usr/bin/busybox"))
        .expect("Debian's package busybox-static is installed");
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, mode: u32, kind: tar::EntryType, data: &[u8], link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        header.set_mtime(0);
        match link {
            Some(link) => tar.append_link(&mut header, path, link).unwrap(),
            None => tar.append_data(&mut header, path, data).unwrap(),
        }
    };
    for dir in ["bin/", "etc/", "root/", "var/"] {
        add(dir, 0o755, tar::EntryType::Directory, &[], None);
    }
    add("tmp/", 0o1777, tar::EntryType::Directory, &[], None);
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/tmp:/bin/sh\n";
    add("etc/passwd", 0o644, tar::EntryType::Regular, passwd, None);
    let group = b"root:x:0:\nweb:x:1000:\n";
    add("etc/group", 0o644, tar::EntryType::Regular, group, None);
    add(
        "bin/busybox",
        0o755,
        tar::EntryType::Regular,
        &program,
        None,
    );
    for applet in APPLETS {
        let path = format!("bin/{applet}");
        add(&path, 0o777, tar::EntryType::Symlink, &[], Some("busybox"));
    }
    tar.into_inner().unwrap()
}
