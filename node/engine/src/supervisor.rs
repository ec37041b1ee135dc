//! The supervisor: which containers there are, by id and by name.

use crate::actors::{AbortOnPanic, Arbiters, MAILBOX_CAPACITY, message};
use crate::config::ContainerConfig;
use crate::container::actor::{ContainerActor, ContainerParts, Snapshot};
use crate::container::create::{self, Made};
use crate::env::Env;
use crate::error::{EngineError, Result};
use crate::info::{ContainerInfo, ExecId};
use crate::names;
use crate::requests::Created;
use actix::{
    Actor, ActorFutureExt as _, Addr, Context, Handler, ResponseActFuture, WrapFuture as _,
};
use shoal_model::ContainerId;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tokio::sync::watch;

/// Names that are tried before giving up.
const NAME_ATTEMPTS_MAX: u32 = 16;
/// Exec instances whose container is remembered.
const EXECS_MAX: usize = 16_384;

/// A container that can be talked to.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) id: ContainerId,
    pub(crate) address: Addr<ContainerActor>,
    pub(crate) snapshots: watch::Receiver<Snapshot>,
    /// True while no run is under way.
    pub(crate) ended: watch::Receiver<bool>,
}

impl Entry {
    /// What is known of it now.
    pub(crate) fn info(&self) -> Arc<ContainerInfo> {
        Arc::clone(&self.snapshots.borrow().info)
    }
}

/// The index of containers.
pub(crate) struct Supervisor {
    env: Arc<Env>,
    arbiters: Arc<Arbiters>,
    entries: BTreeMap<String, Entry>,
    names: BTreeMap<String, ContainerId>,
    execs: BTreeMap<ExecId, ContainerId>,
    exec_order: VecDeque<ExecId>,
    started: usize,
    _guard: AbortOnPanic,
}

impl Supervisor {
    pub(crate) fn new(env: Arc<Env>, arbiters: Arc<Arbiters>) -> Self {
        Self {
            env,
            arbiters,
            entries: BTreeMap::new(),
            names: BTreeMap::new(),
            execs: BTreeMap::new(),
            exec_order: VecDeque::new(),
            started: 0,
            _guard: AbortOnPanic::default(),
        }
    }

    fn register(&mut self, parts: ContainerParts) -> Entry {
        let id = parts.record.id;
        let name = parts.record.name.clone();
        let (actor, snapshots, ended) = ContainerActor::new(parts);
        self.started += 1;
        let entry = Entry {
            id,
            address: self.arbiters.start_container(self.started, actor),
            snapshots,
            ended,
        };
        self.names.insert(name, id);
        self.entries.insert(id.to_string(), entry.clone());
        entry
    }

    fn find(&self, text: &str) -> Result<Entry> {
        let bare = text.strip_prefix('/').unwrap_or(text);
        if let Some(entry) = self.entries.get(bare) {
            return Ok(entry.clone());
        }
        if let Some(entry) = self
            .names
            .get(bare)
            .and_then(|id| self.entries.get(&id.to_string()))
        {
            return Ok(entry.clone());
        }
        let is_prefix = !bare.is_empty() && bare.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut matches = self
            .entries
            .range(bare.to_owned()..)
            .take_while(|(id, _)| is_prefix && id.starts_with(bare));
        match (matches.next(), matches.next()) {
            (Some((_, entry)), None) => Ok(entry.clone()),
            (Some(_), Some(_)) => Err(EngineError::AmbiguousPrefix {
                prefix: bare.to_owned(),
            }),
            (None, _) => Err(EngineError::no_container(text)),
        }
    }

    fn reserve(&mut self, name: Option<&str>, id: ContainerId) -> Result<String> {
        let name = match name {
            Some(name) => {
                let name = names::check(name)?;
                if let Some(holder) = self.names.get(name) {
                    return Err(EngineError::NameTaken {
                        name: name.to_owned(),
                        holder: *holder,
                    });
                }
                name.to_owned()
            }
            None => (0..NAME_ATTEMPTS_MAX)
                .map(names::generate)
                .find(|name| !self.names.contains_key(name))
                .unwrap_or_else(|| format!("shoal_{}", id.short())),
        };
        self.names.insert(name.clone(), id);
        Ok(name)
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
    }
}

/// Makes a container.
pub(crate) struct Create {
    pub(crate) name: Option<String>,
    pub(crate) config: ContainerConfig,
}
message!(Create => Result<Created>);

impl Handler<Create> for Supervisor {
    type Result = ResponseActFuture<Self, Result<Created>>;

    fn handle(&mut self, message: Create, _: &mut Self::Context) -> Self::Result {
        let id = crate::clock::container_id();
        let name = match self.reserve(message.name.as_deref(), id) {
            Ok(name) => name,
            Err(err) => return Box::pin(std::future::ready(Err(err)).into_actor(self)),
        };
        let (env, config, reserved) = (Arc::clone(&self.env), message.config, name.clone());
        let work = self
            .env
            .runtime
            .spawn(async move { create::create(&env, id, name, config).await });
        Box::pin(work.into_actor(self).map(move |made, actor, _| {
            let made = made.unwrap_or(Err(EngineError::WorkLost {
                what: "container creation",
            }));
            match made {
                Ok(Made { parts, warnings }) => {
                    actor.register(parts);
                    Ok(Created { id, warnings })
                }
                Err(err) => {
                    actor.names.remove(&reserved);
                    Err(err)
                }
            }
        }))
    }
}

/// A container that an earlier engine left.
pub(crate) struct Adopt(pub(crate) ContainerParts);
message!(Adopt => Entry);

impl Handler<Adopt> for Supervisor {
    type Result = actix::MessageResult<Adopt>;

    fn handle(&mut self, message: Adopt, _: &mut Self::Context) -> Self::Result {
        actix::MessageResult(self.register(message.0))
    }
}

/// Finds a container by id, name or unique prefix.
pub(crate) struct Resolve(pub(crate) String);
message!(Resolve => Result<Entry>);

impl Handler<Resolve> for Supervisor {
    type Result = Result<Entry>;

    fn handle(&mut self, message: Resolve, _: &mut Self::Context) -> Self::Result {
        self.find(&message.0)
    }
}

/// Every container.
pub(crate) struct All;
message!(All => Vec<Entry>);

impl Handler<All> for Supervisor {
    type Result = Vec<Entry>;

    fn handle(&mut self, _: All, _: &mut Self::Context) -> Self::Result {
        self.entries.values().cloned().collect()
    }
}

/// A container's directory is gone: its id and name are free.
pub(crate) struct Forget(pub(crate) ContainerId);
message!(Forget => ());

impl Handler<Forget> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: Forget, _: &mut Self::Context) {
        self.entries.remove(&message.0.to_string());
        self.names.retain(|_, id| *id != message.0);
    }
}

/// Another name for a container; the old one is free once the container has it on disk.
pub(crate) struct ReserveName {
    pub(crate) id: ContainerId,
    pub(crate) name: String,
}
message!(ReserveName => Result<String>);

impl Handler<ReserveName> for Supervisor {
    type Result = Result<String>;

    fn handle(&mut self, message: ReserveName, _: &mut Self::Context) -> Self::Result {
        let name = names::check(&message.name)?.to_owned();
        if self.names.get(&name) == Some(&message.id) {
            return Err(EngineError::invalid(
                "new name",
                "renaming a container with the same name as its current name",
            ));
        }
        self.reserve(Some(&name), message.id)
    }
}

/// A name is free again.
pub(crate) struct FreeName(pub(crate) String);
message!(FreeName => ());

impl Handler<FreeName> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: FreeName, _: &mut Self::Context) {
        self.names.remove(&message.0);
    }
}

/// An exec instance belongs to a container.
pub(crate) struct NoteExec {
    pub(crate) exec: ExecId,
    pub(crate) container: ContainerId,
}
message!(NoteExec => ());

impl Handler<NoteExec> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: NoteExec, _: &mut Self::Context) {
        if self.exec_order.len() >= EXECS_MAX
            && let Some(oldest) = self.exec_order.pop_front()
        {
            self.execs.remove(&oldest);
        }
        self.exec_order.push_back(message.exec.clone());
        self.execs.insert(message.exec, message.container);
    }
}

/// The container of an exec instance.
pub(crate) struct FindExec(pub(crate) ExecId);
message!(FindExec => Result<Entry>);

impl Handler<FindExec> for Supervisor {
    type Result = Result<Entry>;

    fn handle(&mut self, message: FindExec, _: &mut Self::Context) -> Self::Result {
        self.execs
            .get(&message.0)
            .and_then(|id| self.entries.get(&id.to_string()))
            .cloned()
            .ok_or(EngineError::NoSuch {
                object: "exec instance",
                name: message.0,
            })
    }
}

/// Finds a container by id, name or unique prefix.
pub(crate) async fn resolve(env: &Env, name: &str) -> Result<Entry> {
    env.supervisor()?.send(Resolve(name.to_owned())).await?
}
