//! Real containers on the real kernel. Needs root, and busybox at /bin/busybox (Debian: busybox-static).

mod fixture;
mod lifecycle;
mod security;
