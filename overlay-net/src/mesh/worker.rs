//! The loop that keeps the device as the plan says.

use super::MeshError;
use super::backend::Backend;
use super::keys::Keys;
use super::paths::{Paths, difference};
use super::types::{MeshOptions, MeshPeerStatus, MeshPlan, device_name};
use crate::netd::{DevicePeer, DeviceSpec, DeviceStatus, PeerUpdate};
use shoal_model::network::WireGuardDescription;
use shoal_model::{NodeId, Version};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

/// How often peers are looked after.
const TICK: Duration = Duration::from_secs(1);
/// The same while a peer changes its key, and the device can't see by itself when.
const TICK_DURING_CHANGE: Duration = Duration::from_millis(100);

type Answer<T> = oneshot::Sender<Result<T, MeshError>>;

/// What the worker is asked.
pub(super) enum Message {
    Plan(MeshPlan, Answer<()>),
    Confirmed(Version),
    Rotate(Answer<()>),
    Peers(Answer<Vec<MeshPeerStatus>>),
    Drops(Answer<BTreeMap<String, u64>>),
    Leave(Answer<()>),
}

pub(super) struct Worker {
    options: MeshOptions,
    keys: Keys,
    backend: Backend,
    port: u16,
    plan: Option<MeshPlan>,
    paths: Paths,
    /// What the device was told; `None`: nothing since it was made, or nobody knows.
    told: Option<BTreeMap<NodeId, DevicePeer>>,
    /// The first version of the state that tells the next key to the peers.
    announced_in: Option<Version>,
    confirmed: Version,
    description: watch::Sender<WireGuardDescription>,
    made: watch::Sender<u64>,
    netd: watch::Receiver<u64>,
    left: bool,
}

type Started = (
    Worker,
    watch::Receiver<WireGuardDescription>,
    watch::Receiver<u64>,
);

impl Worker {
    pub(super) async fn start(options: MeshOptions) -> Result<Started, MeshError> {
        let (dir, netd) = (options.certs_dir.clone(), options.netd.generation());
        let keys = blocking(move || Keys::load(&dir).map_err(MeshError::from)).await?;
        let mut backend = Backend::choose(&options, &device_name(&options.instance)).await?;
        let port = make_device(&mut backend, &options, &keys).await?;
        let (description, described) = watch::channel(WireGuardDescription {
            public_key: keys.public_key(),
            next_key: keys.next_public_key(),
            port,
            backend: backend.kind(),
        });
        let (made, made_anew) = watch::channel(1);
        let mut worker = Self {
            options,
            keys,
            backend,
            port,
            plan: None,
            paths: Paths::default(),
            told: None,
            announced_in: None,
            confirmed: Version::default(),
            description,
            made,
            netd,
            left: false,
        };
        worker.netd.mark_unchanged();
        worker.remember_port(port).await?;
        Ok((worker, described, made_anew))
    }

    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        loop {
            let tick = if self.awaits_change() {
                TICK_DURING_CHANGE
            } else {
                TICK
            };
            let mut timer = tokio::time::interval_at(tokio::time::Instant::now() + tick, tick);
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
            tokio::select! {
                message = queue.recv() => match message {
                    Some(message) => self.take(message).await,
                    None => return,
                },
                Ok(()) = self.netd.changed(), if self.backend.is_userspace() => self.remake().await,
                _ = timer.tick() => self.look_after().await,
            }
        }
    }

    async fn take(&mut self, message: Message) {
        // An answer that nobody waits for any more is dropped.
        match message {
            Message::Plan(plan, answer) => drop(answer.send(self.follow(plan).await)),
            Message::Confirmed(version) => self.confirm(version).await,
            Message::Rotate(answer) => drop(answer.send(self.prepare_key().await)),
            Message::Peers(answer) => drop(answer.send(self.peers().await)),
            Message::Drops(answer) => {
                let status = self.backend.status().await;
                drop(answer.send(status.map(|status| status.drops)));
            }
            Message::Leave(answer) => {
                self.left = true;
                self.told = None;
                drop(answer.send(self.backend.remove().await));
            }
        }
    }

    async fn follow(&mut self, plan: MeshPlan) -> Result<(), MeshError> {
        if self.left {
            self.left = false;
            self.restore().await?;
        }
        self.paths.follow(&plan, Instant::now());
        let announced = plan.own.and_then(|own| own.next_key);
        let next = self.keys.next_public_key();
        if next.is_none() || announced != next {
            self.announced_in = None;
        } else if self.announced_in.is_none() {
            self.announced_in = Some(plan.version);
        }
        self.plan = Some(plan);
        self.tell().await?;
        self.switch_if_known().await
    }

    /// Tells the device what differs from what it was told.
    async fn tell(&mut self) -> Result<(), MeshError> {
        let Some(plan) = &self.plan else {
            return Ok(());
        };
        let wanted = self.paths.device_peers(plan);
        let update = match &self.told {
            Some(told) => difference(told, &wanted),
            None => PeerUpdate {
                complete: true,
                set: wanted.clone(),
                ..PeerUpdate::default()
            },
        };
        if !update.is_empty() {
            // Until it succeeded nobody knows what is in force.
            self.told = None;
            self.backend.set_peers(update).await?;
        }
        self.told = Some(wanted);
        Ok(())
    }

    async fn confirm(&mut self, version: Version) {
        self.confirmed = self.confirmed.max(version);
        if let Err(err) = self.switch_if_known().await {
            let err = crate::netd::chain(&err);
            tracing::error!(err, "the node's WireGuard key could not be changed");
        }
    }

    /// Uses the next key once every node knows it.
    async fn switch_if_known(&mut self) -> Result<(), MeshError> {
        if self
            .announced_in
            .is_none_or(|version| self.confirmed < version)
        {
            return Ok(());
        }
        self.announced_in = None;
        // The file first: a key that was used is never forgotten.
        self.keep_keys(Keys::switch).await?;
        self.describe();
        make_device(&mut self.backend, &self.options, &self.keys).await?;
        tracing::info!("the node uses its new WireGuard key");
        Ok(())
    }

    async fn prepare_key(&mut self) -> Result<(), MeshError> {
        self.keep_keys(Keys::prepare).await?;
        self.describe();
        Ok(())
    }

    /// Changes the key file, which is synced to the disk.
    async fn keep_keys(
        &mut self,
        change: impl FnOnce(&mut Keys) -> Result<(), super::KeyError> + Send + 'static,
    ) -> Result<(), MeshError> {
        let mut keys = self.keys.clone();
        self.keys = blocking(move || {
            change(&mut keys)?;
            Ok(keys)
        })
        .await?;
        Ok(())
    }

    async fn remember_port(&mut self, port: u16) -> Result<(), MeshError> {
        self.port = port;
        if self.keys.record().port != port {
            self.keep_keys(move |keys| keys.set_port(port)).await?;
        }
        Ok(())
    }

    fn describe(&self) {
        let (public_key, next_key) = (self.keys.public_key(), self.keys.next_public_key());
        let port = self.port;
        self.description.send_if_modified(|description| {
            let new = WireGuardDescription {
                public_key,
                next_key,
                port,
                ..description.clone()
            };
            let changed = *description != new;
            *description = new;
            changed
        });
    }

    /// netd is a new one: it knows nothing.
    async fn remake(&mut self) {
        if self.left {
            return;
        }
        if let Err(err) = self.restore().await {
            let err = crate::netd::chain(&err);
            tracing::error!(err, "the WireGuard device could not be restored");
        }
    }

    async fn restore(&mut self) -> Result<(), MeshError> {
        self.told = None;
        let port = make_device(&mut self.backend, &self.options, &self.keys).await?;
        self.remember_port(port).await?;
        self.describe();
        self.made.send_modify(|made| *made += 1);
        self.tell().await
    }

    async fn look_after(&mut self) {
        if self.left || self.plan.is_none() {
            return;
        }
        let looked = match self.backend.status().await {
            Ok(status) => {
                self.observe(&status);
                self.tell().await
            }
            Err(err) => Err(err),
        };
        if let Err(err) = looked {
            let err = crate::netd::chain(&err);
            tracing::warn!(err, "the WireGuard device could not be looked after");
        }
    }

    fn observe(&mut self, status: &DeviceStatus) {
        if let Some(plan) = &self.plan {
            self.paths.observe(plan, status, Instant::now());
        }
    }

    fn awaits_change(&self) -> bool {
        let told = self.told.iter().flat_map(|told| told.values());
        !self.backend.is_userspace() && told.into_iter().any(|peer| peer.next_key.is_some())
    }

    async fn peers(&mut self) -> Result<Vec<MeshPeerStatus>, MeshError> {
        let status = self.backend.status().await?;
        self.observe(&status);
        let peers = status.peers.into_iter();
        Ok(peers
            .map(|(node_id, peer)| MeshPeerStatus {
                node_id,
                path: self.paths.path(node_id),
                endpoint: peer.endpoint,
                handshake_age: peer.handshake_age_ms.map(Duration::from_millis),
                rx_bytes: peer.rx_bytes,
                tx_bytes: peer.tx_bytes,
            })
            .collect())
    }
}

/// Makes the device with the key in use, or gives it that key; answers its port.
async fn make_device(
    backend: &mut Backend,
    options: &MeshOptions,
    keys: &Keys,
) -> Result<u16, MeshError> {
    let spec = |port| DeviceSpec {
        name: device_name(&options.instance),
        private_key: keys.record().current.clone(),
        port,
        mtu: options.mtu,
    };
    if options.port != 0 || keys.record().port == 0 {
        return backend.make(spec(options.port)).await;
    }
    // Any port will do, but peers know the last one.
    match backend.make(spec(keys.record().port)).await {
        Err(err) if err.is_address_in_use() => {
            tracing::info!(
                port = keys.record().port,
                "the last WireGuard port is taken"
            );
            backend.make(spec(0)).await
        }
        other => other,
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MeshError> + Send + 'static,
) -> Result<T, MeshError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(MeshError::Stopped),
    }
}
