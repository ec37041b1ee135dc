//! A user: makes, changes, reads and removes services through the control API of any manager, and remembers what was
//! acknowledged.

use crate::founding::addr;
use crate::world::{MANAGERS, World};
use crate::{Register, SimulatedLink};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use shoal_model::control::{ControlRequest, ControlResponse};
use shoal_model::network::{NetworkAttachment, NetworkSpec};
use shoal_model::rpc::{ErrorCode, Method, RpcError};
use shoal_model::spec::{
    EndpointMode, Mount, MountKind, OnPartition, PortConfig, Protocol, PublishMode,
};
use shoal_model::{NetworkId, Service, ServiceId, ServiceMode, ServiceSpec};
use shoal_transport::{CallError, Expect, call};
use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

/// Between two requests.
const PERIOD: Duration = Duration::from_millis(150);

/// Longest wait for an answer.
const DEADLINE: Duration = Duration::from_secs(2);

/// The network that services are in.
const NETWORK: NetworkId = NetworkId::from_bits(1_000_000);

/// Services that are made at most.
const SERVICES_MAX: u128 = 16;

/// Writes until the client is paused.
pub(crate) async fn run(world: World) -> Result<(), Box<dyn Error>> {
    let mut client = Client {
        random: StdRng::seed_from_u64(world.fresh_seed()),
        world,
        made: 0,
        changes: 0,
        has_network: false,
    };
    loop {
        tokio::time::sleep(PERIOD).await;
        if client.world.is_founded() && !client.world.is_client_paused() {
            client.act().await;
        }
    }
}

struct Client {
    world: World,
    random: StdRng,
    /// Services so far.
    made: u128,
    /// Specs so far: every one differs from all others.
    changes: u64,
    /// The network of the services is there.
    has_network: bool,
}

impl Client {
    async fn act(&mut self) {
        if !self.has_network {
            self.has_network = self.create_network().await;
            return;
        }
        let choice = self.random.random_range(0..10);
        if self.made < SERVICES_MAX && choice < 4 {
            return self.create().await;
        }
        let Some((id, register)) = self.pick() else {
            return;
        };
        if register.is_leaving() || (choice == 9 && register.is_present()) {
            self.remove(id).await;
        } else if register.is_present() && choice < 7 {
            self.update(id).await;
        } else {
            drop(self.read(id).await);
        }
    }

    fn pick(&mut self) -> Option<(ServiceId, Register)> {
        let registers = self.world.registers();
        let left: Vec<_> = registers
            .into_iter()
            .filter(|(_, register)| !register.is_gone())
            .collect();
        let place = self.random.random_range(0..left.len().max(1));
        left.into_iter().nth(place)
    }

    /// True once it is acknowledged.
    async fn create_network(&mut self) -> bool {
        let request = ControlRequest::CreateNetwork {
            id: NETWORK,
            spec: Box::new(NetworkSpec {
                name: "backend".to_owned(),
                ..NetworkSpec::default()
            }),
        };
        self.ask(&request).await.is_ok()
    }

    async fn create(&mut self) {
        self.made += 1;
        let id = ServiceId::from_bits(self.made);
        let spec = self.spec(self.made);
        let request = ControlRequest::CreateService {
            id,
            spec: Box::new(spec.clone()),
        };
        self.write(id, request, Some(spec)).await;
    }

    async fn update(&mut self, id: ServiceId) {
        let Some(service) = self.read(id).await.filter(|one| !one.pending_delete) else {
            return;
        };
        let mut spec = service.spec.clone();
        self.changes += 1;
        spec.labels
            .insert("change".to_owned(), self.changes.to_string());
        if let ServiceMode::Replicated { replicas } = &mut spec.mode
            && self.random.random_range(0..3) > 0
        {
            *replicas = self.random.random_range(0..5);
        } else {
            spec.task.force_update += 1;
        }
        let request = ControlRequest::UpdateService {
            id,
            version: service.meta.version,
            spec: Box::new(spec.clone()),
            rollback: false,
        };
        self.write(id, request, Some(spec)).await;
    }

    async fn remove(&mut self, id: ServiceId) {
        self.world
            .with_registers(|all| all.entry(id).or_default().leave());
        self.write(id, ControlRequest::RemoveService(id), None)
            .await;
    }

    /// A linearizable read, checked against what was acknowledged.
    async fn read(&mut self, id: ServiceId) -> Option<Service> {
        let service = match self.ask(&ControlRequest::GetService(id)).await {
            Ok(ControlResponse::Service(view)) => Some(view.service),
            Err(CallError::Remote(RpcError {
                code: ErrorCode::NotFound,
                ..
            })) => None,
            Ok(other) => {
                let rule = format!("service {id} was asked for and {other:?} answered");
                self.world.trace().violation(rule);
                return None;
            }
            Err(_) => return None,
        };
        let value = service.as_ref().filter(|one| !one.pending_delete);
        let value = value.map(|one| &one.spec);
        let allowed = self
            .world
            .with_registers(|all| all.entry(id).or_default().read(value));
        if !allowed {
            let rule = format!("a read of service {id} found {value:?}, which can't be");
            self.world.trace().violation(rule);
        }
        service
    }

    async fn write(&mut self, id: ServiceId, request: ControlRequest, value: Option<ServiceSpec>) {
        let answer = self.ask(&request).await;
        let trace = self.world.trace();
        let kind = match &value {
            Some(_) => "write",
            None => "removal",
        };
        match &answer {
            Ok(_) => trace.note(format_args!("{kind} of {id} is acknowledged")),
            Err(err) => trace.note(format_args!("{kind} of {id}: {err}")),
        }
        let wrong = |code: ErrorCode| match code {
            ErrorCode::InvalidArgument | ErrorCode::PermissionDenied | ErrorCode::Internal => true,
            ErrorCode::NotFound
            | ErrorCode::AlreadyExists
            | ErrorCode::Conflict
            | ErrorCode::FailedPrecondition
            | ErrorCode::ResourceExhausted
            | ErrorCode::Unavailable
            | ErrorCode::NotLeader => false,
        };
        if let Err(CallError::Remote(err)) = &answer
            && wrong(err.code)
        {
            trace.violation(format!("a good request was refused: {err}"));
        }
        self.world
            .with_registers(|all: &mut BTreeMap<_, Register>| {
                let register = all.entry(id).or_default();
                match answer {
                    Ok(_) => register.acknowledged(value),
                    // Also what was refused may have taken effect at an earlier attempt of whoever passed it on.
                    Err(_) => register.unknown(value),
                }
            });
    }

    async fn ask(&mut self, request: &ControlRequest) -> Result<ControlResponse, CallError> {
        let manager = self.random.random_range(1..=MANAGERS);
        call(
            &SimulatedLink,
            addr(manager),
            Expect::AnyManager,
            Method::Control,
            request,
            DEADLINE,
        )
        .await
    }

    /// Services of several kinds: replicated and global, fenced and not, with a volume, in a network, found by name, with
    /// a port on every node.
    fn spec(&mut self, number: u128) -> ServiceSpec {
        let mut spec = ServiceSpec {
            name: format!("service{number}"),
            mode: match number % 8 {
                7 => ServiceMode::Global,
                _ => ServiceMode::Replicated {
                    replicas: self.random.random_range(1..5),
                },
            },
            on_partition: (number % 2 == 1).then_some(OnPartition::Stop),
            ..ServiceSpec::default()
        };
        spec.task.container.image = "busybox".to_owned();
        if number.is_multiple_of(3) {
            spec.task.networks.push(NetworkAttachment {
                network_id: NETWORK,
                aliases: Vec::new(),
            });
        }
        if number.is_multiple_of(6) {
            spec.endpoint.mode = EndpointMode::DnsRoundRobin;
        } else if number % 4 == 1 {
            spec.endpoint.ports.push(PortConfig {
                name: String::new(),
                protocol: Protocol::Tcp,
                target: 80,
                published: 0,
                mode: PublishMode::Ingress,
                addrs: Vec::new(),
                allow: Vec::new(),
            });
        }
        if number % 5 == 4 {
            spec.task.container.mounts.push(Mount {
                kind: MountKind::Volume {
                    name: format!("data{number}"),
                    driver: String::new(),
                    options: BTreeMap::new(),
                    labels: BTreeMap::new(),
                    no_copy: false,
                },
                target: "/data".to_owned(),
                read_only: false,
            });
        }
        spec
    }
}
