//! Tasks as rows, for `service ps` and `node ps`.

use crate::args::ListArgs;
use crate::client::{Client, escaped};
use crate::commands::{filters, print, short_id};
use crate::error::{CliError, Result};
use crate::render::human;
use crate::render::list::{self, Column, ListStyle, Row};
use bollard::models::{Task, TaskState};
use bollard::query_parameters::{ListNodesOptions, ListTasksOptions};
use jiff::Timestamp;
use serde::Deserialize;
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
    // What was restarted is history, as a task that was replaced is.
    let wants_history = !list.quiet
        && wanted
            .get("desired-state")
            .is_none_or(|states| states.iter().any(|state| state == "shutdown"));
    let filters =
        serde_json::to_string(&wanted).map_err(|err| CliError::Protocol(err.to_string()))?;
    let path = format!("/tasks?filters={}", escaped(&filters));
    let mut tasks: Vec<TaskWithHistory> = client.docker_get(&path).await?;
    if !wants_history {
        tasks.iter_mut().for_each(|task| task.own.exits.clear());
    }
    let nodes = if resolve {
        node_names(client).await?
    } else {
        BTreeMap::new()
    };
    let style = RowStyle {
        now: Timestamp::now(),
        no_trunc: list.no_trunc,
        table: list.format.is_none(),
    };
    let rows = rows(tasks, &nodes, &style);
    let style = ListStyle {
        format: list.format.as_deref(),
        quiet: list.quiet.then_some("ID"),
    };
    print(&list::render(&rows, COLUMNS, &[], &style)?)
}

/// A task with what Docker's API has no field for.
#[derive(Debug, Deserialize)]
struct TaskWithHistory {
    #[serde(flatten)]
    task: Task,
    #[serde(rename = "Shoal", default)]
    own: OwnPart,
}

#[derive(Debug, Default, Deserialize)]
struct OwnPart {
    /// Ends of containers, the newest last.
    #[serde(rename = "Exits", default)]
    exits: Vec<Exit>,
}

/// The end of one of a task's containers.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Exit {
    at: String,
    exit_code: i64,
    reason: String,
}

/// How rows are written.
struct RowStyle {
    now: Timestamp,
    no_trunc: bool,
    table: bool,
}

/// Newest first within a slot; older ones are marked as history in the table.
fn rows(
    mut tasks: Vec<TaskWithHistory>,
    nodes: &BTreeMap<String, String>,
    style: &RowStyle,
) -> Vec<Row> {
    tasks.sort_by_key(|TaskWithHistory { task, .. }| {
        let created = task.created_at.clone().unwrap_or_default();
        (base_name(task), std::cmp::Reverse(created))
    });
    let mut previous = String::new();
    let mut rows = Vec::new();
    for TaskWithHistory { task, own } in &tasks {
        let name = base_name(task);
        let old = if style.table {
            format!(" \\_ {name}")
        } else {
            name.clone()
        };
        let shown = if name == previous { &old } else { &name };
        rows.push(row(task, shown.clone(), nodes, style));
        let restarted = own.exits.len() - usize::from(has_ended(task) && !own.exits.is_empty());
        for exit in own.exits[..restarted].iter().rev() {
            rows.push(exit_row(task, exit, old.clone(), nodes, style));
        }
        previous = name;
    }
    let objects = rows.iter().filter_map(Value::as_object);
    objects.cloned().collect()
}

/// Its last container's end is its own.
fn has_ended(task: &Task) -> bool {
    let state = task.status.as_ref().and_then(|status| status.state);
    state.is_some_and(|state| {
        matches!(
            state,
            TaskState::COMPLETE
                | TaskState::SHUTDOWN
                | TaskState::FAILED
                | TaskState::REJECTED
                | TaskState::REMOVE
                | TaskState::ORPHANED
        )
    })
}

/// A container of the task that ended and was replaced by its node.
fn exit_row(
    task: &Task,
    exit: &Exit,
    name: String,
    nodes: &BTreeMap<String, String>,
    style: &RowStyle,
) -> Value {
    let mut shown = row(task, name, nodes, style);
    let state = if exit.exit_code == 0 {
        "Complete"
    } else {
        "Failed"
    };
    let code = exit.exit_code;
    let error = match (exit.reason.as_str(), code) {
        ("", 0) => String::new(),
        ("", code) => format!("task: non-zero exit ({code})"),
        (reason, code) => format!("task: non-zero exit ({code}): {reason}"),
    };
    shown["DesiredState"] = json!("Shutdown");
    shown["CurrentState"] = json!(ago(state, &exit.at, style.now));
    shown["Error"] = json!(quoted(&error, style.no_trunc));
    shown["Ports"] = json!("");
    shown
}

fn quoted(error: &str, no_trunc: bool) -> String {
    match (error.is_empty(), no_trunc) {
        (true, _) => String::new(),
        (false, true) => format!("\"{error}\""),
        (false, false) => format!("\"{}\"", human::ellipsis(error, ERROR_WIDTH)),
    }
}

fn base_name(task: &Task) -> String {
    task.name.clone().unwrap_or_default()
}

fn row(task: &Task, name: String, nodes: &BTreeMap<String, String>, style: &RowStyle) -> Value {
    let no_trunc = style.no_trunc;
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
    json!({
        "ID": if no_trunc { id } else { short_id(&id) },
        "Name": name,
        "Image": image,
        "Node": node,
        "DesiredState": desired,
        "CurrentState": current_state(task, style.now),
        "Error": quoted(&error, no_trunc),
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
    let at = status.timestamp.as_ref().map(ToString::to_string);
    ago(&state, &at.unwrap_or_default(), now)
}

fn ago(state: &str, at: &str, now: Timestamp) -> String {
    match human::parse(at) {
        Some(time) => format!("{state} {} ago", human::since(time, now).to_lowercase()),
        None => state.to_owned(),
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
