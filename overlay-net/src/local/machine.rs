//! What the machine itself reaches: the networks that no subnet of a cluster may overlap.

use super::{LocalNet, LocalNetError, links};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Most networks that are told; beyond it the largest ones count.
pub const MACHINE_NETWORKS_MAX: usize = 256;

impl LocalNet {
    /// The networks that the machine has routes to in its main table, local bridges among them: not the default route,
    /// nothing that is valid on one link only, and nothing that the overlay of this instance has made.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn machine_networks(&self) -> Result<Vec<IpNet>, LocalNetError> {
        let bridges = format!("{}-", self.tag.link_prefix());
        let own = links::own_links(&self.netlink, &self.tag).await?;
        let overlay = own
            .into_iter()
            .filter(|(name, _)| !name.starts_with(&bridges));
        let overlay: BTreeSet<u32> = overlay.map(|(_, index)| index).collect();
        let mut networks = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            let answers = self.netlink.route().get(question).execute();
            let routes: Vec<RouteMessage> =
                answers
                    .try_collect()
                    .await
                    .map_err(|err| LocalNetError::Link {
                        action: "list routes of",
                        name: "main".to_owned(),
                        err,
                    })?;
            networks.extend(routes.iter().filter_map(|route| network(route, &overlay)));
        }
        let mut networks: Vec<IpNet> = networks.into_iter().collect();
        networks.sort_by_key(|network| (network.prefix_len(), *network));
        networks.truncate(MACHINE_NETWORKS_MAX);
        networks.sort();
        Ok(networks)
    }
}

fn network(route: &RouteMessage, overlay: &BTreeSet<u32>) -> Option<IpNet> {
    let header = &route.header;
    let prefix_len = header.destination_prefix_length;
    if header.table != RouteHeader::RT_TABLE_MAIN
        || header.kind != RouteType::Unicast
        || prefix_len == 0
    {
        return None;
    }
    let mut destination = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) if overlay.contains(index) => return None,
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => {
                destination = Some(IpAddr::from(*ip));
            }
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => {
                destination = Some(IpAddr::from(*ip));
            }
            _ => {}
        }
    }
    let ip = destination?;
    let on_one_link = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_multicast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_multicast(),
    };
    let network = IpNet::new(ip, prefix_len).ok()?;
    (!on_one_link).then(|| network.trunc())
}
