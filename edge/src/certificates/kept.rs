//! A certificate in as few bytes as it can be kept in: about 700, where one that is ready for handshakes has 5,000.

use super::{CertificateError, Fingerprint};
use atoll_wire::node::DomainCertificate;
use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// The certificates after the leaf, which most domains share.
type Rest = Arc<[Box<[u8]>]>;

/// It.
pub(crate) struct Kept {
    pub(crate) fingerprint: Fingerprint,
    /// The leaf, then the key.
    bytes: Box<[u8]>,
    leaf_bytes: usize,
    rest: Rest,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the key.
        f.debug_struct("Kept")
            .field("fingerprint", &HEXLOWER.encode(&self.fingerprint))
            .finish_non_exhaustive()
    }
}

impl Kept {
    /// Of one that was checked; nothing when it has no leaf.
    pub(super) fn new(received: &DomainCertificate, chains: &mut Chains) -> Option<Self> {
        let (leaf, rest) = received.chain.split_first()?;
        Some(Self {
            fingerprint: hash(received.chain.iter()),
            bytes: [leaf.as_slice(), &received.key].concat().into(),
            leaf_bytes: leaf.len(),
            rest: chains.shared(rest),
        })
    }

    /// Leaf first, DER.
    pub(crate) fn chain(&self) -> impl Iterator<Item = Vec<u8>> {
        let leaf = self.bytes[..self.leaf_bytes].to_vec();
        std::iter::once(leaf).chain(self.rest.iter().map(|certificate| certificate.to_vec()))
    }

    /// PKCS#8, DER.
    pub(crate) fn key(&self) -> &[u8] {
        &self.bytes[self.leaf_bytes..]
    }

    #[cfg(test)]
    pub(super) fn shares_its_chain_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.rest, &other.rest)
    }

    /// As it came.
    pub(crate) fn received(&self, domain: &str) -> DomainCertificate {
        DomainCertificate {
            domain: domain.to_owned(),
            chain: self.chain().collect(),
            key: self.key().to_vec(),
            fingerprint: HEXLOWER.encode(&self.fingerprint),
        }
    }
}

/// The fingerprint of what was received, which must be what it says.
pub(super) fn fingerprint(received: &DomainCertificate) -> Result<Fingerprint, CertificateError> {
    let found = hash(received.chain.iter());
    if parse(&received.fingerprint) != Some(found) {
        return Err(CertificateError::Fingerprint {
            found: HEXLOWER.encode(&found),
            expected: received.fingerprint.escape_debug().take(80).collect(),
        });
    }
    Ok(found)
}

/// Reads a fingerprint in hex.
pub(super) fn parse(text: &str) -> Option<Fingerprint> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

fn hash<'a>(certificates: impl Iterator<Item = &'a Vec<u8>>) -> Fingerprint {
    let mut context = digest::Context::new(&digest::SHA256);
    certificates.for_each(|certificate| context.update(certificate));
    let mut hash = Fingerprint::default();
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// Finds equal rests of chains, so that each is kept once.
#[derive(Debug, Default)]
pub(super) struct Chains {
    known: HashMap<Fingerprint, Weak<[Box<[u8]>]>>,
    /// Those that nobody has any more are forgotten at this size.
    sweep_at: usize,
}

impl Chains {
    fn shared(&mut self, rest: &[Vec<u8>]) -> Rest {
        let id = hash(rest.iter());
        if let Some(known) = self.known.get(&id).and_then(Weak::upgrade) {
            return known;
        }
        let rest: Rest = rest.iter().map(|certificate| certificate.clone().into_boxed_slice()).collect();
        if self.known.len() >= self.sweep_at {
            self.known.retain(|_, known| known.strong_count() > 0);
            self.sweep_at = self.known.len() * 2 + 64;
        }
        self.known.insert(id, Arc::downgrade(&rest));
        rest
    }
}
