//! Tasks as rows, for `service ps` and `node ps`.

use crate::args::ListArgs;
use crate::client::Client;
use crate::commands::{filters, print, short_id};
use crate::error::{CliError, Result};
use crate::render::human;
use crate::render::list::{self, Column, ListStyle, Row};
use bollard::models::Task;
use bollard::query_parameters::{ListNodesOptions, ListTasksOptions};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

const COLUMNS: &[Column] = &[
    ("ID", "ID"),
    ("NAME", "Name"),
    ("IMAGE", "Image"),
    ("NODE", "Node"),
    ("DESIRED STATE", "DesiredState"),
    ("CURRENT STATE", "CurrentState"),
    ("ERROR", "Error"),
    ("PORTS", "Ports"),
];

/// Characters of an error in a table, as docker's.
const ERROR_WIDTH: usize = 30;

/// The tasks that fit the filters.
pub(crate) async fn fetch(
    client: &Client,
    filters: HashMap<String, Vec<String>>,
) -> Result<Vec<Task>> {
    let options = ListTasksOptions {
        filters: Some(filters),
    };
    Ok(client.docker.list_tasks(Some(options)).await?)
}

/// Names of nodes by id.
pub(crate) async fn node_names(client: &Client) -> Result<BTreeMap<String, String>> {
    let nodes = client.docker.list_nodes(None::<ListNodesOptions>).await?;
    Ok(nodes
        .into_iter()
        .filter_map(|node| {
            let given = node
                .spec
                .and_then(|spec| spec.name)
                .filter(|name| !name.is_empty());
            let hostname = node
                .description
                .and_then(|description| description.hostname);
            Some((node.id?, given.or(hostname)?))
        })
        .collect())
}

/// Prints the tasks that fit `key=names` and the user's filters.
pub(crate) async fn print_tasks(
    client: &Client,
    key: &str,
    names: &[String],
    list: &ListArgs,
    resolve: bool,
) -> Result<()> {
    let mut wanted = filters(&list.filters)?.unwrap_or_default();
    wanted
        .entry(key.to_owned())
        .or_default()
        .extend(names.iter().cloned());
    let tasks = fetch(client, wanted).await?;
    let nodes = if resolve {
        node_names(client).await?
    } else {
        BTreeMap::new()
    };
    let rows = rows(
        tasks,
        &nodes,
        Timestamp::now(),
        list.no_trunc,
        list.format.is_none(),
    );
    let style = ListStyle {
        format: list.format.as_deref(),
        quiet: list.quiet.then_some("ID"),
    };
    print(&list::render(&rows, COLUMNS, &[], &style)?)
}

/// Newest first within a slot; older ones are marked as history in the table.
fn rows(
    mut tasks: Vec<Task>,
    nodes: &BTreeMap<String, String>,
    now: Timestamp,
    no_trunc: bool,
    table: bool,
) -> Vec<Row> {
    tasks.sort_by_key(|task| {
        let created = task.created_at.clone().unwrap_or_default();
        (base_name(task), std::cmp::Reverse(created))
    });
    let mut previous = String::new();
    tasks
        .iter()
        .map(|task| {
            let name = base_name(task);
            let shown = if table && name == previous {
                format!(" \\_ {name}")
            } else {
                name.clone()
            };
            previous = name;
            row(task, shown, nodes, now, no_trunc)
        })
        .filter_map(|row| row.as_object().cloned())
        .collect()
}

fn base_name(task: &Task) -> String {
    task.name.clone().unwrap_or_default()
}

fn row(
    task: &Task,
    name: String,
    nodes: &BTreeMap<String, String>,
    now: Timestamp,
    no_trunc: bool,
) -> Value {
    let status = task.status.as_ref();
    let container = task
        .spec
        .as_ref()
        .and_then(|spec| spec.container_spec.as_ref());
    let image = container
        .and_then(|container| container.image.clone())
        .unwrap_or_default();
    let image = if no_trunc {
        image
    } else {
        without_digest(&image)
    };
    let id = task.id.clone().unwrap_or_default();
    let node = task.node_id.clone().unwrap_or_default();
    let node = nodes.get(&node).cloned().unwrap_or(node);
    let desired = task
        .desired_state
        .map(|state| capitalised(&state.to_string()))
        .unwrap_or_default();
    let error = status
        .and_then(|status| status.err.clone())
        .unwrap_or_default();
    let error = match (error.is_empty(), no_trunc) {
        (true, _) => error,
        (false, true) => format!("\"{error}\""),
        (false, false) => format!("\"{}\"", human::ellipsis(&error, ERROR_WIDTH)),
    };
    json!({
        "ID": if no_trunc { id } else { short_id(&id) },
        "Name": name,
        "Image": image,
        "Node": node,
        "DesiredState": desired,
        "CurrentState": current_state(task, now),
        "Error": error,
        "Ports": ports(task),
    })
}

/// `Running 3 minutes ago`
fn current_state(task: &Task, now: Timestamp) -> String {
    let Some(status) = &task.status else {
        return String::new();
    };
    let state = status
        .state
        .map(|state| capitalised(&state.to_string()))
        .unwrap_or_default();
    match status
        .timestamp
        .as_ref()
        .and_then(|time| human::parse(&time.to_string()))
    {
        Some(time) => format!("{state} {} ago", human::since(time, now).to_lowercase()),
        None => state,
    }
}

fn ports(task: &Task) -> String {
    let ports = task
        .status
        .as_ref()
        .and_then(|status| status.port_status.as_ref())
        .and_then(|status| status.ports.clone())
        .unwrap_or_default();
    let shown = ports.iter().map(|port| {
        let protocol = port
            .protocol
            .as_ref()
            .map(|p| p.to_string())
            .unwrap_or_default();
        let published = port.published_port.unwrap_or(0);
        format!(
            "*:{published}->{}/{protocol}",
            port.target_port.unwrap_or(0)
        )
    });
    shown.collect::<Vec<_>>().join(",")
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().collect::<String>() + letters.as_str()
    })
}

/// Tables show a pinned image without its digest.
pub(crate) fn without_digest(image: &str) -> String {
    image.split('@').next().unwrap_or(image).to_owned()
}

/// Names of tasks by id: what `service logs` puts before each line.
pub(crate) async fn task_labels(
    client: &Client,
    service: &str,
    no_trunc: bool,
    resolve: bool,
) -> Result<BTreeMap<String, String>> {
    let filter = HashMap::from([("service".to_owned(), vec![service.to_owned()])]);
    let tasks = fetch(client, filter).await?;
    let nodes = if resolve {
        node_names(client).await?
    } else {
        BTreeMap::new()
    };
    tasks
        .into_iter()
        .map(|task| {
            let missing = || CliError::Protocol("a task without an id".to_owned());
            let id = task.id.clone().ok_or_else(missing)?;
            let node = task.node_id.clone().unwrap_or_default();
            let node = nodes.get(&node).cloned().unwrap_or(node);
            let shown = if no_trunc { id.clone() } else { short_id(&id) };
            Ok((id, format!("{}.{shown}@{node}", base_name(&task))))
        })
        .collect()
}
