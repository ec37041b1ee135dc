//! Every chore of the project behind one command: `cargo xtask …`.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  test [FILTER…]   install what the tests need, build, run every test; a test that can't run is a failure
  fast [FILTER…]   the tests that need neither root nor packages
  check            format, lints, documentation, tidy
  deny             licences, advisories, sources (installs cargo-deny if it is missing)
  bench NAME [ARG…] run a benchmark in release mode: scheduler, raft, runtime, image; with the whole product, as root:
                   cluster, failover, run, agents
  ci               check, then test: what continuous integration runs
";

/// Debian packages that tests use as witnesses and peers, each with a program that tells whether it is there.
const PACKAGES: &[(&str, &str)] = &[
    ("docker-registry", "docker-registry"),
    ("bind9-dnsutils", "dig"),
    ("busybox-static", "busybox"),
    ("curl", "curl"),
    ("runc", "runc"),
    ("crun", "crun"),
    ("nftables", "nft"),
    ("iproute2", "ip"),
    ("util-linux", "nsenter"),
    ("e2fsprogs", "mkfs.ext4"),
    ("procps", "sysctl"),
];
/// The client of Docker, wherever it comes from.
const DOCKER_PACKAGE: (&str, &str) = ("docker.io", "docker");

/// Crates whose tests need neither root nor packages.
const FAST: &[&str] = &[
    "shoal-model",
    "shoal-scheduler",
    "shoal-transport",
    "shoal-manager",
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["test", filters @ ..] => test(filters),
        ["fast", filters @ ..] => fast(filters),
        ["check"] => check(),
        ["deny"] => deny(),
        ["bench", name, args @ ..] => bench(name, args),
        ["ci"] => check().and_then(|()| test(&[])),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn run(command: &mut Command) -> Result<()> {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .collect();
    let line = words
        .iter()
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ");
    println!("\n$ {line}");
    let status = command
        .status()
        .with_context(|| format!("failed to run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` ended with {status}");
    }
    Ok(())
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

fn is_installed(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&paths)
        .chain(system)
        .any(|dir| dir.join(program).exists())
}

/// Installs the missing packages without starting any service that they bring.
fn install_packages() -> Result<()> {
    let wanted = PACKAGES.iter().chain([&DOCKER_PACKAGE]);
    let missing: Vec<_> = wanted
        .filter(|(_, program)| !is_installed(program))
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_installed("apt-get") {
        bail!(
            "the tests need these Debian packages: {}",
            missing.join(", ")
        );
    }
    run(Command::new("apt-get").args(["update", "-qq"]))?;
    let mut install = Command::new("apt-get");
    install
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1");
    run(install
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(missing))
}

fn require_root() -> Result<()> {
    // The tests make namespaces, mounts and cgroups.
    let status = std::fs::read_to_string("/proc/self/status").context("failed to read the user")?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    match uid.and_then(|line| line.split_whitespace().nth(1)) {
        Some("0") => Ok(()),
        _ => bail!("the tests make namespaces and mounts: run as root, or try `cargo xtask fast`"),
    }
}

fn test(filters: &[&str]) -> Result<()> {
    require_root()?;
    install_packages()?;
    run(&mut cargo(&["build", "--package", "shoal-cli"]))?;
    let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
    run(command.args(filters))
}

fn fast(filters: &[&str]) -> Result<()> {
    let mut command = cargo(&["test"]);
    for name in FAST {
        command.args(["--package", name]);
    }
    run(command.args(filters))
}

fn check() -> Result<()> {
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    let lints = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    run(&mut cargo(&lints))?;
    let mut doc = cargo(&[
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ]);
    run(doc.env("RUSTDOCFLAGS", "-D warnings"))
}

fn deny() -> Result<()> {
    if !is_installed("cargo-deny") {
        run(&mut cargo(&["install", "cargo-deny", "--locked"]))?;
    }
    run(&mut cargo(&["deny", "--workspace", "check"]))
}

fn bench(name: &str, further: &[&str]) -> Result<()> {
    let package = match name {
        "scheduler" => "shoal-scheduler",
        "raft" => "shoal-manager",
        "runtime" => "shoal-runtime",
        "image" => "shoal-image",
        "cluster" | "failover" | "run" | "agents" => return measure(name, further),
        other => bail!("there is no benchmark `{other}`\n{USAGE}"),
    };
    let mut command = cargo(&["bench", "--package", package]);
    if !further.is_empty() {
        command.arg("--").args(further);
    }
    run(&mut command)
}

/// Builds the product and the program that measures it in one call, so that both share every crate.
fn measure(name: &str, further: &[&str]) -> Result<()> {
    require_root()?;
    let mut build = cargo(&["build", "--release", "--package", "shoal-cli", "--package"]);
    run(build.args(["shoal-tests", "--bin", "shoal", "--example", "measure"]))?;
    // This program lies in `debug`, beside `release`.
    let own = std::env::current_exe().context("failed to find this program")?;
    let profiles = own
        .ancestors()
        .nth(2)
        .context("this program lies nowhere")?;
    let mut program = Command::new(profiles.join("release/examples/measure"));
    run(program.arg(name).args(further))
}
