//! Gives out addresses.

use super::ipam::Ipam;
use crate::actors::{AbortOnPanic, MAILBOX_CAPACITY, message};
use crate::error::Result;
use actix::{Actor, Context, Handler};
use shoal_model::ContainerId;
use std::net::Ipv4Addr;

/// The allocator of the default bridge.
#[derive(Debug)]
pub(crate) struct NetworkActor {
    ipam: Ipam,
    _guard: AbortOnPanic,
}

impl NetworkActor {
    pub(crate) fn new(ipam: Ipam) -> Self {
        Self {
            ipam,
            _guard: AbortOnPanic::default(),
        }
    }
}

impl Actor for NetworkActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
    }
}

/// An address for a container.
pub(crate) struct Allocate(pub(crate) ContainerId);
message!(Allocate => Result<Ipv4Addr>);

impl Handler<Allocate> for NetworkActor {
    type Result = Result<Ipv4Addr>;

    fn handle(&mut self, message: Allocate, _: &mut Self::Context) -> Self::Result {
        self.ipam.allocate(message.0)
    }
}

/// A container's address is free again.
pub(crate) struct ReleaseAddress(pub(crate) ContainerId);
message!(ReleaseAddress => ());

impl Handler<ReleaseAddress> for NetworkActor {
    type Result = ();

    fn handle(&mut self, message: ReleaseAddress, _: &mut Self::Context) {
        self.ipam.release(message.0);
    }
}
