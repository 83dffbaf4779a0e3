//! Public certificates, found by server name; kept sealed on disk.
//!
//! In memory each is kept as small as it can be, and made ready for handshakes when one asks for it: of a hundred
//! thousand domains few are busy at a time. The disk is read at the start alone, so that a slow one holds up nobody.

mod fetch;
mod journal;
mod keeper;
mod kept;

pub(crate) use fetch::{Fetcher, Wanted};
pub(crate) use journal::Journal;
pub use journal::SealedError;
pub(crate) use keeper::{Changed, Keeper};
pub(crate) use kept::Kept;

use arc_swap::ArcSwap;
use atoll_identity::crypto_provider;
use atoll_routing::ShardedMap;
use atoll_routing::hosts::{normalise_host, wildcard_of};
use atoll_wire::node::DomainCertificate;
use kept::Chains;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Certificates that are ready for handshakes, in each of two generations: 2 × 2048 × about 5 KiB.
const READY_MAX: usize = 2048;

/// SHA-256 of a chain: a certificate's version.
pub(crate) type Fingerprint = [u8; 32];

/// A domain's certificate, ready for handshakes.
#[derive(Debug)]
pub(crate) struct Certificate {
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) fingerprint: Fingerprint,
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
        let fingerprint = kept::fingerprint(received)?;
        let certificate = Self::open(fingerprint, received.chain.iter().cloned(), received.key.clone())?;
        // A certificate for `*.a` covers the domain `*.a` as such.
        if !certificate.names.contains(&received.domain) && !certificate.covers(&received.domain) {
            return Err(CertificateError::Names);
        }
        Ok(certificate)
    }

    fn open(
        fingerprint: Fingerprint,
        chain: impl Iterator<Item = Vec<u8>>,
        key: Vec<u8>,
    ) -> Result<Self, CertificateError> {
        let chain: Vec<CertificateDer<'static>> = chain.map(CertificateDer::from).collect();
        let leaf = chain.first().ok_or(CertificateError::Chain)?;
        let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|_| CertificateError::Chain)?;
        let names: Vec<String> = leaf.valid_dns_names().map(str::to_ascii_lowercase).collect();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key));
        let key = crypto_provider().key_provider.load_private_key(key).map_err(CertificateError::Key)?;
        let key = CertifiedKey::new(chain, key);
        key.keys_match().map_err(CertificateError::Key)?;
        Ok(Self { key: Arc::new(key), fingerprint, names })
    }

    /// Its version, for people.
    pub(crate) fn fingerprint_hex(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.fingerprint)
    }

    /// Whether it covers a normalised host name.
    pub(crate) fn covers(&self, host: &str) -> bool {
        let rest = host.split_once('.').map(|(_, rest)| rest);
        let is_wildcard = |name: &str| name.strip_prefix("*.").is_some_and(|above| Some(above) == rest);
        self.names.iter().any(|name| name == host || is_wildcard(name))
    }
}

/// All certificates, by domain. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Certificates(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    kept: ArcSwap<ShardedMap<Arc<Kept>>>,
    /// Held for a look, once a handshake.
    ready: Mutex<Ready>,
    /// Held for a look, once a certificate comes.
    chains: Mutex<Chains>,
}

/// What handshakes have asked for lately.
#[derive(Debug, Default)]
struct Ready {
    young: HashMap<Fingerprint, Arc<Certificate>>,
    old: HashMap<Fingerprint, Arc<Certificate>>,
}

impl Ready {
    fn find(&mut self, fingerprint: &Fingerprint) -> Option<Arc<Certificate>> {
        if let Some(certificate) = self.young.get(fingerprint) {
            return Some(Arc::clone(certificate));
        }
        let certificate = self.old.remove(fingerprint)?;
        self.keep(&certificate);
        Some(certificate)
    }

    fn keep(&mut self, certificate: &Arc<Certificate>) {
        if self.young.len() >= READY_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(certificate.fingerprint, Arc::clone(certificate));
    }
}

impl Certificates {
    /// Opens what is kept in the data folder.
    pub(crate) fn load(data_dir: &Path) -> Result<(Self, Journal), SealedError> {
        let mut chains = Chains::default();
        let mut all = ShardedMap::new();
        let journal = Journal::open(data_dir, |received| match Kept::new(&received, &mut chains) {
            Some(kept) => drop(all.insert(&received.domain, Arc::new(kept))),
            None => drop(all.remove(&received.domain)),
        })?;
        let shared =
            Shared { kept: ArcSwap::from_pointee(all), ready: Mutex::default(), chains: Mutex::new(chains) };
        Ok((Self(Arc::new(shared)), journal))
    }

    /// The certificate for a server name: the exact domain's, else the wildcard's.
    pub(crate) fn find(&self, server_name: &str) -> Option<Arc<Certificate>> {
        let name = normalise_host(server_name)?;
        let kept = {
            let all = self.0.kept.load();
            Arc::clone(all.get(&name).or_else(|| all.get(&wildcard_of(&name)?))?)
        };
        if let Some(ready) = self.ready().find(&kept.fingerprint) {
            return Some(ready);
        }
        // Outside the lock: it takes some ten thousandths of a second.
        match Certificate::open(kept.fingerprint, kept.chain(), kept.key().to_vec()) {
            Ok(certificate) => {
                let certificate = Arc::new(certificate);
                self.ready().keep(&certificate);
                Some(certificate)
            }
            Err(error) => {
                tracing::error!(domain = %name, %error, "a certificate that was good can't be used any more");
                None
            }
        }
    }

    /// The certificate of exactly this domain, as it is kept.
    pub(crate) fn of_domain(&self, domain: &str) -> Option<Arc<Kept>> {
        self.0.kept.load().get(domain).cloned()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.kept.load().len()
    }

    /// Every domain and its certificate.
    pub(crate) fn all(&self) -> Vec<(String, Arc<Kept>)> {
        self.0.kept.load().iter().map(|(domain, kept)| (domain.to_owned(), Arc::clone(kept))).collect()
    }

    /// Adds or replaces many, which are known to be good; new handshakes use them.
    pub(crate) fn insert(&self, received: impl IntoIterator<Item = DomainCertificate>) {
        let kept: Vec<(String, Arc<Kept>)> = {
            let mut chains = self.0.chains.lock().unwrap_or_else(PoisonError::into_inner);
            let keep = |received: DomainCertificate| {
                let kept = Kept::new(&received, &mut chains)?;
                Some((received.domain, Arc::new(kept)))
            };
            received.into_iter().filter_map(keep).collect()
        };
        self.change(|all| {
            for (domain, kept) in &kept {
                all.insert(domain, Arc::clone(kept));
            }
        });
    }

    /// Removes; open connections stay.
    pub(crate) fn remove(&self, domain: &str) {
        self.change(|all| {
            all.remove(domain);
        });
    }

    fn change(&self, change: impl Fn(&mut ShardedMap<Arc<Kept>>)) {
        self.0.kept.rcu(|all| {
            let mut all = (**all).clone();
            change(&mut all);
            all
        });
    }

    fn ready(&self) -> MutexGuard<'_, Ready> {
        // Whole whenever the lock is free: no section can panic half-way.
        self.0.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
