//! Reads networks: what a user declares of one, and which ones a service or a container names.

use crate::error::{ApiError, ApiResult};
use crate::fields::Fields;
use ipnet::IpNet;
use shoal_model::network::{
    AttachmentWish, IpamConfig, MTU_MAX, MTU_MIN, NetworkAttachment, NetworkSpec,
};
use shoal_model::{Labels, NetworkId};

/// The networks that every engine has.
pub(crate) const BUILTIN: [&str; 4] = ["bridge", "default", "host", "none"];

/// Docker's option for the MTU, and the short form.
const OPTIONS_MTU: [&str; 2] = ["com.docker.network.driver.mtu", "mtu"];
/// Docker's option for encryption, which is always on here.
const OPTION_ENCRYPTED: &str = "encrypted";

/// Reads the body of `POST /networks/create`.
pub(crate) fn network_spec(mut body: Fields) -> ApiResult<NetworkSpec> {
    let name = body.string("Name")?;
    if name.is_empty() {
        return Err(body.error("Name", "no name is given"));
    }
    if BUILTIN.contains(&name.as_str()) {
        return Err(ApiError::new(
            http::StatusCode::FORBIDDEN,
            format!("operation is not permitted on predefined {name} network"),
        ));
    }
    driver(&mut body)?;
    let options = body.labels("Options")?;
    let spec = NetworkSpec {
        name,
        labels: body.labels("Labels")?,
        attachable: body.bool("Attachable")?,
        internal: body.bool("Internal")?,
        ingress: false,
        ipv6: body.bool("EnableIPv6")?,
        mtu: mtu(&body, &options)?,
        ipam: ipam(body.object_or_empty("IPAM")?)?,
        options,
    };
    if body.bool("Ingress")? {
        let reason = "the cluster has its ingress network from the start";
        return Err(body.error("Ingress", reason));
    }
    if body.opt_bool("EnableIPv4")? == Some(false) {
        return Err(body.error("EnableIPv4", "every network has IPv4"));
    }
    body.refuse(&[
        ("ConfigOnly", "networks without a driver are not done"),
        ("ConfigFrom", "networks without a driver are not done"),
    ])?;
    // Names are unique always.
    body.ignore(&["CheckDuplicate"]);
    body.done()?;
    Ok(spec)
}

fn driver(body: &mut Fields) -> ApiResult<()> {
    match body.string("Driver")?.as_str() {
        "overlay" => {}
        "" | "bridge" => {
            return Err(ApiError::not_implemented(
                "user-defined networks with driver `bridge` are not there yet: use driver `overlay` in a cluster, or \
                 the networks bridge, host, none and container:NAME",
            ));
        }
        other => {
            return Err(ApiError::not_implemented(format!(
                "network driver `{other}` is not there: the one for networks that users make is `overlay`"
            )));
        }
    }
    match body.string("Scope")?.as_str() {
        "" | "swarm" => Ok(()),
        other => {
            let reason = format!("`{other}`: an overlay network has the scope `swarm`");
            Err(body.error("Scope", reason))
        }
    }
}

/// Reads the options that have a meaning; one without is refused by name.
fn mtu(body: &Fields, options: &Labels) -> ApiResult<Option<u32>> {
    let mut mtu = None;
    for (key, value) in options {
        let field = format!("Options.{key}");
        if OPTIONS_MTU.contains(&key.as_str()) {
            let fits = |mtu: &u32| (MTU_MIN..=MTU_MAX).contains(mtu);
            let number = value.parse().ok().filter(fits).ok_or_else(|| {
                let reason = format!("`{value}`: expected a number from {MTU_MIN} to {MTU_MAX}");
                body.error(&field, reason)
            })?;
            mtu = Some(number);
        } else if key == OPTION_ENCRYPTED {
            if !matches!(value.as_str(), "" | "1" | "true") {
                let reason =
                    format!("`{value}`: what goes between hosts is always encrypted; leave it out");
                return Err(body.error(&field, reason));
            }
        } else {
            return Err(body.error(&field, "there is no such option of driver `overlay`"));
        }
    }
    Ok(mtu)
}

fn ipam(mut fields: Fields) -> ApiResult<Vec<IpamConfig>> {
    let driver = fields.string("Driver")?;
    if !matches!(driver.as_str(), "" | "default") {
        return Err(fields.error("Driver", format!("`{driver}`: the only one is `default`")));
    }
    fields.refuse(&[("Options", "the managers' allocator has none")])?;
    let configs = fields
        .objects("Config")?
        .into_iter()
        .map(ipam_config)
        .collect::<ApiResult<Vec<_>>>()?;
    fields.done()?;
    Ok(configs.into_iter().flatten().collect())
}

/// An entry that says nothing, which some clients send, is none.
fn ipam_config(mut fields: Fields) -> ApiResult<Option<IpamConfig>> {
    let subnet = parsed::<IpNet>(&mut fields, "Subnet", "a subnet such as 10.5.0.0/24")?;
    let gateway = parsed(&mut fields, "Gateway", "an address")?;
    let ip_range = parsed::<IpNet>(&mut fields, "IPRange", "a range such as 10.5.0.0/25")?;
    fields.refuse(&[(
        "AuxiliaryAddresses",
        "addresses that are kept free are not done: give an IPRange",
    )])?;
    let Some(subnet) = subnet else {
        if gateway.is_some() || ip_range.is_some() {
            let reason = "a gateway or a range needs the subnet that it is in";
            return Err(fields.error("Subnet", reason));
        }
        fields.done()?;
        return Ok(None);
    };
    if subnet.network() != subnet.addr() {
        let reason = format!("`{subnet}`: it should be {}", subnet.trunc());
        return Err(fields.error("Subnet", reason));
    }
    fields.done()?;
    Ok(Some(IpamConfig {
        subnet,
        gateway,
        ip_range,
    }))
}

fn parsed<T: std::str::FromStr>(
    fields: &mut Fields,
    name: &str,
    expected: &str,
) -> ApiResult<Option<T>> {
    let text = fields.string(name)?;
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse() {
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(fields.error(name, format!("`{text}` is not {expected}"))),
    }
}

/// An address or a block of addresses.
pub(crate) fn block(text: &str) -> Option<IpNet> {
    let address = || text.parse::<std::net::IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or_else(address)
}

/// A network that a service names, before it is known which one that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedNetwork {
    /// Name or id.
    pub(crate) target: String,
    /// Further names of the service there.
    pub(crate) aliases: Vec<String>,
}

/// Reads a list of a service's networks.
pub(crate) fn named_networks(fields: &mut Fields, name: &str) -> ApiResult<Vec<NamedNetwork>> {
    fields
        .objects(name)?
        .into_iter()
        .map(|mut entry| {
            let named = NamedNetwork {
                target: entry.string("Target")?,
                aliases: entry.strings("Aliases")?,
            };
            if named.target.is_empty() {
                return Err(entry.error("Target", "no network is named"));
            }
            if BUILTIN.contains(&named.target.as_str()) {
                let reason = format!(
                    "`{}`: services are attached to networks of the cluster only",
                    named.target
                );
                return Err(entry.error("Target", reason));
            }
            entry.refuse(&[("DriverOpts", "an attachment has no options here")])?;
            entry.done()?;
            Ok(named)
        })
        .collect()
}

/// Finds the networks among those of the cluster: by id, then by name, then by a prefix of the id.
pub(crate) fn resolve(
    named: &[NamedNetwork],
    known: &[(NetworkId, String)],
) -> ApiResult<Vec<NetworkAttachment>> {
    named
        .iter()
        .map(|named| {
            Ok(NetworkAttachment {
                network_id: find(&named.target, known)?,
                aliases: named.aliases.clone(),
            })
        })
        .collect()
}

fn find(text: &str, known: &[(NetworkId, String)]) -> ApiResult<NetworkId> {
    let whole = known
        .iter()
        .find(|(id, _)| id.to_string() == text)
        .or_else(|| known.iter().find(|(_, name)| name == text));
    if let Some((id, _)) = whole {
        return Ok(*id);
    }
    let mut begins = known
        .iter()
        .filter(|(id, _)| id.to_string().starts_with(text));
    match (begins.next(), begins.next()) {
        (Some((id, _)), None) => Ok(*id),
        (Some(_), Some(_)) => Err(ApiError::bad_request(format!(
            "network {text} is ambiguous: several ids begin with it"
        ))),
        (None, _) => Err(ApiError::not_found(format!("network {text} not found"))),
    }
}

/// Reads the settings of a container in a network that a user has made.
pub(crate) fn attachment_wish(network: &str, endpoint: &mut Fields) -> ApiResult<AttachmentWish> {
    let mut ipam = endpoint.object_or_empty("IPAMConfig")?;
    let ipv4 = parsed(&mut ipam, "IPv4Address", "an IPv4 address")?;
    ipam.refuse(&[
        (
            "IPv6Address",
            "an IPv6 address follows from the IPv4 address of the same endpoint",
        ),
        ("LinkLocalIPs", "link-local addresses are not given out"),
    ])?;
    ipam.done()?;
    let wish = AttachmentWish {
        network: network.to_owned(),
        ipv4,
        aliases: endpoint.strings("Aliases")?,
    };
    endpoint.refuse(&[
        (
            "GwPriority",
            "the first network that has a way out is the gateway",
        ),
        ("DriverOpts", "an attachment has no options here"),
    ])?;
    Ok(wish)
}
