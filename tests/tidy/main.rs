//! Rules of the house that no compiler checks: the direction of the arrows, and the size of files.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longest file, in lines; aim for half of it.
const FILE_LINES_MAX: usize = 800;

/// Which crate of ours may depend on which. Transitive arrows need not be repeated, but are allowed.
const ARROWS: &[(&str, &[&str])] = &[
    ("shoal-model", &[]),
    ("shoal-scheduler", &["shoal-model"]),
    ("shoal-transport", &["shoal-model"]),
    ("shoal-overlay-net", &["shoal-model"]),
    (
        "shoal-manager",
        &["shoal-scheduler", "shoal-transport", "shoal-model"],
    ),
    ("shoal-image", &["shoal-transport", "shoal-model"]),
    ("shoal-runtime", &["shoal-model"]),
    (
        "shoal-engine",
        &[
            "shoal-image",
            "shoal-runtime",
            "shoal-overlay-net",
            "shoal-transport",
            "shoal-model",
        ],
    ),
    (
        "shoal-agent",
        &["shoal-engine", "shoal-transport", "shoal-model"],
    ),
    (
        "shoal-api",
        &[
            "shoal-engine",
            "shoal-overlay-net",
            "shoal-transport",
            "shoal-model",
        ],
    ),
];
/// Crates that may use all others.
const ANYTHING: &[&str] = &[
    "shoal-cli",
    "shoal-tests",
    "shoal-chaos",
    "shoal-playground",
];
/// Nothing but the wiring and the tests uses the playground.
const PLAYGROUND_USERS: &[&str] = &["shoal-cli", "shoal-tests", "shoal-chaos"];
/// Crates without a clock, randomness, threads or I/O.
const PURE: &[(&str, &[&str])] = &[
    ("shoal-model", &["tokio", "rand", "nix", "libc"]),
    (
        "shoal-scheduler",
        &["tokio", "rand", "nix", "libc", "tracing"],
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Normal dependencies of each crate of the workspace.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .map(|package| {
            let name = package["name"].as_str().expect("name").to_owned();
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let normal = dependencies
                .iter()
                .filter(|dependency| dependency["kind"].is_null());
            let names = normal.filter_map(|dependency| dependency["name"].as_str());
            (name, names.map(str::to_owned).collect())
        })
        .collect()
}

#[test]
fn arrows_point_at_something_purer() {
    let allowed: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (name, dependencies) in dependencies() {
        for dependency in dependencies
            .iter()
            .filter(|name| name.starts_with("shoal-"))
        {
            let may = match allowed.get(name.as_str()) {
                Some(allowed) => allowed.contains(&dependency.as_str()),
                None => ANYTHING.contains(&name.as_str()),
            };
            let playground = dependency == "shoal-playground";
            if !may || (playground && !PLAYGROUND_USERS.contains(&name.as_str())) {
                wrong.push(format!("{name} → {dependency}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "arrows that are not in the picture: {wrong:?}"
    );
}

#[test]
fn every_crate_is_in_the_picture() {
    for name in dependencies().keys() {
        let known =
            ARROWS.iter().any(|(known, _)| known == name) || ANYTHING.contains(&name.as_str());
        assert!(known, "{name} has no place in the picture");
    }
}

#[test]
fn pure_crates_have_no_clock_no_chance_and_no_io() {
    let dependencies = dependencies();
    for (name, forbidden) in PURE {
        let used: Vec<_> = forbidden
            .iter()
            .filter(|used| dependencies[*name].contains(**used))
            .collect();
        assert!(used.is_empty(), "{name} uses {used:?}");
    }
}

#[test]
fn raft_library_stays_inside_the_manager() {
    for (name, dependencies) in dependencies() {
        if dependencies.contains("openraft") {
            assert!(
                ["shoal-manager", "shoal-chaos"].contains(&name.as_str()),
                "{name}"
            );
        }
        if dependencies.contains("actix") {
            assert_eq!(name, "shoal-engine");
        }
    }
}

fn source_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("readable folder").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        // What is in `vendor` is other people's code, kept as they wrote it.
        let ours = name != "target" && name != "vendor";
        if path.is_dir() && ours && !name.to_string_lossy().starts_with('.') {
            source_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn no_file_is_too_long_to_read() {
    let mut files = Vec::new();
    source_files(&root(), &mut files);
    assert!(files.len() > 50, "only {} files were found", files.len());
    let lines = |path: &PathBuf| std::fs::read_to_string(path).expect("text").lines().count();
    let long: Vec<_> = files
        .iter()
        .map(|path| (lines(path), path))
        .filter(|(lines, _)| *lines > FILE_LINES_MAX)
        .collect();
    assert!(
        long.is_empty(),
        "longer than {FILE_LINES_MAX} lines: {long:?}"
    );
}

#[test]
fn every_module_says_what_it_is_for() {
    let mut files = Vec::new();
    source_files(&root(), &mut files);
    let silent: Vec<_> = files
        .iter()
        .filter(|path| {
            !std::fs::read_to_string(path)
                .expect("text")
                .contains("//! ")
        })
        .collect();
    assert!(silent.is_empty(), "without a `//!` line: {silent:?}");
}
