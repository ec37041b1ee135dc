//! What is given out: tables, the scarce cases, and laws under random requests. Every decision is applied to a real
//! state, whose rules and invariants judge it.

mod addresses;
mod scene;
mod service;
mod subnets;
