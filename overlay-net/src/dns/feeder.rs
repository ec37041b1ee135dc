//! The daemon's side of names: keeps netd's table and its containers as they are to be.

use super::server::{DnsContainer, DnsCounters};
use super::table::{DnsTable, DnsUpdate};
use crate::netd::{Netd, NetdError, NetdReply, NetdRequest};
use crate::probe::Outlook;
use shoal_model::ContainerId;
use shoal_model::netstate::NetState;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How often a push is begun anew because netd was replaced meanwhile.
const PUSHES_MAX: usize = 5;

/// The names of this node's containers, as netd answers them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Names {
    netd: Netd,
    containers: Arc<Mutex<BTreeMap<ContainerId, DnsContainer>>>,
    told: Arc<tokio::sync::Mutex<Told>>,
}

/// What netd knows.
#[derive(Debug, Default)]
struct Told {
    table: DnsTable,
    /// The netd that knows it; `None`: nobody knows what netd knows.
    generation: Option<u64>,
}

impl Names {
    /// Nothing is said to netd yet.
    pub fn new(netd: Netd) -> Self {
        Self {
            netd,
            containers: Arc::default(),
            told: Arc::default(),
        }
    }

    /// Makes netd answer what `state` says: by the differences, or, to a netd that is new, everything, containers
    /// included.
    ///
    /// # Errors
    /// When netd does not take it. What it knows then is not known; the next update says everything.
    pub async fn update(&self, state: &NetState, outlook: &Outlook<'_>) -> Result<(), NetdError> {
        let table = DnsTable::of(state, outlook);
        let mut told = self.told.lock().await;
        let watch = self.netd.generation();
        for _ in 0..PUSHES_MAX {
            let generation = *watch.borrow();
            let is_new = told.generation != Some(generation);
            // A push that fails half-way, or is cancelled, leaves nothing to build on.
            told.generation = None;
            let update = match is_new {
                true => table.complete(),
                false => DnsUpdate {
                    complete: false,
                    changes: told.table.changes_to(&table),
                },
            };
            if is_new || !update.changes.is_empty() {
                self.netd.tell(NetdRequest::DnsTable(update)).await?;
            }
            if is_new {
                self.open_all().await?;
            }
            if *watch.borrow() == generation {
                told.table = table;
                told.generation = Some(generation);
                return Ok(());
            }
        }
        Err(NetdError::Lost)
    }

    /// Gives a container its resolver; again for one that has other networks now.
    ///
    /// # Errors
    /// When netd can't open it; the container has none then.
    pub async fn open(&self, container: DnsContainer) -> Result<(), NetdError> {
        let id = container.id;
        self.containers().insert(id, container.clone());
        let opened = self.netd.tell(NetdRequest::DnsOpen(container)).await;
        if opened.is_err() {
            self.containers().remove(&id);
        }
        opened
    }

    /// Takes a container's resolver away; harmless if it has none.
    ///
    /// # Errors
    /// When netd does not answer. A netd that comes after it will not know the container.
    pub async fn close(&self, id: ContainerId) -> Result<(), NetdError> {
        self.containers().remove(&id);
        self.netd.tell(NetdRequest::DnsClose(id)).await
    }

    /// Makes exactly `running` the containers that have a resolver: once after a start of the daemon.
    ///
    /// # Errors
    /// When netd does not answer.
    pub async fn reconcile(&self, running: Vec<DnsContainer>) -> Result<(), NetdError> {
        *self.containers() = running.into_iter().map(|one| (one.id, one)).collect();
        let NetdReply::DnsContainers(open) = self.netd.call(NetdRequest::DnsContainers).await?
        else {
            return Err(NetdError::Confused);
        };
        for id in open.into_iter().map(|container| container.id) {
            if !self.containers().contains_key(&id) {
                self.netd.tell(NetdRequest::DnsClose(id)).await?;
            }
        }
        self.open_all().await
    }

    /// What became of containers' questions.
    ///
    /// # Errors
    /// When netd does not answer.
    pub async fn counters(&self) -> Result<DnsCounters, NetdError> {
        match self.netd.call(NetdRequest::DnsCounters).await? {
            NetdReply::DnsCounters(counters) => Ok(counters),
            _ => Err(NetdError::Confused),
        }
    }

    /// Opens what is known. A container whose namespace is gone is ending; the others do not wait for it.
    async fn open_all(&self) -> Result<(), NetdError> {
        let all: Vec<_> = self.containers().values().cloned().collect();
        for container in all {
            let id = container.id;
            if !self.containers().contains_key(&id) {
                continue;
            }
            match self.netd.tell(NetdRequest::DnsOpen(container)).await {
                Ok(()) => {}
                Err(NetdError::Refused(err)) => {
                    tracing::warn!(container_id = %id, %err, "a container has no resolver");
                }
                Err(err) => return Err(err),
            }
            // It was closed while it was opened: its sockets would keep the namespace.
            if !self.containers().contains_key(&id) {
                self.netd.tell(NetdRequest::DnsClose(id)).await?;
            }
        }
        Ok(())
    }

    fn containers(&self) -> MutexGuard<'_, BTreeMap<ContainerId, DnsContainer>> {
        // Each change is one insertion or removal, so that the map is whole even if a holder panicked.
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
