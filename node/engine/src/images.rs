//! Images: an actor that knows which pulls are under way, and one actor per pull, so that an image asked for twice at
//! once is fetched once.

use crate::actors::{AbortOnPanic, MAILBOX_CAPACITY, message};
use crate::error::{EngineError, ErrorKind, Result, chain};
use crate::event::{Event, EventType};
use crate::event_bus::{self, EventBus};
use actix::{
    Actor, ActorContext as _, ActorFutureExt as _, Addr, AsyncContext as _, Context, Handler,
    ResponseFuture, WrapFuture as _,
};
use shoal_image::{
    Image, ImageStore, Progress, ProgressSink, Reference, RegistryAuth, ResolveError,
};
use shoal_model::spec::Platform;
use std::collections::BTreeMap;
use tokio::sync::{broadcast, oneshot};

/// Progress events that a listener of a pull may lag behind; byte counts are what it loses.
const PROGRESS_EVENTS_MAX: usize = 512;

/// What a pull needs.
#[derive(Clone)]
pub(crate) struct PullRequest {
    pub(crate) reference: Reference,
    pub(crate) platform: Platform,
    pub(crate) auth: Option<RegistryAuth>,
}

/// The image store's actor.
pub(crate) struct ImageActor {
    store: ImageStore,
    runtime: tokio::runtime::Handle,
    events: Addr<EventBus>,
    pulls: BTreeMap<String, Addr<PullActor>>,
    _guard: AbortOnPanic,
}

impl ImageActor {
    pub(crate) fn new(
        store: ImageStore,
        runtime: tokio::runtime::Handle,
        events: Addr<EventBus>,
    ) -> Self {
        Self {
            store,
            runtime,
            events,
            pulls: BTreeMap::new(),
            _guard: AbortOnPanic::default(),
        }
    }
}

impl Actor for ImageActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
    }
}

/// The actor of the pull of that image: the one under way, or a new one.
pub(crate) struct FindPull(pub(crate) PullRequest);
message!(FindPull => Addr<PullActor>);

impl Handler<FindPull> for ImageActor {
    type Result = Addr<PullActor>;

    fn handle(&mut self, message: FindPull, ctx: &mut Self::Context) -> Self::Result {
        let request = message.0;
        let platform = &request.platform;
        let key = format!(
            "{} {}/{}",
            request.reference.familiar(),
            platform.os,
            platform.architecture
        );
        if let Some(known) = self.pulls.get(&key)
            && known.connected()
        {
            return known.clone();
        }
        let address = PullActor {
            store: self.store.clone(),
            runtime: self.runtime.clone(),
            events: self.events.clone(),
            request,
            listeners: broadcast::Sender::new(PROGRESS_EVENTS_MAX),
            waiting: Vec::new(),
            parent: ctx.address(),
            key: key.clone(),
            _guard: AbortOnPanic::default(),
        }
        .start();
        self.pulls.insert(key, address.clone());
        address
    }
}

struct PullEnded(String);
message!(PullEnded => ());

impl Handler<PullEnded> for ImageActor {
    type Result = ();

    fn handle(&mut self, message: PullEnded, _: &mut Self::Context) {
        self.pulls.remove(&message.0);
    }
}

/// The answer to one of the clients of a pull.
type PullAnswer = Result<Image, (ErrorKind, String)>;

/// One pull.
pub(crate) struct PullActor {
    store: ImageStore,
    runtime: tokio::runtime::Handle,
    events: Addr<EventBus>,
    request: PullRequest,
    listeners: broadcast::Sender<Progress>,
    waiting: Vec<oneshot::Sender<PullAnswer>>,
    parent: Addr<ImageActor>,
    key: String,
    _guard: AbortOnPanic,
}

impl Actor for PullActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
        let (store, request, listeners) = (
            self.store.clone(),
            self.request.clone(),
            self.listeners.clone(),
        );
        let events = self.events.clone();
        let work = self.runtime.spawn(async move {
            let sink = ProgressSink::new(move |event| {
                // Without a listener nobody misses it.
                drop(listeners.send(event));
            });
            let PullRequest {
                reference,
                platform,
                auth,
            } = request;
            let pulled = store.pull(&reference, &platform, auth, sink).await;
            match pulled {
                Ok(image) => {
                    let name = reference.familiar();
                    let event = Event::new(EventType::Image, "pull", &name, crate::clock::now())
                        .with("name", &name);
                    event_bus::publish(&events, event).await;
                    Ok(image)
                }
                Err(err) => {
                    let kind = if err.is_retryable() {
                        ErrorKind::Unavailable
                    } else {
                        ErrorKind::NotFound
                    };
                    Err((kind, chain(&err)))
                }
            }
        });
        ctx.spawn(work.into_actor(self).then(|pulled, actor, _| {
            let answer = pulled
                .unwrap_or_else(|_| Err((ErrorKind::Internal, "the pull was lost".to_owned())));
            for client in actor.waiting.drain(..) {
                // A client that left does not want the answer.
                drop(client.send(answer.clone()));
            }
            let (parent, key) = (actor.parent.clone(), actor.key.clone());
            async move { parent.send(PullEnded(key)).await }
                .into_actor(actor)
                .map(|_, _, ctx: &mut Context<Self>| ctx.stop())
        }));
    }
}

/// A client listens to a pull and waits for its end.
pub(crate) struct JoinPull(pub(crate) ProgressSinkSlot);
message!(JoinPull => PullAnswer);

/// Where a client wants the progress.
pub(crate) type ProgressSinkSlot = tokio::sync::mpsc::Sender<Progress>;

impl Handler<JoinPull> for PullActor {
    type Result = ResponseFuture<PullAnswer>;

    fn handle(&mut self, message: JoinPull, _: &mut Self::Context) -> Self::Result {
        let mut progress = self.listeners.subscribe();
        let (sender, receiver) = oneshot::channel();
        self.waiting.push(sender);
        Box::pin(async move {
            let forward = async {
                loop {
                    match progress.recv().await {
                        Ok(event) => {
                            if message.0.send(event).await.is_err() {
                                break;
                            }
                        }
                        Err(broadcast::error::RecvError::Lagged(_)) => {}
                        Err(broadcast::error::RecvError::Closed) => break,
                    }
                }
                std::future::pending::<PullAnswer>().await
            };
            tokio::select! {
                biased;
                answer = receiver => answer.unwrap_or_else(|_| Err((ErrorKind::Unavailable, "the pull was stopped".to_owned()))),
                answer = forward => answer,
            }
        })
    }
}

/// Docker's words for an image that is not there.
pub(crate) fn resolve_error(name: &str, err: ResolveError) -> EngineError {
    match err {
        ResolveError::NotFound { .. } => EngineError::NoSuch {
            object: "image",
            name: with_tag(name),
        },
        other => image_error(ErrorKind::InvalidArgument)(&other),
    }
}

fn with_tag(name: &str) -> String {
    match Reference::parse(name) {
        Ok(reference) => reference.familiar(),
        Err(_) => name.to_owned(),
    }
}

/// An error of the image store's, with its class.
pub(crate) fn image_error<E: std::error::Error + 'static>(
    kind: ErrorKind,
) -> impl Fn(&E) -> EngineError {
    move |err| EngineError::Image {
        kind,
        message: chain(err),
    }
}

/// An event about an image.
pub(crate) fn image_event(action: &str, id: &str, name: &str) -> Event {
    Event::new(EventType::Image, action, id, crate::clock::now()).with("name", name)
}
