//! Tests of the store: its rules one by one, and its laws under random logs.

mod fixture;
mod golden;
mod laws;
mod networks;
mod rules;
mod watch;
