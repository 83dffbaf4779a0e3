//! Brings certificates from control: what CERTIFICATE records want and is not loaded yet.

use super::{Certificate, Certificates, Sealed};
use atoll_routing::Backoff;
use atoll_wire::node::FetchCertificatesRequest;
use atoll_wire::node::node_plane_client::NodePlaneClient;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tonic::transport::Channel;
use tracing::{debug, warn};

/// Domains asked for at once: about 4 KiB each.
const BATCH: usize = 64;
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// A chain of certificates and a key are a few KiB; a batch of the largest is far below this.
const REPLY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Which certificate each domain should have. Shared by the task that reads records and the fetcher.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Held for one change or one look.
    domains: Mutex<Domains>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Domains {
    /// Domain → fingerprint.
    wanted: BTreeMap<String, String>,
    /// Those whose certificate is not known to be loaded: a change costs what it changes.
    pending: BTreeSet<String>,
}

impl Wanted {
    /// A record names a version of a domain's certificate, or (`None`) has gone.
    pub(crate) fn set(&self, domain: &str, fingerprint: Option<String>) {
        let mut domains = self.domains();
        match fingerprint {
            Some(fingerprint) => {
                domains.wanted.insert(domain.to_owned(), fingerprint);
                domains.pending.insert(domain.to_owned());
            }
            None => {
                domains.wanted.remove(domain);
                domains.pending.remove(domain);
            }
        }
        drop(domains);
        self.0.changed.notify_one();
    }

    fn wants(&self, domain: &str) -> bool {
        self.domains().wanted.contains_key(domain)
    }

    /// The domains that lack their certificate.
    fn missing(&self, loaded: &Certificates) -> Vec<String> {
        let mut domains = self.domains();
        let Domains { wanted, pending } = &mut *domains;
        pending.retain(|domain| {
            let current = loaded.of_domain(domain);
            current.is_none_or(|current| wanted.get(domain) != Some(&current.fingerprint))
        });
        pending.iter().cloned().collect()
    }

    /// Whether these have the certificate that they should have.
    fn all_met(&self, domains: &[String], loaded: &Certificates) -> bool {
        let known = self.domains();
        domains.iter().all(|domain| {
            let wanted = known.wanted.get(domain);
            wanted.is_none() || loaded.of_domain(domain).map(|c| c.fingerprint.clone()).as_ref() == wanted
        })
    }

    fn domains(&self) -> MutexGuard<'_, Domains> {
        // Whole whenever the lock is free: no section can panic half-way.
        self.0.domains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fetches; one task owns it.
#[derive(Debug)]
pub(crate) struct Fetcher {
    pub(crate) wanted: Wanted,
    pub(crate) loaded: Certificates,
    pub(crate) sealed: Arc<Sealed>,
    pub(crate) node_plane: Channel,
}

impl Fetcher {
    /// Fetches whenever something is wanted, for ever; after a failure again, with backoff. What is
    /// loaded stays until its replacement is here.
    pub(crate) async fn run(self) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            // All of them, so that one that can't be had does not hold up the others.
            let missing = self.wanted.missing(&self.loaded);
            if missing.is_empty() {
                backoff.reset();
                self.wanted.0.changed.notified().await;
                continue;
            }
            let mut got_all = true;
            for batch in missing.chunks(BATCH) {
                got_all &= self.fetch(batch).await;
            }
            if !got_all {
                let wait = backoff.next_wait(rand::random());
                // A change is worth trying soon, but not more often than the first wait.
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = self.wanted.0.changed.notified() => {
                        tokio::time::sleep(wait.min(Duration::from_millis(200))).await;
                    }
                }
            }
        }
    }

    /// Forgets a domain.
    pub(crate) fn forget(loaded: &Certificates, sealed: &Arc<Sealed>, domain: &str) {
        loaded.remove(domain);
        let (sealed, domain) = (Arc::clone(sealed), domain.to_owned());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = sealed.remove(&domain) {
                warn!(%domain, %error, "can't remove a sealed certificate");
            }
        });
    }

    async fn fetch(&self, domains: &[String]) -> bool {
        let mut client =
            NodePlaneClient::new(self.node_plane.clone()).max_decoding_message_size(REPLY_BYTES_MAX);
        let request = FetchCertificatesRequest { domains: domains.to_vec() };
        let reply = tokio::time::timeout(FETCH_TIMEOUT, client.fetch_certificates(request)).await;
        let certificates = match reply {
            Ok(Ok(reply)) => reply.into_inner().certificates,
            Ok(Err(status)) => {
                warn!(code = ?status.code(), message = status.message(), "control gives no certificates; trying again");
                return false;
            }
            Err(_elapsed) => {
                warn!("control does not answer a fetch of certificates; trying again");
                return false;
            }
        };
        for received in certificates {
            // Only what was asked for, and what is still wanted.
            if !domains.contains(&received.domain) || !self.wanted.wants(&received.domain) {
                continue;
            }
            match Certificate::new(&received) {
                Ok(certificate) => {
                    debug!(domain = %received.domain, fingerprint = %certificate.fingerprint, "certificate loaded");
                    self.loaded.insert(&received.domain, certificate);
                    let sealed = Arc::clone(&self.sealed);
                    // Served from memory from here on: a full disk only costs the next start.
                    tokio::task::spawn_blocking(move || {
                        if let Err(error) = sealed.store(&received) {
                            warn!(domain = %received.domain, %error, "can't keep a certificate on disk");
                        }
                    });
                }
                Err(error) => {
                    warn!(domain = %received.domain, %error, "control gave a certificate that can't be used")
                }
            }
        }
        self.wanted.all_met(domains, &self.loaded)
    }
}
