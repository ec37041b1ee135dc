//! The loops against a small world: a state, real reconcilers, and agents that do what they are told.

mod convergence;
mod running;
mod scripts;
mod world;
