//! The `shoal` binary: client commands, `shoal daemon`, and the small processes that the daemon starts.
//!
//! The client is thin: it parses, makes a request, renders the answer. It decides nothing about the cluster.

mod args;
mod client;
mod commands;
mod daemon;
mod error;
#[cfg(test)]
mod golden;
mod render;
mod spec;
mod terminal;

use args::playground::PlaygroundCommand;
use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// A third of the time of Raft's thread under load went into the C library's allocator. Without transparent huge pages:
/// they would double the memory of an idle daemon.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match shim_bundle(std::env::args_os()) {
        Some(bundle) => shoal_runtime::shim_main(shoal_runtime::ShimArgs { bundle }),
        None => parse_and_run(),
    }
}

/// The bundle when this is a shim as the daemon starts it. There is one per container: it takes neither the time nor
/// the memory of parsing all commands.
fn shim_bundle(mut args: impl Iterator<Item = OsString>) -> Option<PathBuf> {
    let (mode, flag, bundle) = (args.nth(1)?, args.next()?, args.next()?);
    (mode == "shim" && flag == "--bundle" && args.next().is_none()).then(|| bundle.into())
}

/// Apart from `main`, so that its stack is not part of every shim.
#[inline(never)]
fn parse_and_run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return error::usage(&error),
    };
    // These run before any thread exists: they change namespaces and fork.
    match &cli.command {
        Command::Shim(args) => {
            return shoal_runtime::shim_main(shoal_runtime::ShimArgs {
                bundle: args.bundle.clone(),
            });
        }
        Command::Playground(PlaygroundCommand::HostInit {
            netns,
            hostname,
            tethered,
        }) => {
            return shoal_playground::host_init_main(&shoal_playground::HostInitArgs {
                netns: netns.clone(),
                hostname: hostname.clone(),
                tethered: *tethered,
            });
        }
        Command::Playground(PlaygroundCommand::Enter {
            init_pid,
            detach,
            command,
        }) => {
            return shoal_playground::enter_main(&shoal_playground::EnterArgs {
                init_pid: *init_pid,
                detach: *detach,
                command: command.clone(),
            });
        }
        Command::Netd(args) => return daemon::netd_main(args),
        Command::Completion { shell } => {
            let mut command = Cli::command();
            clap_complete::generate(*shell, &mut command, "shoal", &mut std::io::stdout());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    if let Command::Daemon(args) = cli.command {
        return daemon::main(*args);
    }
    client_main(cli)
}

/// One thread is enough to wait for one answer, and starts quicker than many.
fn client_main(cli: Cli) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(err) => {
            eprintln!("shoal: failed to start: {err}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = match cli.command {
        Command::Playground(PlaygroundCommand::Web { port }) => {
            let served = runtime.block_on(commands::playground::web(port));
            served.map_err(error::CliError::io(format!("serve on port {port}")))
        }
        _ => runtime.block_on(commands::dispatch(cli)),
    };
    // A read of standard input that nobody waits for any more must not hold the process.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(text) = error.text() {
                eprintln!("shoal: {text}");
            }
            error.exit_code()
        }
    }
}
