//! Tests of the control API over a consensus in memory.

mod networks;

use super::ControlApi;
use crate::consensus::{Leadership, ProposeError};
use crate::store::{Store, check_invariants};
use crate::testing::{Applied, CountingIds, LocalConsensus, ManualClock};
use async_trait::async_trait;
use shoal_model::command::{Command, Object, Outcome, StoreAction};
use shoal_model::control::{ControlRequest, ControlResponse, PAGE_ITEMS_MAX, ServiceView};
use shoal_model::rpc::{ErrorCode, Method, RpcError};
use shoal_model::spec::OnPartition;
use shoal_model::{
    NodeId, ServiceId, ServiceMode, ServiceSpec, Task, TaskId, TaskState, TaskStatus, Timestamp,
};
use shoal_transport::{Connector, Expect, RpcStream, TransportError};
use std::net::SocketAddr;
use std::sync::Arc;

const ID: ServiceId = ServiceId::from_bits(1);

/// Nobody can be reached.
struct NoNetwork;

#[async_trait]
impl Connector for NoNetwork {
    async fn open(&self, _: SocketAddr, _: Expect, _: Method) -> Result<RpcStream, TransportError> {
        Err(TransportError::NoIdentity)
    }
}

struct World {
    api: ControlApi,
    consensus: Arc<LocalConsensus>,
    store: Store,
}

impl World {
    fn new() -> Self {
        let store = Store::new();
        let clock = Arc::new(ManualClock::new(Timestamp(1)));
        let consensus = Arc::new(LocalConsensus::new(store.clone(), clock.clone()));
        let api = ControlApi::new(
            store.clone(),
            consensus.clone(),
            clock,
            Arc::new(CountingIds::default()),
            Arc::new(NoNetwork),
            crate::netfeed::NetFeeds::new(),
        );
        Self {
            api,
            consensus,
            store,
        }
    }

    async fn ask(&self, request: ControlRequest) -> Result<Vec<ControlResponse>, RpcError> {
        let answer = self.api.answer(NodeId::from_bits(1), request).await?;
        answer.collect().await
    }

    async fn create(&self, spec: ServiceSpec) -> Result<Vec<ControlResponse>, RpcError> {
        let spec = Box::new(spec);
        self.ask(ControlRequest::CreateService { id: ID, spec })
            .await
    }

    async fn service(&self) -> ServiceView {
        match self
            .ask(ControlRequest::GetService(ID))
            .await
            .unwrap()
            .remove(0)
        {
            ControlResponse::Service(view) => *view,
            other => panic!("{other:?}"),
        }
    }

    async fn update(&self, spec: ServiceSpec, rollback: bool) -> Result<(), RpcError> {
        let version = self.service().await.service.meta.version;
        let request = ControlRequest::UpdateService {
            id: ID,
            version,
            spec: Box::new(spec),
            rollback,
        };
        self.ask(request).await.map(|_| ())
    }

    /// Tasks of the service, as the orchestrator makes them.
    fn make_tasks(&self, count: u128) {
        let service = self.store.view().service(ID).unwrap().clone();
        let actions = (1..=count)
            .map(|number| {
                let task = Task {
                    id: TaskId::from_bits(number),
                    meta: Default::default(),
                    service_id: ID,
                    service_name: service.spec.name.clone(),
                    slot: u64::try_from(number).unwrap(),
                    node_id: None,
                    spec: Arc::new(service.spec.task.clone()),
                    spec_version: service.spec_version,
                    ports: Vec::new(),
                    on_partition: OnPartition::Keep,
                    desired: TaskState::Running,
                    status: TaskStatus::default(),
                    volumes: Vec::new(),
                    monitor_until: None,
                    endpoints: Vec::new(),
                    not_before: None,
                };
                StoreAction::Create(Object::Task(Box::new(task)))
            })
            .collect();
        let time = Timestamp(2);
        let index = self.store.view().version().0 + 1;
        let outcome = self.store.apply(index, &Command { time, actions });
        assert!(matches!(outcome, Outcome::Applied { .. }), "{outcome:?}");
    }
}

fn spec(name: &str) -> ServiceSpec {
    let mut spec = ServiceSpec {
        name: name.to_owned(),
        ..ServiceSpec::default()
    };
    spec.task.container.image = "example/image:1".to_owned();
    spec
}

fn unknown() -> ProposeError {
    ProposeError::Unknown {
        reason: "the leader changed".to_owned(),
    }
}

#[tokio::test]
async fn a_create_whose_answer_is_lost_makes_one_service() {
    for applied in [Applied::Yes, Applied::No] {
        let world = World::new();
        world.consensus.fail_next(unknown(), applied);
        let answer = world.create(spec("web")).await.unwrap();
        assert_eq!(answer, [ControlResponse::ServiceCreated(ID)]);
        assert_eq!(world.store.view().services().count(), 1);
    }
}

#[tokio::test]
async fn an_update_whose_answer_is_lost_is_made_once() {
    let world = World::new();
    world.create(spec("web")).await.unwrap();
    let mut changed = spec("web");
    changed.task.container.image = "example/image:2".to_owned();
    world.consensus.fail_next(unknown(), Applied::Yes);
    world.update(changed, false).await.unwrap();
    assert_eq!(world.service().await.service.spec_version, 2);
}

#[tokio::test]
async fn a_lost_leader_is_waited_for_and_then_told() {
    let world = World::new();
    world
        .consensus
        .set_leadership(Leadership::Follower { leader: None });
    let refused = world.create(spec("web")).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unavailable);
    assert!(refused.message.contains("no leader"), "{refused}");
    let (answer, ()) = tokio::join!(world.create(spec("web")), async {
        // The request has seen that nobody leads.
        tokio::task::yield_now().await;
        world
            .consensus
            .set_leadership(Leadership::Leader { term: 2 });
    });
    assert_eq!(answer.unwrap(), [ControlResponse::ServiceCreated(ID)]);
}

#[tokio::test]
async fn only_what_concerns_tasks_makes_a_new_task_version() {
    let world = World::new();
    world.create(spec("web")).await.unwrap();
    let mut scaled = spec("web");
    scaled.mode = ServiceMode::Replicated { replicas: 7 };
    world.update(scaled.clone(), false).await.unwrap();
    let service = world.service().await.service;
    assert_eq!((service.spec_version, service.update_status), (1, None));
    let mut forced = scaled.clone();
    forced.task.force_update = 1;
    world.update(forced.clone(), false).await.unwrap();
    assert_eq!(world.service().await.service.spec_version, 2);
    world.update(ServiceSpec::default(), true).await.unwrap();
    let service = world.service().await.service;
    assert_eq!((service.spec, service.spec_version), (scaled, 3));
    assert_eq!(service.previous_spec.as_deref(), Some(&forced));
}

#[tokio::test]
async fn a_service_keeps_its_name_and_mode() {
    let world = World::new();
    world.create(spec("web")).await.unwrap();
    let renamed = world.update(spec("other"), false).await.unwrap_err();
    assert!(renamed.message.contains("can't be renamed"), "{renamed}");
    let mut global = spec("web");
    global.mode = ServiceMode::Global;
    let refused = world.update(global, false).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InvalidArgument);
    let none = world
        .update(ServiceSpec::default(), true)
        .await
        .unwrap_err();
    assert!(none.message.contains("no previous spec"), "{none}");
}

#[tokio::test]
async fn an_update_of_an_old_version_is_out_of_sequence() {
    let world = World::new();
    world.create(spec("web")).await.unwrap();
    let version = world.service().await.service.meta.version;
    let request = |label: &str| {
        let mut spec = spec("web");
        spec.labels.insert("l".to_owned(), label.to_owned());
        ControlRequest::UpdateService {
            id: ID,
            version,
            spec: Box::new(spec),
            rollback: false,
        }
    };
    world.ask(request("1")).await.unwrap();
    let refused = world.ask(request("2")).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Conflict);
    assert!(
        refused.message.starts_with("update out of sequence"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_removed_service_is_gone_at_once_and_its_tasks_are_told_to_go() {
    let world = World::new();
    world.create(spec("web")).await.unwrap();
    world.make_tasks(3);
    world.ask(ControlRequest::RemoveService(ID)).await.unwrap();
    let gone = world.ask(ControlRequest::GetService(ID)).await.unwrap_err();
    assert_eq!(gone.code, ErrorCode::NotFound);
    let view = world.store.view();
    assert!(view.tasks().all(|task| task.desired == TaskState::Remove));
    assert_eq!(check_invariants(&view), []);
    let again = ControlRequest::CreateService {
        id: ServiceId::from_bits(2),
        spec: Box::new(spec("web")),
    };
    world.ask(again).await.unwrap();
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let world = World::new();
    world.create(spec("web")).await.unwrap();
    world.make_tasks(PAGE_ITEMS_MAX as u128 + 1);
    let request = ControlRequest::ListTasks {
        service_id: Some(ID),
        node_id: None,
    };
    let frames = world.ask(request).await.unwrap();
    let sizes: Vec<_> = frames
        .iter()
        .map(|frame| match frame {
            ControlResponse::Tasks(tasks) => tasks.len(),
            other => {
                assert_eq!(*other, ControlResponse::End);
                0
            }
        })
        .collect();
    assert_eq!(sizes, [PAGE_ITEMS_MAX, 1, 0]);
}

#[tokio::test]
async fn explain_says_what_is_missing() {
    let world = World::new();
    world.create(spec("web")).await.unwrap();
    world.make_tasks(1);
    match world
        .ask(ControlRequest::ExplainService(ID))
        .await
        .unwrap()
        .remove(0)
    {
        ControlResponse::Explanation(explanation) => {
            assert!(
                explanation.summary.contains("0 of 1 tasks run"),
                "{explanation:?}"
            );
            assert_eq!(
                explanation.tasks[0].reason,
                "there is no node that it could run on"
            );
        }
        other => panic!("{other:?}"),
    }
}
