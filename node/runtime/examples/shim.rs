//! The smallest program that can be a shim, and the smallest daemon: tests and benchmarks start it where the product
//! starts itself.
//!
//! `shim --bundle DIR` is the shim. `daemon DIR [LEASE_MS]` starts the container of `DIR`, prints its process id, and
//! then lives until it is killed; with a lease it moves the fencing deadline that far ahead, four times per lease.

use shoal_runtime::{ShimArgs, ShimHandle, SpawnOptions, shim_main};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let words: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    let words: Vec<_> = words.iter().map(|word| &**word).collect();
    match words[..] {
        ["shim", "--bundle", bundle] => shim_main(ShimArgs {
            bundle: bundle.into(),
        }),
        ["daemon", bundle] => daemon(Path::new(bundle), None),
        ["daemon", bundle, lease] => match lease.parse() {
            Ok(ms) => daemon(Path::new(bundle), Some(Duration::from_millis(ms))),
            Err(_) => ExitCode::FAILURE,
        },
        _ => ExitCode::FAILURE,
    }
}

fn daemon(bundle: &Path, lease: Option<Duration>) -> ExitCode {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let Ok(runtime) = builder.enable_all().build() else {
        return ExitCode::FAILURE;
    };
    match runtime.block_on(run(bundle, lease)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(bundle: &Path, lease: Option<Duration>) -> Result<(), Box<dyn std::error::Error>> {
    let exe = std::env::current_exe()?;
    let handle = ShimHandle::spawn(SpawnOptions::new(exe, bundle)).await?;
    if let Some(lease) = lease {
        handle.renew_deadline(Some(deadline(lease)?)).await?;
    }
    handle.start().await?;
    println!("{}", handle.pid());
    let Some(lease) = lease else {
        return std::future::pending().await;
    };
    let mut ticks = tokio::time::interval(lease / 4);
    loop {
        ticks.tick().await;
        handle.renew_deadline(Some(deadline(lease)?)).await?;
    }
}

/// `lease` from now, by the clock that goes on while the machine sleeps.
fn deadline(lease: Duration) -> Result<u64, Box<dyn std::error::Error>> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)?;
    let now = Duration::new(now.tv_sec().try_into()?, now.tv_nsec().try_into()?);
    Ok((now + lease).as_nanos().try_into()?)
}
