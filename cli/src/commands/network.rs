//! `shoal network …`

use crate::args::ListArgs;
use crate::args::network::{CreateArgs, NetworkCommand};
use crate::client::Client;
use crate::commands::{filters, for_each, print, print_objects, short_id};
use crate::error::{CliError, Result};
use crate::render::list::{self, Column, ListStyle, Row};
use crate::spec;
use bollard::models::Network;
use bollard::query_parameters::{InspectNetworkOptions, ListNetworksOptions, PruneNetworksOptions};
use serde_json::json;
use std::io::Write as _;

const COLUMNS: &[Column] = &[
    ("NETWORK ID", "ID"),
    ("NAME", "Name"),
    ("DRIVER", "Driver"),
    ("SCOPE", "Scope"),
];

pub(crate) async fn dispatch(client: &Client, command: NetworkCommand) -> Result<()> {
    match command {
        NetworkCommand::Create(args) => create(client, &args).await,
        NetworkCommand::Ls(args) => ls(client, args).await,
        NetworkCommand::Inspect {
            format,
            verbose,
            networks,
        } => {
            let mut found = Vec::new();
            for name in &networks {
                let options = InspectNetworkOptions {
                    verbose,
                    scope: None,
                };
                found.push(client.docker.inspect_network(name, Some(options)).await?);
            }
            print_objects(&found, &format)
        }
        NetworkCommand::Rm { force, networks } => {
            for_each(&networks, async |name| {
                match client
                    .docker
                    .remove_network(name)
                    .await
                    .map_err(CliError::from)
                {
                    Err(CliError::Daemon { status: 404, .. }) if force => Ok(()),
                    Err(err) => Err(err),
                    Ok(()) => print(&format!("{name}\n")),
                }
            })
            .await
        }
        NetworkCommand::Prune { force, filters } => prune(client, force, &filters).await,
    }
}

async fn create(client: &Client, args: &CreateArgs) -> Result<()> {
    let request = spec::network::create(args)?;
    let created = client.docker.create_network(request).await?;
    if !created.warning.is_empty() {
        eprintln!("WARNING: {}", created.warning);
    }
    print(&format!("{}\n", created.id))
}

async fn ls(client: &Client, args: ListArgs) -> Result<()> {
    let options = ListNetworksOptions {
        filters: filters(&args.filters)?,
    };
    let mut networks = client.docker.list_networks(Some(options)).await?;
    networks.sort_by(|a, b| a.name.cmp(&b.name));
    print(&listed(&networks, &args)?)
}

fn listed(networks: &[Network], args: &ListArgs) -> Result<String> {
    let rows: Vec<Row> = networks
        .iter()
        .filter_map(|network| row(network, args.no_trunc).as_object().cloned())
        .collect();
    let style = ListStyle {
        format: args.format.as_deref(),
        quiet: args.quiet.then_some("ID"),
    };
    list::render(&rows, COLUMNS, &[], &style)
}

fn row(network: &Network, no_trunc: bool) -> serde_json::Value {
    let id = network.id.clone().unwrap_or_default();
    let mut labels: Vec<_> = network
        .labels
        .iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    labels.sort();
    json!({
        "ID": if no_trunc { id } else { short_id(&id) },
        "Name": network.name,
        "Driver": network.driver,
        "Scope": network.scope,
        "IPv4": network.enable_ipv4.unwrap_or(false).to_string(),
        "IPv6": network.enable_ipv6.unwrap_or(false).to_string(),
        "Internal": network.internal.unwrap_or(false).to_string(),
        "Labels": labels.join(","),
        "CreatedAt": network.created.as_ref().map(ToString::to_string),
    })
}

async fn prune(client: &Client, force: bool, texts: &[String]) -> Result<()> {
    let options = PruneNetworksOptions {
        filters: filters(texts)?,
    };
    if !force && !confirmed()? {
        return Ok(());
    }
    let pruned = client.docker.prune_networks(Some(options)).await?;
    let names = pruned.networks_deleted.unwrap_or_default();
    if names.is_empty() {
        return Ok(());
    }
    print(&format!("Deleted Networks:\n{}\n", names.join("\n")))
}

/// Asks on standard error; everything but a yes is a no.
fn confirmed() -> Result<bool> {
    eprint!(
        "WARNING! This will remove all networks that no service and no container uses.\nAre you sure you want to \
         continue? [y/N] "
    );
    std::io::stderr()
        .flush()
        .map_err(CliError::io("write to standard error"))?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(CliError::io("read from standard input"))?;
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "y" | "yes"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(name: &str, driver: &str, scope: &str) -> Network {
        Network {
            id: Some(format!("{name}abcdefghijklmnop")),
            name: Some(name.to_owned()),
            driver: Some(driver.to_owned()),
            scope: Some(scope.to_owned()),
            enable_ipv4: Some(true),
            ..Network::default()
        }
    }

    #[test]
    fn networks_are_listed_as_docker_lists_them() {
        let args = |format: Option<&str>, quiet| ListArgs {
            format: format.map(str::to_owned),
            filters: Vec::new(),
            quiet,
            no_trunc: false,
        };
        let networks = [
            network("backend", "overlay", "swarm"),
            network("bridge", "bridge", "local"),
        ];
        assert_eq!(
            listed(&networks, &args(None, false)).unwrap(),
            "NETWORK ID     NAME      DRIVER    SCOPE\n\
             backendabcde   backend   overlay   swarm\n\
             bridgeabcdef   bridge    bridge    local\n"
        );
        assert_eq!(
            listed(&networks, &args(None, true)).unwrap(),
            "backendabcde\nbridgeabcdef\n"
        );
        let template = args(Some("{{.Name}} {{.IPv6}}"), false);
        assert_eq!(
            listed(&networks, &template).unwrap(),
            "backend false\nbridge false\n"
        );
    }
}
