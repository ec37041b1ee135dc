//! From flags to the API's objects: pure, with the errors that a user needs.

pub(crate) mod container;
pub(crate) mod endpoint;
pub(crate) mod network;
pub(crate) mod parse;
pub(crate) mod service;
