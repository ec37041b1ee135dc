//! What every actor may use: the stores, the networks, the other actors.

use crate::disk::blocking;
use crate::error::{EngineError, ErrorKind, Result, chain};
use crate::event::Event;
use crate::event_bus::{self, EventBus};
use crate::network::overlay::Overlay;
use crate::network::{NetworkActor, Networks};
use crate::options::EngineOptions;
use crate::rootfs::{Layers, Root};
use crate::supervisor::Supervisor;
use crate::user::Accounts;
use crate::volume::VolumeActor;
use actix::Addr;
use shoal_image::{Image, ImageStore};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Images whose account files are remembered.
const ACCOUNTS_CACHED_MAX: usize = 64;

/// Shared by all actors.
pub(crate) struct Env {
    pub(crate) options: EngineOptions,
    /// The daemon's runtime: long work runs there, arbiters only coordinate.
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) images: ImageStore,
    pub(crate) networks: Networks,
    pub(crate) overlay: Overlay,
    pub(crate) addresses: Addr<NetworkActor>,
    pub(crate) volumes: Addr<VolumeActor>,
    pub(crate) events: Addr<EventBus>,
    pub(crate) supervisor: OnceLock<Addr<Supervisor>>,
    pub(crate) containers_dir: PathBuf,
    pub(crate) accounts: Mutex<BTreeMap<String, Arc<Accounts>>>,
}

impl Env {
    /// The supervisor; set once at the start.
    pub(crate) fn supervisor(&self) -> Result<&Addr<Supervisor>> {
        self.supervisor.get().ok_or(EngineError::ShuttingDown)
    }

    /// Tells the listeners.
    pub(crate) async fn publish(&self, event: Event) {
        event_bus::publish(&self.events, event).await;
    }

    /// The image with that id; containers keep theirs by a lease.
    pub(crate) fn image(&self, id: &str) -> Result<Image> {
        self.images.resolve(id).map_err(|err| EngineError::NoSuch {
            object: "image",
            name: format!("{id} ({})", chain(&err)),
        })
    }

    /// The unpacked layers of an image, top first.
    pub(crate) async fn lower(&self, image: &Image) -> Result<Vec<PathBuf>> {
        self.images
            .prepare_rootfs(image)
            .await
            .map(|layers| layers.lower)
            .map_err(|err| EngineError::Image {
                kind: ErrorKind::Internal,
                message: format!("failed to unpack image {}: {}", image.id, chain(&err)),
            })
    }

    /// The account files of a container. Those of the image are remembered; a container that has written below /etc is
    /// asked anew each time.
    pub(crate) async fn accounts(&self, image_id: &str, layers: Layers) -> Result<Arc<Accounts>> {
        let wrote_etc = layers
            .upper
            .as_ref()
            .is_some_and(|(upper, _)| upper.join("etc").symlink_metadata().is_ok());
        if !wrote_etc && let Some(known) = self.lock_accounts().get(image_id) {
            return Ok(Arc::clone(known));
        }
        let mut lower = layers.lower;
        if let (true, Some((upper, _))) = (wrote_etc, layers.upper) {
            lower.insert(0, upper);
        }
        let accounts = blocking("account lookup", move || {
            Root::mount(&Layers { lower, upper: None })?.accounts()
        })
        .await?;
        let accounts = Arc::new(accounts);
        if !wrote_etc {
            let mut cache = self.lock_accounts();
            if cache.len() >= ACCOUNTS_CACHED_MAX {
                cache.pop_first();
            }
            cache.insert(image_id.to_owned(), Arc::clone(&accounts));
        }
        Ok(accounts)
    }

    fn lock_accounts(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Accounts>>> {
        // Every change is one insertion or removal: the map is whole even if a holder panicked.
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
