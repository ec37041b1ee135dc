//! Placements per second by cluster size: `cargo bench -p shoal-scheduler`.
//!
//! Tasks arrive in batches of one service each, until the cluster holds as many as the shape says. The last column is
//! the rate of the last tenth over that of the first tenth: placement must not slow down as the cluster fills.

use shoal_model::spec::{Placement, TaskSpec};
use shoal_model::{
    Labels, Meta, Node, NodeDescription, NodeId, NodeRole, NodeSpec, NodeState, NodeStatus,
    Resources, ServiceId, TaskId, Timestamp,
};
use shoal_scheduler::{Cluster, TaskRequest, schedule};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SHAPES: [(usize, usize); 3] = [(1_000, 10_000), (5_000, 100_000), (10_000, 1_000_000)];
/// Each line is the median of so many runs.
const RUNS: usize = 5;
const TASKS_PER_SERVICE: [usize; 3] = [1_000, 100, 1];

fn node(number: usize) -> Node {
    let zone = format!("zone-{}", number % 10);
    let disk = if number.is_multiple_of(2) {
        "ssd"
    } else {
        "hdd"
    };
    Node {
        id: NodeId::from_bits(number as u128),
        meta: Meta::default(),
        spec: NodeSpec {
            labels: Labels::from([
                ("zone".to_owned(), zone),
                ("disk".to_owned(), disk.to_owned()),
            ]),
            ..NodeSpec::default()
        },
        description: Some(NodeDescription {
            hostname: format!("node-{number}"),
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            resources: Resources {
                nano_cpus: 1_000_000_000_000,
                memory_bytes: 1 << 42,
            },
            ..NodeDescription::default()
        }),
        status: NodeStatus {
            state: NodeState::Ready,
            ..NodeStatus::default()
        },
        role: NodeRole::Worker,
        manager: None,
        public_key_digest: [0; 32],
        hold_until: None,
        mesh: None,
    }
}

fn spec(constrained: bool) -> Arc<TaskSpec> {
    let mut spec = TaskSpec::default();
    if constrained {
        spec.placement = Placement {
            constraints: vec![
                "node.labels.disk == ssd".to_owned(),
                "node.labels.zone != zone-3".to_owned(),
            ],
            ..Placement::default()
        };
        spec.resources.reservations = Resources {
            nano_cpus: 1_000_000,
            memory_bytes: 1 << 20,
        };
    }
    Arc::new(spec)
}

fn batch(from: usize, count: usize, spec: &Arc<TaskSpec>) -> Vec<TaskRequest> {
    (0..count)
        .map(|offset| TaskRequest {
            task_id: TaskId::from_bits(
                ((from + offset) as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            ),
            service_id: ServiceId::from_bits(from as u128),
            service_name: "bench".to_owned(),
            slot: offset as u64 + 1,
            spec_version: 1,
            spec: Arc::clone(spec),
            host_ports: Vec::new(),
            networked: false,
            node_id: None,
        })
        .collect()
}

/// Placements per second, and the rate of the last tenth over that of the first.
fn measure(nodes: usize, tasks: usize, per_service: usize, constrained: bool) -> (f64, f64) {
    let mut cluster = Cluster::new();
    for number in 0..nodes {
        cluster.upsert_node(&node(number));
    }
    let spec = spec(constrained);
    let mut tenths = [Duration::ZERO; 10];
    for from in (0..tasks).step_by(per_service) {
        let requests = batch(from, per_service, &spec);
        let start = Instant::now();
        let plan = schedule(&mut cluster, &requests, Timestamp(0));
        tenths[from * 10 / tasks] += start.elapsed();
        assert_eq!(plan.placements.len(), per_service, "every task fits");
    }
    let total: Duration = tenths.iter().sum();
    (
        tasks as f64 / total.as_secs_f64(),
        tenths[0].as_secs_f64() / tenths[9].as_secs_f64(),
    )
}

fn median(mut values: [f64; RUNS]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[RUNS / 2]
}

fn main() {
    println!("  nodes     tasks per service constraints placements/s last/first");
    for (nodes, tasks) in SHAPES {
        for per_service in TASKS_PER_SERVICE {
            for constrained in [false, true] {
                let runs = [(); RUNS].map(|()| measure(nodes, tasks, per_service, constrained));
                println!(
                    "{nodes:>7} {tasks:>9} {per_service:>11} {:>11} {:>14.0} {:>10.2}",
                    if constrained { "yes" } else { "no" },
                    median(runs.map(|run| run.0)),
                    median(runs.map(|run| run.1)),
                );
            }
        }
    }
}
