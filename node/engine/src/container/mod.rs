//! Containers: one actor each.

pub(crate) mod actor;
pub(crate) mod archive;
pub(crate) mod connect;
pub(crate) mod create;
pub(crate) mod exec;
mod health;
pub(crate) mod lifecycle;
pub(crate) mod logs;
pub(crate) mod record;
pub(crate) mod recover;
mod restart;
mod start;
mod streams;
