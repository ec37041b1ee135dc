//! WireGuard in this process: a TUN device, a UDP port, and one thread that carries packets between them.
//!
//! The protocol's state (handshakes, keys, replay windows, timers) is boringtun's; sockets and batches are ours. What
//! the kernel hands over as one large packet is cut into segments in place, encrypted, and sent by one system call;
//! what arrives as one batch is decrypted in place, put together, and handed to the kernel as one large packet. No
//! queue and no second thread lies between.

mod engine;
mod merge;
mod packet;
mod peers;
mod split;
#[cfg(test)]
mod tests;
mod train;
mod tun;
mod udp;

use crate::netd::{DeviceInfo, DeviceSpec, DeviceStatus, PeerUpdate};
use engine::{Command, Engine};
use futures_util::TryStreamExt;
use nix::sys::eventfd::{EfdFlags, EventFd};
use rtnetlink::LinkUnspec;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use tokio::sync::oneshot;

/// Commands that may wait for the packet thread.
const COMMANDS_MAX: usize = 64;

/// Why the userspace device does not do what it is told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserDeviceError {
    /// The link can't be made.
    #[error("failed to open the TUN device `{name}`")]
    Tun {
        name: String,
        #[source]
        err: io::Error,
    },
    /// The link can't be configured.
    #[error("failed to set up the link `{name}`")]
    Link {
        name: String,
        #[source]
        err: rtnetlink::Error,
    },
    /// Somebody has the port.
    #[error("failed to open UDP port {port} for WireGuard")]
    Port {
        port: u16,
        #[source]
        err: io::Error,
    },
    /// No thread, no event descriptor.
    #[error("failed to start the packet thread")]
    Thread(#[source] io::Error),
    /// A device can't be renamed.
    #[error("there is a device `{present}` already, which can't become `{wanted}`")]
    OtherName { present: String, wanted: String },
    /// The packet thread is gone, or far behind.
    #[error("the packet thread does not answer")]
    Silent,
    /// There is none to give peers to.
    #[error("there is no device")]
    NoDevice,
}

impl UserDeviceError {
    /// The kernel's error number.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Tun { err, .. } | Self::Port { err, .. } | Self::Thread(err) => {
                err.raw_os_error()
            }
            Self::Link { err, .. } => match err {
                rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
                _ => None,
            },
            Self::OtherName { .. } | Self::Silent | Self::NoDevice => None,
        }
    }
}

/// The device of this process.
#[derive(Debug)]
pub(crate) struct UserDevice {
    name: String,
    commands: SyncSender<Command>,
    wake: Arc<EventFd>,
    ended: tokio::sync::Mutex<Option<oneshot::Receiver<()>>>,
}

impl UserDevice {
    /// Makes the device, or takes up a link of that name which an earlier process left, and sets it up.
    pub(crate) async fn create(spec: DeviceSpec) -> Result<(Self, DeviceInfo), UserDeviceError> {
        let name = spec.name.clone();
        let (commands, queue) = sync_channel(COMMANDS_MAX);
        let wake = Arc::new(
            EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(|errno| UserDeviceError::Thread(errno.into()))?,
        );
        let engine = Engine::open(&spec, queue, Arc::clone(&wake))?;
        let info = engine.info();
        let (end, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("wireguard".to_owned())
            .spawn(move || {
                engine.run();
                drop(end);
            })
            .map_err(UserDeviceError::Thread)?;
        let device = Self {
            name,
            commands,
            wake,
            ended: tokio::sync::Mutex::new(Some(ended)),
        };
        set_link(&device.name, spec.mtu).await?;
        Ok((device, info))
    }

    /// Gives it other settings. Its peers stay.
    pub(crate) async fn change(&self, spec: DeviceSpec) -> Result<DeviceInfo, UserDeviceError> {
        if spec.name != self.name {
            return Err(UserDeviceError::OtherName {
                present: self.name.clone(),
                wanted: spec.name,
            });
        }
        let mtu = spec.mtu;
        let info = self.ask(|answer| Command::Change(spec, answer)).await??;
        set_link(&self.name, mtu).await?;
        Ok(info)
    }

    /// Changes its peers; it is so when this returns.
    pub(crate) async fn set_peers(&self, update: PeerUpdate) -> Result<(), UserDeviceError> {
        self.ask(|answer| Command::Peers(update, answer)).await
    }

    /// How it is.
    pub(crate) async fn status(&self) -> Result<DeviceStatus, UserDeviceError> {
        self.ask(Command::Status).await
    }

    /// Takes it away, with its link.
    pub(crate) async fn remove(&self) {
        if self.ask(Command::Remove).await.is_err() {
            tracing::warn!(device = self.name, "the packet thread was gone already");
        }
        if let Some(ended) = self.ended.lock().await.take() {
            // Nothing is ever sent: the thread drops its end when the device is closed.
            drop(ended.await);
        }
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, UserDeviceError> {
        let (answer, answered) = oneshot::channel();
        match self.commands.try_send(command(answer)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                return Err(UserDeviceError::Silent);
            }
        }
        self.wake.write(1).map_err(|_| UserDeviceError::Silent)?;
        answered.await.map_err(|_| UserDeviceError::Silent)
    }
}

/// MTU, and up.
pub(super) async fn set_link(name: &str, mtu: u32) -> Result<(), UserDeviceError> {
    let failed = |err| UserDeviceError::Link {
        name: name.to_owned(),
        err,
    };
    let netlink = crate::local::connect().map_err(UserDeviceError::Thread)?;
    let found = netlink.link().get().match_name(name.to_owned()).execute();
    let link = found.try_collect::<Vec<_>>().await.map_err(failed)?;
    let index = link.first().map_or(0, |link| link.header.index);
    let up = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
    netlink.link().set(up).execute().await.map_err(failed)
}
