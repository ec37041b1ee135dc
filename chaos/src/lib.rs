//! shoal-chaos
