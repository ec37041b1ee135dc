//! Tables on the real kernel, with the `nft` program as a witness; needs root.

use super::*;
use crate::nft::{
    ChainHook, ChainKind, Expr, FAMILY_INET, Family, REG0, SetValue, Side, Verdict, commit,
};
use nix::sched::{CloneFlags, unshare};
use std::process::Command;

/// Runs `body` in a network namespace of its own.
fn in_own_namespace(body: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        body();
    });
    thread.join().unwrap();
}

fn listed() -> String {
    let out = Command::new("nft")
        .args(["list", "ruleset"])
        .output()
        .unwrap();
    assert!(out.status.success());
    String::from_utf8(out.stdout).unwrap()
}

fn model(networks: &[&str]) -> Model {
    let mut model = Model::default();
    model.counters.insert("why".to_owned());
    let definition = SetDefinition::of((7, 4)).to(SetValue::Verdict).ranges();
    let mut set = SetModel::new(definition);
    for (number, network) in networks.iter().enumerate() {
        let net: ipnet::Ipv4Net = network.parse().unwrap();
        let chain = format!("net-{number}");
        let range = Range {
            key: net.network().octets().to_vec(),
            end: Some((net.broadcast().to_bits() + 1).to_be_bytes().to_vec()),
        };
        set.elements.insert(range, Some(Value::Goto(chain.clone())));
        let rules = vec![
            Rule::default()
                .address_within(Side::Destination, (*network).parse().unwrap())
                .ends(Verdict::Accept),
            Rule::default().count("why").ends(Verdict::Drop),
        ];
        model.chains.insert(chain, ChainModel { base: None, rules });
    }
    model.sets.insert("from4".to_owned(), set);
    let base = BaseChain {
        kind: ChainKind::Filter,
        hook: ChainHook::Forward,
        priority: 0,
    };
    let lead = Rule::default()
        .family(Family::V4)
        .address(Family::V4, Side::Source, REG0)
        .with(Expr::verdict_of("from4", REG0));
    let rules = vec![Rule::default().clamp_segment(), lead];
    let chain = ChainModel {
        base: Some(base),
        rules,
    };
    model.chains.insert("forward".to_owned(), chain);
    model
}

#[test]
fn a_table_is_written_and_changed_as_nft_understands_it() {
    in_own_namespace(|| {
        let first = model(&["10.0.1.0/24", "10.0.2.0/24"]);
        commit("t", first.replace(FAMILY_INET, "t")).unwrap();
        let text = listed();
        for part in [
            "10.0.1.0/24 : goto net-0",
            "10.0.2.0/24 : goto net-1",
            "ip saddr vmap @from4",
            "tcp option maxseg size set rt mtu",
            "counter name \"why\" drop",
        ] {
            assert!(text.contains(part), "`{part}` is not in\n{text}");
        }
        let second = model(&["10.0.3.0/24"]);
        let changes = first.changes_to(&second, FAMILY_INET, "t").unwrap();
        commit("t", changes).unwrap();
        let changed = listed();
        commit("t", second.replace(FAMILY_INET, "t")).unwrap();
        assert_eq!(changed, listed(), "a change leads to what a new table has");
        assert!(!changed.contains("net-1"));
    });
}

#[test]
fn a_refused_transaction_names_its_step_and_changes_nothing() {
    in_own_namespace(|| {
        let mut wrong = model(&["10.0.1.0/24"]);
        wrong.chains.remove("net-0");
        let err = commit("t", wrong.replace(FAMILY_INET, "t")).unwrap_err();
        assert!(err.to_string().contains("set `from4`"), "{err}");
        assert_eq!(listed(), "");
    });
}
