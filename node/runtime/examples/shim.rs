//! The smallest program that can be a shim: tests and benchmarks start it where the product starts itself.

use shoal_runtime::{ShimArgs, shim_main};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match (args.next(), args.next(), args.next()) {
        (Some(mode), Some(flag), Some(bundle)) if mode == "shim" && flag == "--bundle" => {
            shim_main(ShimArgs {
                bundle: bundle.into(),
            })
        }
        _ => ExitCode::FAILURE,
    }
}
