//! How long the engine's part of a run takes. Run alone, in release: `-- bench`.

use crate::support::{Site, Test, block_on, shell};
use shoal_engine::{NetworkMode, WaitCondition};
use std::time::Instant;

pub(crate) const TESTS: &[Test] = &[("bench_run_and_remove", bench)];

/// Runs of each kind.
const ROUNDS: usize = 20;

fn bench() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        for mode in [NetworkMode::Bridge, NetworkMode::None, NetworkMode::Host] {
            let mut times = Vec::new();
            for _ in 0..ROUNDS {
                let mut config = shell("true");
                config.cmd = Some(vec!["true".to_owned()]);
                config.host.auto_remove = true;
                config.host.network_mode = mode.clone();
                let started = Instant::now();
                let id = engine.create(None, config).await.unwrap().id.to_string();
                let gone = engine
                    .wait_begin(&id, WaitCondition::Removed)
                    .await
                    .unwrap();
                let made = started.elapsed();
                engine.start_container(&id).await.unwrap();
                let running = started.elapsed();
                gone.await;
                times.push((started.elapsed(), made, running));
            }
            times.sort();
            println!(
                "{mode}: median total, created, started: {:?}",
                times[ROUNDS / 2]
            );
        }
        site.close(engine).await;
    });
}
