//! No object is newer than the last applied entry, nor without a version.

use crate::store::change::Entity;
use crate::store::state::State;
use shoal_model::Version;

pub(super) fn check(state: &State) -> Vec<String> {
    state
        .entities()
        .filter_map(|entity| {
            let version = match &entity {
                Entity::Cluster(cluster) => cluster.meta.version,
                Entity::Node(node) => node.meta.version,
                Entity::Service(service) => service.meta.version,
                Entity::Task(task) => task.meta.version,
                Entity::Volume(volume) => volume.meta.version,
                Entity::Network(network) => network.meta.version,
                Entity::Lease(lease) => lease.meta.version,
                Entity::Attachment(attachment) => attachment.meta.version,
            };
            (version == Version(0) || version > state.version()).then(|| {
                let newest = state.version();
                format!("`{:?}` has version {version} of {newest}", entity.key())
            })
        })
        .collect()
}
