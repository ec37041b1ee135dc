//! A state as a row of encoded pages, so that neither side ever holds all bytes at once.

use super::change::Entity;
use super::state::State;
use serde::{Deserialize, Serialize};
use shoal_model::codec::{self, CodecError};
use shoal_model::command::{Object, ObjectKey};
use shoal_model::{ServiceId, TaskSpec, Version};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most objects on one page.
pub const PAGE_OBJECTS_MAX: usize = 256;

/// A page that holds this much is closed, so that no page passes the bound of the codec.
const PAGE_BYTES_TARGET: usize = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
enum Page {
    Header {
        version: Version,
        feature_level: u32,
    },
    Objects(Vec<Object>),
    End {
        objects: u64,
    },
}

/// Why pages are not a state.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A page does not decode.
    #[error("failed to decode page {page} of the snapshot")]
    Decode {
        /// Number of the page from 0.
        page: u64,
        /// Why.
        #[source]
        source: CodecError,
    },
    /// The first page is not the header, or a header comes later.
    #[error("page {page} of the snapshot is out of order")]
    OutOfOrder {
        /// Number of the page from 0.
        page: u64,
    },
    /// The same object comes twice.
    #[error("`{key:?}` is in the snapshot twice")]
    Twice {
        /// The object.
        key: ObjectKey,
    },
    /// Pages are missing.
    #[error("the snapshot ends after {found} objects{}", expected_text(*.expected))]
    Truncated {
        /// Objects that came.
        found: u64,
        /// Objects that the end page counts, if it came.
        expected: Option<u64>,
    },
}

fn expected_text(expected: Option<u64>) -> String {
    expected.map_or_else(
        || " without its end page".to_owned(),
        |count| format!(", and {count} were written"),
    )
}

/// The pages of `state`, encoded one by one as they are asked for. Equal states give equal bytes.
pub fn export(state: &State) -> impl Iterator<Item = Result<Vec<u8>, CodecError>> + use<> {
    Export {
        state: state.clone(),
        entities: Box::new(state.clone().into_entities()),
        stage: Stage::Header,
        objects: 0,
    }
}

enum Stage {
    Header,
    Objects,
    Done,
}

struct Export {
    state: State,
    entities: Box<dyn Iterator<Item = Entity> + Send>,
    stage: Stage,
    objects: u64,
}

impl Iterator for Export {
    type Item = Result<Vec<u8>, CodecError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.stage {
            Stage::Header => {
                self.stage = Stage::Objects;
                Some(codec::encode(&Page::Header {
                    version: self.state.version,
                    feature_level: self.state.feature_level,
                }))
            }
            Stage::Objects => Some(self.objects_page()),
            Stage::Done => None,
        }
    }
}

impl Export {
    fn objects_page(&mut self) -> Result<Vec<u8>, CodecError> {
        let mut page = Vec::new();
        let mut bytes = 0;
        while page.len() < PAGE_OBJECTS_MAX && bytes < PAGE_BYTES_TARGET {
            let Some(entity) = self.entities.next() else {
                break;
            };
            let object = entity.to_object();
            bytes += codec::encode(&object)?.len();
            page.push(object);
        }
        if page.is_empty() {
            self.stage = Stage::Done;
            return codec::encode(&Page::End {
                objects: self.objects,
            });
        }
        self.objects += page.len() as u64;
        codec::encode(&Page::Objects(page))
    }
}

impl State {
    fn into_entities(self) -> impl Iterator<Item = Entity> {
        let cluster = self.cluster.into_iter().map(Entity::Cluster);
        cluster
            .chain(self.nodes.into_iter().map(|(_, node)| Entity::Node(node)))
            .chain(self.services.into_iter().map(|(_, s)| Entity::Service(s)))
            .chain(self.tasks.into_iter().map(|(_, task)| Entity::Task(task)))
            .chain(self.volumes.into_iter().map(|(_, v)| Entity::Volume(v)))
            .chain(self.networks.into_iter().map(|(_, n)| Entity::Network(n)))
            .chain(self.leases.into_iter().map(|(_, l)| Entity::Lease(l)))
            .chain(
                self.attachments
                    .into_iter()
                    .map(|(_, a)| Entity::Attachment(a)),
            )
    }
}

/// Reads pages back into a state.
#[derive(Debug, Default)]
pub struct Importer {
    state: State,
    pages: u64,
    objects: u64,
    ended: Option<u64>,
    /// The newest spec of each service's tasks, so that equal ones are shared again.
    specs: BTreeMap<(ServiceId, u64), Arc<TaskSpec>>,
}

impl Importer {
    /// Starts with nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next page.
    ///
    /// # Errors
    /// The page does not decode, is out of order, or repeats an object.
    pub fn push(&mut self, page: &[u8]) -> Result<(), ImportError> {
        let number = self.pages;
        self.pages += 1;
        let page: Page = codec::decode(page).map_err(|source| ImportError::Decode {
            page: number,
            source,
        })?;
        let out_of_order = ImportError::OutOfOrder { page: number };
        if self.ended.is_some() || (number == 0) != matches!(page, Page::Header { .. }) {
            return Err(out_of_order);
        }
        match page {
            Page::Header {
                version,
                feature_level,
            } => {
                self.state.version = version;
                self.state.feature_level = feature_level;
            }
            Page::Objects(objects) => {
                for object in objects {
                    self.add(object)?;
                }
            }
            Page::End { objects } => self.ended = Some(objects),
        }
        Ok(())
    }

    /// The state, once every page has come.
    ///
    /// # Errors
    /// [`ImportError::Truncated`] when the end page is missing or counts other objects.
    pub fn finish(self) -> Result<State, ImportError> {
        if self.ended == Some(self.objects) {
            return Ok(self.state);
        }
        Err(ImportError::Truncated {
            found: self.objects,
            expected: self.ended,
        })
    }

    fn add(&mut self, object: Object) -> Result<(), ImportError> {
        let key = object.key();
        self.objects += 1;
        let entity = match object {
            Object::Cluster(cluster) => Entity::Cluster(Arc::from(cluster)),
            Object::Node(node) => Entity::Node(Arc::from(node)),
            Object::Service(service) => Entity::Service(Arc::from(service)),
            Object::Task(mut task) => {
                let known = self
                    .specs
                    .entry((task.service_id, task.spec_version))
                    .or_insert_with(|| Arc::clone(&task.spec));
                if *known == task.spec {
                    task.spec = Arc::clone(known);
                }
                Entity::Task(Arc::from(task))
            }
            Object::Volume(volume) => Entity::Volume(Arc::from(volume)),
            Object::Network(network) => Entity::Network(Arc::from(network)),
            Object::Lease(lease) => Entity::Lease(Arc::from(lease)),
            Object::Attachment(attachment) => Entity::Attachment(Arc::from(attachment)),
        };
        match self.state.put(entity) {
            None => Ok(()),
            Some(_) => Err(ImportError::Twice { key }),
        }
    }
}
