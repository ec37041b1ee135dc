//! The one owner of all volumes of this node.

use super::{VolumeDir, VolumeRecord};
use crate::actors::{AbortOnPanic, MAILBOX_CAPACITY, message};
use crate::disk::blocking;
use crate::error::{EngineError, Result};
use crate::event::{Event, EventType};
use crate::event_bus::{self, EventBus};
use crate::info::VolumeInfo;
use crate::mounts::{VolumeWish, check_volume_name};
use actix::{Actor, ActorFutureExt as _, Addr, AtomicResponse, Context, Handler, WrapFuture as _};
use shoal_model::ContainerId;
use std::collections::{BTreeMap, BTreeSet};

/// Volumes and who uses them.
#[derive(Debug)]
pub(crate) struct VolumeActor {
    dir: VolumeDir,
    volumes: BTreeMap<String, VolumeRecord>,
    users: BTreeMap<String, BTreeSet<ContainerId>>,
    events: Addr<EventBus>,
    _guard: AbortOnPanic,
}

impl VolumeActor {
    pub(crate) fn new(
        dir: VolumeDir,
        volumes: BTreeMap<String, VolumeRecord>,
        events: Addr<EventBus>,
    ) -> Self {
        Self {
            dir,
            volumes,
            users: BTreeMap::new(),
            events,
            _guard: AbortOnPanic::default(),
        }
    }

    fn info(&self, record: &VolumeRecord) -> VolumeInfo {
        let mut info = self.dir.info(record);
        info.used_by = self
            .users
            .get(&record.name)
            .into_iter()
            .flatten()
            .copied()
            .collect();
        info
    }

    fn get(&self, name: &str) -> Result<&VolumeRecord> {
        self.volumes.get(name).ok_or_else(|| EngineError::NoSuch {
            object: "volume",
            name: name.to_owned(),
        })
    }
}

impl Actor for VolumeActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
    }
}

/// A volume by that name shall exist; an empty name makes an anonymous one.
pub(crate) struct EnsureVolume {
    pub(crate) name: String,
    /// It belongs to one container, which has chosen a random name for it.
    pub(crate) anonymous: bool,
    pub(crate) wish: VolumeWish,
}
message!(EnsureVolume => Result<VolumeInfo>);

impl Handler<EnsureVolume> for VolumeActor {
    type Result = AtomicResponse<Self, Result<VolumeInfo>>;

    fn handle(&mut self, message: EnsureVolume, _: &mut Self::Context) -> Self::Result {
        let EnsureVolume {
            name,
            anonymous,
            wish,
        } = message;
        let known = match self.volumes.get(&name) {
            Some(record) => Some(Ok(self.info(record))),
            None => check(&name, &wish).err().map(Err),
        };
        if let Some(answer) = known {
            return AtomicResponse::new(Box::pin(std::future::ready(answer).into_actor(self)));
        }
        let unnamed = name.is_empty();
        let record = VolumeRecord {
            name: if unnamed {
                crate::clock::hex_id()
            } else {
                name
            },
            created: crate::clock::now(),
            labels: wish.labels,
            options: wish.options,
            anonymous: anonymous || unnamed,
        };
        let (dir, events) = (self.dir.clone(), self.events.clone());
        let work = async move {
            let made = record.clone();
            blocking("volume creation", move || dir.create(&made)).await?;
            let event = Event::new(EventType::Volume, "create", &record.name, record.created);
            event_bus::publish(&events, event.with("driver", "local")).await;
            Ok(record)
        };
        AtomicResponse::new(Box::pin(work.into_actor(self).map(
            |made: Result<_>, actor, _| {
                let record = made?;
                let info = actor.info(&record);
                actor.volumes.insert(record.name.clone(), record);
                Ok(info)
            },
        )))
    }
}

fn check(name: &str, wish: &VolumeWish) -> Result<()> {
    if !name.is_empty() {
        check_volume_name(name)?;
    }
    if !matches!(wish.driver.as_str(), "" | "local") {
        return Err(EngineError::NoSuch {
            object: "volume driver",
            name: wish.driver.clone(),
        });
    }
    match wish.options.keys().next() {
        None => Ok(()),
        Some(option) => Err(EngineError::unsupported(
            format!("volume option `{option}`"),
            "the local driver keeps its volumes in plain directories; mount the device on the host and bind it",
        )),
    }
}

/// A volume by name.
pub(crate) struct GetVolume(pub(crate) String);
message!(GetVolume => Result<VolumeInfo>);

impl Handler<GetVolume> for VolumeActor {
    type Result = Result<VolumeInfo>;

    fn handle(&mut self, message: GetVolume, _: &mut Self::Context) -> Self::Result {
        self.get(&message.0).map(|record| self.info(record))
    }
}

/// All volumes by name.
pub(crate) struct ListVolumes;
message!(ListVolumes => Vec<VolumeInfo>);

impl Handler<ListVolumes> for VolumeActor {
    type Result = Vec<VolumeInfo>;

    fn handle(&mut self, _: ListVolumes, _: &mut Self::Context) -> Self::Result {
        self.volumes
            .values()
            .map(|record| self.info(record))
            .collect()
    }
}

/// A container mounts these volumes: they can't be removed.
pub(crate) struct UseVolumes {
    pub(crate) container: ContainerId,
    pub(crate) names: Vec<String>,
}
message!(UseVolumes => Result<()>);

impl Handler<UseVolumes> for VolumeActor {
    type Result = Result<()>;

    fn handle(&mut self, message: UseVolumes, _: &mut Self::Context) -> Self::Result {
        for name in &message.names {
            self.get(name)?;
        }
        for name in message.names {
            self.users
                .entry(name)
                .or_default()
                .insert(message.container);
        }
        Ok(())
    }
}

/// A container is gone.
pub(crate) struct UnuseVolumes(pub(crate) ContainerId);
message!(UnuseVolumes => ());

impl Handler<UnuseVolumes> for VolumeActor {
    type Result = ();

    fn handle(&mut self, message: UnuseVolumes, _: &mut Self::Context) {
        self.users.retain(|_, users| {
            users.remove(&message.0);
            !users.is_empty()
        });
    }
}

/// A volume goes, unless somebody uses it.
pub(crate) struct RemoveVolume(pub(crate) String);
message!(RemoveVolume => Result<()>);

impl Handler<RemoveVolume> for VolumeActor {
    type Result = AtomicResponse<Self, Result<()>>;

    fn handle(&mut self, message: RemoveVolume, _: &mut Self::Context) -> Self::Result {
        let name = message.0;
        let users: Vec<String> = self
            .users
            .get(&name)
            .into_iter()
            .flatten()
            .map(ToString::to_string)
            .collect();
        let refused = match self.get(&name) {
            Err(err) => Some(err),
            Ok(_) if !users.is_empty() => Some(EngineError::conflict(format!(
                "remove {name}: volume is in use - [{}]",
                users.join(", ")
            ))),
            Ok(_) => None,
        };
        if let Some(err) = refused {
            return AtomicResponse::new(Box::pin(std::future::ready(Err(err)).into_actor(self)));
        }
        let (dir, events) = (self.dir.clone(), self.events.clone());
        let work = async move {
            let gone = name.clone();
            blocking("volume removal", move || dir.remove(&gone)).await?;
            let event = Event::new(EventType::Volume, "destroy", &name, crate::clock::now());
            event_bus::publish(&events, event.with("driver", "local")).await;
            Ok(name)
        };
        AtomicResponse::new(Box::pin(work.into_actor(self).map(
            |gone: Result<String>, actor, _| {
                actor.volumes.remove(&gone?);
                Ok(())
            },
        )))
    }
}
