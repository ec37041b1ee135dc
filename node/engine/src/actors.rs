//! What all actors share: arbiters, mailboxes, and the rule for panics.

use actix::{Actor, Addr, Arbiter, ArbiterHandle, Context, System};
use std::sync::mpsc;

/// Messages that an actor's mailbox holds before senders wait.
pub(crate) const MAILBOX_CAPACITY: usize = 64;
/// Threads that container actors share.
const CONTAINER_ARBITERS: usize = 2;

/// Declares a message and the type of its answer.
macro_rules! message {
    ($name:ty => $answer:ty) => {
        impl actix::Message for $name {
            type Result = $answer;
        }
    };
}
pub(crate) use message;

/// The threads on which actors live.
#[derive(Debug)]
pub(crate) struct Arbiters {
    system: System,
    /// Supervisor, images, volumes, networks, events.
    shared: ArbiterHandle,
    containers: Vec<ArbiterHandle>,
}

impl Arbiters {
    /// Starts the threads.
    pub(crate) fn start() -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(1);
        std::thread::Builder::new()
            .name("engine-system".to_owned())
            .spawn(move || {
                let runner = System::new();
                let arbiters = runner.block_on(async {
                    let containers = (0..CONTAINER_ARBITERS).map(|_| Arbiter::new().handle());
                    Self {
                        system: System::current(),
                        shared: Arbiter::new().handle(),
                        containers: containers.collect(),
                    }
                });
                if sender.send(arbiters).is_ok()
                    && let Err(err) = runner.run()
                {
                    tracing::error!(%err, "the actor system ended with an error");
                }
            })?;
        receiver
            .recv()
            .map_err(|_| std::io::Error::other("the actor system did not start"))
    }

    /// Starts an actor that there is one of.
    pub(crate) fn start_shared<A>(&self, actor: A) -> Addr<A>
    where
        A: Actor<Context = Context<A>> + Send,
    {
        A::start_in_arbiter(&self.shared, |_| actor)
    }

    /// Starts an actor among its equals; `key` spreads them.
    pub(crate) fn start_container<A>(&self, key: usize, actor: A) -> Addr<A>
    where
        A: Actor<Context = Context<A>> + Send,
    {
        A::start_in_arbiter(&self.containers[key % self.containers.len()], |_| actor)
    }

    /// Ends all threads.
    pub(crate) fn stop(&self) {
        self.system.stop();
    }
}

/// Ends the process when its owner is dropped by a panic.
///
/// A panic in a handler takes the arbiter and every actor on it, and nothing would start them again: the daemon would
/// live on, deaf. So it ends at once, is started again, and finds its containers by their shims.
#[derive(Debug, Default)]
pub(crate) struct AbortOnPanic(());

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("an actor panicked: the daemon ends");
            std::process::abort();
        }
    }
}
