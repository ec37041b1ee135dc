//! From the flags of `network create`, and from what a service or a container says of a network, to the API's objects.

use super::parse;
use crate::args::network::CreateArgs;
use crate::error::{CliError, Result};
use bollard::models::{
    EndpointIpamConfig, EndpointSettings, Ipam, IpamConfig, NetworkAttachmentConfig,
    NetworkCreateRequest,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The body of the request that makes a network.
pub(crate) fn create(args: &CreateArgs) -> Result<NetworkCreateRequest> {
    let config = ipam(args)?;
    let ipam = Ipam {
        driver: Some("default".to_owned()),
        config: Some(config),
        options: None,
    };
    Ok(NetworkCreateRequest {
        name: args.name.clone(),
        driver: Some(args.driver.clone()),
        attachable: Some(args.attachable),
        internal: Some(args.internal),
        enable_ipv6: Some(args.ipv6),
        ipam: Some(ipam),
        labels: (!args.labels.is_empty()).then(|| parse::pairs(&args.labels)),
        options: (!args.opts.is_empty()).then(|| parse::pairs(&args.opts)),
        ..NetworkCreateRequest::default()
    })
}

/// A block of addresses.
struct Block {
    first: u128,
    bits: u32,
    prefix: u32,
}

impl Block {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let (bits, first) = number(address.parse().ok()?);
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= bits)?;
        Some(Self {
            first,
            bits,
            prefix,
        })
    }

    fn holds(&self, bits: u32, address: u128) -> bool {
        let free = self.bits - self.prefix;
        let of_block = |number: u128| number.checked_shr(free).unwrap_or(0);
        self.bits == bits && of_block(self.first) == of_block(address)
    }
}

fn number(address: IpAddr) -> (u32, u128) {
    match address {
        IpAddr::V4(v4) => (Ipv4Addr::BITS, u128::from(v4.to_bits())),
        IpAddr::V6(v6) => (Ipv6Addr::BITS, v6.to_bits()),
    }
}

/// Gives each subnet the gateway and the range that lie in it.
fn ipam(args: &CreateArgs) -> Result<Vec<IpamConfig>> {
    let mut found = Vec::new();
    for text in &args.subnets {
        let block = Block::parse(text).ok_or_else(|| {
            parse::invalid("--subnet", text, "expected a subnet such as 10.5.0.0/24")
        })?;
        let config = IpamConfig {
            subnet: Some(text.clone()),
            ..IpamConfig::default()
        };
        found.push((block, config));
    }
    for text in &args.gateways {
        let address: IpAddr = text
            .parse()
            .map_err(|_| parse::invalid("--gateway", text, "expected an address"))?;
        let config = subnet_of(&mut found, "--gateway", text, number(address))?;
        config.gateway = Some(text.clone());
    }
    for text in &args.ip_ranges {
        let range = Block::parse(text).ok_or_else(|| {
            parse::invalid("--ip-range", text, "expected a range such as 10.5.0.128/25")
        })?;
        let config = subnet_of(&mut found, "--ip-range", text, (range.bits, range.first))?;
        config.ip_range = Some(text.clone());
    }
    Ok(found.into_iter().map(|(_, config)| config).collect())
}

fn subnet_of<'a>(
    found: &'a mut [(Block, IpamConfig)],
    flag: &str,
    text: &str,
    (bits, address): (u32, u128),
) -> Result<&'a mut IpamConfig> {
    found
        .iter_mut()
        .find(|(block, _)| block.holds(bits, address))
        .map(|(_, config)| config)
        .ok_or_else(|| parse::invalid(flag, text, "no --subnet holds it"))
}

/// `NETWORK`, or `name=NETWORK,alias=NAME,…`: a network of a service.
pub(crate) fn attachment(flag: &str, text: &str) -> Result<NetworkAttachmentConfig> {
    let wish = wish(flag, text)?;
    if wish.ip.is_some() {
        let reason = "a service has no fixed addresses: leave `ip` out";
        return Err(parse::invalid(flag, text, reason));
    }
    Ok(NetworkAttachmentConfig {
        target: Some(wish.name),
        aliases: (!wish.aliases.is_empty()).then_some(wish.aliases),
        driver_opts: None,
    })
}

/// A network as `run` and services name it.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    name: String,
    aliases: Vec<String>,
    ip: Option<String>,
}

fn wish(flag: &str, text: &str) -> Result<Wish> {
    let mut wish = Wish {
        name: String::new(),
        aliases: Vec::new(),
        ip: None,
    };
    if text.is_empty() {
        return Err(parse::invalid(flag, text, "no network is named"));
    }
    if !text.contains('=') {
        text.clone_into(&mut wish.name);
        return Ok(wish);
    }
    for field in text.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        match key {
            "name" => value.clone_into(&mut wish.name),
            "alias" => wish.aliases.push(value.to_owned()),
            "ip" => wish.ip = Some(address(flag, value)?),
            other => {
                return Err(parse::invalid(
                    flag,
                    text,
                    &format!("unknown field `{other}`"),
                ));
            }
        }
    }
    if wish.name.is_empty() {
        return Err(parse::invalid(flag, text, "name is required"));
    }
    Ok(wish)
}

fn address(flag: &str, text: &str) -> Result<String> {
    let parsed: std::result::Result<Ipv4Addr, _> = text.parse();
    match parsed {
        Ok(address) => Ok(address.to_string()),
        Err(_) => Err(parse::invalid(flag, text, "expected an IPv4 address")),
    }
}

/// The networks of a container: the mode, which is the first, and the settings in each that a user has made.
pub(crate) struct ContainerNetworks {
    pub(crate) mode: String,
    pub(crate) endpoints: Vec<(String, EndpointSettings)>,
}

/// Reads `--network`, `--ip` and `--network-alias` of a container.
pub(crate) fn of_container(
    networks: &[String],
    ip: Option<&str>,
    aliases: &[String],
) -> Result<ContainerNetworks> {
    let mut wishes = networks
        .iter()
        .map(|text| wish("--network", text))
        .collect::<Result<Vec<_>>>()?;
    if wishes.is_empty() {
        wishes.push(wish("--network", "bridge")?);
    }
    let several = wishes.len() > 1;
    let first = &mut wishes[0];
    first.aliases.extend_from_slice(aliases);
    if let Some(ip) = ip {
        first.ip = Some(address("--ip", ip)?);
    }
    let mode = first.name.clone();
    let is_own = |name: &str| {
        matches!(name, "bridge" | "default" | "host" | "none") || name.starts_with("container:")
    };
    if several && let Some(own) = wishes.iter().find(|wish| is_own(&wish.name)) {
        return Err(CliError::Usage(format!(
            "conflicting options: cannot attach both user-defined and non-user-defined network-modes (`{}`)",
            own.name
        )));
    }
    let endpoints = wishes
        .into_iter()
        .filter(|wish| !is_own(&wish.name) || !wish.aliases.is_empty() || wish.ip.is_some())
        .map(|wish| {
            let settings = EndpointSettings {
                aliases: (!wish.aliases.is_empty()).then_some(wish.aliases),
                ipam_config: wish.ip.map(|ip| EndpointIpamConfig {
                    ipv4_address: Some(ip),
                    ..EndpointIpamConfig::default()
                }),
                ..EndpointSettings::default()
            };
            (wish.name, settings)
        })
        .collect();
    Ok(ContainerNetworks { mode, endpoints })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(subnets: &[&str], gateways: &[&str], ip_ranges: &[&str]) -> CreateArgs {
        let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        CreateArgs {
            driver: "overlay".to_owned(),
            attachable: false,
            internal: false,
            ipv6: false,
            subnets: own(subnets),
            gateways: own(gateways),
            ip_ranges: own(ip_ranges),
            labels: Vec::new(),
            opts: Vec::new(),
            name: "n".to_owned(),
        }
    }

    #[test]
    fn gateways_and_ranges_go_to_the_subnet_that_holds_them() {
        let found = ipam(&args(
            &["10.5.0.0/24", "fd00:5::/64"],
            &["fd00:5::9", "10.5.0.9"],
            &["10.5.0.128/25"],
        ))
        .unwrap();
        assert_eq!(found[0].gateway.as_deref(), Some("10.5.0.9"));
        assert_eq!(found[0].ip_range.as_deref(), Some("10.5.0.128/25"));
        assert_eq!(found[1].gateway.as_deref(), Some("fd00:5::9"));
        assert_eq!(found[1].ip_range, None);
        for (wrong, expected) in [
            (args(&["10.5.0.0"], &[], &[]), "expected a subnet"),
            (args(&["10.5.0.0/33"], &[], &[]), "expected a subnet"),
            (args(&[], &["10.5.0.1"], &[]), "no --subnet holds it"),
            (
                args(&["10.5.0.0/24"], &["10.6.0.1"], &[]),
                "no --subnet holds it",
            ),
            (args(&["10.5.0.0/24"], &["x"], &[]), "expected an address"),
            (
                args(&["10.5.0.0/24"], &[], &["10.5.0.5"]),
                "expected a range",
            ),
        ] {
            let error = ipam(&wrong).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn networks_of_services_in_both_forms() {
        let short = attachment("--network", "back").unwrap();
        assert_eq!(short.target.as_deref(), Some("back"));
        assert_eq!(short.aliases, None);
        let long = attachment("--network", "name=back,alias=db,alias=main").unwrap();
        assert_eq!(long.target.as_deref(), Some("back"));
        assert_eq!(long.aliases.unwrap(), ["db", "main"]);
        for (wrong, expected) in [
            ("", "no network is named"),
            ("alias=db", "name is required"),
            ("name=a,driver-opt=x", "unknown field `driver-opt`"),
            ("name=a,ip=10.0.0.1", "no fixed addresses"),
        ] {
            let error = attachment("--network", wrong).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_container_has_a_mode_and_settings_in_the_networks_of_users() {
        let own =
            |texts: &[&str]| -> Vec<String> { texts.iter().map(|t| (*t).to_owned()).collect() };
        let none = of_container(&[], None, &[]).unwrap();
        assert_eq!((none.mode.as_str(), none.endpoints.len()), ("bridge", 0));
        let host = of_container(&own(&["host"]), None, &[]).unwrap();
        assert_eq!((host.mode.as_str(), host.endpoints.len()), ("host", 0));

        let networks = own(&["back", "name=front,alias=f,ip=10.6.0.9"]);
        let two = of_container(&networks, Some("10.5.0.9"), &own(&["db"])).unwrap();
        assert_eq!(two.mode, "back");
        let ip = |index: usize| {
            let settings: &EndpointSettings = &two.endpoints[index].1;
            settings.ipam_config.clone().unwrap().ipv4_address
        };
        assert_eq!(ip(0).as_deref(), Some("10.5.0.9"));
        assert_eq!(ip(1).as_deref(), Some("10.6.0.9"));
        assert_eq!(two.endpoints[0].1.aliases.clone().unwrap(), ["db"]);
        // What makes no sense is for the daemon to refuse, in the words that its users know.
        let wishes = of_container(&own(&["bridge"]), None, &own(&["db"])).unwrap();
        assert_eq!(wishes.endpoints[0].0, "bridge");

        let both = of_container(&own(&["back", "bridge"]), None, &[]);
        assert!(
            both.err()
                .unwrap()
                .to_string()
                .contains("cannot attach both")
        );
        assert!(of_container(&own(&["back"]), Some("fd00::1"), &[]).is_err());
    }
}
