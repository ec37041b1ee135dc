//! shoal-transport
