//! Who does the work of WireGuard: the kernel, or `shoal netd`.

use super::MeshError;
use super::kernel::KernelDevice;
use super::types::MeshOptions;
use crate::netd::{DeviceSpec, DeviceStatus, Netd, NetdError, NetdReply, NetdRequest, PeerUpdate};
use crate::overlay::WireGuardChoice;
use shoal_model::network::WireGuardBackend;

#[derive(Debug)]
pub(super) enum Backend {
    Kernel(KernelDevice),
    Userspace(Netd),
}

impl Backend {
    /// The kernel's device if it may and can be had.
    pub(super) async fn choose(options: &MeshOptions, name: &str) -> Result<Self, MeshError> {
        let userspace = || Self::Userspace(options.netd.clone());
        if options.choice == WireGuardChoice::Userspace {
            return Ok(userspace());
        }
        // A device that netd holds must not be taken from it: it carries traffic while the daemon starts again.
        if options.choice == WireGuardChoice::Auto
            && KernelDevice::is_of_another_kind(name)
                .await
                .map_err(MeshError::kernel("make"))?
        {
            return Ok(userspace());
        }
        match KernelDevice::open(name).await {
            Ok(device) => Ok(Self::Kernel(device)),
            Err(err) if err.is_absent() => match options.choice {
                WireGuardChoice::Kernel => Err(MeshError::NotInKernel),
                WireGuardChoice::Auto | WireGuardChoice::Userspace => Ok(userspace()),
            },
            Err(err) => Err(MeshError::kernel("make")(err)),
        }
    }

    pub(super) fn kind(&self) -> WireGuardBackend {
        match self {
            Self::Kernel(_) => WireGuardBackend::Kernel,
            Self::Userspace(_) => WireGuardBackend::Userspace,
        }
    }

    pub(super) fn is_userspace(&self) -> bool {
        matches!(self, Self::Userspace(_))
    }

    /// Makes the device or gives it other settings; answers its port.
    pub(super) async fn make(&mut self, spec: DeviceSpec) -> Result<u16, MeshError> {
        match self {
            Self::Kernel(device) => device.make(spec).await.map_err(MeshError::kernel("make")),
            Self::Userspace(netd) => match netd.call(NetdRequest::Device(spec)).await {
                Ok(NetdReply::Device(info)) => Ok(info.port),
                other => Err(unexpected("make", other)),
            },
        }
    }

    pub(super) async fn set_peers(&mut self, update: PeerUpdate) -> Result<(), MeshError> {
        match self {
            Self::Kernel(device) => {
                let set = device.set_peers(update).await;
                set.map_err(MeshError::kernel("configure"))
            }
            Self::Userspace(netd) => match netd.call(NetdRequest::Peers(update)).await {
                Ok(NetdReply::Done) => Ok(()),
                other => Err(unexpected("configure", other)),
            },
        }
    }

    pub(super) async fn status(&mut self) -> Result<DeviceStatus, MeshError> {
        match self {
            Self::Kernel(device) => device.status().await.map_err(MeshError::kernel("read")),
            Self::Userspace(netd) => match netd.call(NetdRequest::DeviceStatus).await {
                Ok(NetdReply::Status(status)) => Ok(status),
                other => Err(unexpected("read", other)),
            },
        }
    }

    pub(super) async fn remove(&mut self) -> Result<(), MeshError> {
        match self {
            Self::Kernel(device) => device.remove().await.map_err(MeshError::kernel("remove")),
            Self::Userspace(netd) => match netd.call(NetdRequest::RemoveDevice).await {
                Ok(NetdReply::Done) => Ok(()),
                other => Err(unexpected("remove", other)),
            },
        }
    }
}

fn unexpected(action: &'static str, answer: Result<NetdReply, NetdError>) -> MeshError {
    MeshError::Userspace {
        action,
        err: answer.err().unwrap_or(NetdError::Confused),
    }
}
