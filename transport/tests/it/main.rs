//! Endpoints over real UDP sockets on loopback.

mod access;
mod fixture;
mod joining;
mod lifecycle;
mod speed;
