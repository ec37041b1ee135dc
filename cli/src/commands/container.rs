//! Commands on existing containers.

use crate::args::container::{
    InspectArgs, KillArgs, LogFlags, LogsArgs, Names, PsArgs, RmArgs, StopArgs,
};
use crate::client::{Client, escaped};
use crate::commands::{filters, for_each, print, print_objects, short_id};
use crate::error::{CliError, Result};
use crate::render::human;
use crate::render::list::{self, Column, ListStyle, Row};
use crate::spec::parse;
use bollard::container::LogOutput;
use bollard::models::{ContainerSummary, PortSummary};
use bollard::query_parameters::{
    InspectContainerOptions, InspectServiceOptions, KillContainerOptions, ListContainersOptions,
    LogsOptions, RemoveContainerOptions, RestartContainerOptions, StartContainerOptions,
    StopContainerOptions, WaitContainerOptions,
};
use futures_util::{Stream, StreamExt};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;

const COLUMNS: &[Column] = &[
    ("CONTAINER ID", "ID"),
    ("IMAGE", "Image"),
    ("COMMAND", "Command"),
    ("CREATED", "RunningFor"),
    ("STATUS", "Status"),
    ("PORTS", "Ports"),
    ("NAMES", "Names"),
];
const SIZE_COLUMN: Column = ("SIZE", "Size");
const HEADERS: &[Column] = &[
    ("CREATED AT", "CreatedAt"),
    ("STATE", "State"),
    ("LABELS", "Labels"),
    ("NETWORKS", "Networks"),
    ("MOUNTS", "Mounts"),
    SIZE_COLUMN,
];
/// Characters of a command in a table, as docker's.
const COMMAND_WIDTH: usize = 20;

pub(crate) async fn ps(client: &Client, args: PsArgs) -> Result<()> {
    let options = ListContainersOptions {
        all: args.all || args.last.is_some(),
        limit: args.last.filter(|last| *last > 0),
        size: args.size,
        filters: filters(&args.list.filters)?,
    };
    let containers = client.docker.list_containers(Some(options)).await?;
    let now = Timestamp::now();
    let rows: Vec<Row> = containers
        .iter()
        .filter_map(|container| row(container, now, args.list.no_trunc).as_object().cloned())
        .collect();
    let mut columns = COLUMNS.to_vec();
    if args.size {
        columns.push(SIZE_COLUMN);
    }
    let quiet = args.list.quiet.then_some("ID");
    let style = ListStyle {
        format: args.list.format.as_deref(),
        quiet,
    };
    print(&list::render(&rows, &columns, HEADERS, &style)?)
}

fn row(container: &ContainerSummary, now: Timestamp, no_trunc: bool) -> Value {
    let id = container.id.clone().unwrap_or_default();
    let created = Timestamp::from_second(container.created.unwrap_or(0)).unwrap_or(now);
    let command = container.command.clone().unwrap_or_default();
    let command = if no_trunc {
        command
    } else {
        human::ellipsis(&command, COMMAND_WIDTH)
    };
    let names = container.names.clone().unwrap_or_default();
    let names: Vec<_> = names
        .iter()
        .map(|name| name.trim_start_matches('/'))
        .collect();
    let labels = container.labels.clone().unwrap_or_default();
    let mut labels: Vec<_> = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    labels.sort();
    let networks = container
        .network_settings
        .clone()
        .and_then(|settings| settings.networks);
    let networks: Vec<_> = networks.unwrap_or_default().into_keys().collect();
    let mounts = container.mounts.clone().unwrap_or_default();
    let mounts: Vec<_> = mounts
        .into_iter()
        .filter_map(|mount| mount.name.or(mount.source))
        .collect();
    let (rw, root) = (
        container.size_rw.unwrap_or(0),
        container.size_root_fs.unwrap_or(0),
    );
    json!({
        "ID": if no_trunc { id } else { short_id(&id) },
        "Image": container.image.clone().unwrap_or_default(),
        "Command": format!("\"{command}\""),
        "CreatedAt": human::absolute(created),
        "RunningFor": format!("{} ago", human::since(created, now)),
        "Status": container.status.clone().unwrap_or_default(),
        "State": container.state.map(|state| state.to_string()).unwrap_or_default(),
        "Ports": ports(container.ports.as_deref().unwrap_or_default()),
        "Names": names.join(","),
        "Labels": labels.join(","),
        "Networks": networks.join(","),
        "Mounts": mounts.join(","),
        "Size": format!("{} (virtual {})", human::size(rw), human::size(root)),
    })
}

fn ports(ports: &[PortSummary]) -> String {
    let mut shown: Vec<String> = ports
        .iter()
        .map(|port| {
            let protocol = port
                .typ
                .as_ref()
                .map(|typ| typ.to_string())
                .unwrap_or_default();
            let inside = format!("{}/{protocol}", port.private_port);
            match (&port.ip, port.public_port) {
                (Some(ip), Some(public)) => format!("{ip}:{public}->{inside}"),
                _ => inside,
            }
        })
        .collect();
    shown.sort();
    shown.join(", ")
}

pub(crate) async fn start(client: &Client, args: Names) -> Result<()> {
    for_each(&args.names, async |name| {
        client
            .docker
            .start_container(name, None::<StartContainerOptions>)
            .await?;
        print(&format!("{name}\n"))
    })
    .await
}

pub(crate) async fn stop(client: &Client, args: StopArgs) -> Result<()> {
    for_each(&args.names, async |name| {
        let options = StopContainerOptions {
            signal: args.signal.clone(),
            t: args.time,
        };
        unless_not_modified(client.docker.stop_container(name, Some(options)).await)?;
        print(&format!("{name}\n"))
    })
    .await
}

/// 304 says that the container was in that state already: no error for the user.
fn unless_not_modified(result: std::result::Result<(), bollard::errors::Error>) -> Result<()> {
    match result.map_err(CliError::from) {
        Err(CliError::Daemon { status: 304, .. }) => Ok(()),
        other => other,
    }
}

pub(crate) async fn restart(client: &Client, args: StopArgs) -> Result<()> {
    for_each(&args.names, async |name| {
        let options = RestartContainerOptions {
            signal: args.signal.clone(),
            t: args.time,
        };
        client.docker.restart_container(name, Some(options)).await?;
        print(&format!("{name}\n"))
    })
    .await
}

pub(crate) async fn kill(client: &Client, args: KillArgs) -> Result<()> {
    for_each(&args.names, async |name| {
        let options = KillContainerOptions {
            signal: args.signal.clone(),
        };
        client.docker.kill_container(name, Some(options)).await?;
        print(&format!("{name}\n"))
    })
    .await
}

pub(crate) async fn wait(client: &Client, args: Names) -> Result<()> {
    for_each(&args.names, async |name| {
        let options = WaitContainerOptions {
            condition: "not-running".to_owned(),
        };
        let code = exit_code(client, name, options).await?;
        print(&format!("{code}\n"))
    })
    .await
}

/// Waits for a container; bollard turns a code other than zero into an error.
pub(crate) async fn exit_code(
    client: &Client,
    name: &str,
    options: WaitContainerOptions,
) -> Result<i64> {
    let mut answers = std::pin::pin!(client.docker.wait_container(name, Some(options)));
    match answers.next().await {
        Some(Ok(answer)) => Ok(answer.status_code),
        Some(Err(bollard::errors::Error::DockerContainerWaitError { error, code })) => {
            if error.is_empty() {
                Ok(code)
            } else {
                Err(CliError::Protocol(error))
            }
        }
        Some(Err(err)) => Err(err.into()),
        None => Err(CliError::Protocol(
            "the daemon ended before the container".to_owned(),
        )),
    }
}

pub(crate) async fn rm(client: &Client, args: RmArgs) -> Result<()> {
    for_each(&args.names, async |name| {
        let options = RemoveContainerOptions {
            v: args.volumes,
            force: args.force,
            link: false,
        };
        client.docker.remove_container(name, Some(options)).await?;
        print(&format!("{name}\n"))
    })
    .await
}

pub(crate) async fn inspect(client: &Client, args: InspectArgs) -> Result<()> {
    let mut found = Vec::new();
    let mut errors = Vec::new();
    for name in &args.names {
        match inspect_one(client, name, args.kind.as_deref()).await {
            Ok(value) => found.push(value),
            Err(error) => errors.extend(error.text()),
        }
    }
    print_objects(&found, &args.format)?;
    if errors.is_empty() {
        Ok(())
    } else {
        Err(CliError::Several(errors.join("\n")))
    }
}

/// The first object of that name among the kinds, in docker's order.
async fn inspect_one(client: &Client, name: &str, kind: Option<&str>) -> Result<Value> {
    const KINDS: [&str; 6] = ["container", "image", "volume", "node", "service", "task"];
    if let Some(kind) = kind
        && !KINDS.contains(&kind)
    {
        let known = KINDS.join(", ");
        return Err(CliError::Usage(format!(
            "unknown type '{kind}': expected one of {known}"
        )));
    }
    let docker = &client.docker;
    for tried in KINDS
        .into_iter()
        .filter(|tried| kind.is_none_or(|kind| kind == *tried))
    {
        let value = match tried {
            "container" => {
                let options = None::<InspectContainerOptions>;
                docker
                    .inspect_container(name, options)
                    .await
                    .map(serde_json::to_value)
            }
            "image" => docker.inspect_image(name).await.map(serde_json::to_value),
            "volume" => docker.inspect_volume(name).await.map(serde_json::to_value),
            "node" => docker.inspect_node(name).await.map(serde_json::to_value),
            "service" => {
                let options = None::<InspectServiceOptions>;
                docker
                    .inspect_service(name, options)
                    .await
                    .map(serde_json::to_value)
            }
            _ => docker.inspect_task(name).await.map(serde_json::to_value),
        };
        match value.map_err(CliError::from) {
            Ok(value) => return value.map_err(|err| CliError::Protocol(err.to_string())),
            // 503: not part of a cluster, so it has no such objects.
            Err(CliError::Daemon {
                status: 404 | 503, ..
            }) => {}
            Err(error) => return Err(error),
        }
    }
    Err(CliError::Daemon {
        status: 404,
        message: format!("No such object: {name}"),
    })
}

/// `--since` and `--until`: a time, seconds since 1970, or a duration before now; nanoseconds since 1970.
fn point_in_time(flag: &str, text: &str) -> Result<i64> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX));
    }
    if let Ok(seconds) = text.parse::<f64>() {
        return Ok((seconds * 1e9) as i64);
    }
    let now = i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
    Ok(now - parse::duration(flag, text)?)
}

/// Options for logs through bollard, whose times have whole seconds.
pub(crate) fn log_options(flags: &LogFlags, until: Option<&str>) -> Result<LogsOptions> {
    let seconds = |flag: &str, text: Option<&str>| -> Result<i32> {
        let nanoseconds = text.map_or(Ok(0), |text| point_in_time(flag, text))?;
        Ok(i32::try_from(nanoseconds / 1_000_000_000).unwrap_or(i32::MAX))
    };
    Ok(LogsOptions {
        follow: flags.follow,
        stdout: true,
        stderr: true,
        since: seconds("--since", flags.since.as_deref())?,
        until: seconds("--until", until)?,
        timestamps: flags.timestamps,
        tail: flags.tail.clone(),
    })
}

/// The query of a request for logs, with times to the nanosecond.
pub(crate) fn log_query(flags: &LogFlags, details: bool) -> Result<String> {
    let mut query = format!(
        "stdout=1&stderr=1&follow={}&timestamps={}&details={}&tail={}",
        u8::from(flags.follow),
        u8::from(flags.timestamps),
        u8::from(details),
        escaped(&flags.tail)
    );
    if let Some(since) = &flags.since {
        let at = point_in_time("--since", since)?;
        query.push_str(&format!(
            "&since={}.{:09}",
            at / 1_000_000_000,
            at % 1_000_000_000
        ));
    }
    Ok(query)
}

pub(crate) async fn logs(client: &Client, args: LogsArgs) -> Result<()> {
    let mut query = log_query(&args.logs, false)?;
    if let Some(until) = &args.until {
        let at = point_in_time("--until", until)?;
        query.push_str(&format!(
            "&until={}.{:09}",
            at / 1_000_000_000,
            at % 1_000_000_000
        ));
    }
    let options = None::<InspectContainerOptions>;
    let container = client
        .docker
        .inspect_container(&args.container, options)
        .await?;
    let tty = container
        .config
        .and_then(|config| config.tty)
        .unwrap_or(false);
    let path = format!("/containers/{}/logs?{query}", escaped(&args.container));
    if tty {
        let mut chunks = client.docker_stream(&path).await?;
        while let Some(chunk) = chunks.next().await {
            write_out(&chunk?, false)?;
        }
        return Ok(());
    }
    let mut lines = multiplexed(client, &path).await?;
    while let Some(line) = lines.next().await {
        print_output(&line?)?;
    }
    Ok(())
}

/// Writes what a container wrote to the stream that it wrote it to.
pub(crate) fn print_output(output: &LogOutput) -> Result<()> {
    match output {
        LogOutput::StdErr { message } => write_out(message, true),
        LogOutput::StdOut { message }
        | LogOutput::StdIn { message }
        | LogOutput::Console { message } => write_out(message, false),
    }
}

fn write_out(bytes: &[u8], stderr: bool) -> Result<()> {
    let written = if stderr {
        let mut err = std::io::stderr().lock();
        err.write_all(bytes).and_then(|()| err.flush())
    } else {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush())
    };
    match written {
        Err(err) if err.kind() == std::io::ErrorKind::BrokenPipe => Err(CliError::Exit(0)),
        other => other.map_err(CliError::io("write the output")),
    }
}

/// Log frames as docker multiplexes them: stream number, three zeros, length, payload.
pub(crate) async fn multiplexed(
    client: &Client,
    path: &str,
) -> Result<impl Stream<Item = Result<LogOutput>> + Unpin + use<>> {
    let chunks = client.docker_stream(path).await?;
    let frames =
        futures_util::stream::unfold((chunks, Vec::new()), |(mut chunks, mut buffer)| async {
            loop {
                if let Some(frame) = take_frame(&mut buffer) {
                    return Some((Ok(frame), (chunks, buffer)));
                }
                match chunks.next().await? {
                    Ok(chunk) => buffer.extend_from_slice(&chunk),
                    Err(error) => return Some((Err(error), (chunks, buffer))),
                }
            }
        });
    Ok(Box::pin(frames))
}

fn take_frame(buffer: &mut Vec<u8>) -> Option<LogOutput> {
    const HEADER_BYTES: usize = 8;
    let header: [u8; HEADER_BYTES] = buffer.get(..HEADER_BYTES)?.try_into().ok()?;
    let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
    let message = buffer
        .get(HEADER_BYTES..HEADER_BYTES + length)?
        .to_vec()
        .into();
    buffer.drain(..HEADER_BYTES + length);
    Some(match header[0] {
        2 => LogOutput::StdErr { message },
        _ => LogOutput::StdOut { message },
    })
}

/// Prints a line of a service: `name | line`. The task's id travels in the line's details.
pub(crate) fn print_service_line(
    output: LogOutput,
    labels: Option<&BTreeMap<String, String>>,
) -> Result<()> {
    let Some(labels) = labels else {
        return print_output(&output);
    };
    let stderr = matches!(output, LogOutput::StdErr { .. });
    let bytes = output.into_bytes();
    let text = String::from_utf8_lossy(&bytes);
    // With timestamps the time comes first, then the details.
    let mut words = text.splitn(3, ' ');
    let (first, second) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let (time, details, message) = if first.contains("com.docker.swarm.") {
        (None, first, text.get(first.len() + 1..).unwrap_or_default())
    } else {
        (Some(first), second, words.next().unwrap_or_default())
    };
    let task = details
        .split(',')
        .find_map(|detail| detail.strip_prefix("com.docker.swarm.task.id="))
        .unwrap_or_default();
    let width = labels
        .values()
        .map(|label| label.chars().count())
        .max()
        .unwrap_or(0);
    let label = labels.get(task).map_or(task, String::as_str);
    let time = time.map(|time| format!("{time} ")).unwrap_or_default();
    write_out(
        format!("{label:width$}    | {time}{message}").as_bytes(),
        stderr,
    )
}
