//! Who is at the other end of the socket.

use std::os::fd::AsRawFd;
use tokio::net::UnixStream;

/// Most supplementary groups that the kernel gives to a process (NGROUPS_MAX).
const GROUPS_MAX: usize = 65_536;
/// Groups that are asked for at first; few processes have more.
const GROUPS_FIRST: usize = 64;

/// Lets root, the user that runs this daemon, and members of the socket's group in. The reason is for the log.
pub(crate) fn check(stream: &UnixStream, socket_gid: u32) -> Result<(), String> {
    let peer = stream
        .peer_cred()
        .map_err(|err| format!("failed to read the peer's credentials: {err}"))?;
    if peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    if socket_gid != 0 {
        let in_group = peer.gid() == socket_gid
            || peer_groups(stream)
                .map_err(|err| format!("failed to read the peer's groups: {err}"))?
                .contains(&socket_gid);
        if in_group {
            return Ok(());
        }
    }
    Err(format!(
        "uid {} gid {} may not use it",
        peer.uid(),
        peer.gid()
    ))
}

/// The supplementary groups that the peer had when it connected.
fn peer_groups(stream: &UnixStream) -> std::io::Result<Vec<libc::gid_t>> {
    let mut groups: Vec<libc::gid_t> = vec![0; GROUPS_FIRST];
    loop {
        let mut len = u32::try_from(std::mem::size_of_val(groups.as_slice())).unwrap_or(u32::MAX);
        // SAFETY: the buffer is valid for `len` bytes, and the kernel writes at most that many.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let count = len as usize / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let err = std::io::Error::last_os_error();
        // ERANGE: the buffer was too small, and `len` now says how much is needed.
        if err.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > GROUPS_MAX {
            return Err(err);
        }
        groups.resize(count, 0);
    }
}

/// The number of a group, from /etc/group: a static binary can't ask the name service switch.
pub(crate) fn group_id(name: &str) -> Option<u32> {
    if let Ok(number) = name.parse() {
        return Some(number);
    }
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut parts = line.split(':');
        (parts.next() == Some(name))
            .then(|| parts.nth(1)?.parse().ok())
            .flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_name_and_number() {
        assert_eq!(group_id("root"), Some(0));
        assert_eq!(group_id("4711"), Some(4711));
        assert_eq!(group_id("no-such-group"), None);
    }

    #[tokio::test]
    async fn our_own_process_is_let_in() {
        let (left, _right) = UnixStream::pair().unwrap();
        check(&left, 0).unwrap();
        peer_groups(&left).unwrap();
    }
}
