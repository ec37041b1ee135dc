//! `shoal playground …`

use crate::args::playground::PlaygroundCommand;
use crate::commands::print;
use crate::error::{CliError, INTERRUPTED, Result};
use shoal_playground::{
    Cluster, ClusterOptions, DaemonOptions, DemoError, PlaygroundError, State, Switch,
    check_machine,
};
use std::path::{Path, PathBuf};
use std::process::Stdio;

fn failed(error: &dyn std::error::Error) -> CliError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    CliError::NotConverged(text)
}

fn own_program() -> Result<PathBuf> {
    std::env::current_exe().map_err(CliError::io("find this program"))
}

pub(crate) async fn dispatch(command: PlaygroundCommand) -> Result<()> {
    match command {
        PlaygroundCommand::Demo(place) => {
            let shown = shoal_playground::demo(own_program()?, place.dir).await;
            shown.map_err(|error| match error {
                DemoError::Interrupted => {
                    eprintln!("shoal: {error}");
                    CliError::Exit(INTERRUPTED)
                }
                error => failed(&error),
            })
        }
        PlaygroundCommand::Up {
            place,
            managers,
            workers,
        } => {
            check_machine().map_err(|error| failed(&error))?;
            up(place.dir, managers, workers)
                .await
                .map_err(|error| failed(&error))
        }
        PlaygroundCommand::Exec {
            place,
            name,
            command,
        } => exec(&place.dir, &name, &command).await,
        PlaygroundCommand::Kill { place, name } => {
            change_host(&place.dir, &name, async |state, name| {
                state.host_mut(name)?.kill().await
            })
            .await
        }
        PlaygroundCommand::Start { place, name } => {
            change_host(&place.dir, &name, async |state, name| {
                let host = state.host_mut(name)?;
                host.power_on(false).await?;
                host.start_daemon(&DaemonOptions::default()).await
            })
            .await
        }
        PlaygroundCommand::Cut { place, name } => cable(&place.dir, &name, false).await,
        PlaygroundCommand::Heal { place, name } => cable(&place.dir, &name, true).await,
        PlaygroundCommand::Down(place) => {
            let removed = async { State::load(&place.dir)?.remove().await }.await;
            removed.map_err(|error| failed(&error))
        }
        PlaygroundCommand::Fetch { times, address } => fetch(times, &address).await,
        PlaygroundCommand::HostInit { .. }
        | PlaygroundCommand::Enter { .. }
        | PlaygroundCommand::Web { .. } => Err(CliError::Usage(
            "this command is for the playground itself".to_owned(),
        )),
    }
}

async fn up(dir: PathBuf, managers: u8, workers: u8) -> std::result::Result<(), PlaygroundError> {
    let exe = std::env::current_exe().map_err(|err| PlaygroundError::File {
        action: "find",
        path: PathBuf::from("/proc/self/exe"),
        err,
    })?;
    let daemon = DaemonOptions::default();
    let options = ClusterOptions {
        dir,
        exe,
        managers,
        workers,
        tethered: false,
        daemon,
    };
    let cluster = Cluster::power_on(options).await?;
    if let Err(error) = cluster.join_all().await {
        // The first error is the one to tell.
        drop(cluster.remove().await);
        return Err(error);
    }
    println!("{managers} managers and {workers} workers are up. Try:");
    println!("  shoal playground exec manager1 shoal node ls");
    println!(
        "  shoal -H unix://{} node ls",
        cluster.host("manager1")?.socket().display()
    );
    println!("  shoal playground down");
    Ok(())
}

/// Runs a command on a host; `shoal` there is this program, talking to that host's daemon.
async fn exec(dir: &Path, name: &str, command: &[std::ffi::OsString]) -> Result<()> {
    let state = State::load(dir).map_err(|error| failed(&error))?;
    let host = state.host(name).map_err(|error| failed(&error))?;
    if host.init_pid.is_none() {
        return Err(CliError::NotConverged(format!(
            "host `{name}` is switched off"
        )));
    }
    let own = own_program()?.into_os_string();
    let argv = command
        .iter()
        .enumerate()
        .map(|(place, word)| match (place, word.to_str()) {
            (0, Some("shoal")) => own.clone(),
            _ => word.clone(),
        });
    let mut command = host.command(argv);
    command.env("SHOAL_HOST", format!("unix://{}", host.socket().display()));
    command.env("DOCKER_HOST", format!("unix://{}", host.socket().display()));
    command
        .stdin(Stdio::inherit())
        .stdout(Stdio::inherit())
        .stderr(Stdio::inherit());
    let status = command
        .status()
        .await
        .map_err(CliError::io("enter the host"))?;
    match status.code() {
        Some(0) => Ok(()),
        code => Err(CliError::Exit(
            code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
        )),
    }
}

async fn change_host<F>(dir: &Path, name: &str, work: F) -> Result<()>
where
    F: AsyncFnOnce(&mut State, &str) -> std::result::Result<(), PlaygroundError>,
{
    let changed = async {
        let mut state = State::load(dir)?;
        work(&mut state, name).await?;
        state.save()
    }
    .await;
    changed.map_err(|error| failed(&error))?;
    print(&format!("{name}\n"))
}

async fn cable(dir: &Path, name: &str, connected: bool) -> Result<()> {
    let set = async {
        State::load(dir)?.host(name)?;
        Switch::open(dir).await?.set_cable(name, connected).await
    }
    .await;
    set.map_err(|error| failed(&error))?;
    print(&format!("{name}\n"))
}

/// The demo's web server: says which container it is. Ends at once when it is told to.
pub(crate) async fn web(port: u16) -> std::io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::signal::unix::{SignalKind, signal};
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", port)).await?;
    let hostname = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    println!("{hostname} listens on port {port}");
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        let (mut stream, client) = tokio::select! {
            accepted = listener.accept() => accepted?,
            _ = terminate.recv() => return Ok(()),
        };
        let body = format!("{hostname} serves {client}\n");
        tokio::spawn(async move {
            let mut request = [0; 4096];
            // A client that goes away early is its own matter.
            drop(stream.read(&mut request).await);
            let length = body.len();
            let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/plain";
            let answer = format!("{head}\r\ncontent-length: {length}\r\n\r\n{body}");
            drop(stream.write_all(answer.as_bytes()).await);
        });
    }
}

/// Longest wait for one answer.
const FETCH_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Asks the demo's web server so many times, each time by a connection of its own; the first failure ends it.
async fn fetch(times: u32, address: &str) -> Result<()> {
    for _ in 0..times {
        let answer = tokio::time::timeout(FETCH_TIMEOUT, fetch_one(address)).await;
        let answer = answer.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        let text = answer.map_err(CliError::io("get an answer"))?;
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        print(body)?;
    }
    Ok(())
}

async fn fetch_one(address: &str) -> std::io::Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let request = "GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}
