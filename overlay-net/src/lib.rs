//! shoal-overlay-net
