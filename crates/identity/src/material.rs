//! What a node or workload holds: key, chain and roots; in memory and on disk.

use crate::certificate::{CertificateFault, Leaf, PeerIdentity};
use crate::keys::{KeyError, RecordKey};
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::trust::{TrustError, anchors, fingerprint, verify_links};
use atoll_process::files::{private_dir, write_atomic};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Key and chain of the TLS identity, in a node's data folder.
pub const IDENTITY_FILE: &str = "identity.pem";
/// The roots that it trusts.
pub const ROOTS_FILE: &str = "roots.pem";
/// Key and chain of the record key.
pub const RECORD_FILE: &str = "record.pem";

/// Most certificates in a chain or set of roots.
const CERTIFICATES_MAX: usize = 16;

/// Why material can't be read, kept or used.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// No certificate in the chain.
    #[error("the certificate chain is empty")]
    NoChain,
    /// More than a chain can need.
    #[error("there are more than {CERTIFICATES_MAX} certificates")]
    TooMany,
    /// The leaf is no identity.
    #[error("the certificate is not a mesh identity: {0}")]
    Certificate(#[from] CertificateFault),
    /// The leaf is another trust domain's.
    #[error("the certificate is for {id}, which is not in the trust domain {trust_domain}")]
    TrustDomain {
        /// Whose it is.
        id: SpiffeId,
        /// What was expected.
        trust_domain: TrustDomain,
    },
    /// The chain doesn't link to the roots.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The key can't be read.
    #[error("the private key can't be read")]
    Key(#[source] rustls::Error),
    /// The key is not the certificate's.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch(#[source] rustls::Error),
    /// The record key can't be read, or is not the record certificate's.
    #[error("the record key does not fit: {0}")]
    RecordKey(String),
    /// A file can't be read or written.
    #[error("cannot use {path}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is there, but is not what it should be.
    #[error("{path} is damaged: {why}; restore it, or remove the folder and join again", path = path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// A TLS identity.
pub struct Material {
    /// Leaf first, without the root; DER.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key, PKCS#8.
    pub key: PrivatePkcs8KeyDer<'static>,
    /// The roots to trust; DER.
    pub roots: Vec<CertificateDer<'static>>,
    /// Whose members we are and accept.
    pub trust_domain: TrustDomain,
}

impl Material {
    /// From bytes, as messages carry them.
    pub fn from_der(
        chain: impl IntoIterator<Item = Vec<u8>>,
        key: Vec<u8>,
        roots: impl IntoIterator<Item = Vec<u8>>,
        trust_domain: TrustDomain,
    ) -> Self {
        Self {
            chain: chain.into_iter().map(CertificateDer::from).collect(),
            key: key.into(),
            roots: roots.into_iter().map(CertificateDer::from).collect(),
            trust_domain,
        }
    }

    /// Whether chain, roots and trust domain fit each other; not whether the time is right. Says who
    /// it is. (Whether the key fits is found by [`Identity`](crate::Identity).)
    pub fn check(&self) -> Result<PeerIdentity, MaterialError> {
        if self.chain.len().max(self.roots.len()) > CERTIFICATES_MAX {
            return Err(MaterialError::TooMany);
        }
        let (leaf, rest) = self.chain.split_first().ok_or(MaterialError::NoChain)?;
        let read = Leaf::read(leaf)?;
        verify_links(&anchors(&self.roots)?, leaf, rest, read.not_before)?;
        if read.peer.id.trust_domain() != self.trust_domain.as_str() {
            let trust_domain = self.trust_domain.clone();
            return Err(MaterialError::TrustDomain { id: read.peer.id, trust_domain });
        }
        Ok(read.peer)
    }
}

impl Clone for Material {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            roots: self.roots.clone(),
            trust_domain: self.trust_domain.clone(),
        }
    }
}

impl fmt::Debug for Material {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.chain.first().map(|leaf| PeerIdentity::from_certificate(leaf));
        f.debug_struct("Material").field("holder", &id).finish_non_exhaustive()
    }
}

/// A record key with the certificate that says whose it is.
#[derive(Debug)]
pub struct RecordIdentity {
    /// Ed25519.
    pub key: RecordKey,
    /// The record certificate, then intermediates; DER.
    pub chain: Vec<CertificateDer<'static>>,
}

impl RecordIdentity {
    /// Puts the two together if they fit.
    pub fn new(key: RecordKey, chain: Vec<CertificateDer<'static>>) -> Result<Self, MaterialError> {
        let leaf = Leaf::read(chain.first().ok_or(MaterialError::NoChain)?)?;
        if chain.len() > CERTIFICATES_MAX {
            return Err(MaterialError::TooMany);
        }
        if leaf.public_key != key.public_key() || !leaf.record_signing {
            return Err(MaterialError::RecordKey("it is not the record certificate's".into()));
        }
        Ok(Self { key, chain })
    }

    /// The record certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    /// SHA-256 of the record certificate: how signed records name their signer.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        fingerprint(self.certificate())
    }
}

/// Keeps a TLS identity in `dir` (made with mode 0700 if it is missing). The roots come first: after a
/// crash in between, the old identity still links to one of them, since rotation keeps both.
pub fn save_material(dir: &Path, material: &Material) -> Result<(), MaterialError> {
    let make = |source| MaterialError::File { path: dir.to_owned(), source };
    private_dir(dir).map_err(make)?;
    write(&dir.join(ROOTS_FILE), &pem_certificates(&material.roots))?;
    write(&dir.join(IDENTITY_FILE), &pem_identity(&material.key, &material.chain))
}

/// The TLS identity kept in `dir`, if there is one, also when its certificate has expired.
pub fn load_material(dir: &Path) -> Result<Option<Material>, MaterialError> {
    let path = dir.join(IDENTITY_FILE);
    let Some((key, chain)) = read_identity(&path)? else {
        return Ok(None);
    };
    let roots_path = dir.join(ROOTS_FILE);
    let damaged = |path: &Path, why: &dyn fmt::Display| MaterialError::Damaged {
        path: path.to_owned(),
        why: why.to_string(),
    };
    let roots = read(&roots_path)?.ok_or_else(|| damaged(&roots_path, &"it is missing"))?;
    let roots = parse_certificates(&roots_path, &roots)?;
    let leaf = chain.first().ok_or_else(|| damaged(&path, &"it holds no certificate"))?;
    let peer = PeerIdentity::from_certificate(leaf).map_err(|error| damaged(&path, &error))?;
    let trust_domain = TrustDomain::new(peer.id.trust_domain()).map_err(|error| damaged(&path, &error))?;
    let material = Material { chain, key, roots, trust_domain };
    material.check().map_err(|error| damaged(&path, &error))?;
    Ok(Some(material))
}

/// Keeps a record key and its certificate in `dir`.
pub fn save_record(dir: &Path, record: &RecordIdentity) -> Result<(), MaterialError> {
    let make = |source| MaterialError::File { path: dir.to_owned(), source };
    private_dir(dir).map_err(make)?;
    write(&dir.join(RECORD_FILE), &pem_identity(&record.key.to_pkcs8(), &record.chain))
}

/// The record key kept in `dir`, if there is one.
pub fn load_record(dir: &Path) -> Result<Option<RecordIdentity>, MaterialError> {
    let path = dir.join(RECORD_FILE);
    let Some((key, chain)) = read_identity(&path)? else {
        return Ok(None);
    };
    let record = RecordKey::from_pkcs8(&key)
        .map_err(|error: KeyError| MaterialError::RecordKey(error.to_string()))
        .and_then(|key| RecordIdentity::new(key, chain));
    record.map(Some).map_err(|error| MaterialError::Damaged { path, why: error.to_string() })
}

type KeyAndChain = (PrivatePkcs8KeyDer<'static>, Vec<CertificateDer<'static>>);

fn read_identity(path: &Path) -> Result<Option<KeyAndChain>, MaterialError> {
    let Some(pem) = read(path)? else {
        return Ok(None);
    };
    let key = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|error| MaterialError::Damaged {
        path: path.to_owned(),
        why: format!("no private key in it ({error})"),
    })?;
    Ok(Some((key, parse_certificates(path, &pem)?)))
}

fn parse_certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(pem).take(CERTIFICATES_MAX + 1).collect();
    let damaged = |why: String| MaterialError::Damaged { path: path.to_owned(), why };
    certificates.map_err(|error| damaged(error.to_string()))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, MaterialError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(MaterialError::File { path: path.to_owned(), source }),
    }
}

fn write(path: &Path, text: &str) -> Result<(), MaterialError> {
    write_atomic(path, text.as_bytes(), 0o600)
        .map_err(|source| MaterialError::File { path: path.to_owned(), source })
}

fn pem_identity(key: &PrivatePkcs8KeyDer<'_>, chain: &[CertificateDer<'_>]) -> String {
    pem("PRIVATE KEY", key.secret_pkcs8_der()) + &pem_certificates(chain)
}

/// Certificates as PEM, one after the other.
#[must_use]
pub fn pem_certificates(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect()
}

/// `der` as one PEM section.
#[must_use]
pub fn pem(label: &str, der: &[u8]) -> String {
    let text = data_encoding::BASE64.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for at in (0..text.len()).step_by(64) {
        pem.push_str(&text[at..text.len().min(at + 64)]);
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}
