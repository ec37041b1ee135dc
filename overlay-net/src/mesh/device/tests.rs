//! Properties of cutting up and putting together.
