//! Networks, and containers in them.

use super::{Invalid, ensure, labels, list_bound, names, no_nul};
use shoal_model::network::{
    AttachmentWish, INGRESS_NETWORK, MTU_MAX, MTU_MIN, NetworkAttachment, NetworkSpec,
};
use std::collections::BTreeSet;

/// Names of networks that every engine has, or that mean something else where a network is named.
const RESERVED: [&str; 5] = ["bridge", "host", "none", "default", INGRESS_NETWORK];

/// Most networks of one container.
pub const NETWORKS_PER_CONTAINER_MAX: usize = 32;

/// Most further names in one network.
const ALIASES_MAX: usize = 100;

/// Most characters of a further name: it is a name in DNS.
const ALIAS_CHARS_MAX: usize = 253;

/// Most characters of a container's name.
const CONTAINER_NAME_CHARS_MAX: usize = 255;

/// Checks a network that a user asks for; its subnets are the allocator's business.
///
/// # Errors
/// [`Invalid`] with the first field that is wrong.
pub fn network(spec: &NetworkSpec) -> Result<(), Invalid> {
    names::network_name(&spec.name)?;
    ensure(!RESERVED.contains(&spec.name.as_str()), "Name", || {
        format!(
            "`{}` is the name of a built-in network: choose another",
            spec.name
        )
    })?;
    labels("Labels", &spec.labels)?;
    labels("Options", &spec.options)?;
    ensure(!spec.ingress, "Ingress", || {
        "the network of published ports is built in: leave it out".to_owned()
    })?;
    list_bound("IPAM.Config", &spec.ipam)?;
    if let Some(mtu) = spec.mtu {
        ensure((MTU_MIN..=MTU_MAX).contains(&mtu), "Options.mtu", || {
            format!("{mtu}: {MTU_MIN} to {MTU_MAX} bytes are allowed")
        })?;
    }
    Ok(())
}

/// Checks the networks of a task.
pub(super) fn task_networks(networks: &[NetworkAttachment]) -> Result<(), Invalid> {
    const FIELD: &str = "TaskTemplate.Networks";
    bound(FIELD, networks.len())?;
    let mut seen = BTreeSet::new();
    for (place, attachment) in networks.iter().enumerate() {
        let field = format!("{FIELD}[{place}]");
        ensure(
            seen.insert(attachment.network_id),
            &format!("{field}.Target"),
            || format!("network `{}` is named twice", attachment.network_id),
        )?;
        aliases(&format!("{field}.Aliases"), &attachment.aliases)?;
    }
    Ok(())
}

/// Checks what a container asks for.
///
/// # Errors
/// [`Invalid`] with the first field that is wrong.
pub fn attachment(name: &str, wishes: &[AttachmentWish]) -> Result<(), Invalid> {
    ensure(
        !name.is_empty() && name.len() <= CONTAINER_NAME_CHARS_MAX && !name.contains('\0'),
        "Name",
        || format!("`{}` is no container's name", name.escape_debug()),
    )?;
    ensure(!wishes.is_empty(), "NetworkingConfig", || {
        "no network is named: name one".to_owned()
    })?;
    bound("NetworkingConfig", wishes.len())?;
    wishes
        .iter()
        .try_for_each(|wish| aliases("NetworkingConfig.Aliases", &wish.aliases))
}

fn bound(field: &str, count: usize) -> Result<(), Invalid> {
    ensure(count <= NETWORKS_PER_CONTAINER_MAX, field, || {
        format!("{count} networks: at most {NETWORKS_PER_CONTAINER_MAX} are allowed")
    })
}

fn aliases(field: &str, aliases: &[String]) -> Result<(), Invalid> {
    ensure(aliases.len() <= ALIASES_MAX, field, || {
        format!("{} names: at most {ALIASES_MAX} are allowed", aliases.len())
    })?;
    for alias in aliases {
        no_nul(field, alias)?;
        let plain = alias
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
        let sized = (1..=ALIAS_CHARS_MAX).contains(&alias.len());
        ensure(plain && sized, field, || {
            format!(
                "`{}` can't be looked up: use at most {ALIAS_CHARS_MAX} letters, digits, `-`, `_` and `.`",
                alias.escape_debug()
            )
        })?;
    }
    Ok(())
}
