//! `version` and `info`.

use crate::args::FormatArgs;
use crate::client::Client;
use crate::commands::print;
use crate::error::{CliError, Result};
use crate::render::human;
use crate::render::template::Format;
use serde_json::{Value, json};

fn show(value: &Value, format: Option<&str>, text: impl FnOnce() -> String) -> Result<()> {
    match format {
        None => print(&text()),
        Some("json") => print(&format!("{value}\n")),
        Some(template) => print(&(Format::parse(template)?.render(value)? + "\n")),
    }
}

pub(crate) async fn version(client: &Client, args: FormatArgs) -> Result<()> {
    let own = json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "ApiVersion": "1.51",
        "Os": std::env::consts::OS,
        "Arch": architecture(),
    });
    let server = client.docker.version().await;
    let server_value = match &server {
        Ok(version) => {
            serde_json::to_value(version).map_err(|err| CliError::Protocol(err.to_string()))?
        }
        Err(_) => Value::Null,
    };
    let value = json!({"Client": own, "Server": server_value});
    let text = || {
        let mut text = format!("Client:\n{}", version_lines(&own));
        if server.is_ok() {
            text.push_str(&format!("\nServer:\n{}", version_lines(&server_value)));
        }
        text
    };
    show(&value, args.format.as_deref(), text)?;
    server.map(drop).map_err(CliError::from)
}

/// The architecture by its OCI name.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn version_lines(value: &Value) -> String {
    let field = |name: &str| {
        value
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let mut text = String::new();
    let lines = [
        ("Version", field("Version")),
        ("API version", field("ApiVersion")),
        ("Minimum API", field("MinAPIVersion")),
        ("OS/Arch", format!("{}/{}", field("Os"), field("Arch"))),
        ("Kernel", field("KernelVersion")),
    ];
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        let name = format!("{name}:");
        text.push_str(&format!(" {name:<16}{value}\n"));
    }
    text
}

pub(crate) async fn info(client: &Client, args: FormatArgs) -> Result<()> {
    let info = client.docker.info().await?;
    let value = serde_json::to_value(&info).map_err(|err| CliError::Protocol(err.to_string()))?;
    show(&value, args.format.as_deref(), || info_text(&value))
}

fn info_text(info: &Value) -> String {
    let field = |name: &str| match info.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    };
    let swarm = info.get("Swarm").cloned().unwrap_or_default();
    let swarm_field = |name: &str| match swarm.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    };
    let memory = info.get("MemTotal").and_then(Value::as_i64).unwrap_or(0);
    let lines = [
        ("Containers", field("Containers")),
        (" Running", field("ContainersRunning")),
        (" Paused", field("ContainersPaused")),
        (" Stopped", field("ContainersStopped")),
        ("Images", field("Images")),
        ("Server Version", field("ServerVersion")),
        ("Storage Driver", field("Driver")),
        ("Logging Driver", field("LoggingDriver")),
        ("Cgroup Version", field("CgroupVersion")),
        ("Swarm", swarm_field("LocalNodeState")),
        (" NodeID", swarm_field("NodeID")),
        (" Is Manager", swarm_field("ControlAvailable")),
        (" Managers", swarm_field("Managers")),
        (" Nodes", swarm_field("Nodes")),
        (" Node Address", swarm_field("NodeAddr")),
        ("Kernel Version", field("KernelVersion")),
        ("Operating System", field("OperatingSystem")),
        ("Architecture", field("Architecture")),
        ("CPUs", field("NCPU")),
        ("Total Memory", human::binary_size(memory)),
        ("Name", field("Name")),
        ("Data Root", field("DockerRootDir")),
    ];
    lines
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .fold(String::new(), |text, (name, value)| {
            text + name + ": " + value + "\n"
        })
}
