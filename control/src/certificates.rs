//! Public certificates: issued for each domain, sealed in the store, renewed before they run out.

pub mod upload;

use crate::apps::records;
use crate::config::{Config, PublicCa};
use crate::store::objects::Domain;
use crate::store::seal::Sealer;
use crate::store::{Store, StoreError};
use atoll_identity::fingerprint_hex;
use atoll_mesh_ca::{CaError, PublicTestCa};
use atoll_model::ClusterName;
use atoll_process::clock::unix_ms;
use data_encoding::BASE64;
use std::path::Path;
use std::sync::Arc;
use upload::Uploaded;

/// Where clients find the root of the test CA, in the data folder.
pub const PUBLIC_CA_FILE: &str = "public-ca.pem";

/// Issues and seals. Clones share it.
#[derive(Debug, Clone)]
pub struct Certificates {
    ca: Arc<PublicTestCa>,
    sealer: Sealer,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The CA refused.
    #[error("the public CA did not issue it: {0}")]
    Ca(#[from] CaError),
    /// The key could not be sealed.
    #[error("its key could not be sealed: {0}")]
    Seal(#[source] std::io::Error),
}

/// A certificate with its key, ready for an edge.
#[derive(Debug)]
pub struct Opened {
    /// Leaf first, DER.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8, DER.
    pub key: Vec<u8>,
}

impl Certificates {
    /// Opens the CA that the configuration names, and writes its root where clients find it.
    pub fn open(
        config: &Config,
        data_dir: &Path,
        sealer: Sealer,
        now_ms: u64,
    ) -> Result<Self, std::io::Error> {
        let PublicCa::Test = config.public_ca;
        let ca = PublicTestCa::open_or_create(&data_dir.join("public-ca"), now_ms)
            .map_err(std::io::Error::other)?;
        atoll_process::files::keep(&data_dir.join(PUBLIC_CA_FILE), ca.ca_pem().as_bytes(), 0o644)?;
        Ok(Self { ca: Arc::new(ca), sealer })
    }

    /// A new certificate for a domain.
    pub fn issue(
        &self,
        cluster: &ClusterName,
        domain: &str,
        now_ms: u64,
    ) -> Result<Domain, CertificateError> {
        let issued = self.ca.issue(domain, now_ms)?;
        let sealed_key = self
            .sealer
            .seal(&purpose(domain), issued.key.secret_pkcs8_der())
            .map_err(CertificateError::Seal)?;
        let chain: Vec<&[u8]> = issued.chain.iter().map(AsRef::as_ref).collect();
        tracing::info!(domain, not_after_ms = issued.not_after_ms, "public certificate issued");
        Ok(Domain {
            org: cluster.org.clone(),
            domain: domain.to_owned(),
            cluster: cluster.clone(),
            chain: issued.chain.iter().map(|certificate| BASE64.encode(certificate)).collect(),
            sealed_key,
            fingerprint: fingerprint_hex(&chain.concat()),
            issued_ms: now_ms,
            not_after_ms: issued.not_after_ms,
            own: false,
        })
    }

    /// A domain of the organization's own, with the certificate that was brought for it.
    pub fn take(
        &self,
        cluster: &ClusterName,
        domain: &str,
        uploaded: &Uploaded,
    ) -> Result<Domain, CertificateError> {
        let sealed_key = self.sealer.seal(&purpose(domain), &uploaded.key).map_err(CertificateError::Seal)?;
        Ok(Domain {
            org: cluster.org.clone(),
            domain: domain.to_owned(),
            cluster: cluster.clone(),
            chain: uploaded.chain.iter().map(|certificate| BASE64.encode(certificate)).collect(),
            sealed_key,
            fingerprint: fingerprint_hex(&uploaded.chain.concat()),
            issued_ms: uploaded.not_before_ms,
            not_after_ms: uploaded.not_after_ms,
            own: true,
        })
    }

    /// Opens a stored certificate; nothing when it can't be (logged).
    #[must_use]
    pub fn unseal(&self, domain: &Domain) -> Option<Opened> {
        let chain: Option<Vec<Vec<u8>>> =
            domain.chain.iter().map(|certificate| BASE64.decode(certificate.as_bytes()).ok()).collect();
        match self.sealer.unseal(&purpose(&domain.domain), &domain.sealed_key) {
            Ok(key) => Some(Opened { chain: chain?, key }),
            Err(error) => {
                tracing::error!(domain = domain.domain, %error, "the key of a public certificate is unreadable");
                None
            }
        }
    }
}

fn purpose(domain: &str) -> String {
    format!("public-key {domain}")
}

/// Whether a certificate is to be replaced: a third of its life is left, or less.
#[must_use]
pub fn is_due(domain: &Domain, now_ms: u64) -> bool {
    if domain.own {
        return false;
    }
    let life_ms = domain.not_after_ms.saturating_sub(domain.issued_ms);
    now_ms >= domain.not_after_ms.saturating_sub(life_ms / 3)
}

/// Replaces every certificate that is due; returns how many.
pub async fn renew_due(store: &Store, certificates: &Certificates) -> Result<usize, StoreError> {
    let now_ms = unix_ms();
    let due: Vec<Domain> = store.select(move |domain: &Domain| is_due(domain, now_ms)).await;
    let count = due.len();
    for domain in due {
        let certificates = certificates.clone();
        let renew = move |change: &mut crate::store::Change<'_>| {
            let tail = format!("{}/{}", domain.org, domain.domain);
            // It may have been removed, or renewed, since we looked.
            let Some(stored) = change.get::<Domain>(&tail).filter(|stored| is_due(stored, now_ms)) else {
                return Ok(());
            };
            let renewed = certificates
                .issue(&stored.cluster, &stored.domain, now_ms)
                .map_err(|error| StoreError::Broken(error.to_string()))?;
            change.put(&renewed)?;
            records::certificate_version(change, &renewed);
            Ok::<_, StoreError>(())
        };
        store.change(renew).await?;
    }
    Ok(count)
}

/// A certificate that its owner brought is worth a warning this long before it runs out.
pub const EXPIRING_MS: u64 = 21 * 24 * 3_600 * 1_000;

/// Logs the domains whose certificates run out soon, or have, and that only their owners can renew.
pub async fn warn_of_expiry(store: &Store, now_ms: u64) {
    let ends = move |domain: &Domain| domain.own && domain.not_after_ms.saturating_sub(now_ms) < EXPIRING_MS;
    for domain in store.select(ends).await {
        tracing::warn!(
            domain = domain.domain,
            org = %domain.org,
            app = %domain.cluster.app,
            days_left = domain.not_after_ms.saturating_sub(now_ms) / (24 * 3_600 * 1_000),
            "an own domain's certificate runs out: its owner has to bring a new one"
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test]
    async fn what_is_due_is_replaced_and_told() {
        let folder = tempfile::tempdir().unwrap();
        let sealer = Sealer::open_or_create(&folder.path().join("key")).unwrap();
        let certificates = Certificates::open(&Config::default(), folder.path(), sealer, unix_ms()).unwrap();
        let (store, _feed) = Store::open(folder.path(), 0).unwrap();
        let cluster: ClusterName = "default/shop/web".parse().unwrap();
        let mut old = certificates.issue(&cluster, "shop.localhost", unix_ms()).unwrap();
        assert!(!certificates.unseal(&old).unwrap().key.is_empty());
        let fresh = old.clone();
        old.not_after_ms = unix_ms() - 1;
        let expired = old.clone();
        store.change(move |change| change.put(&expired)).await.unwrap();
        assert_eq!(renew_due(&store, &certificates).await.unwrap(), 1);
        let renewed = store.get::<Domain>("default/shop.localhost").unwrap();
        assert_ne!(renewed.fingerprint, fresh.fingerprint);
        assert_eq!(store.desired().len(), 1);
        assert_eq!(renew_due(&store, &certificates).await.unwrap(), 0);
        assert!(folder.path().join(PUBLIC_CA_FILE).exists());
    }
}
