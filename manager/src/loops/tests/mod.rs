//! The loops against a small world: a state, real reconcilers, and agents that do what they are told.

mod convergence;
mod networks;
mod running;
mod scripts;
mod world;
