//! Settings below /proc/sys/net that routed containers need.
//!
//! Host-wide settings are only ever opened, and so that other interfaces behave as before.

use crate::local::LocalNetError;
use crate::local::links::write_setting;
use std::fs;
use std::io;
use std::path::PathBuf;

const CONF: &str = "/proc/sys/net/ipv4/conf";
const CONF_IPV6: &str = "/proc/sys/net/ipv6/conf";

/// The host passes packets on, and does not judge sources by routes where we can't have it.
pub(super) fn prepare_host(ipv6: bool) -> Result<(), LocalNetError> {
    write_setting("/proc/sys/net/ipv4/ip_forward", "1")?;
    move_source_filter()?;
    if ipv6 {
        forward_ipv6()?;
    }
    Ok(())
}

/// Foreign clients' packets come out of the tunnel, though no route leads to them through it.
pub(super) fn prepare_tunnel(name: &str) -> Result<(), LocalNetError> {
    write_setting(&format!("{CONF}/{name}/rp_filter"), "0")?;
    accept_loopback_answers(name)
}

/// The host's own clients at 127.0.0.1 are answered through the device. The packet filter keeps others from 127/8.
pub(super) fn accept_loopback_answers(name: &str) -> Result<(), LocalNetError> {
    write_setting(&format!("{CONF}/{name}/route_localnet"), "1")
}

fn read(path: &str) -> Result<String, LocalNetError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(err) => Err(LocalNetError::Setting {
            path: PathBuf::from(path),
            err,
        }),
    }
}

fn interfaces(conf: &str) -> Result<Vec<String>, LocalNetError> {
    let failed = |err: io::Error| LocalNetError::Setting {
        path: PathBuf::from(conf),
        err,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(conf).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(name) = name.to_str().filter(|name| *name != "all") {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// The kernel takes the stricter of an interface's `rp_filter` and that of `all`, so `all` must be open for the tunnel
/// to be. What `all` asked for moves to each interface, and to `default` for those to come.
fn move_source_filter() -> Result<(), LocalNetError> {
    let all = format!("{CONF}/all/rp_filter");
    let strict = read(&all)?;
    if strict == "0" {
        return Ok(());
    }
    for name in interfaces(CONF)? {
        let path = format!("{CONF}/{name}/rp_filter");
        match read(&path) {
            Ok(own) if own < strict => write_setting(&path, &strict)?,
            // Stricter already, or the interface has gone meanwhile.
            Ok(_) | Err(_) => {}
        }
    }
    write_setting(&all, "0")
}

/// A host that forwards IPv6 ignores router advertisements, unless its interfaces say `2`: those that listen to them
/// now shall go on.
fn forward_ipv6() -> Result<(), LocalNetError> {
    let all = format!("{CONF_IPV6}/all/forwarding");
    if read(&all)? == "1" {
        return Ok(());
    }
    for name in interfaces(CONF_IPV6)? {
        let path = format!("{CONF_IPV6}/{name}/accept_ra");
        if read(&path).is_ok_and(|own| own == "1") {
            write_setting(&path, "2")?;
        }
    }
    write_setting(&all, "1")
}
