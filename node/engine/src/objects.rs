//! The rest of the door: images, volumes, networks, events, facts.

use crate::error::{EngineError, ErrorKind, Result, chain};
use crate::event::Event;
use crate::event_bus;
use crate::handle::EngineHandle;
use crate::host;
use crate::images::{self, FindPull, JoinPull, PullRequest, image_error, image_event};
use crate::info::{Endpoint, EngineInfo, NetworkInfo, VolumeInfo};
use crate::list::{NamePatterns, labels_match};
use crate::mounts::VolumeWish;
use crate::requests::{EventFilter, Pruned, VolumeCreate};
use crate::supervisor::All;
use crate::volume::{EnsureVolume, GetVolume, ListVolumes, RemoveVolume, disk_usage};
use futures_util::stream::BoxStream;
use shoal_image::{
    Image, ImageStore, LoadedImage, Progress, ProgressSink, Reference, RegistryAuth, RegistryError,
    Removed,
};
use shoal_model::spec::Platform;
use shoal_model::{ContainerId, Timestamp};
use std::collections::BTreeMap;
use std::path::Path;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;

type Filters = BTreeMap<String, Vec<String>>;

/// Refuses unknown filters of a prune of containers; gives the time that `until` names.
pub(crate) fn prune_filters(filters: &Filters) -> Result<Option<Timestamp>> {
    check_keys(filters, &["label", "label!", "until"])?;
    let Some(text) = filters.get("until").and_then(|values| values.first()) else {
        return Ok(None);
    };
    crate::clock::parse_time(text)
        .map(Some)
        .ok_or_else(|| EngineError::invalid("filter", format!("until={text}: expected a time")))
}

fn check_keys(filters: &Filters, known: &[&str]) -> Result<()> {
    match filters.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(EngineError::invalid("filter", format!("'{key}'"))),
    }
}

fn reference(text: &str) -> Result<Reference> {
    Reference::parse(text).map_err(|err| EngineError::Image {
        kind: ErrorKind::InvalidArgument,
        message: crate::error::chain(&err),
    })
}

/// Images.
impl EngineHandle {
    /// The store itself, for readers.
    pub fn image_store(&self) -> &ImageStore {
        &self.engine.env.images
    }

    /// Fetches an image; the same image asked for twice at once is fetched once.
    ///
    /// # Errors
    /// The registry's answer, or why it can't be reached.
    pub async fn image_pull(
        &self,
        name: &str,
        platform: Platform,
        auth: Option<RegistryAuth>,
        progress: mpsc::Sender<Progress>,
    ) -> Result<Image> {
        let request = PullRequest {
            reference: reference(name)?,
            platform,
            auth,
        };
        let pull = self.engine.images.send(FindPull(request)).await?;
        let answer = pull.send(JoinPull(progress)).await?;
        answer.map_err(|(kind, message)| EngineError::Image { kind, message })
    }

    /// Asks a registry, `host[:port]`, whether it takes these credentials. `None`: it does; else its answer.
    ///
    /// # Errors
    /// The name is none, or the registry can't be asked.
    pub async fn registry_login(
        &self,
        registry: &str,
        auth: RegistryAuth,
    ) -> Result<Option<String>> {
        let reference = reference(&format!("{registry}/login"))?;
        match self.image_store().check_credentials(&reference, auth).await {
            Ok(()) => Ok(None),
            Err(err @ RegistryError::Denied { .. }) => Ok(Some(chain(&err))),
            Err(err) => Err(image_error(ErrorKind::Unavailable)(&err)),
        }
    }

    /// Takes in a docker-archive or OCI archive.
    ///
    /// # Errors
    /// What is wrong with the archive.
    pub async fn image_load(
        &self,
        tar: impl AsyncRead + Send + Unpin + 'static,
        progress: ProgressSink,
    ) -> Result<Vec<LoadedImage>> {
        let loaded = self.image_store().load(tar, progress).await;
        self.loaded(loaded.map_err(|err| image_error(ErrorKind::InvalidArgument)(&err))?)
            .await
    }

    /// Takes in an OCI layout directory of this machine.
    ///
    /// # Errors
    /// What is wrong with the directory.
    pub async fn image_load_layout(
        &self,
        dir: &Path,
        progress: ProgressSink,
    ) -> Result<Vec<LoadedImage>> {
        let loaded = self.image_store().load_layout(dir, progress).await;
        self.loaded(loaded.map_err(|err| image_error(ErrorKind::InvalidArgument)(&err))?)
            .await
    }

    async fn loaded(&self, images: Vec<LoadedImage>) -> Result<Vec<LoadedImage>> {
        for loaded in &images {
            let id = loaded.image.id.to_string();
            let name = loaded
                .names
                .first()
                .map_or_else(|| id.clone(), Reference::familiar);
            self.engine
                .env
                .publish(image_event("load", &id, &name))
                .await;
        }
        Ok(images)
    }

    /// Makes an image of a root file system.
    ///
    /// # Errors
    /// What is wrong with the archive, the name or a change.
    pub async fn image_import(
        &self,
        tar: impl AsyncRead + Send + Unpin + 'static,
        name: Option<&str>,
        changes: &[String],
        message: &str,
    ) -> Result<Image> {
        let name = name
            .filter(|name| !name.is_empty())
            .map(reference)
            .transpose()?;
        let imported = self.image_store().import(tar, name, changes, message).await;
        let image = imported.map_err(|err| image_error(ErrorKind::InvalidArgument)(&err))?;
        let id = image.id.to_string();
        self.engine
            .env
            .publish(image_event("import", &id, &id))
            .await;
        Ok(image)
    }

    /// Gives an image another name.
    ///
    /// # Errors
    /// An unknown image, a malformed name.
    pub async fn image_tag(&self, name: &str, new_name: &str) -> Result<()> {
        let image = self.image_inspect(name)?;
        let target = reference(new_name)?;
        let tagged = self.image_store().tag(&image.id, &target).await;
        tagged.map_err(|err| image_error(ErrorKind::InvalidArgument)(&err))?;
        let event = image_event("tag", &image.id.to_string(), &target.familiar());
        self.engine.env.publish(event).await;
        Ok(())
    }

    /// Takes a name away, and with the last one the image.
    ///
    /// # Errors
    /// When a container uses it.
    pub async fn image_remove(&self, name: &str, force: bool) -> Result<Vec<Removed>> {
        use shoal_image::RemoveError;
        let removed = match self.image_store().remove(name, force).await {
            Ok(removed) => removed,
            Err(RemoveError::Resolve(err)) => return Err(images::resolve_error(name, err)),
            Err(err @ (RemoveError::InUse { .. } | RemoveError::SeveralNames { .. })) => {
                return Err(image_error(ErrorKind::Conflict)(&err));
            }
            Err(err) => return Err(image_error(ErrorKind::Internal)(&err)),
        };
        for step in &removed {
            let (action, what) = match step {
                Removed::Untagged(name) => ("untag", name.clone()),
                Removed::Deleted(id) => ("delete", id.to_string()),
            };
            self.engine
                .env
                .publish(image_event(action, &what, &what))
                .await;
        }
        Ok(removed)
    }

    /// Every image.
    pub fn image_list(&self) -> Vec<Image> {
        self.image_store().list()
    }

    /// An image by name, id or unique prefix.
    ///
    /// # Errors
    /// An unknown image.
    pub fn image_inspect(&self, name: &str) -> Result<Image> {
        self.image_store()
            .resolve(name)
            .map_err(|err| images::resolve_error(name, err))
    }
}

/// Volumes.
impl EngineHandle {
    /// Makes a volume; an existing one of the same name is given back.
    ///
    /// # Errors
    /// A bad name, another driver, options that can't be honoured.
    pub async fn volume_create(&self, request: VolumeCreate) -> Result<VolumeInfo> {
        let VolumeCreate {
            name,
            driver,
            options,
            labels,
        } = request;
        let wish = VolumeWish {
            driver,
            options,
            labels,
        };
        self.engine
            .env
            .volumes
            .send(EnsureVolume {
                name,
                anonymous: false,
                wish,
            })
            .await?
    }

    /// A volume by name.
    ///
    /// # Errors
    /// An unknown volume.
    pub async fn volume_inspect(&self, name: &str) -> Result<VolumeInfo> {
        self.engine
            .env
            .volumes
            .send(GetVolume(name.to_owned()))
            .await?
    }

    /// Volumes by name; filters `name label dangling driver`.
    ///
    /// # Errors
    /// A bad filter.
    pub async fn volume_list(&self, filters: Filters) -> Result<Vec<VolumeInfo>> {
        check_keys(&filters, &["name", "label", "dangling", "driver"])?;
        let names = filters.get("name").map_or(&[][..], Vec::as_slice);
        let patterns = NamePatterns::parse(names)?;
        let mut volumes = self.engine.env.volumes.send(ListVolumes).await?;
        volumes.retain(|volume| {
            filters.iter().all(|(key, values)| match key.as_str() {
                "name" => patterns.matches(&volume.name),
                "label" => labels_match(&volume.labels, values),
                "driver" => values.contains(&volume.driver),
                _ => values.iter().any(|value| {
                    matches!(value.as_str(), "true" | "1") == volume.used_by.is_empty()
                }),
            })
        });
        Ok(volumes)
    }

    /// Removes a volume that nobody uses; with `force` a missing one is no error.
    ///
    /// # Errors
    /// When a container uses it.
    pub async fn volume_remove(&self, name: &str, force: bool) -> Result<()> {
        match self
            .engine
            .env
            .volumes
            .send(RemoveVolume(name.to_owned()))
            .await?
        {
            Err(EngineError::NoSuch { .. }) if force => Ok(()),
            other => other,
        }
    }

    /// Removes unused anonymous volumes; with filter `all=true` named ones too. Further filters: `label`, `label!`.
    ///
    /// # Errors
    /// A bad filter: `until` too, as in Docker, because nobody knows when a volume was last used.
    pub async fn volume_prune(&self, filters: Filters) -> Result<Pruned> {
        check_keys(&filters, &["label", "label!", "all"])?;
        let every = filters
            .get("all")
            .is_some_and(|values| values.iter().any(|v| matches!(v.as_str(), "true" | "1")));
        let mut pruned = Pruned::default();
        for volume in self.engine.env.volumes.send(ListVolumes).await? {
            let wanted = filters
                .get("label")
                .is_none_or(|values| labels_match(&volume.labels, values))
                && filters
                    .get("label!")
                    .is_none_or(|values| !labels_match(&volume.labels, values));
            if !volume.used_by.is_empty() || !(every || volume.anonymous) || !wanted {
                continue;
            }
            let path = volume.mountpoint.clone();
            let size = crate::disk::blocking("volume size", move || Ok(disk_usage(&path))).await?;
            match self.volume_remove(&volume.name, true).await {
                Ok(()) => {
                    pruned.removed.push(volume.name);
                    pruned.reclaimed_bytes += size;
                }
                // Taken into use meanwhile.
                Err(EngineError::Conflict { .. }) => {}
                Err(err) => return Err(err),
            }
        }
        Ok(pruned)
    }
}

/// Networks, events, facts.
impl EngineHandle {
    /// Networks by name; filters `name id driver type scope label`.
    ///
    /// # Errors
    /// A bad filter.
    pub async fn network_list(&self, filters: Filters) -> Result<Vec<NetworkInfo>> {
        check_keys(
            &filters,
            &["name", "id", "driver", "type", "scope", "label"],
        )?;
        let mut networks = self.networks().await?;
        networks.retain(|network| {
            filters.iter().all(|(key, values)| {
                values.iter().any(|value| match key.as_str() {
                    "name" => network.name.contains(value.as_str()),
                    "id" => network.id.starts_with(value.as_str()),
                    "driver" => network.driver == *value,
                    "type" => value == "builtin",
                    "scope" => value == "local",
                    _ => false,
                })
            })
        });
        Ok(networks)
    }

    /// A network by name or id.
    ///
    /// # Errors
    /// An unknown network.
    pub async fn network_inspect(&self, name: &str) -> Result<NetworkInfo> {
        self.networks()
            .await?
            .into_iter()
            .find(|network| {
                network.name == name || (!name.is_empty() && network.id.starts_with(name))
            })
            .ok_or_else(|| EngineError::NoSuch {
                object: "network",
                name: name.to_owned(),
            })
    }

    /// The running containers that are in the network with that id.
    ///
    /// # Errors
    /// When the engine stops.
    pub async fn containers_in(
        &self,
        network_id: &str,
    ) -> Result<Vec<(ContainerId, String, Endpoint)>> {
        let entries = self.engine.supervisor.send(All).await?;
        let ends = entries.iter().flat_map(|entry| {
            let info = entry.info();
            let endpoints = info.network.endpoints.clone();
            endpoints
                .into_iter()
                .filter(|endpoint| endpoint.network_id == network_id)
                .map(move |endpoint| (info.id, info.name.clone(), endpoint))
        });
        Ok(ends.collect())
    }

    async fn networks(&self) -> Result<Vec<NetworkInfo>> {
        let networks = &self.engine.env.networks;
        let bridge = NetworkInfo {
            id: networks.record.id.clone(),
            name: "bridge".to_owned(),
            driver: "bridge".to_owned(),
            created: networks.record.created,
            subnet: networks.record.subnet.to_string(),
            gateway: Some(networks.record.gateway),
            bridge: networks.bridge.name.clone(),
            mtu: networks.bridge.mtu,
            containers: self.containers_in(&networks.record.id).await?,
        };
        let fixed = |name: &str, driver: &str, id: &String| NetworkInfo {
            id: id.clone(),
            name: name.to_owned(),
            driver: driver.to_owned(),
            created: networks.record.created,
            subnet: String::new(),
            gateway: None,
            bridge: String::new(),
            mtu: 0,
            containers: Vec::new(),
        };
        let [host, none] = &networks.fixed_ids;
        Ok(vec![
            bridge,
            fixed("host", "host", host),
            fixed("none", "null", none),
        ])
    }

    /// What happens from now on (or, with `since`, from the buffer first). A reader that falls behind is told so by
    /// an error and the end of the stream.
    ///
    /// # Errors
    /// A bad filter.
    pub async fn events(&self, filter: EventFilter) -> Result<BoxStream<'static, Result<Event>>> {
        event_bus::listen(&self.engine.env.events, filter).await
    }

    /// Counts and facts of the machine.
    ///
    /// # Errors
    /// When the engine stops.
    pub async fn info(&self) -> Result<EngineInfo> {
        let [containers, running, paused, stopped] = self.engine.counts().await?;
        let facts = &self.engine.facts;
        let options = &self.engine.env.options;
        let [memory_limit, swap_limit, cpu_quota, pids_limit] =
            host::controllers(facts.cgroup_version);
        Ok(EngineInfo {
            containers,
            containers_running: running,
            containers_paused: paused,
            containers_stopped: stopped,
            images: self.image_list().len(),
            kernel_version: facts.kernel_version.clone(),
            operating_system: facts.operating_system.clone(),
            os_version: facts.os_version.clone(),
            architecture: facts.architecture.clone(),
            cpus: facts.cpus,
            memory_bytes: facts.memory_bytes,
            cgroup_version: facts.cgroup_version,
            cgroup_driver: "cgroupfs",
            storage_driver: "overlay2",
            log_driver: options.log_driver.clone(),
            hostname: facts.hostname.clone(),
            data_root: options.data_root.clone(),
            memory_limit,
            swap_limit,
            cpu_quota,
            pids_limit,
            ipv4_forwarding: host::forwards_ipv4(),
        })
    }

    /// Ends the actors. The containers live on.
    pub async fn shutdown(&self) {
        self.engine.stop().await;
    }
}
