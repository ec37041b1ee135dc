//! Addresses that users write, and the one that others reach this machine at.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};

/// Why an address can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddressError {
    #[error("`{text}` is neither an IP address nor a network interface")]
    Unknown { text: String },
    #[error("network interface `{name}` has no IPv4 address")]
    NoAddress { name: String },
    #[error(
        "this machine has no default route to find its own address by: give it with --advertise-addr"
    )]
    NoDefaultRoute,
    #[error("failed to look up `{text}`")]
    LookUp {
        text: String,
        #[source]
        err: std::io::Error,
    },
    #[error("failed to list the network interfaces")]
    Interfaces(#[source] nix::errno::Errno),
}

/// `IP[:PORT]` or `INTERFACE[:PORT]`.
pub(crate) fn parse(text: &str, default_port: u16) -> Result<SocketAddr, AddressError> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, default_port));
    }
    let unknown = || AddressError::Unknown {
        text: text.to_owned(),
    };
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, port.parse().map_err(|_| unknown())?),
        None => (text, default_port),
    };
    let mut known = false;
    for interface in nix::ifaddrs::getifaddrs().map_err(AddressError::Interfaces)? {
        if interface.interface_name != name {
            continue;
        }
        known = true;
        if let Some(address) = interface.address.as_ref().and_then(|a| a.as_sockaddr_in()) {
            return Ok(SocketAddr::new(IpAddr::V4(address.ip()), port));
        }
    }
    Err(if known {
        AddressError::NoAddress {
            name: name.to_owned(),
        }
    } else {
        unknown()
    })
}

/// `HOST[:PORT]`, looked up.
pub(crate) async fn look_up(
    text: &str,
    default_port: u16,
) -> Result<Vec<SocketAddr>, AddressError> {
    let has_port = text.parse::<SocketAddr>().is_ok()
        || text
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.contains(':') && port.parse::<u16>().is_ok());
    let full = match (has_port, text.parse::<IpAddr>()) {
        (true, _) => text.to_owned(),
        (false, Ok(ip)) => SocketAddr::new(ip, default_port).to_string(),
        (false, Err(_)) => format!("{text}:{default_port}"),
    };
    let failed = |err| AddressError::LookUp {
        text: text.to_owned(),
        err,
    };
    let found = tokio::task::spawn_blocking(move || full.to_socket_addrs())
        .await
        .map_err(|err| failed(std::io::Error::other(err)))?
        .map_err(failed)?;
    Ok(found.collect())
}

/// The address of this machine on the default route: that of a socket that is connected outwards. Nothing is sent.
pub(crate) fn default_route() -> Result<IpAddr, AddressError> {
    const ANYWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);
    let found = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|socket| socket.connect(ANYWHERE).and_then(|()| socket.local_addr()));
    found
        .map(|address| address.ip())
        .map_err(|_| AddressError::NoDefaultRoute)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_every_form() {
        assert_eq!(
            parse("10.0.0.1", 2377).unwrap().to_string(),
            "10.0.0.1:2377"
        );
        assert_eq!(parse("10.0.0.1:99", 2377).unwrap().port(), 99);
        assert_eq!(parse("lo:99", 2377).unwrap().to_string(), "127.0.0.1:99");
        let error = parse("nothing7", 2377).unwrap_err().to_string();
        assert_eq!(
            error,
            "`nothing7` is neither an IP address nor a network interface"
        );
    }
}
