//! Certificates on disk, sealed with a key of this node's, so that an edge that restarts while control is
//! gone still serves.
//!
//! One file a domain: a change costs what it changes. AES-256-GCM with a random nonce; the domain is
//! authenticated, so that one domain's file can't be put in place of another's.

use atoll_process::files::{private_dir, write_atomic};
use atoll_wire::Message as _;
use atoll_wire::node::DomainCertificate;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use data_encoding::HEXLOWER;
use std::io;
use std::path::{Path, PathBuf};
use tracing::warn;

const KEY_BYTES: usize = 32;
const SUFFIX: &str = ".sealed";

/// The sealed files.
#[derive(Debug)]
pub(crate) struct Sealed {
    folder: PathBuf,
    key: RandomizedNonceKey,
}

/// Why certificates can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    /// The folder or the key can't be read or written.
    #[error("can't use {path}; check the owner and mode of the data folder")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// The key file is not what this node wrote.
    #[error(
        "{0} is not a key; remove it and the folder of sealed certificates beside it, and they are fetched anew"
    )]
    Key(PathBuf),
    /// The cryptography library refused.
    #[error("can't seal a certificate")]
    Seal,
}

impl Sealed {
    /// Opens the folder `edge-certificates` in `data_dir`, and the key beside it; makes what is absent.
    pub(crate) fn open(data_dir: &Path) -> Result<Self, SealedError> {
        let folder = data_dir.join("edge-certificates");
        let key_path = data_dir.join("edge-certificates.key");
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| SealedError::Io { path, source }
        };
        private_dir(&folder).map_err(at(&folder))?;
        let key = match std::fs::read(&key_path) {
            Ok(key) => key,
            Err(absent) if absent.kind() == io::ErrorKind::NotFound => {
                let mut key = vec![0; KEY_BYTES];
                aws_lc_rs::rand::fill(&mut key).map_err(|_| SealedError::Seal)?;
                write_atomic(&key_path, &key, 0o600).map_err(at(&key_path))?;
                key
            }
            Err(source) => return Err(at(&key_path)(source)),
        };
        if key.len() != KEY_BYTES {
            return Err(SealedError::Key(key_path));
        }
        let key = RandomizedNonceKey::new(&AES_256_GCM, &key).map_err(|_| SealedError::Key(key_path))?;
        Ok(Self { folder, key })
    }

    /// Keeps a certificate. Blocks on the disk.
    pub(crate) fn store(&self, certificate: &DomainCertificate) -> Result<(), SealedError> {
        let name = file_name(&certificate.domain);
        let mut content = certificate.encode_to_vec();
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(name.as_bytes()), &mut content)
            .map_err(|_| SealedError::Seal)?;
        let mut file = nonce.as_ref().to_vec();
        file.extend_from_slice(&content);
        let path = self.folder.join(name);
        write_atomic(&path, &file, 0o600).map_err(|source| SealedError::Io { path, source })
    }

    /// Forgets a domain's certificate. Blocks on the disk.
    pub(crate) fn remove(&self, domain: &str) -> Result<(), SealedError> {
        let path = self.folder.join(file_name(domain));
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(SealedError::Io { path, source }),
            _ => Ok(()),
        }
    }

    /// All that can be opened. A file that can't be is left out and logged: it is fetched anew.
    pub(crate) fn load(&self) -> Result<Vec<DomainCertificate>, SealedError> {
        let io = |source| SealedError::Io { path: self.folder.clone(), source };
        let mut found = Vec::new();
        for file in std::fs::read_dir(&self.folder).map_err(io)? {
            let file = file.map_err(io)?;
            let name = file.file_name().to_string_lossy().into_owned();
            if !name.ends_with(SUFFIX) {
                continue;
            }
            match std::fs::read(file.path()).ok().and_then(|content| self.open_one(&name, content)) {
                Some(certificate) => found.push(certificate),
                None => warn!(file = %name, "a sealed certificate can't be opened; it will be fetched anew"),
            }
        }
        Ok(found)
    }

    fn open_one(&self, name: &str, mut content: Vec<u8>) -> Option<DomainCertificate> {
        let nonce: [u8; NONCE_LEN] = content.get(..NONCE_LEN)?.try_into().ok()?;
        let sealed = content.get_mut(NONCE_LEN..)?;
        let opened = self
            .key
            .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(name.as_bytes()), sealed)
            .ok()?;
        DomainCertificate::decode(&*opened).ok()
    }
}

/// A domain may be longer than a file's name, so it is hashed.
fn file_name(domain: &str) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, domain.as_bytes());
    format!("{}{SUFFIX}", HEXLOWER.encode(hash.as_ref()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn certificate(domain: &str) -> DomainCertificate {
        DomainCertificate {
            domain: domain.to_owned(),
            chain: vec![vec![1; 800]],
            key: b"-- a very private key --".to_vec(),
            fingerprint: "f".to_owned(),
        }
    }

    #[test]
    fn what_is_sealed_comes_back_after_a_restart() {
        let data = tempfile::tempdir().unwrap();
        let sealed = Sealed::open(data.path()).unwrap();
        sealed.store(&certificate("a.example")).unwrap();
        sealed.store(&certificate("b.example")).unwrap();
        sealed.remove("b.example").unwrap();
        sealed.remove("never.example").unwrap();
        drop(sealed);
        let loaded = Sealed::open(data.path()).unwrap().load().unwrap();
        assert_eq!(loaded, [certificate("a.example")]);
        let key = data.path().join("edge-certificates.key");
        assert_eq!(std::fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_key_is_never_plain_on_disk_and_files_cant_be_swapped() {
        let data = tempfile::tempdir().unwrap();
        let sealed = Sealed::open(data.path()).unwrap();
        sealed.store(&certificate("a.example")).unwrap();
        let path = sealed.folder.join(file_name("a.example"));
        let content = std::fs::read(&path).unwrap();
        assert!(!content.windows(12).any(|part| part == b"very private"));
        std::fs::copy(&path, sealed.folder.join(file_name("b.example"))).unwrap();
        std::fs::write(sealed.folder.join(file_name("c.example")), b"short").unwrap();
        assert_eq!(sealed.load().unwrap(), [certificate("a.example")]);
    }
}
