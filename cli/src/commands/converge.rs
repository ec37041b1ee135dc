//! Waiting until a service is as its spec says, with a live display, and saying why when it can't be.

use crate::client::{Client, escaped};
use crate::commands::tasks;
use crate::error::{CliError, Result};
use bollard::models::{ServiceUpdateStatusStateEnum, Task, TaskState};
use bollard::query_parameters::InspectServiceOptions;
use http_body_util::BodyExt;
use hyper::Method;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Look again after this long even if no change was announced.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Without any progress for so long, the reasons are shown while waiting goes on.
const SHOW_REASONS_AFTER: Duration = Duration::from_secs(3);

/// An answer of `…/explain`.
#[derive(Debug, Default, Deserialize, serde::Serialize)]
pub(crate) struct Explanation {
    pub(crate) summary: String,
    pub(crate) tasks: Vec<TaskExplanation>,
}

#[derive(Debug, Default, Deserialize, serde::Serialize)]
pub(crate) struct TaskExplanation {
    pub(crate) task_id: String,
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) reason: String,
    pub(crate) fix: String,
    #[serde(default)]
    pub(crate) nodes: Vec<NodeRefusal>,
}

#[derive(Debug, Default, Deserialize, serde::Serialize)]
pub(crate) struct NodeRefusal {
    pub(crate) node_id: String,
    pub(crate) node_name: String,
    pub(crate) refusals: Vec<Refusal>,
}

#[derive(Debug, Default, Deserialize, serde::Serialize)]
pub(crate) struct Refusal {
    pub(crate) filter: String,
    pub(crate) reason: String,
    pub(crate) fix: String,
    #[serde(default)]
    pub(crate) nodes: u32,
}

pub(crate) async fn explain(client: &Client, service: &str) -> Result<Explanation> {
    client
        .own(
            Method::GET,
            &format!("/services/{}/explain", escaped(service)),
        )
        .await
}

/// The explanation as text.
pub(crate) fn explanation_text(explanation: &Explanation) -> String {
    let mut text = format!("{}\n", explanation.summary);
    for task in &explanation.tasks {
        text.push_str(&format!(
            "\n{} ({}): {}\n",
            task.name, task.state, task.reason
        ));
        if !task.fix.is_empty() {
            text.push_str(&format!("  way out: {}\n", task.fix));
        }
        for node in &task.nodes {
            for refusal in &node.refusals {
                text.push_str(&format!("  {}: {}", node.node_name, refusal.reason));
                if !refusal.fix.is_empty() {
                    text.push_str(&format!(" ({})", refusal.fix));
                }
                text.push('\n');
            }
        }
    }
    text
}

/// What is seen of a service.
#[derive(Debug, PartialEq, Eq, Clone)]
struct Progress {
    desired: u64,
    running: u64,
    done: bool,
    failed: Option<String>,
    slots: BTreeMap<String, String>,
}

/// Waits until the service has converged, or the user does not want to wait any longer: the service goes on then.
pub(crate) async fn wait(client: &Client, service: &str, quiet: bool) -> Result<()> {
    tokio::select! {
        biased;
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.map_err(CliError::io("handle signals"))?;
            eprintln!(
                "\nOperation continuing in background.\nUse `shoal svc ps {service}` to check progress."
            );
            Ok(())
        }
        converged = wait_on(client, service, quiet) => converged,
    }
}

async fn wait_on(client: &Client, service: &str, quiet: bool) -> Result<()> {
    let mut display = Display::new(quiet);
    let mut changes = Changes::open(client, service).await;
    let mut last: Option<Progress> = None;
    let mut since = std::time::Instant::now();
    let mut told = false;
    loop {
        let progress = look(client, service).await?;
        if last.as_ref() != Some(&progress) {
            since = std::time::Instant::now();
            told = false;
        }
        display.show(&progress)?;
        if let Some(reason) = &progress.failed {
            return Err(CliError::NotConverged(format!(
                "service {service}: {reason}"
            )));
        }
        if progress.done {
            return display.finish();
        }
        if !told && since.elapsed() > SHOW_REASONS_AFTER && !quiet {
            display.reasons(&explanation_text(&explain(client, service).await?));
            told = true;
        }
        last = Some(progress);
        changes.next().await;
    }
}

async fn look(client: &Client, service: &str) -> Result<Progress> {
    let object = client
        .docker
        .inspect_service(service, None::<InspectServiceOptions>)
        .await?;
    let id = object.id.clone().unwrap_or_default();
    let filter = HashMap::from([("service".to_owned(), vec![id])]);
    let tasks = tasks::fetch(client, filter).await?;
    let spec = object.spec.unwrap_or_default();
    let global = spec.mode.as_ref().is_some_and(|mode| mode.global.is_some());
    let replicas = spec
        .mode
        .and_then(|mode| mode.replicated)
        .and_then(|replicated| replicated.replicas)
        .map_or(1, |replicas| replicas.unsigned_abs());
    let update = object.update_status.unwrap_or_default();
    let failed = match update.state {
        Some(
            ServiceUpdateStatusStateEnum::PAUSED | ServiceUpdateStatusStateEnum::ROLLBACK_PAUSED,
        ) => Some(format!(
            "update paused: {}",
            update.message.unwrap_or_default()
        )),
        Some(ServiceUpdateStatusStateEnum::ROLLBACK_COMPLETED) => Some(format!(
            "update rolled back: {}",
            update.message.unwrap_or_default()
        )),
        _ => None,
    };
    let updating = matches!(
        update.state,
        Some(
            ServiceUpdateStatusStateEnum::UPDATING | ServiceUpdateStatusStateEnum::ROLLBACK_STARTED
        )
    );
    let wanted: Vec<&Task> = tasks
        .iter()
        .filter(|task| task.desired_state == Some(TaskState::RUNNING))
        .collect();
    let state = |task: &Task| task.status.as_ref().and_then(|status| status.state);
    let running = wanted
        .iter()
        .filter(|task| state(task) == Some(TaskState::RUNNING))
        .count();
    let desired = if global {
        wanted.len() as u64
    } else {
        replicas
    };
    let slots = wanted
        .iter()
        .map(|task| {
            let name = task.name.clone().unwrap_or_default();
            (
                name,
                state(task)
                    .map(|state| state.to_string())
                    .unwrap_or_default(),
            )
        })
        .collect();
    let complete = running as u64 == desired && wanted.len() as u64 == desired;
    Ok(Progress {
        desired,
        running: running as u64,
        done: complete && !updating,
        failed,
        slots,
    })
}

/// Announcements of changes; without them the loop looks again by time.
struct Changes {
    body: Option<hyper::body::Incoming>,
}

impl Changes {
    async fn open(client: &Client, service: &str) -> Self {
        let path = format!("/watch?service={}", escaped(service));
        let response = client.own_request(Method::GET, &path).await;
        Self {
            body: response.ok().map(hyper::Response::into_body),
        }
    }

    async fn next(&mut self) {
        let Some(body) = &mut self.body else {
            tokio::time::sleep(LOOK_AGAIN).await;
            return;
        };
        match tokio::time::timeout(LOOK_AGAIN, body.frame()).await {
            Ok(Some(Ok(_))) | Err(_) => {}
            Ok(Some(Err(_)) | None) => self.body = None,
        }
    }
}

/// One line that is written over on a terminal, nothing otherwise.
struct Display {
    live: bool,
    quiet: bool,
    shown: String,
}

impl Display {
    fn new(quiet: bool) -> Self {
        Self {
            live: !quiet && std::io::stderr().is_terminal(),
            quiet,
            shown: String::new(),
        }
    }

    fn show(&mut self, progress: &Progress) -> Result<()> {
        if !self.live {
            return Ok(());
        }
        let mut states: BTreeMap<&str, usize> = BTreeMap::new();
        for state in progress.slots.values() {
            *states.entry(state).or_default() += 1;
        }
        let states = states
            .iter()
            .map(|(state, count)| format!("{count} {state}"));
        let states = states.collect::<Vec<_>>().join(", ");
        let line = format!(
            "overall progress: {} out of {} tasks  [{states}]",
            progress.running, progress.desired
        );
        if line != self.shown {
            self.write(&format!("\r\x1b[K{line}"))?;
            self.shown = line;
        }
        Ok(())
    }

    fn reasons(&mut self, text: &str) {
        let text = text.trim_end();
        eprintln!("{}{text}", if self.live { "\r\x1b[K" } else { "" });
        self.shown.clear();
    }

    fn finish(&mut self) -> Result<()> {
        if self.live {
            self.write("\r\x1b[K")?;
        }
        if !self.quiet {
            eprintln!("verify: Service converged");
        }
        Ok(())
    }

    fn write(&self, text: &str) -> Result<()> {
        let mut err = std::io::stderr().lock();
        err.write_all(text.as_bytes())
            .and_then(|()| err.flush())
            .map_err(CliError::io("write to standard error"))
    }
}
