//! shoal-playground
