//! Renews the node's certificate while it runs: at a random point of 50 to 80 % of its life, or when told to.

use crate::files::IdentityFiles;
use crate::identity::{Identity, IdentityHandle};
use shoal_model::Timestamp;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tracing::{error, info, warn};

/// Longest wait between two looks at the wall clock, which may be set while the loop waits.
const LOOK_PERIOD: Duration = Duration::from_secs(600);

/// Wait after the first failed attempt; doubles up to [`RETRY_DELAY_MAX`].
const RETRY_DELAY_MIN: Duration = Duration::from_millis(500);

/// Longest wait between two attempts.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(60);

/// Shortest time between two renewals that nobody asked for: a node whose clock is far ahead must not spin.
const RENEWAL_PERIOD_MIN: Duration = Duration::from_secs(60);

/// The earliest part of a certificate's life at which it is renewed.
const RENEW_FROM: f64 = 0.5;

/// The latest.
const RENEW_UNTIL: f64 = 0.8;

/// Asks a running renewal loop for a new certificate at once: the node's role has changed.
#[derive(Debug, Clone, Default)]
pub struct RenewalHandle(Arc<Notify>);

impl RenewalHandle {
    /// A handle to pass to [`run`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Renew now. Requests that come before the loop looks are one.
    pub fn renew_now(&self) {
        self.0.notify_one();
    }
}

/// What the loop needs from its surroundings.
#[derive(Debug)]
pub struct RenewalContext<C, R> {
    /// Whose certificate.
    pub identity: IdentityHandle,
    /// Where it is stored.
    pub files: IdentityFiles,
    /// Wakes the loop.
    pub handle: RenewalHandle,
    /// The wall clock.
    pub now: C,
    /// Draws a number from 0 to 1.
    pub random: R,
}

/// When to renew a certificate, for a random number `draw` from 0 to 1.
pub fn due(identity: &Identity, draw: f64) -> Timestamp {
    let issued = identity.issued_at();
    let life = identity.not_after().since(issued);
    let part = RENEW_FROM + (RENEW_UNTIL - RENEW_FROM) * draw.clamp(0.0, 1.0);
    issued.plus(life.mul_f64(part))
}

/// Runs until it is dropped. `renew` asks the managers for a new certificate; a failure is retried with back-off.
pub async fn run<C, R, F, Fut, E>(mut context: RenewalContext<C, R>, renew: F)
where
    C: Fn() -> Timestamp,
    R: FnMut() -> f64,
    F: Fn(Identity) -> Fut,
    Fut: Future<Output = Result<Identity, E>>,
    E: std::error::Error + 'static,
{
    let mut changes = context.identity.subscribe();
    let mut not_before = Timestamp(0);
    loop {
        let Some(identity) = changes.borrow_and_update().clone() else {
            if changes.changed().await.is_err() {
                return;
            }
            continue;
        };
        let due = due(&identity, (context.random)()).max(not_before);
        if !wait_until(&context, &mut changes, due).await {
            continue;
        }
        renew_until_done(&context, &renew).await;
        not_before = (context.now)().plus(RENEWAL_PERIOD_MIN);
    }
}

/// Waits for `due` or a request; false when the identity has changed meanwhile.
async fn wait_until<C: Fn() -> Timestamp, R>(
    context: &RenewalContext<C, R>,
    changes: &mut tokio::sync::watch::Receiver<Option<Identity>>,
    due: Timestamp,
) -> bool {
    loop {
        let left = due.since((context.now)());
        if left.is_zero() {
            return true;
        }
        tokio::select! {
            () = tokio::time::sleep(left.min(LOOK_PERIOD)) => {}
            () = context.handle.0.notified() => return true,
            _ = changes.changed() => return false,
        }
    }
}

async fn renew_until_done<C, R, F, Fut, E>(context: &RenewalContext<C, R>, renew: &F)
where
    C: Fn() -> Timestamp,
    F: Fn(Identity) -> Fut,
    Fut: Future<Output = Result<Identity, E>>,
    E: std::error::Error + 'static,
{
    let mut delay = RETRY_DELAY_MIN;
    while let Some(old) = context.identity.current() {
        match renew(old).await {
            Ok(new) => {
                if let Err(err) = context.files.store(&new) {
                    // The new certificate is good for this process; after a restart the old one is used.
                    error!(
                        err = &err as &dyn std::error::Error,
                        "failed to store the renewed certificate"
                    );
                }
                info!(role = %new.role(), "certificate renewed");
                context.identity.swap(Some(new));
                return;
            }
            Err(err) => {
                warn!(
                    err = &err as &dyn std::error::Error,
                    "failed to renew the certificate"
                );
            }
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RETRY_DELAY_MAX);
    }
}
