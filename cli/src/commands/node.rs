//! `shoal node …`

use crate::args::ListArgs;
use crate::args::cluster::{Availability, NodeCommand, NodeUpdateArgs, Role};
use crate::client::Client;
use crate::commands::{filters, for_each, print, print_objects, tasks};
use crate::error::{CliError, Result};
use crate::render::human;
use crate::render::list::{self, Column, ListStyle, Row};
use crate::spec::parse;
use bollard::models::{Node, NodeSpec, NodeSpecAvailabilityEnum, NodeSpecRoleEnum};
use bollard::query_parameters::{DeleteNodeOptions, ListNodesOptions, UpdateNodeOptions};
use serde_json::json;

const COLUMNS: &[Column] = &[
    ("ID", "Marked"),
    ("HOSTNAME", "Hostname"),
    ("STATUS", "Status"),
    ("AVAILABILITY", "Availability"),
    ("MANAGER STATUS", "ManagerStatus"),
    ("ENGINE VERSION", "EngineVersion"),
];
const HEADERS: &[Column] = &[("ID", "ID"), ("SELF", "Self"), ("TLS STATUS", "TLSStatus")];

pub(crate) async fn dispatch(client: &Client, command: NodeCommand) -> Result<()> {
    match command {
        NodeCommand::Ls(args) => ls(client, args).await,
        NodeCommand::Inspect {
            format,
            pretty,
            nodes,
        } => {
            let mut found = Vec::new();
            for name in &nodes {
                found.push(
                    client
                        .docker
                        .inspect_node(&resolved(client, name).await?)
                        .await?,
                );
            }
            if pretty {
                return found.iter().try_for_each(|node| print(&pretty_text(node)));
            }
            print_objects(&found, &format)
        }
        NodeCommand::Ps { list, nodes } => {
            let nodes = if nodes.is_empty() {
                vec!["self".to_owned()]
            } else {
                nodes
            };
            let mut ids = Vec::new();
            for name in &nodes {
                let node = client
                    .docker
                    .inspect_node(&resolved(client, name).await?)
                    .await?;
                ids.extend(node.id);
            }
            tasks::print_tasks(client, "node", &ids, &list, true).await
        }
        NodeCommand::Promote { nodes } => {
            set_role(
                client,
                &nodes,
                NodeSpecRoleEnum::MANAGER,
                "promoted to a manager",
            )
            .await
        }
        NodeCommand::Demote { nodes } => {
            set_role(client, &nodes, NodeSpecRoleEnum::WORKER, "demoted").await
        }
        NodeCommand::Rm { force, nodes } => {
            for_each(&nodes, async |name| {
                let options = DeleteNodeOptions { force };
                client.docker.delete_node(name, Some(options)).await?;
                print(&format!("{name}\n"))
            })
            .await
        }
        NodeCommand::Update(args) => update(client, args).await,
    }
}

/// `self` is this daemon's node.
async fn resolved(client: &Client, name: &str) -> Result<String> {
    if name != "self" {
        return Ok(name.to_owned());
    }
    own_id(client).await?.ok_or_else(|| {
        CliError::Usage("this machine is not part of a cluster: there is no `self`".to_owned())
    })
}

async fn own_id(client: &Client) -> Result<Option<String>> {
    let info = client.docker.info().await?;
    Ok(info
        .swarm
        .and_then(|swarm| swarm.node_id)
        .filter(|id| !id.is_empty()))
}

async fn ls(client: &Client, args: ListArgs) -> Result<()> {
    let options = ListNodesOptions {
        filters: filters(&args.filters)?,
    };
    let mut nodes = client.docker.list_nodes(Some(options)).await?;
    let own = own_id(client).await?;
    nodes.sort_by_key(hostname);
    let rows: Vec<Row> = nodes
        .iter()
        .filter_map(|node| row(node, own.as_deref()).as_object().cloned())
        .collect();
    let style = ListStyle {
        format: args.format.as_deref(),
        quiet: args.quiet.then_some("ID"),
    };
    print(&list::render(&rows, COLUMNS, HEADERS, &style)?)
}

fn hostname(node: &Node) -> String {
    node.description
        .as_ref()
        .and_then(|d| d.hostname.clone())
        .unwrap_or_default()
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().collect::<String>() + letters.as_str()
    })
}

fn row(node: &Node, own: Option<&str>) -> serde_json::Value {
    let id = node.id.clone().unwrap_or_default();
    let is_self = own == Some(id.as_str());
    let state = node
        .status
        .as_ref()
        .and_then(|status| status.state.as_ref());
    let availability = node
        .spec
        .as_ref()
        .and_then(|spec| spec.availability.as_ref());
    let manager = node.manager_status.as_ref().map(|manager| {
        match (manager.leader, manager.reachability.as_ref()) {
            (Some(true), _) => "Leader".to_owned(),
            (_, Some(reachability)) => capital(&reachability.to_string()),
            (_, None) => String::new(),
        }
    });
    let engine = node.description.as_ref().and_then(|d| d.engine.as_ref());
    json!({
        "ID": id,
        "Marked": format!("{id}{}", if is_self { " *" } else { "" }),
        "Self": is_self,
        "Hostname": hostname(node),
        "Status": state.map(|state| capital(&state.to_string())).unwrap_or_default(),
        "Availability": availability.map(|a| capital(a.as_ref())).unwrap_or_default(),
        "ManagerStatus": manager.unwrap_or_default(),
        "EngineVersion": engine.and_then(|e| e.engine_version.clone()).unwrap_or_default(),
        "TLSStatus": "Ready",
    })
}

fn pretty_text(node: &Node) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("{name}:\t{value}\n"));
    let spec = node.spec.clone().unwrap_or_default();
    line("ID", node.id.clone().unwrap_or_default());
    line("Hostname", hostname(node));
    line(
        "Role",
        spec.role.map(|role| role.to_string()).unwrap_or_default(),
    );
    line(
        "Availability",
        spec.availability.map(|a| a.to_string()).unwrap_or_default(),
    );
    for (key, value) in spec.labels.unwrap_or_default() {
        line("Label", format!("{key}={value}"));
    }
    if let Some(status) = &node.status {
        line(
            "State",
            status
                .state
                .map(|state| state.to_string())
                .unwrap_or_default(),
        );
        line("Message", status.message.clone().unwrap_or_default());
        line("Address", status.addr.clone().unwrap_or_default());
    }
    if let Some(manager) = &node.manager_status {
        line("Manager Address", manager.addr.clone().unwrap_or_default());
        line("Leader", manager.leader.unwrap_or(false).to_string());
    }
    if let Some(resources) = node.description.as_ref().and_then(|d| d.resources.as_ref()) {
        line(
            "CPUs",
            (resources.nano_cpus.unwrap_or(0) / 1_000_000_000).to_string(),
        );
        line(
            "Memory",
            human::binary_size(resources.memory_bytes.unwrap_or(0)),
        );
    }
    text + "\n"
}

/// Reads a node, changes its spec, writes it with the version that was read.
async fn change(
    client: &Client,
    name: &str,
    work: impl FnOnce(&mut NodeSpec) -> bool,
) -> Result<bool> {
    let node = client
        .docker
        .inspect_node(&resolved(client, name).await?)
        .await?;
    let mut spec = node.spec.unwrap_or_default();
    if !work(&mut spec) {
        return Ok(false);
    }
    let version = node.version.and_then(|version| version.index).unwrap_or(0);
    let version = i64::try_from(version)
        .map_err(|_| CliError::Protocol(format!("version {version} is too large")))?;
    let id = node.id.unwrap_or_default();
    client
        .docker
        .update_node(&id, spec, UpdateNodeOptions { version })
        .await?;
    Ok(true)
}

async fn set_role(
    client: &Client,
    nodes: &[String],
    role: NodeSpecRoleEnum,
    done: &str,
) -> Result<()> {
    for_each(nodes, async |name| {
        let changed = change(client, name, |spec| {
            let differs = spec.role != Some(role);
            spec.role = Some(role);
            differs
        });
        match changed.await? {
            true => print(&format!("Node {name} {done} in the swarm.\n")),
            false => print(&format!("Node {name} is already a {role}.\n")),
        }
    })
    .await
}

async fn update(client: &Client, args: NodeUpdateArgs) -> Result<()> {
    change(client, &args.node, |spec| {
        if let Some(availability) = args.availability {
            spec.availability = Some(match availability {
                Availability::Active => NodeSpecAvailabilityEnum::ACTIVE,
                Availability::Pause => NodeSpecAvailabilityEnum::PAUSE,
                Availability::Drain => NodeSpecAvailabilityEnum::DRAIN,
            });
        }
        if let Some(role) = args.role {
            spec.role = Some(match role {
                Role::Worker => NodeSpecRoleEnum::WORKER,
                Role::Manager => NodeSpecRoleEnum::MANAGER,
            });
        }
        let labels = spec.labels.get_or_insert_default();
        for key in &args.label_rm {
            labels.remove(key);
        }
        labels.extend(parse::pairs(&args.label_add));
        true
    })
    .await?;
    print(&format!("{}\n", args.node))
}
