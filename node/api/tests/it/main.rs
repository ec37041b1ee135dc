//! The API over a real socket: real clients, a real engine, and a cluster that stands in for the managers.

mod cluster;
mod docker_cli;
mod harness;
mod refusals;
