//! shoal-image
