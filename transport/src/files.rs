//! The identity on disk: `<data-root>/certs/node.key` and `node.crt`, both PEM.
//!
//! `node.crt` holds the node's certificate followed by the root, so that one rename changes both. Every file is
//! written under a temporary name, synced, renamed, and its folder synced.

use crate::identity::{Identity, IdentityError, NodeKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const KEY_FILE: &str = "node.key";
const CERTIFICATE_FILE: &str = "node.crt";
const PEM_LINE_CHARS: usize = 64;

/// Why the identity could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The file can't be read.
    #[error("failed to read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        err: io::Error,
    },
    /// The file can't be written.
    #[error("failed to write `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        err: io::Error,
    },
    /// The file has no PEM block of the expected kind.
    #[error("`{path}` holds no {expected}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// The file holds something that this node can't use.
    #[error("`{path}` can't be used")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        err: IdentityError,
    },
}

/// The folder of a node's key and certificate.
#[derive(Debug, Clone)]
pub struct IdentityFiles {
    folder: PathBuf,
}

impl IdentityFiles {
    /// Names the folder (`<data-root>/certs`); nothing is read yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    /// The node's key; made and stored if there is none.
    ///
    /// # Errors
    /// See [`FilesError`]. A damaged key is never replaced: it is what the node is.
    pub fn load_or_make_key(&self) -> Result<NodeKey, FilesError> {
        if let Some(key) = self.load_key()? {
            return Ok(key);
        }
        let path = self.folder.join(KEY_FILE);
        let key = NodeKey::generate().map_err(|err| FilesError::Unusable {
            path: path.clone(),
            err,
        })?;
        self.write(KEY_FILE, &pem("PRIVATE KEY", key.pkcs8_der()))?;
        Ok(key)
    }

    /// The node's key, if it has one.
    ///
    /// # Errors
    /// See [`FilesError`].
    pub fn load_key(&self) -> Result<Option<NodeKey>, FilesError> {
        let path = self.folder.join(KEY_FILE);
        let Some(bytes) = read(&path)? else {
            return Ok(None);
        };
        let der = PrivatePkcs8KeyDer::from_pem_slice(&bytes).map_err(|_| FilesError::Damaged {
            path: path.clone(),
            expected: "private key",
        })?;
        NodeKey::from_pkcs8_der(der.secret_pkcs8_der())
            .map(Some)
            .map_err(|err| FilesError::Unusable { path, err })
    }

    /// The node's identity, if it is part of a cluster.
    ///
    /// # Errors
    /// See [`FilesError`].
    pub fn load(&self) -> Result<Option<Identity>, FilesError> {
        let path = self.folder.join(CERTIFICATE_FILE);
        let Some(bytes) = read(&path)? else {
            return Ok(None);
        };
        let key = self.load_key()?.ok_or_else(|| FilesError::Damaged {
            path: self.folder.join(KEY_FILE),
            expected: "private key",
        })?;
        let damaged = || FilesError::Damaged {
            path: path.clone(),
            expected: "certificate followed by its root",
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&bytes)
            .collect::<Result<_, _>>()
            .map_err(|_| damaged())?;
        let [certificate, root] = chain.as_slice() else {
            return Err(damaged());
        };
        Identity::new(key, certificate.to_vec(), root.to_vec())
            .map(Some)
            .map_err(|err| FilesError::Unusable {
                path: path.clone(),
                err,
            })
    }

    /// Stores certificate and root; the key is there already.
    ///
    /// # Errors
    /// [`FilesError::Write`].
    pub fn store(&self, identity: &Identity) -> Result<(), FilesError> {
        let mut text = pem("CERTIFICATE", identity.certificate_der());
        text.push_str(&pem("CERTIFICATE", identity.root_der()));
        self.write(KEY_FILE, &pem("PRIVATE KEY", identity.key().pkcs8_der()))?;
        self.write(CERTIFICATE_FILE, &text)
    }

    /// Forgets certificate and key: the node has left, and comes back as another one.
    ///
    /// # Errors
    /// [`FilesError::Write`].
    pub fn remove(&self) -> Result<(), FilesError> {
        for name in [CERTIFICATE_FILE, KEY_FILE] {
            let path = self.folder.join(name);
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(err) => return Err(FilesError::Write { path, err }),
            }
        }
        Ok(())
    }

    fn write(&self, name: &str, text: &str) -> Result<(), FilesError> {
        let path = self.folder.join(name);
        write_atomically(&self.folder, &path, text.as_bytes())
            .map_err(|err| FilesError::Write { path, err })
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, FilesError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(FilesError::Read {
            path: path.to_owned(),
            err,
        }),
    }
}

fn write_atomically(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(PEM_LINE_CHARS) {
        text.extend(line.iter().map(|&byte| char::from(byte)));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
