//! How a container looks names up, and the /etc/resolv.conf that says so.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};

/// Where containers in networks across hosts find the resolver.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Resolver settings of a container, as its user gave them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsOptions {
    /// Who answers for names outside of the container's networks, asked from within the container's namespace;
    /// empty: the host's resolvers, asked by the host.
    pub nameservers: Vec<IpAddr>,
    /// Domains that the container's resolver library appends to names.
    pub search: Vec<String>,
    /// Further options of resolv.conf(5).
    pub options: Vec<String>,
}

/// The content of /etc/resolv.conf in a container that is in a network across hosts.
///
/// `ndots:0` is the default, so that a name without a dot is asked for as it stands first: names of services have
/// none.
pub fn resolv_conf(options: &DnsOptions) -> String {
    let mut text = format!("nameserver {RESOLVER}\n");
    if !options.search.is_empty() {
        text.push_str(&format!("search {}\n", options.search.join(" ")));
    }
    let mut words: Vec<&str> = options.options.iter().map(String::as_str).collect();
    if !words.iter().any(|word| word.starts_with("ndots:")) {
        words.push("ndots:0");
    }
    text.push_str(&format!("options {}\n", words.join(" ")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(search: &[&str], options: &[&str], expected: &str) {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let options = DnsOptions {
            nameservers: vec![IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9))],
            search: own(search),
            options: own(options),
        };
        assert_eq!(resolv_conf(&options), expected);
    }

    #[test]
    fn containers_ask_the_resolver_in_their_namespace_and_no_other() {
        check(&[], &[], "nameserver 127.0.0.11\noptions ndots:0\n");
    }

    #[test]
    fn the_users_search_domains_and_options_are_kept() {
        check(
            &["a.example", "b.example"],
            &["timeout:1"],
            "nameserver 127.0.0.11\nsearch a.example b.example\noptions timeout:1 ndots:0\n",
        );
        check(
            &[],
            &["ndots:2"],
            "nameserver 127.0.0.11\noptions ndots:2\n",
        );
    }
}
