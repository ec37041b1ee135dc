//! The event bus: a bounded memory of what happened, and a bounded queue for each listener.

use crate::actors::{AbortOnPanic, MAILBOX_CAPACITY, message};
use crate::error::{EngineError, Result};
use crate::event::{EVENT_FILTER_KEYS, Event};
use crate::requests::EventFilter;
use actix::{Actor, Addr, Context, Handler};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::broadcast;

/// Events that can be asked for again with `since`.
const REPLAY_EVENTS_MAX: usize = 1024;
/// Events that a listener may lag behind.
const LISTENER_EVENTS_MAX: usize = 1024;

/// Remembers and forwards events.
#[derive(Debug)]
pub(crate) struct EventBus {
    past: VecDeque<Arc<Event>>,
    sender: broadcast::Sender<Arc<Event>>,
    _guard: AbortOnPanic,
}

impl EventBus {
    pub(crate) fn new() -> Self {
        Self {
            past: VecDeque::with_capacity(REPLAY_EVENTS_MAX),
            sender: broadcast::Sender::new(LISTENER_EVENTS_MAX),
            _guard: AbortOnPanic::default(),
        }
    }
}

impl Actor for EventBus {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
    }
}

/// Something happened.
pub(crate) struct Publish(pub(crate) Event);
message!(Publish => ());

impl Handler<Publish> for EventBus {
    type Result = ();

    fn handle(&mut self, message: Publish, _: &mut Self::Context) {
        let event = Arc::new(message.0);
        if self.past.len() == REPLAY_EVENTS_MAX {
            self.past.pop_front();
        }
        self.past.push_back(Arc::clone(&event));
        // Without a listener there is nobody to miss it.
        drop(self.sender.send(event));
    }
}

/// The past since a time, and what comes.
struct Listen {
    replay: bool,
}
type Listening = (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>);
message!(Listen => Listening);

impl Handler<Listen> for EventBus {
    type Result = actix::MessageResult<Listen>;

    fn handle(&mut self, message: Listen, _: &mut Self::Context) -> Self::Result {
        // Both under one message: nothing falls between the past and the future.
        let past = if message.replay {
            self.past.iter().cloned().collect()
        } else {
            Vec::new()
        };
        actix::MessageResult((past, self.sender.subscribe()))
    }
}

/// Publishes; an engine that is stopping has no listeners to disappoint.
pub(crate) async fn publish(bus: &Addr<EventBus>, event: Event) {
    if bus.send(Publish(event)).await.is_err() {
        tracing::debug!("an event came after the bus had stopped");
    }
}

/// A stream of events.
pub(crate) async fn listen(
    bus: &Addr<EventBus>,
    filter: EventFilter,
) -> Result<BoxStream<'static, Result<Event>>> {
    if let Some(key) = filter
        .filters
        .keys()
        .find(|key| !EVENT_FILTER_KEYS.contains(&key.as_str()))
    {
        return Err(EngineError::invalid("filter", format!("'{key}'")));
    }
    let replay = filter.since.is_some();
    let (past, receiver) = bus.send(Listen { replay }).await?;
    let EventFilter {
        since,
        until,
        filters,
    } = filter;
    let left = until.map(|until| until.since(crate::clock::now()));
    let live = stream::unfold(Some(receiver), |receiver| async move {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Ok(event) => Some((Ok(event), Some(receiver))),
            Err(broadcast::error::RecvError::Closed) => None,
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                Some((Err(EngineError::EventsMissed { missed }), None))
            }
        }
    });
    let past = stream::iter(past.into_iter().map(Ok));
    let wanted = move |event: &Event| {
        since.is_none_or(|since| event.time >= since)
            && until.is_none_or(|until| event.time <= until)
            && event.matches(&filters)
    };
    let all = past.chain(live).filter_map(move |event| {
        let event = match event {
            Ok(event) => wanted(&event).then(|| Ok((*event).clone())),
            Err(err) => Some(Err(err)),
        };
        std::future::ready(event)
    });
    Ok(match left {
        None => all.boxed(),
        Some(left) => all.take_until(tokio::time::sleep(left)).boxed(),
    })
}
