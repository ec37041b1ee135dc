//! The smallest program that can be netd: tests start it where the product starts itself, `netd netd --run-root DIR`.

use shoal_overlay_net::netd::{self, NetdArgs};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let words: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    let words: Vec<_> = words.iter().map(|word| &**word).collect();
    let run_root = match words[..] {
        ["netd", "--run-root", run_root, ..] => run_root.into(),
        _ => return ExitCode::FAILURE,
    };
    match netd::main(&NetdArgs { run_root }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("{}", netd::chain(&err));
            ExitCode::FAILURE
        }
    }
}
