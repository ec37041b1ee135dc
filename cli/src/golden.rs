//! What users read of the command line itself, as files in `golden/`: a change of it shows in the diff.
//!
//! `SHOAL_UPDATE_GOLDEN=1 cargo test --package shoal-cli golden` writes them anew.

use crate::args::Cli;
use clap::CommandFactory as _;
use std::path::Path;

/// Compares with the file `name`, or writes it.
fn check(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(name);
    if std::env::var_os("SHOAL_UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, found).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        found,
        expected,
        "`{}` differs; SHOAL_UPDATE_GOLDEN=1 writes it anew",
        path.display()
    );
}

/// What a command line that does not run prints, the same on every terminal and in every environment.
fn printed(words: &[&str]) -> String {
    let command = Cli::command()
        .term_width(100)
        .mut_arg("host", |arg| arg.hide(true));
    let words = ["shoal"].into_iter().chain(words.iter().copied());
    let refused = command.try_get_matches_from(words).unwrap_err();
    let text = refused.render().to_string();
    let lines = text.lines().map(str::trim_end);
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

/// What `shoal WORDS --help` prints.
fn help(words: &str) -> String {
    let words: Vec<&str> = words.split_whitespace().chain(["--help"]).collect();
    printed(&words)
}

#[test]
fn golden_help_of_every_command_about_networks() {
    for words in [
        "network",
        "network create",
        "network ls",
        "network inspect",
        "network rm",
        "network prune",
        "net",
        "net check",
        "net rotate-keys",
        "init",
        "run",
        "service create",
        "service update",
    ] {
        let name = words.replace(' ', "-");
        check(&format!("help-{name}.txt"), &help(words));
    }
}

#[test]
fn golden_errors_of_the_command_line() {
    let refusals = [
        "network create",
        "network create --mtu 1400 backend",
        "network rm",
        "net rotate-keys a b",
        "svc create --endpoint-mode random image",
    ];
    let mut text = String::new();
    for line in refusals {
        let words: Vec<&str> = line.split_whitespace().collect();
        let said = printed(&words);
        text.push_str(&format!("$ shoal {line}\n{}\n\n", said.trim_end()));
    }
    check("errors.txt", &text);
}

#[test]
fn golden_completions_know_the_commands_about_networks() {
    let mut script = Vec::new();
    let shell = clap_complete::Shell::Bash;
    clap_complete::generate(shell, &mut Cli::command(), "shoal", &mut script);
    let script = String::from_utf8(script).unwrap();
    for part in [
        "shoal,network)",
        "shoal__subcmd__network__subcmd__create)",
        "--attachable",
        "--ip-range",
        "shoal__subcmd__net__subcmd__rotate__subcmd__keys)",
        "--network-alias",
        "--endpoint-mode",
    ] {
        assert!(script.contains(part), "{part}");
    }
    // The choices of a flag complete too.
    assert!(script.contains("vip dnsrr"));
}
