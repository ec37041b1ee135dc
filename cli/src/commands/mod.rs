//! The client commands: parse, one request, render.

pub(crate) mod container;
pub(crate) mod converge;
pub(crate) mod image;
pub(crate) mod net;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod playground;
pub(crate) mod registry;
pub(crate) mod run;
pub(crate) mod service;
pub(crate) mod swarm;
pub(crate) mod system;
pub(crate) mod tasks;
pub(crate) mod volume;

use crate::args::{Cli, Command, FormatArgs};
use crate::client::Client;
use crate::error::{CliError, INTERRUPTED, Result};
use crate::render::template::Format;
use serde::Serialize;
use serde_json::Value;
use std::collections::HashMap;
use std::io::Write;

/// Runs a client command.
pub(crate) async fn dispatch(cli: Cli) -> Result<()> {
    if let Command::Playground(command) = cli.command {
        return playground::dispatch(command).await;
    }
    let client = Client::new(&cli.host)?;
    match cli.command {
        Command::Service(command) => service::dispatch(&client, command).await,
        Command::Node(command) => node::dispatch(&client, command).await,
        Command::Init(args) => swarm::init(&client, args).await,
        Command::Join(args) => swarm::join(&client, args).await,
        Command::JoinToken(args) => swarm::join_token(&client, args).await,
        Command::Leave(args) => swarm::leave(&client, args).await,
        Command::Volume(command) => volume::dispatch(&client, command).await,
        Command::Network(command) => network::dispatch(&client, command).await,
        Command::Net(command) => net::dispatch(&client, command).await,
        Command::Run(args) => run::run(&client, *args).await,
        Command::Create(args) => run::create(&client, *args).await,
        Command::Start(args) => container::start(&client, args).await,
        Command::Ps(args) => container::ps(&client, args).await,
        Command::Logs(args) => until_interrupted(container::logs(&client, args)).await,
        Command::Exec(args) => run::exec(&client, args).await,
        Command::Stop(args) => container::stop(&client, args).await,
        Command::Restart(args) => container::restart(&client, args).await,
        Command::Kill(args) => container::kill(&client, args).await,
        Command::Wait(args) => container::wait(&client, args).await,
        Command::Rm(args) => container::rm(&client, args).await,
        Command::Inspect(args) => container::inspect(&client, args).await,
        Command::Login(args) => registry::login(&client, args).await,
        Command::Logout(args) => registry::logout(args),
        Command::Pull(args) => image::pull(&client, args).await,
        Command::Images(args) => image::images(&client, args).await,
        Command::Rmi(args) => image::rmi(&client, args).await,
        Command::Tag(args) => image::tag(&client, args).await,
        Command::Load(args) => image::load(&client, args).await,
        Command::Import(args) => image::import(&client, args).await,
        Command::Version(args) => system::version(&client, args).await,
        Command::Info(args) => system::info(&client, args).await,
        Command::Completion { .. }
        | Command::Daemon(_)
        | Command::Playground(_)
        | Command::Shim(_)
        | Command::Netd(_) => Err(CliError::Usage(
            "this command does not talk to a daemon".to_owned(),
        )),
    }
}

/// Ends what follows something when the user has seen enough.
pub(crate) async fn until_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.map_err(CliError::io("handle signals"))?;
            Err(CliError::Exit(INTERRUPTED))
        }
        done = work => done,
    }
}

/// Writes to standard output; a reader that went away ends the command quietly.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(err) if err.kind() == std::io::ErrorKind::BrokenPipe => Err(CliError::Exit(0)),
        other => other.map_err(CliError::io("write to standard output")),
    }
}

/// `KEY=VALUE` filters as the API wants them.
pub(crate) fn filters(texts: &[String]) -> Result<Option<HashMap<String, Vec<String>>>> {
    let mut filters: HashMap<String, Vec<String>> = HashMap::new();
    for text in texts {
        let Some((key, value)) = text.split_once('=') else {
            let text = format!("invalid filter '{text}': expected KEY=VALUE");
            return Err(CliError::Usage(text));
        };
        filters
            .entry(key.trim().to_lowercase())
            .or_default()
            .push(value.trim().to_owned());
    }
    Ok((!filters.is_empty()).then_some(filters))
}

/// Shows objects as `inspect` does: a JSON array, or each through a template.
pub(crate) fn print_objects<T: Serialize>(objects: &[T], format: &FormatArgs) -> Result<()> {
    let values = objects
        .iter()
        .map(serde_json::to_value)
        .collect::<std::result::Result<Vec<Value>, _>>()
        .map_err(|err| CliError::Protocol(err.to_string()))?;
    match format.format.as_deref() {
        None => {
            let text = serde_json::to_string_pretty(&values)
                .map_err(|err| CliError::Protocol(err.to_string()))?;
            print(&indented_by_four(&text))
        }
        Some("json") => print(&(serde_json::Value::Array(values).to_string() + "\n")),
        Some(template) => {
            let format = Format::parse(template)?;
            values
                .iter()
                .try_for_each(|value| print(&(format.render(value)? + "\n")))
        }
    }
}

/// Docker indents by four blanks, serde_json by two.
fn indented_by_four(text: &str) -> String {
    text.lines().fold(String::new(), |out, line| {
        let depth = line.len() - line.trim_start().len();
        out + &" ".repeat(depth) + line + "\n"
    })
}

/// Does something for each name; a failure is told and the others go on.
pub(crate) async fn for_each<F>(names: &[String], mut work: F) -> Result<()>
where
    F: AsyncFnMut(&str) -> Result<()>,
{
    let mut errors = Vec::new();
    for name in names {
        if let Err(error) = work(name).await {
            errors.extend(error.text());
        }
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(CliError::Several(errors.join("\n")))
    }
}

/// The first twelve characters of an id, without its algorithm.
pub(crate) fn short_id(id: &str) -> String {
    let bare = id.strip_prefix("sha256:").unwrap_or(id);
    bare.chars().take(12).collect()
}
