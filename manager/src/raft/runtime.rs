//! Where Raft runs: in production on one thread of its own with real-time priority, in simulation on the caller's runtime.
//!
//! Elections are decided by timers of tens of milliseconds. On a machine whose cores are busy an ordinary thread gets
//! its turn hundreds of milliseconds late, so that a healthy leader would look dead. The control port's socket belongs
//! on the same thread: a heartbeat that waits in the transport is as late as one that was never sent.

use super::error::StartError;
use super::types::Rt;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityOsValue, ThreadPriorityValue,
    ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task;

/// Real-time priority of Raft's threads, of 1 to 99: above ordinary work, below the kernel's own threads.
const REALTIME_PRIORITY: u8 = 10;

/// A thread with a tokio runtime, for Raft and the sockets of the control port. Clones are the same thread; it ends
/// when [`RaftRuntime::stop`] is called or the last clone is dropped.
#[derive(Debug, Clone)]
pub struct RaftRuntime(Arc<Thread>);

#[derive(Debug)]
struct Thread {
    handle: Handle,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    join: Mutex<Option<JoinHandle<()>>>,
}

impl RaftRuntime {
    /// Starts the thread. Without the permission for real-time priority it runs at an ordinary one and says so in the
    /// log.
    ///
    /// # Errors
    /// [`StartError::Thread`] when the system gives no thread.
    pub fn start() -> Result<Self, StartError> {
        const NAME: &str = "shoal-raft";
        let fail = |err| StartError::Thread { name: NAME, err };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .on_thread_start(leave_realtime)
            .build()
            .map_err(fail)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let join = std::thread::Builder::new()
            .name(NAME.to_owned())
            .spawn(move || {
                enter_realtime(NAME);
                // An error means that every handle is gone, which is an order to stop as well.
                drop(runtime.block_on(stopped));
                runtime.shutdown_background();
            })
            .map_err(fail)?;
        Ok(Self(Arc::new(Thread {
            handle,
            stop: Mutex::new(Some(stop)),
            join: Mutex::new(Some(join)),
        })))
    }

    /// For spawning onto the thread: bind the control port's endpoint there.
    pub fn handle(&self) -> &Handle {
        &self.0.handle
    }

    /// Ends the thread and everything that runs on it, and waits for that. Not to be called on the thread itself.
    pub fn stop(&self) {
        drop(
            self.0
                .stop
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let join = self
            .0
            .join
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(join) = join
            && join.join().is_err()
        {
            tracing::error!("the Raft thread panicked");
        }
    }
}

/// Where the parts of one Raft member run.
#[derive(Debug, Clone)]
pub enum Placement {
    /// On threads: Raft on this one, the log on its own, large work on the caller's runtime.
    Threads(RaftRuntime),
    /// Everything on the caller's runtime, and nothing on a thread: for simulation.
    Caller,
}

/// Spawns onto the right place, with a seed that makes Raft's random numbers repeatable.
#[derive(Debug, Clone)]
pub(crate) struct Executor {
    placement: Placement,
    /// The caller's runtime.
    caller: Handle,
    seed: Arc<AtomicU64>,
}

impl Executor {
    /// An executor for the runtime that this is called on.
    pub(crate) fn new(placement: Placement, seed: u64) -> Self {
        Self {
            placement,
            caller: Handle::current(),
            seed: Arc::new(AtomicU64::new(seed)),
        }
    }

    /// Whether threads may be used.
    pub(crate) fn has_threads(&self) -> bool {
        match self.placement {
            Placement::Threads(_) => true,
            Placement::Caller => false,
        }
    }

    /// Runs a future where Raft runs.
    pub(crate) fn spawn<F>(&self, future: F) -> task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let seed = self
            .seed
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let future = Rt::scope(seed, future);
        match &self.placement {
            Placement::Threads(runtime) => runtime.handle().spawn(future),
            Placement::Caller => self.caller.spawn(future),
        }
    }

    /// Starts a thread beside Raft's, with its priority.
    pub(crate) fn start_thread(
        &self,
        name: &'static str,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), StartError> {
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                enter_realtime(name);
                run();
            })
            .map(drop)
            .map_err(|err| StartError::Thread { name, err })
    }

    /// Runs work that takes long away from Raft's thread, at ordinary priority.
    pub(crate) async fn heavy<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        if !self.has_threads() {
            return work();
        }
        // Through a task on the caller's runtime: a thread inherits the priority of the one that starts it.
        let done = self
            .caller
            .spawn(async move { task::spawn_blocking(work).await });
        done.await
            .map_err(io::Error::other)?
            .map_err(io::Error::other)?
    }
}

fn enter_realtime(name: &'static str) {
    let priority =
        ThreadPriorityValue::try_from(REALTIME_PRIORITY).map(ThreadPriority::Crossplatform);
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    let set = priority
        .map_err(|err| format!("{err:?}"))
        .and_then(|priority| {
            set_thread_priority_and_policy(thread_native_id(), priority, policy)
                .map_err(|err| format!("{err:?}"))
        });
    if let Err(err) = set {
        tracing::warn!(
            thread = name,
            %err,
            "no real-time priority for Raft: under load, elections may happen without need"
        );
    }
}

/// Helper threads of the runtime are started by the real-time thread and would inherit its priority.
fn leave_realtime() {
    let policy = ThreadSchedulePolicy::Normal(thread_priority::NormalThreadSchedulePolicy::Other);
    // The system's value zero: not nicer than others, and not less.
    let nice_zero = ThreadPriority::Os(ThreadPriorityOsValue::default());
    let set = set_thread_priority_and_policy(thread_native_id(), nice_zero, policy);
    if let Err(err) = set {
        tracing::debug!(?err, "a helper thread keeps the priority of its parent");
    }
}
