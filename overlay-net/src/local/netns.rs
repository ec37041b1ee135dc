//! Network namespaces, made and entered on throw-away threads: setns(2) and unshare(2) change one thread, and a
//! thread that lives on must never be in a namespace other than the daemon's.

use super::LocalNetError;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

const OWN: &str = "/proc/thread-self/ns/net";

/// Runs `work` on a thread of its own that ends afterwards.
pub(crate) async fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            // The receiver is only gone when the caller was cancelled; then nobody wants the result.
            drop(sender.send(work()));
        })?;
    receiver
        .await
        .map_err(|_| io::Error::other("the namespace thread panicked"))?
}

/// Makes a network namespace with its loopback up, pinned by a bind mount at `path`.
///
/// # Errors
/// When the kernel refuses; nothing is left then.
pub async fn create(path: PathBuf) -> Result<(), LocalNetError> {
    let error = |path: &PathBuf| {
        let path = path.clone();
        move |err| LocalNetError::Namespace {
            action: "create",
            path,
            err,
        }
    };
    let target = path.clone();
    on_own_thread(move || {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        File::create(&target)?;
        let made = unshare(CloneFlags::CLONE_NEWNET)
            .map_err(io::Error::from)
            .and_then(|()| loopback_up())
            .and_then(|()| {
                mount(
                    Some(OWN),
                    &target,
                    None::<&str>,
                    MsFlags::MS_BIND,
                    None::<&str>,
                )
                .map_err(io::Error::from)
            });
        if made.is_err() {
            fs::remove_file(&target)?;
        }
        made
    })
    .await
    .map_err(error(&path))
}

/// Sets the `lo` of the calling thread's namespace up, by ioctl: cheaper than a netlink socket for one flag.
fn loopback_up() -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use std::os::fd::AsRawFd;
    let fd = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: an ifreq is plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which `request` is, and the descriptor is open.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Unpins the namespace at `path`; harmless if it is not there.
///
/// # Errors
/// When it can't be unmounted.
pub async fn delete(path: PathBuf) -> Result<(), LocalNetError> {
    delete_all(vec![path]).await
}

/// Unpins namespaces at once: the kernel clears away together what dies together, and holds the lock that every
/// change of a link needs only once for all of them.
pub(super) async fn delete_all(paths: Vec<PathBuf>) -> Result<(), LocalNetError> {
    let unpin = |path: &PathBuf| {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        match fs::remove_file(path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
            _ => Ok(()),
        }
    };
    let action = "remove";
    let done = on_own_thread(move || {
        let failed = paths
            .iter()
            .filter_map(|path| Some((path.clone(), unpin(path).err()?)));
        Ok(failed.collect::<Vec<_>>())
    })
    .await;
    match done {
        Ok(mut failed) => failed.pop().map_or(Ok(()), |(path, err)| {
            Err(LocalNetError::Namespace { action, path, err })
        }),
        Err(err) => Err(LocalNetError::Namespace {
            action,
            path: PathBuf::new(),
            err,
        }),
    }
}

/// A netlink connection inside the namespace at `path`. The socket stays in that namespace wherever it is polled.
///
/// # Errors
/// When the namespace can't be entered.
pub async fn connect_in(path: PathBuf) -> Result<rtnetlink::Handle, LocalNetError> {
    let runtime = tokio::runtime::Handle::current();
    let target = path.clone();
    on_own_thread(move || {
        let namespace = File::open(&target)?;
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        let _entered = runtime.enter();
        super::links::connect()
    })
    .await
    .map_err(|err| LocalNetError::Namespace {
        action: "enter",
        path,
        err,
    })
}
