//! The three files of /etc that a container gets from the engine: hostname, hosts, resolv.conf.

use crate::config::ContainerConfig;
use shoal_overlay_net::DnsOptions;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

/// Resolvers for containers on a host whose own all listen on its loopback, as Docker chooses them.
const FALLBACK_RESOLVERS: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// Most bytes of the host's resolv.conf that are read: 64 KiB.
const RESOLV_BYTES_MAX: usize = 64 << 10;

/// Content of /etc/hosts.
pub(crate) fn hosts(
    config: &ContainerConfig,
    hostname: &str,
    addresses: &[IpAddr],
    host_gateway: Option<Ipv4Addr>,
) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for entry in &config.host.extra_hosts {
        if let Some((name, address)) = split_extra_host(entry) {
            let address = match (address, host_gateway) {
                ("host-gateway", Some(gateway)) => gateway.to_string(),
                (address, _) => address.to_owned(),
            };
            text.push_str(&format!("{address}\t{name}\n"));
        }
    }
    for address in addresses {
        let full = if config.domainname.is_empty() {
            hostname.to_owned()
        } else {
            format!("{hostname}.{} {hostname}", config.domainname)
        };
        text.push_str(&format!("{address}\t{full}\n"));
    }
    text
}

/// `NAME:ADDRESS` or `NAME=ADDRESS`; the address may have colons.
pub(crate) fn split_extra_host(entry: &str) -> Option<(&str, &str)> {
    let (name, address) = match entry.split_once('=') {
        Some(pair) => pair,
        None => entry.split_once(':')?,
    };
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let known = address == "host-gateway" || address.parse::<IpAddr>().is_ok();
    (!name.is_empty() && known).then_some((name, address))
}

/// Content of /etc/resolv.conf: the host's, unless the user says otherwise. `own_network`: the container can't reach
/// resolvers on the host's loopback.
pub(crate) fn resolv_conf(config: &ContainerConfig, host: &str, own_network: bool) -> String {
    let field = |key: &'static str| {
        host.lines()
            .map(str::trim)
            .filter_map(move |line| line.strip_prefix(key))
            .filter(|rest| rest.starts_with([' ', '\t']))
            .map(|rest| rest.trim().to_owned())
    };
    let reachable = |address: &String| {
        let bare = address.split('%').next().unwrap_or(address);
        !own_network || bare.parse::<IpAddr>().is_ok_and(|ip| !ip.is_loopback())
    };
    let mut servers: Vec<String> = if config.host.dns.is_empty() {
        field("nameserver").filter(reachable).collect()
    } else {
        config.host.dns.clone()
    };
    if servers.is_empty() {
        servers = FALLBACK_RESOLVERS.map(str::to_owned).to_vec();
    }
    let search: Vec<String> = match config.host.dns_search.as_slice() {
        [] => field("search").next_back().into_iter().collect(),
        [dot] if dot == "." => Vec::new(),
        own => own.to_vec(),
    };
    let options: Vec<String> = match config.host.dns_options.as_slice() {
        [] => field("options").collect(),
        own => own.to_vec(),
    };
    let mut text = String::new();
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

/// Resolver settings of a container in networks of the cluster: the user's, else the host's.
pub(crate) fn overlay_dns(config: &ContainerConfig, host: &str) -> DnsOptions {
    let words = |key: &str| -> Vec<String> {
        let line = host.lines().map(str::trim).rfind(|line| {
            line.strip_prefix(key)
                .is_some_and(|rest| rest.starts_with([' ', '\t']))
        });
        let words = line.into_iter().flat_map(|line| line.split_whitespace());
        words.skip(1).map(str::to_owned).collect()
    };
    let search = match config.host.dns_search.as_slice() {
        [] => words("search"),
        [dot] if dot == "." => Vec::new(),
        own => own.to_vec(),
    };
    let options = match config.host.dns_options.as_slice() {
        // How many dots a name needs is a matter of the names in the container's networks.
        [] => words("options")
            .into_iter()
            .filter(|option| !option.starts_with("ndots:"))
            .collect(),
        own => own.to_vec(),
    };
    let servers = config.host.dns.iter();
    DnsOptions {
        nameservers: servers.filter_map(|text| text.parse().ok()).collect(),
        search,
        options,
    }
}

/// The host's resolv.conf; empty when it has none or it can't be read.
pub(crate) fn read_host_resolv_conf(path: &Path) -> String {
    match std::fs::read_to_string(path) {
        Ok(mut text) => {
            if text.len() > RESOLV_BYTES_MAX {
                let cut = text.floor_char_boundary(RESOLV_BYTES_MAX);
                text.truncate(cut);
            }
            text
        }
        Err(err) => {
            tracing::debug!(path = %path.display(), %err, "the host's resolver settings can't be read");
            String::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_resolvers_are_replaced_in_an_own_network() {
        let config = ContainerConfig::default();
        let host = "# c\nnameserver 127.0.0.53\nsearch a.b\noptions edns0\n";
        let own = resolv_conf(&config, host, true);
        assert_eq!(
            own,
            "nameserver 8.8.8.8\nnameserver 8.8.4.4\nsearch a.b\noptions edns0\n"
        );
        assert!(resolv_conf(&config, host, false).starts_with("nameserver 127.0.0.53\n"));
        let host = "nameserver 127.0.0.1\nnameserver 10.0.0.2\n";
        assert_eq!(resolv_conf(&config, host, true), "nameserver 10.0.0.2\n");
    }

    #[test]
    fn names_of_networks_need_no_dots_whatever_the_host_says() {
        let mut config = ContainerConfig::default();
        let host = "nameserver 127.0.0.53\nsearch a.b c.d\noptions edns0 ndots:2\n";
        let dns = overlay_dns(&config, host);
        assert!(dns.nameservers.is_empty());
        assert_eq!(dns.search, ["a.b", "c.d"]);
        assert_eq!(dns.options, ["edns0"]);
        config.host.dns = vec!["9.9.9.9".to_owned()];
        config.host.dns_search = vec![".".to_owned()];
        config.host.dns_options = vec!["ndots:2".to_owned()];
        let dns = overlay_dns(&config, host);
        assert_eq!(dns.nameservers, [IpAddr::from([9, 9, 9, 9])]);
        assert!(dns.search.is_empty());
        assert_eq!(dns.options, ["ndots:2"]);
    }

    #[test]
    fn the_users_resolver_settings_win() {
        let mut config = ContainerConfig::default();
        config.host.dns = vec!["1.2.3.4".to_owned()];
        config.host.dns_search = vec![".".to_owned()];
        config.host.dns_options = vec!["ndots:2".to_owned()];
        let text = resolv_conf(&config, "nameserver 9.9.9.9\nsearch x\n", true);
        assert_eq!(text, "nameserver 1.2.3.4\noptions ndots:2\n");
    }

    #[test]
    fn hosts_has_the_containers_name_and_the_users_lines() {
        let mut config = ContainerConfig::default();
        config.host.extra_hosts = vec![
            "db:10.0.0.9".to_owned(),
            "gw:host-gateway".to_owned(),
            "x:nope".to_owned(),
        ];
        config.domainname = "example.org".to_owned();
        let text = hosts(
            &config,
            "web",
            &[Ipv4Addr::new(172, 17, 0, 2).into()],
            Some(Ipv4Addr::new(172, 17, 0, 1)),
        );
        assert!(
            text.contains("10.0.0.9\tdb\n") && text.contains("172.17.0.1\tgw\n"),
            "{text}"
        );
        assert!(
            text.ends_with("172.17.0.2\tweb.example.org web\n"),
            "{text}"
        );
        assert!(!text.contains("nope"));
    }
}
