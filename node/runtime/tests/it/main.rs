//! Real containers on the real kernel. Needs root, and busybox at /bin/busybox (Debian: busybox-static).

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod isolation;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod mishaps;
#[cfg(test)]
mod security;
#[cfg(test)]
mod unified;
