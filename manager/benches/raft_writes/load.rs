//! The load: clients that write or read one value after the other, and what they measured.

use crate::managers::processor_time;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Bytes of a value.
pub(crate) const VALUE_BYTES: usize = 256;
/// Keys that clients write over and over.
pub(crate) const KEYS: u32 = 1_000;
/// Load before the clock starts.
const WARM_UP: Duration = Duration::from_secs(1);

/// What one run measured.
pub(crate) struct Measured {
    clients: u32,
    writes: usize,
    elapsed: Duration,
    p50: Duration,
    p99: Duration,
    /// Of all members together, and of the load generator.
    processor: (Duration, Duration),
}

impl Measured {
    /// Operations per second.
    pub(crate) fn rate(&self) -> f64 {
        self.writes as f64 / self.elapsed.as_secs_f64()
    }
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:>5} clients  {:>8.0} /s  p50 {:>8.2} ms  p99 {:>8.2} ms  processor {:>6.1} us each, and {:>5.1} us here",
            self.clients,
            self.rate(),
            self.p50.as_secs_f64() * 1e3,
            self.p99.as_secs_f64() * 1e3,
            self.processor.0.as_secs_f64() * 1e6 / self.writes as f64,
            self.processor.1.as_secs_f64() * 1e6 / self.writes as f64,
        )
    }
}

/// Runs `clients` of `write(client, value)` for `time`, after a warm-up, and looks what the members at `pids` use.
pub(crate) async fn run<F, Fut>(
    clients: u32,
    time: Duration,
    pids: &[u32],
    write: F,
) -> anyhow::Result<Measured>
where
    F: Fn(u32, String) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = anyhow::Result<()>> + Send,
{
    let counting = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for client in 0..clients {
        let (write, counting, stop) = (write.clone(), counting.clone(), stop.clone());
        tasks.push(tokio::spawn(async move {
            let mut latencies = Vec::new();
            let mut round = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let value = format!("{client}-{round}-{:x>width$}", "", width = VALUE_BYTES);
                let started = Instant::now();
                write(client, value[..VALUE_BYTES].to_owned()).await?;
                if counting.load(Ordering::Relaxed) {
                    latencies.push(started.elapsed());
                }
                round += 1;
            }
            anyhow::Ok(latencies)
        }));
    }
    tokio::time::sleep(WARM_UP).await;
    let used = || {
        let members = processor_time(pids.iter().copied());
        (members, processor_time(std::iter::once(std::process::id())))
    };
    counting.store(true, Ordering::Relaxed);
    let before = used();
    let started = Instant::now();
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let elapsed = started.elapsed();
    let after = used();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    latencies.sort_unstable();
    anyhow::ensure!(!latencies.is_empty(), "nothing was finished");
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    Ok(Measured {
        clients,
        writes: latencies.len(),
        elapsed,
        p50: at(0.5),
        p99: at(0.99),
        processor: (after.0 - before.0, after.1 - before.1),
    })
}
