//! How long a container takes from "start it" to its first instruction, and to being gone again: this runtime beside
//! `runc` and `crun`, one after the other in every round, on one bundle.
//!
//! `cargo bench -p shoal-runtime --bench start` needs root, `runc` and `crun`. Arguments after `--`: `start [ROUNDS]`
//! (the default) or `memory [CONTAINERS]`, which shows what idle shims hold. `SHOAL_EXE` names the program that
//! becomes the shim; without, it is this benchmark itself.

#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that can't go on has nothing to clean up but a temporary directory"
)]

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::time::{ClockId, clock_gettime};
use oci_spec::runtime::Spec;
use shoal_runtime::{
    Bundle, Rootfs, ShimArgs, ShimHandle, ShimSpec, SpawnOptions, default_spec, shim_main,
};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Rounds that are not counted: they bring programs and tables into memory.
const WARM_UP_ROUNDS: usize = 3;

/// Rounds unless told otherwise.
const ROUNDS: usize = 40;

/// Containers of the memory measurement unless told otherwise.
const CONTAINERS: usize = 100;

/// Reads CLOCK_MONOTONIC, writes it to the file `/t`, and exits with code 0.
const STAMP: &[u8] = &[
    0x48, 0x83, 0xec, 0x20, // sub rsp, 32
    0xb8, 0xe4, 0x00, 0x00, 0x00, // mov eax, clock_gettime
    0xbf, 0x01, 0x00, 0x00, 0x00, // mov edi, CLOCK_MONOTONIC
    0x48, 0x89, 0xe6, // mov rsi, rsp
    0x0f, 0x05, // syscall
    0xb8, 0x02, 0x00, 0x00, 0x00, // mov eax, open
    0x48, 0x8d, 0x3d, 0x26, 0x00, 0x00, 0x00, // lea rdi, [path]
    0xbe, 0x41, 0x02, 0x00, 0x00, // mov esi, O_WRONLY | O_CREAT | O_TRUNC
    0xba, 0xa4, 0x01, 0x00, 0x00, // mov edx, 0644
    0x0f, 0x05, // syscall
    0x89, 0xc7, // mov edi, eax
    0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, write
    0x48, 0x89, 0xe6, // mov rsi, rsp
    0xba, 0x10, 0x00, 0x00, 0x00, // mov edx, 16
    0x0f, 0x05, // syscall
    0xb8, 0x3c, 0x00, 0x00, 0x00, // mov eax, exit
    0x31, 0xff, // xor edi, edi
    0x0f, 0x05, // syscall
    b'/', b't', 0x00, // path
];

/// Sleeps until it is killed.
const PAUSE: &[u8] = &[
    0xb8, 0x22, 0x00, 0x00, 0x00, // mov eax, pause
    0x0f, 0x05, // syscall
    0xeb, 0xf7, // jmp back
];

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    if let [mode, flag, bundle] = &args[..]
        && mode == "shim"
        && flag == "--bundle"
    {
        let bundle = bundle.into();
        return shim_main(ShimArgs { bundle });
    }
    // cargo adds `--bench`.
    let words: Vec<_> = args.iter().filter_map(|arg| arg.to_str()).collect();
    let words: Vec<_> = words.into_iter().filter(|w| !w.starts_with('-')).collect();
    let count = words.get(1).map(|n| n.parse().unwrap());
    if !cfg!(target_arch = "x86_64") {
        eprintln!("the measured programs are machine code for x86-64");
        return ExitCode::FAILURE;
    }
    match words.first() {
        None | Some(&"start") => starts(count.unwrap_or(ROUNDS)),
        Some(&"memory") => memory(count.unwrap_or(CONTAINERS)),
        Some(other) => {
            eprintln!("unknown measurement `{other}`: use `start` or `memory`");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// A static program of `code` alone.
fn elf(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + code.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |file: &mut Vec<u8>, v: u16| file.extend_from_slice(&v.to_le_bytes());
    let word = |file: &mut Vec<u8>, v: u32| file.extend_from_slice(&v.to_le_bytes());
    let long = |file: &mut Vec<u8>, v: u64| file.extend_from_slice(&v.to_le_bytes());
    half(&mut file, 2); // an executable
    half(&mut file, 62); // x86-64
    word(&mut file, 1);
    long(&mut file, BASE + HEADERS); // the first instruction
    long(&mut file, 64); // program headers
    long(&mut file, 0);
    word(&mut file, 0);
    for value in [64, 56, 1, 0, 0, 0] {
        half(&mut file, value);
    }
    word(&mut file, 1); // to be loaded
    word(&mut file, 5); // readable, executable
    for value in [0, BASE, BASE, size, size, 0x1000] {
        long(&mut file, value);
    }
    file.extend_from_slice(code);
    file
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec().unsigned_abs() * 1_000_000_000 + now.tv_nsec().unsigned_abs()
}

/// crun refuses hosts that have controllers in both generations of control groups, so that all runtimes run where
/// the second one is not mounted.
fn leave_unified() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
    if Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists() {
        umount2("/sys/fs/cgroup/unified", MntFlags::MNT_DETACH).unwrap();
    }
}

/// A bundle whose root holds nothing but the program.
fn bundle(dir: &Path, name: &str, program: &[u8], seccomp: bool, overlay: bool) -> PathBuf {
    let dir = dir.join(name);
    for part in ["base", "upper", "work", "rootfs"] {
        fs::create_dir_all(dir.join(part)).unwrap();
    }
    let file = dir.join("base/program");
    fs::write(&file, elf(program)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let root = dir.join(if overlay { "rootfs" } else { "base" });
    let cgroup = format!("/shoal-bench/{}-{name}", std::process::id());
    let mut spec: Spec = default_spec(root, vec!["/program".to_owned()], Path::new(&cgroup));
    if !seccomp && let Some(linux) = spec.linux_mut() {
        linux.set_seccomp(None);
    }
    let rootfs = if overlay {
        Rootfs::Overlay {
            lower: vec![dir.join("base")],
            upper: dir.join("upper"),
            work: dir.join("work"),
        }
    } else {
        Rootfs::Directory
    };
    let shim = ShimSpec::new(name, rootfs);
    Bundle::new(&dir).write(&spec, &shim).unwrap();
    dir
}

fn shim_exe() -> PathBuf {
    std::env::var_os("SHOAL_EXE").map_or_else(|| std::env::current_exe().unwrap(), PathBuf::from)
}

enum Contender {
    Shoal { overlay: bool },
    Other(&'static str),
}

impl Contender {
    fn name(&self) -> &'static str {
        match self {
            Self::Shoal { overlay: false } => "shoal",
            Self::Shoal { overlay: true } => "shoal on overlayfs",
            Self::Other(name) => name,
        }
    }

    /// Runs the container once: nanoseconds to its first instruction, and until nothing of it is left.
    fn run(&self, runtime: &tokio::runtime::Runtime, dir: &Path) -> (u64, u64) {
        let stamp = match self {
            Self::Shoal { overlay: true } => dir.join("upper/t"),
            Self::Shoal { overlay: false } | Self::Other(_) => dir.join("base/t"),
        };
        if stamp.exists() {
            fs::remove_file(&stamp).unwrap();
        }
        let start = monotonic_ns();
        match self {
            Self::Shoal { .. } => runtime.block_on(async {
                let handle = ShimHandle::spawn(SpawnOptions::new(shim_exe(), dir));
                let handle = handle.await.unwrap();
                handle.start().await.unwrap();
                assert_eq!(handle.wait().await.unwrap().code, 0);
                handle.delete(false).await.unwrap();
            }),
            Self::Other(program) => {
                let mut command = Command::new(program);
                command.arg("--root").arg(dir.join("state"));
                command.args(["run", "--bundle"]).arg(dir);
                command.arg(format!("bench-{}", std::process::id()));
                command.stdin(Stdio::null()).stdout(Stdio::null());
                assert!(command.status().unwrap().success(), "{program} failed");
            }
        }
        let end = monotonic_ns();
        let bytes = fs::read(&stamp).unwrap();
        let part = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let first = part(0) * 1_000_000_000 + part(8);
        (first - start, end - start)
    }
}

fn starts(rounds: usize) {
    leave_unified();
    let dir = tempfile::tempdir().unwrap();
    let builder = &mut tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    let mut rows = Vec::new();
    for seccomp in [true, false] {
        for contender in [
            Contender::Shoal { overlay: false },
            Contender::Shoal { overlay: true },
            Contender::Other("crun"),
            Contender::Other("runc"),
        ] {
            let overlay = matches!(contender, Contender::Shoal { overlay: true });
            let name = format!("b{}", rows.len());
            let bundle = bundle(dir.path(), &name, STAMP, seccomp, overlay);
            rows.push((contender, seccomp, bundle, Vec::new(), Vec::new()));
        }
    }
    for round in 0..WARM_UP_ROUNDS + rounds {
        for index in 0..rows.len() {
            // Who runs after whom changes: what the one leaves to the kernel's workers is felt by the next.
            let stride = [1, 3, 5, 7][round % 4];
            let at = (index * stride + round) % rows.len();
            let (contender, _, bundle, firsts, totals) = &mut rows[at];
            let (first, total) = contender.run(&runtime, bundle);
            if round >= WARM_UP_ROUNDS {
                firsts.push(first);
                totals.push(total);
            }
        }
    }
    println!("{rounds} rounds; milliseconds, p50 / p95");
    println!("| runtime | seccomp | first instruction | run and delete |");
    println!("|---|---|---|---|");
    for (contender, seccomp, _, firsts, totals) in &mut rows {
        println!(
            "| {} | {} | {} | {} |",
            contender.name(),
            if *seccomp { "default" } else { "none" },
            quantiles(firsts),
            quantiles(totals)
        );
    }
}

fn quantiles(values: &mut [u64]) -> String {
    values.sort_unstable();
    let at = |percent: usize| values[(values.len() - 1) * percent / 100] as f64 / 1e6;
    format!("{:.1} / {:.1}", at(50), at(95))
}

fn memory(containers: usize) {
    let dir = tempfile::tempdir().unwrap();
    let builder = &mut tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    runtime.block_on(async {
        let mut handles = Vec::new();
        for number in 0..containers {
            let bundle = bundle(dir.path(), &format!("m{number}"), PAUSE, true, true);
            let options = SpawnOptions::new(shim_exe(), bundle);
            let handle = ShimHandle::spawn(options).await.unwrap();
            handle.start().await.unwrap();
            handles.push(handle);
        }
        println!("{containers} idle shims; KiB per shim");
        for field in ["Pss", "Rss", "Private_Dirty", "Pss_Anon", "Pss_File"] {
            let total: u64 = handles.iter().map(|h| held(h.shim_pid(), field)).sum();
            println!("{field}: {}", total / containers as u64);
        }
        for handle in handles {
            handle.delete(true).await.unwrap();
        }
    });
}

/// One line of a process' memory account, KiB.
fn held(pid: u32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(name, _)| *name == field).unwrap();
    value.trim().trim_end_matches(" kB").parse().unwrap()
}
