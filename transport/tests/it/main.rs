//! Endpoints over real UDP sockets on loopback.

#[cfg(test)]
mod access;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod joining;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod speed;
