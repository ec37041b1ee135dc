//! Numbers for monitoring, in the Prometheus text format.

use crate::check::PeerCheck;
use crate::dns::DnsCounters;
use serde::{Deserialize, Serialize};
use shoal_model::Version;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Content type of the text, for HTTP.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family of samples is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows, or starts at zero again.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// A text in the making. Families are written one after the other, each with its samples.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// An empty text.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes a family with its samples: label values in the order of `labels`, and a value. A family without
    /// samples is left out.
    pub fn family<'l, const N: usize>(
        &mut self,
        kind: MetricKind,
        name: &str,
        help: &str,
        labels: [&str; N],
        samples: impl IntoIterator<Item = ([&'l str; N], f64)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let kind = match kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
        };
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        for (values, value) in samples {
            self.0.push_str(name);
            for (place, (label, text)) in labels.iter().zip(values).enumerate() {
                let open = if place == 0 { '{' } else { ',' };
                self.line(format_args!("{open}{label}=\"{}\"", escaped(text)));
            }
            let close = if N == 0 { "" } else { "}" };
            self.line(format_args!("{close} {value}\n"));
        }
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        self.0
            .write_fmt(text)
            .expect("writing to a String never fails");
    }

    /// The text.
    pub fn finish(self) -> String {
        self.0
    }
}

/// A label's value as the format wants it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// Packets of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// How many.
    pub packets: u64,
    /// How large together, in bytes.
    pub bytes: u64,
}

/// The numbers of a node's networks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OverlayMetrics {
    /// Version of the network state that is in force.
    pub applied: Version,
    /// Newest version that the managers have sent.
    pub wanted: Version,
    /// The peers, in the order of their ids.
    pub peers: Vec<PeerCheck>,
    /// What was dropped, by reason.
    pub drops: BTreeMap<String, Traffic>,
    /// Containers attached.
    pub containers: u64,
    /// Questions for names; `None` when the resolver could not be asked.
    pub dns: Option<DnsCounters>,
}

impl OverlayMetrics {
    /// Writes them down.
    pub fn write(&self, out: &mut Exposition) {
        self.write_versions(out);
        self.write_peers(out);
        self.write_drops(out);
        if let Some(dns) = &self.dns {
            write_dns(dns, out);
        }
    }

    fn write_versions(&self, out: &mut Exposition) {
        out.family(
            MetricKind::Gauge,
            "shoal_network_containers",
            "Containers of this node that are in networks across hosts.",
            [],
            [([], self.containers as f64)],
        );
        let versions = [("applied", self.applied), ("wanted", self.wanted)];
        out.family(
            MetricKind::Gauge,
            "shoal_network_state_version",
            "Version of the network state: in force on this node (applied), newest from the managers (wanted).",
            ["state"],
            versions.map(|(state, version)| ([state], version.0 as f64)),
        );
    }

    fn write_peers(&self, out: &mut Exposition) {
        type Value = fn(&PeerCheck) -> Option<f64>;
        let families: [(MetricKind, &str, &str, Value); 9] = [
            (
                MetricKind::Counter,
                "shoal_peer_receive_bytes_total",
                "Bytes received from the peer through the mesh.",
                |p| Some(p.rx_bytes as f64),
            ),
            (
                MetricKind::Counter,
                "shoal_peer_transmit_bytes_total",
                "Bytes sent to the peer through the mesh.",
                |p| Some(p.tx_bytes as f64),
            ),
            (
                MetricKind::Gauge,
                "shoal_peer_last_handshake_seconds",
                "Time since the last WireGuard handshake with the peer.",
                |p| p.handshake_age_ms.map(|ms| ms as f64 / 1e3),
            ),
            (
                MetricKind::Gauge,
                "shoal_peer_rtt_seconds",
                "Median round trip of the latest probes of the peer.",
                |p| p.rtt_p50_us.map(|us| us as f64 / 1e6),
            ),
            (
                MetricKind::Gauge,
                "shoal_peer_rtt_last_seconds",
                "Round trip of the last probe that the peer answered.",
                |p| p.rtt_last_us.map(|us| us as f64 / 1e6),
            ),
            (
                MetricKind::Counter,
                "shoal_peer_probes_total",
                "Probes sent to the peer.",
                |p| Some(p.probes_sent as f64),
            ),
            (
                MetricKind::Counter,
                "shoal_peer_probe_answers_total",
                "Probes that the peer answered.",
                |p| Some(p.probes_answered as f64),
            ),
            (
                MetricKind::Gauge,
                "shoal_peer_suspect",
                "1 if the peer does not answer, so that its tasks get no new connections from this node.",
                |p| Some(f64::from(u8::from(p.suspect))),
            ),
            (
                MetricKind::Gauge,
                "shoal_peer_mtu_bytes",
                "MTU towards the peer.",
                |p| Some(f64::from(p.mtu)),
            ),
        ];
        let peers: Vec<_> = self
            .peers
            .iter()
            .map(|peer| (peer.node_id.to_string(), peer))
            .collect();
        for (kind, name, help, value) in families {
            let samples = peers
                .iter()
                .filter_map(|(id, peer)| Some(([id.as_str(), peer.name.as_str()], value(peer)?)));
            out.family(kind, name, help, ["peer_id", "peer"], samples);
        }
    }

    fn write_drops(&self, out: &mut Exposition) {
        let packets = self
            .drops
            .iter()
            .map(|(reason, t)| ([reason.as_str()], t.packets as f64));
        out.family(
            MetricKind::Counter,
            "shoal_network_dropped_packets_total",
            "Packets that the rules of the networks dropped, by reason.",
            ["reason"],
            packets,
        );
        let bytes = self
            .drops
            .iter()
            .map(|(reason, t)| ([reason.as_str()], t.bytes as f64));
        out.family(
            MetricKind::Counter,
            "shoal_network_dropped_bytes_total",
            "Bytes of these packets.",
            ["reason"],
            bytes,
        );
    }
}

fn write_dns(dns: &DnsCounters, out: &mut Exposition) {
    let results = [
        ("answered", dns.answered),
        ("empty", dns.empty),
        ("unknown", dns.unknown),
        ("forwarded", dns.forwarded),
        ("failed", dns.failed),
        ("refused", dns.refused),
        ("malformed", dns.malformed),
    ];
    out.family(
        MetricKind::Counter,
        "shoal_dns_queries_total",
        "Questions of containers for names, by what became of them.",
        ["result"],
        results.map(|(result, count)| ([result], count as f64)),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::PeerPath;
    use shoal_model::NodeId;

    fn metrics() -> OverlayMetrics {
        let peer = PeerCheck {
            node_id: NodeId::from_bits(7),
            name: "a \"b\"\\".to_owned(),
            path: PeerPath::Direct,
            endpoint: None,
            handshake_age_ms: Some(1_500),
            rtt_last_us: None,
            rtt_p50_us: Some(250),
            mtu: 1420,
            rx_bytes: 1 << 53,
            tx_bytes: 0,
            probes_sent: 9,
            probes_answered: 8,
            suspect: true,
        };
        let drop = Traffic {
            packets: 3,
            bytes: 180,
        };
        OverlayMetrics {
            applied: Version(41),
            wanted: Version(42),
            peers: vec![peer],
            drops: [("spoofed".to_owned(), drop)].into(),
            containers: 2,
            dns: Some(DnsCounters {
                answered: 5,
                ..DnsCounters::default()
            }),
        }
    }

    fn text() -> String {
        let mut out = Exposition::new();
        metrics().write(&mut out);
        out.finish()
    }

    #[test]
    fn samples_have_their_labels_and_units() {
        let text = text();
        let peer = r#"{peer_id="0000000000000000000000007",peer="a \"b\"\\"}"#;
        for line in [
            "shoal_network_state_version{state=\"applied\"} 41".to_owned(),
            "shoal_network_state_version{state=\"wanted\"} 42".to_owned(),
            "shoal_network_containers 2".to_owned(),
            format!("shoal_peer_last_handshake_seconds{peer} 1.5"),
            format!("shoal_peer_rtt_seconds{peer} 0.00025"),
            format!("shoal_peer_receive_bytes_total{peer} 9007199254740992"),
            format!("shoal_peer_suspect{peer} 1"),
            "shoal_network_dropped_packets_total{reason=\"spoofed\"} 3".to_owned(),
            "shoal_dns_queries_total{result=\"answered\"} 5".to_owned(),
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        assert!(!text().contains("shoal_peer_rtt_last_seconds"));
        let mut out = Exposition::new();
        OverlayMetrics::default().write(&mut out);
        let text = out.finish();
        assert!(
            !text.contains("shoal_peer_") && !text.contains("shoal_dns_"),
            "{text}"
        );
    }

    #[test]
    fn every_family_is_described_once_and_before_its_samples() {
        let mut described = std::collections::BTreeSet::new();
        for line in text().lines() {
            let mut words = line.split(' ');
            if line.starts_with("# TYPE") {
                assert!(described.insert(words.nth(2).unwrap().to_owned()), "{line}");
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().unwrap();
                assert!(described.contains(name), "{line}");
            }
        }
        assert_eq!(described.len(), 13);
    }
}
