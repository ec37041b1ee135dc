//! Subnets of networks: chosen from the cluster's pools, or as the user says and free.

use super::{AllocationError, mesh};
use crate::store::State;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use shoal_model::network::{IpamConfig, NetworkSpec, Subnets};
use shoal_model::{Cluster, ClusterSpec};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// Prefix lengths of IPv4 subnets.
pub const IPV4_PREFIX_LEN: RangeInclusive<u8> = 8..=29;

/// The network of published ports has every task that publishes a port and is in no network: it gets more than others.
const INGRESS_PREFIX_LEN: u8 = 20;

/// The network of published ports takes at most a sixteenth of a pool, in bits.
const INGRESS_SHARE_BITS: u8 = 4;

/// Ranges that no container can have addresses of, with their names.
const UNUSABLE: [(Ipv4Net, &str); 5] = [
    (
        Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
        "this host",
    ),
    (
        Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
        "loopback",
    ),
    (
        Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
        "link-local",
    ),
    (
        Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4),
        "multicast",
    ),
    (
        Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 4),
        "reserved",
    ),
];

/// Something that has addresses already.
struct Taken {
    net: IpNet,
    holder: String,
}

/// The subnets of a new network.
///
/// # Errors
/// What the user asks for can't be, or is in use, or nothing is left.
pub fn choose(
    state: &State,
    cluster: &Cluster,
    spec: &NetworkSpec,
) -> Result<Subnets, AllocationError> {
    let (wanted_ipv4, wanted_ipv6) = wishes(spec)?;
    let taken = taken(state, cluster);
    let (ipv4, gateway, range) = match wanted_ipv4 {
        Some((subnet, wish)) => {
            refuse_overlap(&taken, subnet.into())?;
            user_ipv4(subnet, wish)?
        }
        None => {
            let subnet = from_pools(state, &cluster.spec, spec.ingress, &taken)?;
            (subnet, first_host(subnet), subnet)
        }
    };
    let mut subnets = Subnets {
        ipv4,
        gateway,
        range,
        ipv6: None,
        gateway_ipv6: None,
    };
    if spec.ipv6 {
        let gateway = match wanted_ipv6 {
            Some((subnet, wish)) => {
                refuse_overlap(&taken, subnet.into())?;
                subnets.ipv6 = Some(subnet);
                user_ipv6(ipv4, subnet, wish)?
            }
            None => {
                subnets.ipv6 = Some(free_ipv6(cluster, &taken)?);
                None
            }
        };
        subnets.gateway_ipv6 = gateway.or_else(|| subnets.ipv6_of(subnets.gateway));
    }
    Ok(subnets)
}

type Ipv4Wish<'a> = Option<(Ipv4Net, &'a IpamConfig)>;
type Ipv6Wish<'a> = Option<(Ipv6Net, &'a IpamConfig)>;

/// What the user asks for, by family: at most one subnet of each.
fn wishes(spec: &NetworkSpec) -> Result<(Ipv4Wish<'_>, Ipv6Wish<'_>), AllocationError> {
    let (mut ipv4, mut ipv6) = (None, None);
    for (place, config) in spec.ipam.iter().enumerate() {
        let field = format!("IPAM.Config[{place}].Subnet");
        let subnet = config.subnet;
        if subnet != subnet.trunc() {
            return Err(AllocationError::invalid(
                field,
                format!(
                    "{subnet} has host bits set: it should be {}",
                    subnet.trunc()
                ),
            ));
        }
        let again = match subnet {
            IpNet::V4(subnet) => ipv4.replace((subnet, config)).is_some(),
            IpNet::V6(subnet) => ipv6.replace((subnet, config)).is_some(),
        };
        if again {
            return Err(AllocationError::invalid(
                field,
                format!(
                    "{subnet} is the second of its family: a network has one IPv4 and one IPv6 subnet"
                ),
            ));
        }
    }
    if let Some((subnet, _)) = ipv6
        && !spec.ipv6
    {
        return Err(AllocationError::invalid(
            "EnableIPv6",
            format!("the subnet {subnet} is given and IPv6 is off: add `--ipv6`"),
        ));
    }
    Ok((ipv4, ipv6))
}

/// Everything that a new subnet must not meet.
fn taken(state: &State, cluster: &Cluster) -> Vec<Taken> {
    let mesh = || "the mesh between the nodes".to_owned();
    let mut all = vec![
        Taken {
            net: cluster.spec.mesh_pool.into(),
            holder: mesh(),
        },
        Taken {
            net: mesh::subnet(cluster.id, 0).into(),
            holder: mesh(),
        },
    ];
    for network in state.networks() {
        let subnets = &network.subnets;
        let nets = [Some(subnets.ipv4.into()), subnets.ipv6.map(IpNet::from)];
        all.extend(nets.into_iter().flatten().map(|net| Taken {
            net,
            holder: format!("network `{}`", network.spec.name),
        }));
    }
    for node in state.nodes() {
        let local = node.description.iter().flat_map(|it| &it.local_networks);
        // A default route is no network of the node's own.
        let local = local.filter(|net| net.prefix_len() > 0);
        all.extend(local.map(|net| Taken {
            net: *net,
            holder: format!("the machine of node `{}`", node.display_name()),
        }));
    }
    all
}

fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

fn refuse_overlap(taken: &[Taken], subnet: IpNet) -> Result<(), AllocationError> {
    match taken.iter().find(|taken| overlap(taken.net, subnet)) {
        Some(taken) => Err(AllocationError::Overlap {
            subnet,
            other: taken.net,
            holder: taken.holder.clone(),
        }),
        None => Ok(()),
    }
}

fn first_host(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from_bits(subnet.network().to_bits() | 1)
}

fn user_ipv4(
    subnet: Ipv4Net,
    wish: &IpamConfig,
) -> Result<(Ipv4Net, Ipv4Addr, Ipv4Net), AllocationError> {
    let invalid = |field: &str, problem: String| {
        AllocationError::invalid(format!("IPAM.Config.{field}"), problem)
    };
    if !IPV4_PREFIX_LEN.contains(&subnet.prefix_len()) {
        let (first, last) = (IPV4_PREFIX_LEN.start(), IPV4_PREFIX_LEN.end());
        return Err(invalid(
            "Subnet",
            format!("{subnet}: prefixes from /{first} to /{last} are allowed"),
        ));
    }
    let unusable = UNUSABLE
        .iter()
        .find(|(net, _)| overlap((*net).into(), subnet.into()));
    if let Some((net, name)) = unusable {
        return Err(invalid("Subnet", format!("{subnet} meets {net} ({name})")));
    }
    let gateway = match wish.gateway {
        None => first_host(subnet),
        Some(IpAddr::V4(gateway)) if is_host(subnet, gateway) => gateway,
        Some(gateway) => {
            return Err(invalid(
                "Gateway",
                format!("{gateway} is no host of {subnet}"),
            ));
        }
    };
    let range = match wish.ip_range {
        None => subnet,
        Some(IpNet::V4(range)) if subnet.contains(&range) => range.trunc(),
        Some(range) => {
            return Err(invalid(
                "IPRange",
                format!("{range} does not lie in {subnet}"),
            ));
        }
    };
    let usable = range.hosts().any(|it| is_host(subnet, it) && it != gateway);
    if !usable {
        return Err(invalid(
            "IPRange",
            format!("{range} has no address for a container"),
        ));
    }
    Ok((subnet, gateway, range))
}

fn is_host(subnet: Ipv4Net, address: Ipv4Addr) -> bool {
    subnet.contains(&address) && address != subnet.network() && address != subnet.broadcast()
}

/// The gateway that the user asks for in the IPv6 subnet, which every IPv4 address must have its place in.
fn user_ipv6(
    ipv4: Ipv4Net,
    subnet: Ipv6Net,
    wish: &IpamConfig,
) -> Result<Option<Ipv6Addr>, AllocationError> {
    let longest = 96 + ipv4.prefix_len();
    let problem = if subnet.prefix_len() > longest {
        Some(format!(
            "{subnet} is smaller than {ipv4}: every IPv4 address has its place in it, so give /{longest} or shorter"
        ))
    } else if subnet.addr().is_multicast()
        || subnet.addr().is_unicast_link_local()
        || subnet.prefix_len() < 16
    {
        Some(format!(
            "{subnet} is no range for hosts: use one such as fd00:1::/64"
        ))
    } else {
        None
    };
    if let Some(problem) = problem {
        return Err(AllocationError::invalid("IPAM.Config.Subnet", problem));
    }
    if let Some(range) = wish.ip_range {
        return Err(AllocationError::invalid(
            "IPAM.Config.IPRange",
            format!(
                "{range}: an IPv6 address follows from the IPv4 address of the same container: leave it out"
            ),
        ));
    }
    match wish.gateway {
        None => Ok(None),
        Some(IpAddr::V6(gateway)) if subnet.contains(&gateway) && gateway != subnet.network() => {
            Ok(Some(gateway))
        }
        Some(gateway) => Err(AllocationError::invalid(
            "IPAM.Config.Gateway",
            format!("{gateway} is no host of {subnet}"),
        )),
    }
}

/// The first subnet of the pools that meets nothing.
fn from_pools(
    state: &State,
    spec: &ClusterSpec,
    ingress: bool,
    taken: &[Taken],
) -> Result<Ipv4Net, AllocationError> {
    for pool in &spec.address_pools {
        let prefix_len = if ingress {
            let share =
                INGRESS_PREFIX_LEN.max(pool.prefix_len().saturating_add(INGRESS_SHARE_BITS));
            share.min(spec.subnet_prefix_len)
        } else {
            spec.subnet_prefix_len
        };
        if let Some(subnet) = first_free(*pool, prefix_len, taken) {
            return Ok(subnet);
        }
    }
    let pools: Vec<String> = spec.address_pools.iter().map(ToString::to_string).collect();
    Err(AllocationError::NoSubnet {
        pools: pools.join(", "),
        prefix_len: spec.subnet_prefix_len,
        networks: state.networks().count(),
    })
}

fn first_free(pool: Ipv4Net, prefix_len: u8, taken: &[Taken]) -> Option<Ipv4Net> {
    let mut stretches: Vec<(u32, u32)> = taken
        .iter()
        .filter_map(|taken| match taken.net {
            IpNet::V4(net) => Some((net.network().to_bits(), net.broadcast().to_bits())),
            IpNet::V6(_) => None,
        })
        .collect();
    stretches.sort_unstable();
    super::blocks::lowest_free(pool.trunc(), prefix_len, stretches.into_iter())
}

fn free_ipv6(cluster: &Cluster, taken: &[Taken]) -> Result<Ipv6Net, AllocationError> {
    (1..=u16::MAX)
        .map(|number| mesh::subnet(cluster.id, number))
        .find(|subnet| !taken.iter().any(|it| overlap(it.net, (*subnet).into())))
        .ok_or_else(|| AllocationError::NoIpv6Subnet {
            prefix: mesh::cluster_prefix(cluster.id).into(),
        })
}
