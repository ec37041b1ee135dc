//! `run`, `create`, `exec`: containers with our terminal connected to them.

use crate::args::container::{ContainerFlags, CreateArgs, ExecArgs, PullPolicy, RunArgs};
use crate::client::Client;
use crate::commands::{container, image, print};
use crate::error::{CliError, Result};
use crate::spec;
use crate::spec::container::Attach;
use crate::terminal::{self, RawMode};
use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, ResizeExecOptions, StartExecOptions, StartExecResults};
use bollard::query_parameters::{
    AttachContainerOptions, CreateContainerOptions, InspectContainerOptions, KillContainerOptions,
    RemoveContainerOptions, ResizeContainerTTYOptions, StartContainerOptions, WaitContainerOptions,
};
use futures_util::{Stream, StreamExt};
use std::io::IsTerminal;
use std::pin::Pin;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

/// Exit code when the daemon could not run the container, as docker's.
const EXIT_DAEMON: u8 = 125;

/// Time between the end of a terminal's output and the exit of its container, unless the user detached.
const EXIT_AFTER_OUTPUT_MAX: Duration = Duration::from_millis(300);

async fn create_container(
    client: &Client,
    flags: &ContainerFlags,
    attach: Attach,
) -> Result<String> {
    if flags.pull == PullPolicy::Always {
        image::pull_reference(client, &flags.image, None, true).await?;
    }
    let options = || {
        Some(CreateContainerOptions {
            name: flags.name.clone(),
            platform: String::new(),
        })
    };
    let body = spec::container::body(flags, attach)?;
    let created = client
        .docker
        .create_container(options(), body.clone())
        .await;
    let created = match created.map_err(CliError::from) {
        Err(CliError::Daemon {
            status: 404,
            message,
        }) if flags.pull == PullPolicy::Missing && message.contains("No such image") => {
            eprintln!("Unable to find image '{}' locally", flags.image);
            image::pull_reference(client, &flags.image, None, false).await?;
            client.docker.create_container(options(), body).await?
        }
        other => other?,
    };
    for warning in &created.warnings {
        eprintln!("WARNING: {warning}");
    }
    Ok(created.id)
}

pub(crate) async fn create(client: &Client, args: CreateArgs) -> Result<()> {
    let attach = Attach {
        stdin: args.container.interactive,
        output: true,
    };
    let id = create_container(client, &args.container, attach).await?;
    print(&format!("{id}\n"))
}

pub(crate) async fn run(client: &Client, args: RunArgs) -> Result<()> {
    match run_container(client, &args).await {
        Err(error @ CliError::Exit(_)) => Err(error),
        Err(error) => {
            if let Some(text) = error.text() {
                eprintln!("shoal: {text}");
            }
            Err(CliError::Exit(start_failure_code(&error)))
        }
        Ok(()) => Ok(()),
    }
}

/// 127 when the command is not there, 126 when it can't be run, 125 for everything else.
fn start_failure_code(error: &CliError) -> u8 {
    let CliError::Daemon { message, .. } = error else {
        return EXIT_DAEMON;
    };
    if message.contains("executable file not found")
        || message.contains("no such file or directory")
    {
        127
    } else if message.contains("permission denied") || message.contains("is a directory") {
        126
    } else {
        EXIT_DAEMON
    }
}

async fn run_container(client: &Client, args: &RunArgs) -> Result<()> {
    let flags = &args.container;
    if flags.tty && flags.interactive && !args.detach && !std::io::stdin().is_terminal() {
        return Err(CliError::Usage("the input device is not a TTY".to_owned()));
    }
    let attach = Attach {
        stdin: flags.interactive && !args.detach,
        output: !args.detach,
    };
    let id = create_container(client, flags, attach).await?;
    if let Some(path) = &args.cidfile {
        std::fs::write(path, &id).map_err(CliError::io(format!("write `{}`", path.display())))?;
    }
    if args.detach {
        start(client, &id, flags.rm).await?;
        return print(&format!("{id}\n"));
    }
    let code = attached(client, &id, args).await?;
    if code == 0 {
        Ok(())
    } else {
        Err(CliError::Exit(u8::try_from(code).unwrap_or(u8::MAX)))
    }
}

/// Starts a container; a `--rm` one that does not start leaves nothing.
async fn start(client: &Client, id: &str, remove: bool) -> Result<()> {
    let started = client
        .docker
        .start_container(id, None::<StartContainerOptions>)
        .await;
    if started.is_err() && remove {
        let options = RemoveContainerOptions {
            v: true,
            force: true,
            link: false,
        };
        // The daemon removes it too; who comes second finds nothing, and the first error is the one to tell.
        drop(client.docker.remove_container(id, Some(options)).await);
    }
    Ok(started?)
}

async fn attached(client: &Client, id: &str, args: &RunArgs) -> Result<i64> {
    let flags = &args.container;
    let options = AttachContainerOptions {
        detach_keys: args.detach_keys.clone(),
        logs: false,
        stream: true,
        stdin: flags.interactive,
        stdout: true,
        stderr: true,
    };
    // Attached before the start, so that the first line is not lost; waited for before the start, so that a
    // container that ends at once is not missed.
    let streams = client.docker.attach_container(id, Some(options)).await?;
    let condition = if flags.rm { "removed" } else { "next-exit" };
    let waiting = tokio::spawn({
        let (client, id) = (client.clone(), id.to_owned());
        async move {
            let options = WaitContainerOptions {
                condition: condition.to_owned(),
            };
            container::exit_code(&client, &id, options).await
        }
    });
    start(client, id, flags.rm).await?;
    // Only a terminal that is typed at can be raw; else Ctrl-C stays a signal, which is passed on.
    let raw = (flags.tty && flags.interactive)
        .then(RawMode::enter)
        .transpose()?;
    let resizing = flags.tty.then(|| {
        tokio::spawn(resize_loop(
            client.clone(),
            Resized::Container(id.to_owned()),
        ))
    });
    let signals =
        (raw.is_none()).then(|| tokio::spawn(forward_signals(client.clone(), id.to_owned())));
    let copied = copy(streams.output, streams.input, flags.interactive).await;
    for task in [resizing, signals].into_iter().flatten() {
        task.abort();
    }
    copied?;
    let detachable = raw.is_some();
    drop(raw);
    exit_or_detach(client, id, waiting, detachable).await
}

/// After the output has ended: the container's exit code, or 0 if it runs on because the user typed the detach keys.
async fn exit_or_detach(
    client: &Client,
    id: &str,
    mut waiting: tokio::task::JoinHandle<Result<i64>>,
    detachable: bool,
) -> Result<i64> {
    if detachable {
        // The end of the last process closes the output a moment before the exit is known.
        if let Ok(ended) = tokio::time::timeout(EXIT_AFTER_OUTPUT_MAX, &mut waiting).await {
            return ended.map_err(|err| CliError::Protocol(err.to_string()))?;
        }
        let inspected = client
            .docker
            .inspect_container(id, None::<InspectContainerOptions>)
            .await;
        let running = inspected
            .ok()
            .and_then(|info| info.state?.running)
            .unwrap_or(false);
        if running {
            waiting.abort();
            eprintln!("read escape sequence");
            return Ok(0);
        }
    }
    waiting
        .await
        .map_err(|err| CliError::Protocol(err.to_string()))?
}

/// Copies between our terminal and the container until the container's output ends.
async fn copy(
    mut output: Pin<
        Box<dyn Stream<Item = std::result::Result<LogOutput, bollard::errors::Error>> + Send>,
    >,
    mut input: Pin<Box<dyn AsyncWrite + Send>>,
    interactive: bool,
) -> Result<()> {
    let feeding = interactive.then(|| {
        tokio::spawn(async move {
            let mut stdin = tokio::io::stdin();
            // The container may end first: then there is nobody to write to, and nothing to tell.
            if tokio::io::copy(&mut stdin, &mut input).await.is_ok() {
                drop(input.shutdown().await);
            }
        })
    });
    let mut result = Ok(());
    while let Some(chunk) = output.next().await {
        result = chunk
            .map_err(CliError::from)
            .and_then(|chunk| container::print_output(&chunk));
        if result.is_err() {
            break;
        }
    }
    if let Some(feeding) = feeding {
        feeding.abort();
    }
    result
}

/// What has a terminal of its own in the container.
enum Resized {
    Container(String),
    Exec(String),
}

/// Sends the terminal's size now and whenever it changes. A container that has ended needs no size.
async fn resize_loop(client: Client, target: Resized) {
    let Ok(mut changed) = signal(SignalKind::window_change()) else {
        return;
    };
    loop {
        if let Some((height, width)) = terminal::size() {
            match &target {
                Resized::Container(id) => {
                    let (h, w) = (i32::from(height), i32::from(width));
                    let options = ResizeContainerTTYOptions { h, w };
                    drop(client.docker.resize_container_tty(id, options).await);
                }
                Resized::Exec(id) => {
                    let options = ResizeExecOptions { height, width };
                    drop(client.docker.resize_exec(id, options).await);
                }
            }
        }
        if changed.recv().await.is_none() {
            return;
        }
    }
}

/// SIGINT, SIGTERM and SIGHUP to us go to the container, as with docker's `--sig-proxy`.
async fn forward_signals(client: Client, id: String) {
    let streams = [
        (signal(SignalKind::interrupt()), "SIGINT"),
        (signal(SignalKind::terminate()), "SIGTERM"),
        (signal(SignalKind::hangup()), "SIGHUP"),
    ];
    let loops = streams.into_iter().filter_map(|(stream, name)| {
        let (mut stream, client, id) = (stream.ok()?, client.clone(), id.clone());
        Some(async move {
            while stream.recv().await.is_some() {
                let options = KillContainerOptions {
                    signal: name.to_owned(),
                };
                drop(client.docker.kill_container(&id, Some(options)).await);
            }
        })
    });
    futures_util::future::join_all(loops).await;
}

pub(crate) async fn exec(client: &Client, args: ExecArgs) -> Result<()> {
    if args.tty && args.interactive && !std::io::stdin().is_terminal() {
        return Err(CliError::Usage("the input device is not a TTY".to_owned()));
    }
    let attach = !args.detach;
    let config = CreateExecOptions {
        attach_stdin: Some(args.interactive && attach),
        attach_stdout: Some(attach),
        attach_stderr: Some(attach),
        tty: Some(args.tty),
        env: (!args.env.is_empty()).then(|| args.env.clone()),
        cmd: Some(args.command.clone()),
        privileged: Some(args.privileged),
        user: args.user.clone(),
        working_dir: args.workdir.clone(),
        ..CreateExecOptions::default()
    };
    let exec = client.docker.create_exec(&args.container, config).await?.id;
    let options = StartExecOptions {
        detach: args.detach,
        tty: args.tty,
        output_capacity: None,
    };
    let started = client.docker.start_exec(&exec, Some(options)).await?;
    let StartExecResults::Attached { output, input } = started else {
        return Ok(());
    };
    let _raw = (args.tty && args.interactive)
        .then(RawMode::enter)
        .transpose()?;
    let resizing = args
        .tty
        .then(|| tokio::spawn(resize_loop(client.clone(), Resized::Exec(exec.clone()))));
    let copied = copy(output, input, args.interactive).await;
    if let Some(resizing) = resizing {
        resizing.abort();
    }
    copied?;
    let code = client
        .docker
        .inspect_exec(&exec)
        .await?
        .exit_code
        .unwrap_or(0);
    if code == 0 {
        Ok(())
    } else {
        Err(CliError::Exit(u8::try_from(code).unwrap_or(u8::MAX)))
    }
}
