//! Between Docker's JSON and the types of the engine and the model, in both directions. Pure functions only.

pub(crate) mod cluster;
pub(crate) mod common;
pub(crate) mod container_in;
pub(crate) mod container_out;
pub(crate) mod host_in;
pub(crate) mod image_out;
pub(crate) mod local_out;
pub(crate) mod network_in;
pub(crate) mod network_out;
pub(crate) mod node;
pub(crate) mod service_in;
pub(crate) mod service_out;
pub(crate) mod task_out;

#[cfg(test)]
mod network_tests;
#[cfg(test)]
mod tests;
