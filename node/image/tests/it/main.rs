//! The image store against the real kernel, real archives and a real registry. Unpacking sets owners and makes devices, so
//! that these tests need root.

#![expect(clippy::unwrap_used, reason = "a test that can't go on says where")]

mod archives;
mod crash;
mod fixture;
mod hostile;
mod registry;
mod store;
mod unpacking;
