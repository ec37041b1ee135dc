//! Addresses that the managers have to get back, on disk until they have acknowledged it.

use super::overlay::Attacher;
use crate::disk::{self, Durability, blocking};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use shoal_model::ContainerId;
use shoal_model::rpc::ErrorCode;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Notify};

/// Longest time for the managers to answer; whoever asks them may try several, one after the other.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// First pause after a failure; it doubles with each.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Record(BTreeSet<ContainerId>);

#[derive(Debug, Default)]
struct Pending {
    containers: BTreeSet<ContainerId>,
    /// The one that the managers are being asked about.
    in_flight: Option<ContainerId>,
}

/// Containers that have left their networks, and whose addresses the managers have not taken back yet.
#[derive(Debug)]
pub(crate) struct Returns {
    path: PathBuf,
    pending: Mutex<Pending>,
    /// Something was added.
    added: Notify,
    /// A call has ended.
    answered: Notify,
}

impl Returns {
    /// Reads what an earlier engine left.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        disk::create_dir_all(dir, 0o700)?;
        let path = dir.join("give-back.json");
        let record = disk::read_record::<Record>(&path)?.unwrap_or_default();
        Ok(Self {
            path,
            pending: Mutex::new(Pending {
                containers: record.0,
                in_flight: None,
            }),
            added: Notify::new(),
            answered: Notify::new(),
        })
    }

    /// The addresses of this container are to be given back.
    pub(crate) async fn add(&self, container: ContainerId) -> Result<()> {
        let mut pending = self.pending.lock().await;
        if pending.containers.insert(container) {
            self.write(&pending).await?;
        }
        self.added.notify_one();
        Ok(())
    }

    /// The container starts again: it keeps its addresses. Waits for the end of a call about it that is under way, so
    /// that the managers hear of the start last.
    pub(crate) async fn cancel(&self, container: ContainerId) -> Result<()> {
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            // Registered before the look: an answer in between is not missed.
            answered.as_mut().enable();
            {
                let mut pending = self.pending.lock().await;
                if pending.in_flight != Some(container) {
                    if pending.containers.remove(&container) {
                        self.write(&pending).await?;
                    }
                    return Ok(());
                }
            }
            answered.await;
        }
    }

    /// The node has left its cluster: nobody waits for addresses any more.
    pub(crate) async fn clear(&self) -> Result<()> {
        let mut pending = self.pending.lock().await;
        pending.containers.clear();
        self.write(&pending).await
    }

    async fn write(&self, pending: &Pending) -> Result<()> {
        let (path, record) = (self.path.clone(), Record(pending.containers.clone()));
        // After a power cut no container runs, and recovery finds those that did.
        blocking("addresses to give back", move || {
            disk::write_record(&path, &record, Durability::Cached)
        })
        .await
    }

    /// Gives back for ever.
    pub(crate) async fn run(self: Arc<Self>, attacher: Arc<dyn Attacher>) {
        let mut pause = PAUSE_MIN;
        loop {
            let waiting: Vec<ContainerId> = {
                let pending = self.pending.lock().await;
                pending.containers.iter().copied().collect()
            };
            if waiting.is_empty() {
                self.added.notified().await;
                continue;
            }
            let mut failed = false;
            for container in waiting {
                failed |= !self.give_back(&*attacher, container).await;
            }
            if failed {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            } else {
                pause = PAUSE_MIN;
            }
        }
    }

    /// One attempt; whether the managers have the addresses back.
    async fn give_back(&self, attacher: &dyn Attacher, container: ContainerId) -> bool {
        {
            let mut pending = self.pending.lock().await;
            if !pending.containers.contains(&container) {
                return true;
            }
            pending.in_flight = Some(container);
        }
        let answer = tokio::time::timeout(ANSWER_MAX, attacher.detach(container)).await;
        let done = match answer {
            Ok(Ok(())) => true,
            Ok(Err(err)) if err.code == ErrorCode::NotFound => true,
            Ok(Err(err)) => {
                tracing::warn!(container_id = %container, %err, "addresses were not given back yet");
                false
            }
            Err(_) => {
                tracing::warn!(container_id = %container, "no manager has taken addresses back in time");
                false
            }
        };
        let mut pending = self.pending.lock().await;
        pending.in_flight = None;
        let changed = done && pending.containers.remove(&container);
        if changed && let Err(err) = self.write(&pending).await {
            tracing::warn!(
                err = crate::error::chain(&err),
                "the record of addresses to give back is out of date"
            );
        }
        drop(pending);
        self.answered.notify_waiters();
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use shoal_model::network::{Attachment, AttachmentWish};
    use shoal_model::rpc::RpcError;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Managers that can't be reached at first.
    #[derive(Default)]
    struct Managers {
        calls: AtomicU32,
        refuse_first: u32,
        hold: Option<Arc<Notify>>,
    }

    #[async_trait]
    impl Attacher for Managers {
        async fn attach(
            &self,
            _: ContainerId,
            _: &str,
            _: &[AttachmentWish],
        ) -> Result<Attachment, RpcError> {
            Err(RpcError::new(ErrorCode::Internal, "not asked for here"))
        }

        async fn detach(&self, _: ContainerId) -> Result<(), RpcError> {
            let call = self.calls.fetch_add(1, Ordering::SeqCst);
            if let Some(hold) = &self.hold {
                hold.notified().await;
            }
            if call < self.refuse_first {
                return Err(RpcError::new(ErrorCode::Unavailable, "no leader"));
            }
            Ok(())
        }
    }

    fn id(byte: u8) -> ContainerId {
        ContainerId::from_bytes([byte; 32])
    }

    fn on_disk(dir: &Path) -> BTreeSet<ContainerId> {
        Returns::open(dir).unwrap().pending.into_inner().containers
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_acknowledged_is_tried_again_also_by_the_next_engine() {
        let dir = tempfile::tempdir().unwrap();
        Returns::open(dir.path()).unwrap().add(id(1)).await.unwrap();
        assert_eq!(on_disk(dir.path()), BTreeSet::from([id(1)]));

        let returns = Arc::new(Returns::open(dir.path()).unwrap());
        let managers = Arc::new(Managers {
            refuse_first: 3,
            ..Managers::default()
        });
        let running = tokio::spawn(Arc::clone(&returns).run(managers.clone()));
        while !returns.pending.lock().await.containers.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        running.abort();
        assert_eq!(managers.calls.load(Ordering::SeqCst), 4);
        assert_eq!(on_disk(dir.path()), BTreeSet::new());
    }

    #[tokio::test]
    async fn a_start_waits_for_the_call_about_its_container_and_is_heard_last() {
        let dir = tempfile::tempdir().unwrap();
        let returns = Arc::new(Returns::open(dir.path()).unwrap());
        let hold = Arc::new(Notify::new());
        let managers = Arc::new(Managers {
            hold: Some(Arc::clone(&hold)),
            ..Managers::default()
        });
        returns.add(id(1)).await.unwrap();
        let running = tokio::spawn(Arc::clone(&returns).run(managers.clone()));
        while returns.pending.lock().await.in_flight.is_none() {
            tokio::task::yield_now().await;
        }
        // Another container is not held up.
        returns.cancel(id(2)).await.unwrap();
        let starting = tokio::spawn({
            let returns = Arc::clone(&returns);
            async move { returns.cancel(id(1)).await }
        });
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!starting.is_finished());
        hold.notify_one();
        starting.await.unwrap().unwrap();
        running.abort();
        assert_eq!(managers.calls.load(Ordering::SeqCst), 1);
    }
}
