//! Whose record keys are known: certificates that were checked, by their fingerprint.

use crate::authority::Refusal;
use crate::batch::{Hash, sha256};
use atoll_identity::CertificateDer;
use atoll_wire::record::RecordCertificate;
use std::collections::HashMap;
use std::sync::Arc;

pub use atoll_identity::RecordSigner;

/// Most record certificates kept. A node has one, a renewed one now and then.
const SIGNERS_MAX: usize = 40_000;
/// Longest certificate, and most of them in a chain.
const CERTIFICATE_BYTES_MAX: usize = 8 * 1024;
const INTERMEDIATES_MAX: usize = 4;

/// Checks a record certificate's chain. Identity's trust store in production.
pub(crate) trait CertificateCheck: Send + Sync {
    fn check(&self, chain: &[Vec<u8>]) -> Result<RecordSigner, String>;
}

/// A signer, and the certificate to hand on with its records.
#[derive(Debug, Clone)]
pub(crate) struct KnownSigner {
    pub(crate) signer: Arc<RecordSigner>,
    pub(crate) certificate: Arc<RecordCertificate>,
}

/// The known signers.
#[derive(Debug, Default)]
pub(crate) struct Signers(HashMap<Hash, KnownSigner>);

impl Signers {
    pub(crate) fn find(&self, fingerprint: &[u8]) -> Option<&KnownSigner> {
        self.0.get(&Hash::try_from(fingerprint).ok()?)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (Hash, Arc<RecordCertificate>)> {
        self.0.iter().map(|(hash, known)| (*hash, Arc::clone(&known.certificate)))
    }

    pub(crate) fn known(&self) -> impl Iterator<Item = (&Hash, &KnownSigner)> {
        self.0.iter()
    }

    pub(crate) fn holds(&self, certificate: &RecordCertificate) -> bool {
        self.0.contains_key(&fingerprint(certificate))
    }

    pub(crate) fn insert(&mut self, known: KnownSigner) -> Result<Hash, Refusal> {
        if self.0.len() >= SIGNERS_MAX {
            return Err(Refusal::Quota);
        }
        let hash = fingerprint(&known.certificate);
        self.0.insert(hash, known);
        Ok(hash)
    }

    /// Forgets those that `used` does not name; returns them.
    pub(crate) fn retain(&mut self, used: impl Fn(&Hash) -> bool) -> Vec<Hash> {
        let gone: Vec<Hash> = self.0.keys().filter(|hash| !used(hash)).copied().collect();
        for hash in &gone {
            self.0.remove(hash);
        }
        gone
    }
}

/// SHA-256 of the record certificate itself.
pub(crate) fn fingerprint(certificate: &RecordCertificate) -> Hash {
    sha256(&[&certificate.certificate])
}

/// Checks a certificate from a peer or from disk.
pub(crate) fn admit(
    check: &dyn CertificateCheck,
    certificate: RecordCertificate,
) -> Result<KnownSigner, Refusal> {
    let too_long = |der: &Vec<u8>| der.len() > CERTIFICATE_BYTES_MAX;
    if too_long(&certificate.certificate)
        || certificate.intermediates.len() > INTERMEDIATES_MAX
        || certificate.intermediates.iter().any(too_long)
    {
        return Err(Refusal::Size);
    }
    let mut chain = vec![certificate.certificate.clone()];
    chain.extend(certificate.intermediates.iter().cloned());
    let signer = check.check(&chain).map_err(|why| {
        tracing::debug!(why, "a record certificate was refused");
        Refusal::Certificate
    })?;
    Ok(KnownSigner { signer: Arc::new(signer), certificate: Arc::new(certificate) })
}

impl CertificateCheck for atoll_identity::Identity {
    fn check(&self, chain: &[Vec<u8>]) -> Result<RecordSigner, String> {
        let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let (leaf, intermediates) = chain.split_first().ok_or("no certificate")?;
        self.trust().verify_record_certificate(leaf, intermediates).map_err(|why| why.to_string())
    }
}

/// A signer as a certificate would name it, with no key of its own.
#[cfg(test)]
pub(crate) fn test_signer(node: &str, region: &str, roles: &atoll_model::Roles) -> RecordSigner {
    RecordSigner {
        node: node.parse().expect("a name"),
        site: format!("{region}1").parse().expect("a name"),
        region: region.parse().expect("a name"),
        roles: *roles,
        epoch: 1,
        public_key: [0; 32],
    }
}
