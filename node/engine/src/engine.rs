//! The engine's start and end.

use crate::actors::Arbiters;
use crate::container::lifecycle::Start;
use crate::container::recover::{self, Found};
use crate::disk;
use crate::env::Env;
use crate::error::{EngineError, ErrorKind, Result, chain};
use crate::event_bus::EventBus;
use crate::host::{self, HostFacts};
use crate::images::ImageActor;
use crate::info::ContainerStatus;
use crate::network::overlay::Overlay;
use crate::network::{NetworkActor, Networks};
use crate::options::EngineOptions;
use crate::supervisor::{Adopt, Supervisor};
use crate::volume::{VolumeActor, VolumeDir};
use actix::Addr;
use shoal_image::{ImageStore, ImageStoreOptions};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

/// Everything that a handle leads to.
pub(crate) struct Engine {
    pub(crate) env: Arc<Env>,
    pub(crate) supervisor: Addr<Supervisor>,
    pub(crate) images: Addr<ImageActor>,
    pub(crate) facts: HostFacts,
    arbiters: Arc<Arbiters>,
}

impl Engine {
    pub(crate) async fn start(options: EngineOptions) -> Result<Self> {
        let containers_dir = options.data_root.join("containers");
        disk::create_dir_all(&containers_dir, 0o711)?;
        disk::create_dir_all(&options.run_root, 0o711)?;
        let images = open_images(&options).await?;
        let volume_dir = VolumeDir::open(options.data_root.join("volumes"))?;
        let volumes = volume_dir.load()?;
        let networks = Networks::open(&options)?;
        let facts = host::facts()?;

        let arbiters = Arbiters::start().map_err(EngineError::disk(
            "start threads for",
            "the engine's actors",
        ))?;
        let arbiters = Arc::new(arbiters);
        let events = arbiters.start_shared(EventBus::new());
        let runtime = tokio::runtime::Handle::current();
        // Addresses of running containers are taken into the allocator before it becomes an actor.
        let volumes = arbiters.start_shared(VolumeActor::new(volume_dir, volumes, events.clone()));
        let mut ipam = networks.ipam();
        let held = recover::held_addresses(&containers_dir);
        for (id, address) in held {
            ipam.adopt(address, id);
        }
        let env = Arc::new(Env {
            addresses: arbiters.start_shared(NetworkActor::new(ipam)),
            volumes,
            events: events.clone(),
            runtime: runtime.clone(),
            images: images.clone(),
            networks,
            overlay: Overlay::open(&options)?,
            supervisor: OnceLock::new(),
            containers_dir,
            accounts: Mutex::new(BTreeMap::new()),
            options,
        });
        let supervisor =
            arbiters.start_shared(Supervisor::new(Arc::clone(&env), Arc::clone(&arbiters)));
        if env.supervisor.set(supervisor.clone()).is_err() {
            return Err(EngineError::ShuttingDown);
        }
        let engine = Self {
            images: arbiters.start_shared(ImageActor::new(images, runtime, events)),
            env,
            supervisor,
            facts,
            arbiters,
        };
        engine.recover().await?;
        Ok(engine)
    }

    async fn recover(&self) -> Result<()> {
        let found = recover::recover(&self.env).await?;
        let running: Vec<_> = found
            .iter()
            .filter(|one| one.parts.shim.is_some())
            .map(|one| (one.parts.record.id, one.parts.state.lease.clone()))
            .collect();
        self.env.networks.reconcile(&running).await?;
        for one in &found {
            if one.parts.shim.is_none() {
                let id = one.parts.record.id;
                self.env
                    .addresses
                    .send(crate::network::ReleaseAddress(id))
                    .await?;
            }
        }
        for Found { parts, start } in found {
            let id = parts.record.id;
            let entry = self.supervisor.send(Adopt(parts)).await?;
            if start {
                self.env.runtime.spawn(async move {
                    match entry.address.send(Start).await {
                        Ok(Ok(())) => {}
                        Ok(Err(err)) => tracing::warn!(container_id = %id, err = chain(&err), "a container was not started again"),
                        Err(_) => tracing::debug!(container_id = %id, "the engine ended before a container was started again"),
                    }
                });
            }
        }
        Ok(())
    }

    /// Ends the actors; the shims go on.
    pub(crate) async fn stop(&self) {
        if let Err(err) = self.env.networks.delete_retired().await {
            // The next start of the engine finds them.
            tracing::warn!(err = chain(&err), "namespaces of ended containers are left");
        }
        self.arbiters.stop();
    }

    /// Counts containers by state: in all, running, paused, stopped.
    pub(crate) async fn counts(&self) -> Result<[usize; 4]> {
        let entries = self.supervisor.send(crate::supervisor::All).await?;
        let mut counts = [entries.len(), 0, 0, 0];
        for entry in entries {
            match entry.info().state.status {
                ContainerStatus::Running | ContainerStatus::Restarting => counts[1] += 1,
                ContainerStatus::Paused => counts[2] += 1,
                ContainerStatus::Created
                | ContainerStatus::Removing
                | ContainerStatus::Exited
                | ContainerStatus::Dead => {
                    counts[3] += 1;
                }
            }
        }
        Ok(counts)
    }
}

async fn open_images(options: &EngineOptions) -> Result<ImageStore> {
    let store = ImageStoreOptions {
        root: options.data_root.join("images"),
        insecure_registries: options.insecure_registries.clone(),
        ..ImageStoreOptions::default()
    };
    disk::blocking("image store", move || {
        ImageStore::open(store).map_err(|err| EngineError::Image {
            kind: ErrorKind::Internal,
            message: format!("failed to open the image store: {}", chain(&err)),
        })
    })
    .await
}
