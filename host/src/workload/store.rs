//! A certificate with its key, in memory and on disk.

pub use super::schedule::Validity;
use atoll_model::ClusterName;
use atoll_process::files::write_atomic;
use atoll_wire::node::IdentityReply;
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use x509_parser::prelude::{FromDer, X509Certificate};

/// One service's certificate and key.
#[derive(Clone, PartialEq, Eq)]
pub struct Workload {
    /// Leaf first, DER, without the root.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8, DER.
    pub key: Vec<u8>,
    /// The roots to trust, DER.
    pub roots: Vec<Vec<u8>>,
    /// The trust domain of the identity in it.
    pub trust_domain: String,
    /// The leaf's.
    pub validity: Validity,
}

impl fmt::Debug for Workload {
    // The key stays out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workload")
            .field("trust_domain", &self.trust_domain)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

impl Workload {
    pub(super) fn new(reply: IdentityReply, key: Vec<u8>) -> Result<Self, String> {
        let validity =
            reply.chain.first().and_then(|leaf| validity_of(leaf)).ok_or("the answer has no certificate")?;
        if reply.roots.is_empty() {
            return Err("the answer has no root".to_owned());
        }
        Ok(Self { chain: reply.chain, key, roots: reply.roots, trust_domain: reply.trust_domain, validity })
    }
}

fn validity_of(leaf: &[u8]) -> Option<Validity> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let ms = |seconds: i64| u64::try_from(seconds).ok()?.checked_mul(1_000);
    Some(Validity {
        not_before_ms: ms(certificate.validity().not_before.timestamp())?,
        not_after_ms: ms(certificate.validity().not_after.timestamp())?,
    })
}

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    cluster: String,
    trust_domain: String,
    chain: Vec<String>,
    roots: Vec<String>,
    key: String,
}

fn path_of(folder: &Path, cluster: &ClusterName) -> PathBuf {
    // Names hold no underscore, so that no two services share a file.
    folder.join(format!("{}_{}_{}.json", cluster.org, cluster.app, cluster.service))
}

pub(super) fn save(folder: &Path, cluster: &ClusterName, workload: &Workload) -> io::Result<()> {
    let encode = |list: &[Vec<u8>]| list.iter().map(|der| BASE64.encode(der)).collect();
    let kept = Kept {
        version: 1,
        cluster: cluster.to_string(),
        trust_domain: workload.trust_domain.clone(),
        chain: encode(&workload.chain),
        roots: encode(&workload.roots),
        key: BASE64.encode(&workload.key),
    };
    write_atomic(&path_of(folder, cluster), &serde_json::to_vec_pretty(&kept)?, 0o600)
}

/// What was kept, unless it is absent or damaged: then a new one is asked for.
pub(super) fn load(folder: &Path, cluster: &ClusterName) -> Option<Workload> {
    let kept: Kept = serde_json::from_slice(&std::fs::read(path_of(folder, cluster)).ok()?).ok()?;
    let decode = |list: &[String]| {
        list.iter().map(|text| BASE64.decode(text.as_bytes()).ok()).collect::<Option<Vec<_>>>()
    };
    let reply = IdentityReply {
        chain: decode(&kept.chain)?,
        roots: decode(&kept.roots)?,
        trust_domain: kept.trust_domain,
        ..IdentityReply::default()
    };
    let key = BASE64.decode(kept.key.as_bytes()).ok()?;
    (kept.version == 1 && kept.cluster == cluster.to_string()).then(|| Workload::new(reply, key).ok())?
}
