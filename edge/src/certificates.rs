//! Public certificates: what is loaded now, found by server name; kept sealed on disk.

mod fetch;
mod sealed;

pub(crate) use fetch::{Fetcher, Wanted};
pub(crate) use sealed::Sealed;
pub use sealed::SealedError;

use arc_swap::ArcSwap;
use atoll_identity::{crypto_provider, fingerprint_hex};
use atoll_routing::ShardedMap;
use atoll_routing::hosts::{normalise_host, wildcard_of};
use atoll_wire::node::DomainCertificate;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use std::sync::Arc;

/// A domain's certificate.
#[derive(Debug)]
pub(crate) struct Certificate {
    pub(crate) key: Arc<CertifiedKey>,
    /// SHA-256 of the chain, hex: its version.
    pub(crate) fingerprint: String,
    /// The DNS names that it covers, in lower case.
    names: Vec<String>,
}

/// A certificate that can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("its chain is empty or no certificate")]
    Chain,
    #[error("its fingerprint is {found}, not {expected}")]
    Fingerprint { found: String, expected: String },
    #[error("it does not cover the domain")]
    Names,
    #[error("its key can't be used")]
    Key(#[source] rustls::Error),
}

impl Certificate {
    /// Checks that what was received holds together and is for its domain.
    pub(crate) fn new(received: &DomainCertificate) -> Result<Self, CertificateError> {
        let found = fingerprint_hex(&received.chain.concat());
        if found != received.fingerprint {
            return Err(CertificateError::Fingerprint {
                found,
                expected: received.fingerprint.escape_debug().take(80).collect(),
            });
        }
        let chain: Vec<CertificateDer<'static>> =
            received.chain.iter().cloned().map(CertificateDer::from).collect();
        let leaf = chain.first().ok_or(CertificateError::Chain)?;
        let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|_| CertificateError::Chain)?;
        let names: Vec<String> = leaf.valid_dns_names().map(str::to_ascii_lowercase).collect();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(received.key.clone()));
        let key = crypto_provider().key_provider.load_private_key(key).map_err(CertificateError::Key)?;
        let key = CertifiedKey::new(chain, key);
        key.keys_match().map_err(CertificateError::Key)?;
        let certificate = Self { key: Arc::new(key), fingerprint: found, names };
        // A certificate for `*.a` covers the domain `*.a` as such.
        if !certificate.names.contains(&received.domain) && !certificate.covers(&received.domain) {
            return Err(CertificateError::Names);
        }
        Ok(certificate)
    }

    /// Whether it covers a normalised host name.
    pub(crate) fn covers(&self, host: &str) -> bool {
        let wildcard = wildcard_of(host);
        self.names.iter().any(|name| name == host || Some(name) == wildcard.as_ref())
    }
}

/// All certificates, by domain. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Certificates(Arc<ArcSwap<ShardedMap<Arc<Certificate>>>>);

impl Certificates {
    /// The certificate for a server name: the exact domain's, else the wildcard's.
    pub(crate) fn find(&self, server_name: &str) -> Option<Arc<Certificate>> {
        let name = normalise_host(server_name)?;
        let all = self.0.load();
        all.get(&name).or_else(|| all.get(&wildcard_of(&name)?)).cloned()
    }

    /// The certificate of exactly this domain.
    pub(crate) fn of_domain(&self, domain: &str) -> Option<Arc<Certificate>> {
        self.0.load().get(domain).cloned()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.load().len()
    }

    /// Adds or replaces; new handshakes use it.
    pub(crate) fn insert(&self, domain: &str, certificate: Certificate) {
        let certificate = Arc::new(certificate);
        self.change(|all| {
            all.insert(domain, Arc::clone(&certificate));
        });
    }

    /// Removes; open connections stay.
    pub(crate) fn remove(&self, domain: &str) {
        self.change(|all| {
            all.remove(domain);
        });
    }

    fn change(&self, change: impl Fn(&mut ShardedMap<Arc<Certificate>>)) {
        self.0.rcu(|all| {
            let mut all = (**all).clone();
            change(&mut all);
            all
        });
    }
}

#[cfg(test)]
mod tests;
