//! `shoal net …`: the encrypted mesh between the nodes.

use crate::args::network::NetCommand;
use crate::client::{Client, escaped};
use crate::commands::print;
use crate::error::{CliError, Result};
use crate::render::list::{self, Column, ListStyle, Row};
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use shoal_model::control::NodeNetworkView;
use shoal_model::{NodeId, Version};
use shoal_overlay_net::{PeerCheck, PeerPath};
use std::collections::BTreeMap;

const COLUMNS: &[Column] = &[
    ("NODE", "Node"),
    ("PEER", "Peer"),
    ("PATH", "Path"),
    ("ENDPOINT", "Endpoint"),
    ("LATENCY", "Latency"),
    ("HANDSHAKE", "Handshake"),
    ("MTU", "MTU"),
    ("APPLIED", "Applied"),
    ("STATE", "State"),
];

/// Keys of a WireGuard session are refused after so long: without a newer handshake nothing passes.
const HANDSHAKE_AGE_MAX_MS: u64 = 180_000;

/// Exit code when a way is bad.
const EXIT_BAD: u8 = 1;

pub(crate) async fn dispatch(client: &Client, command: NetCommand) -> Result<()> {
    match command {
        NetCommand::Check { json } => check(client, json).await,
        NetCommand::RotateKeys { node } => {
            let path = match &node {
                Some(node) => format!("/net/rotate-keys?node={}", escaped(node)),
                None => "/net/rotate-keys".to_owned(),
            };
            client.own::<Value>(Method::POST, &path).await?;
            match node {
                Some(node) => print(&format!("{node} makes a new key\n")),
                None => print("every node makes a new key\n"),
            }
        }
    }
}

/// What the daemon answers.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    /// What the leader knows.
    nodes: Vec<NodeNetworkView>,
    /// What each node says.
    checks: Vec<NodeCheck>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NodeCheck {
    #[serde(rename = "NodeID")]
    node_id: NodeId,
    name: String,
    state: String,
    peers: Vec<PeerCheck>,
    error: Option<String>,
}

async fn check(client: &Client, as_json: bool) -> Result<()> {
    let value: Value = client.own(Method::GET, "/net/check").await?;
    let answer: Answer = serde_json::from_value(value.clone())
        .map_err(|err| CliError::Protocol(format!("the answer to `net check`: {err}")))?;
    let (rows, good) = rows(&answer);
    if as_json {
        let text = serde_json::to_string_pretty(&value);
        print(&(text.map_err(|err| CliError::Protocol(err.to_string()))? + "\n"))?;
    } else {
        print(&list::render(&rows, COLUMNS, &[], &ListStyle::default())?)?;
    }
    if good {
        Ok(())
    } else {
        Err(CliError::Exit(EXIT_BAD))
    }
}

/// The table, and whether all is well.
fn rows(answer: &Answer) -> (Vec<Row>, bool) {
    let names: BTreeMap<NodeId, &str> = answer
        .checks
        .iter()
        .map(|check| (check.node_id, check.name.as_str()))
        .collect();
    let mut checks: Vec<&NodeCheck> = answer.checks.iter().collect();
    checks.sort_by_key(|check| (&check.name, check.node_id));
    let (mut rows, mut good) = (Vec::new(), true);
    for check in checks {
        let view = answer
            .nodes
            .iter()
            .find(|view| view.node_id == check.node_id);
        let (applied, late) = applied(view);
        let mut peers: Vec<&PeerCheck> = check.peers.iter().collect();
        peers.sort_by_key(|peer| (&peer.name, peer.node_id));
        if let Some(error) = &check.error {
            let state = format!("{}: {error}", check.state);
            rows.extend(alone(&check.name, &applied, &state));
            good = false;
        } else if peers.is_empty() {
            // A node in no network has no peers, and needs none.
            let state = if late { "behind" } else { "ok" };
            rows.extend(alone(&check.name, &applied, state));
            good &= !late;
        }
        for peer in peers {
            let state = state(peer, late);
            good &= state == "ok";
            rows.extend(pair(&check.name, peer, &names, &applied, state));
        }
    }
    (rows, good)
}

/// The version that the node has applied, and whether that is not the one that it should have.
fn applied(view: Option<&NodeNetworkView>) -> (String, bool) {
    match view.map(|view| (view.applied, view.wanted)) {
        Some((Some(applied), wanted)) if applied < wanted => {
            (format!("{applied} of {wanted}"), true)
        }
        Some((Some(applied), _)) => (applied.to_string(), false),
        // Nothing is asked of it.
        Some((None, wanted)) => ("-".to_owned(), wanted != Version::default()),
        None => ("-".to_owned(), false),
    }
}

fn state(peer: &PeerCheck, late: bool) -> &'static str {
    let stale = |age: u64| age >= HANDSHAKE_AGE_MAX_MS;
    if peer.suspect {
        "suspect"
    } else if peer.path == PeerPath::None || peer.handshake_age_ms.is_none_or(stale) {
        "no handshake"
    } else if late {
        "behind"
    } else {
        "ok"
    }
}

fn alone(name: &str, applied: &str, state: &str) -> Option<Row> {
    let row = json!({
        "Node": name,
        "Peer": "-",
        "Path": "-",
        "Endpoint": "-",
        "Latency": "-",
        "Handshake": "-",
        "MTU": "-",
        "Applied": applied,
        "State": state,
    });
    row.as_object().cloned()
}

fn pair(
    node: &str,
    peer: &PeerCheck,
    names: &BTreeMap<NodeId, &str>,
    applied: &str,
    state: &str,
) -> Option<Row> {
    let path = match &peer.path {
        PeerPath::Relay(by) => {
            let by = names
                .get(by)
                .map_or_else(|| by.to_string(), |name| (*name).to_owned());
            format!("relay {by}")
        }
        path @ (PeerPath::Direct | PeerPath::None) => path.to_string(),
    };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let row = json!({
        "Node": node,
        "Peer": peer.name,
        "Path": path,
        "Endpoint": or_dash(peer.endpoint.map(|endpoint| endpoint.to_string())),
        "Latency": or_dash(peer.rtt_p50_us.map(latency)),
        "Handshake": or_dash(peer.handshake_age_ms.map(age)),
        "MTU": peer.mtu,
        "Applied": applied,
        "State": state,
    });
    row.as_object().cloned()
}

/// Microseconds for people.
fn latency(us: u64) -> String {
    const US_PER_MS: u64 = 1_000;
    if us < US_PER_MS {
        return format!("{us}µs");
    }
    format!("{}.{}ms", us / US_PER_MS, us % US_PER_MS / 100)
}

/// A span since something for people.
fn age(ms: u64) -> String {
    const MS_PER_S: u64 = 1_000;
    const S_PER_MINUTE: u64 = 60;
    let seconds = ms / MS_PER_S;
    if seconds < S_PER_MINUTE {
        return format!("{seconds}s ago");
    }
    format!("{}m{}s ago", seconds / S_PER_MINUTE, seconds % S_PER_MINUTE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(bits: u128, name: &str) -> PeerCheck {
        let text = json!({
            "node_id": NodeId::from_bits(bits),
            "name": name,
            "path": "Direct",
            "endpoint": "192.0.2.2:51820",
            "handshake_age_ms": 61_500,
            "rtt_last_us": 300,
            "rtt_p50_us": 412,
            "mtu": 1420,
            "rx_bytes": 1,
            "tx_bytes": 2,
            "probes_sent": 3,
            "probes_answered": 3,
            "suspect": false,
        });
        serde_json::from_value(text).unwrap()
    }

    fn view(bits: u128, applied: Option<u64>, wanted: u64) -> NodeNetworkView {
        NodeNetworkView {
            node_id: NodeId::from_bits(bits),
            name: String::new(),
            mesh: None,
            wireguard: None,
            applied: applied.map(Version),
            wanted: Version(wanted),
        }
    }

    fn node(bits: u128, name: &str, peers: Vec<PeerCheck>) -> NodeCheck {
        NodeCheck {
            node_id: NodeId::from_bits(bits),
            name: name.to_owned(),
            state: "ready".to_owned(),
            peers,
            error: None,
        }
    }

    fn table(answer: &Answer) -> (String, bool) {
        let (rows, good) = rows(answer);
        let text = list::render(&rows, COLUMNS, &[], &ListStyle::default()).unwrap();
        (text, good)
    }

    #[test]
    fn a_whole_mesh_is_good() {
        let mut slow = peer(1, "a");
        slow.rtt_p50_us = Some(12_345);
        slow.path = PeerPath::Relay(NodeId::from_bits(3));
        slow.handshake_age_ms = Some(5_000);
        let answer = Answer {
            nodes: vec![view(1, Some(7), 7), view(2, Some(7), 7), view(3, None, 0)],
            checks: vec![
                node(2, "b", vec![slow]),
                node(1, "a", vec![peer(2, "b")]),
                node(3, "c", Vec::new()),
            ],
        };
        let (text, good) = table(&answer);
        assert!(good, "{text}");
        assert_eq!(
            text,
            "NODE   PEER   PATH      ENDPOINT          LATENCY   HANDSHAKE   MTU    APPLIED   STATE\n\
             a      b      direct    192.0.2.2:51820   412µs     1m1s ago    1420   7         ok\n\
             b      a      relay c   192.0.2.2:51820   12.3ms    5s ago      1420   7         ok\n\
             c      -      -         -                 -         -           -      -         ok\n"
        );
    }

    #[test]
    fn every_kind_of_trouble_is_bad() {
        let (mut silent, mut suspect, mut old) = (peer(2, "b"), peer(2, "b"), peer(2, "b"));
        silent.path = PeerPath::None;
        silent.handshake_age_ms = None;
        suspect.suspect = true;
        old.handshake_age_ms = Some(HANDSHAKE_AGE_MAX_MS);
        let mut dumb = node(1, "a", Vec::new());
        dumb.error = Some("does not answer".to_owned());
        for (views, check, state) in [
            (
                vec![view(1, Some(7), 7)],
                node(1, "a", vec![silent]),
                "no handshake",
            ),
            (
                vec![view(1, Some(7), 7)],
                node(1, "a", vec![old]),
                "no handshake",
            ),
            (
                vec![view(1, Some(7), 7)],
                node(1, "a", vec![suspect]),
                "suspect",
            ),
            (
                vec![view(1, Some(6), 7)],
                node(1, "a", vec![peer(2, "b")]),
                "behind",
            ),
            (
                vec![view(1, Some(6), 7)],
                node(1, "a", Vec::new()),
                "behind",
            ),
            (vec![view(1, Some(7), 7)], dumb, "ready: does not answer"),
        ] {
            let answer = Answer {
                nodes: views,
                checks: vec![check],
            };
            let (text, good) = table(&answer);
            assert!(!good, "{text}");
            assert!(text.trim_end().ends_with(state), "{state}: {text}");
        }
    }
}
