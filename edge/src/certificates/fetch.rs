//! Brings certificates from control: what CERTIFICATE records want and is not loaded yet.

use super::keeper::Changed;
use super::{Certificate, Certificates, Fingerprint, kept};
use atoll_routing::Backoff;
use atoll_wire::node::FetchCertificatesRequest;
use atoll_wire::node::node_plane_client::NodePlaneClient;
use std::collections::{BTreeMap, HashMap};
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
/// Least wait after a failure, also when something else is wanted meanwhile.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

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
    wanted: HashMap<Box<str>, Want>,
    /// Those whose certificate is not known to be loaded, in the order in which they were asked for: a change
    /// costs what it changes.
    pending: BTreeMap<u64, Box<str>>,
    asked: u64,
}

#[derive(Debug)]
struct Want {
    fingerprint: Fingerprint,
    /// Its place among those that are pending; 0: it is not.
    pending: u64,
}

impl Domains {
    fn ask_for(&mut self, domain: &str) {
        let Some(want) = self.wanted.get_mut(domain) else { return };
        self.asked += 1;
        self.pending.remove(&want.pending);
        want.pending = self.asked;
        self.pending.insert(self.asked, domain.into());
    }
}

impl Wanted {
    /// A record names a version of a domain's certificate, or (`None`) has gone.
    pub(crate) fn set(&self, domain: &str, fingerprint: Option<&str>) {
        let mut domains = self.domains();
        if let Some(before) = domains.wanted.remove(domain) {
            domains.pending.remove(&before.pending);
        }
        if let Some(text) = fingerprint {
            let Some(fingerprint) = kept::parse(text) else {
                return warn!(domain, "a certificate's record has no fingerprint");
            };
            domains.wanted.insert(domain.into(), Want { fingerprint, pending: 0 });
            domains.ask_for(domain);
        }
        drop(domains);
        self.0.changed.notify_one();
    }

    fn wants(&self, domain: &str) -> bool {
        self.domains().wanted.contains_key(domain)
    }

    /// Some domains that lack their certificate, those that were asked for last first: who deploys now
    /// does not wait for all that there is.
    fn next(&self, loaded: &Certificates, most: usize) -> Vec<String> {
        let mut domains = self.domains();
        let mut next = Vec::new();
        while next.len() < most {
            let Some((_, domain)) = domains.pending.pop_last() else { break };
            let Some(want) = domains.wanted.get_mut(&domain) else { continue };
            want.pending = 0;
            if loaded.of_domain(&domain).is_none_or(|current| current.fingerprint != want.fingerprint) {
                next.push(domain.into());
            }
        }
        next
    }

    /// These are to be asked for again.
    fn again(&self, these: impl IntoIterator<Item = String>) {
        let mut domains = self.domains();
        these.into_iter().for_each(|domain| domains.ask_for(&domain));
    }

    /// Those of these that have not the certificate that they should have.
    fn unmet(&self, these: &[String], loaded: &Certificates) -> Vec<String> {
        let domains = self.domains();
        let lacks = |domain: &&String| {
            let wanted = domains.wanted.get(domain.as_str());
            let current = || loaded.of_domain(domain).map(|current| current.fingerprint);
            wanted.is_some_and(|want| current() != Some(want.fingerprint))
        };
        these.iter().filter(lacks).cloned().collect()
    }

    fn domains(&self) -> MutexGuard<'_, Domains> {
        // Whole whenever the lock is free: no section can panic half-way.
        self.0.domains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Control gave nothing.
#[derive(Debug)]
struct NoAnswer;

/// Fetches; one task owns it.
#[derive(Debug)]
pub(crate) struct Fetcher {
    pub(crate) wanted: Wanted,
    pub(crate) loaded: Certificates,
    pub(crate) changed: Changed,
    pub(crate) node_plane: Channel,
}

impl Fetcher {
    /// Fetches whenever something is wanted, for ever; after a failure again, with backoff. What is
    /// loaded stays until its replacement is here.
    pub(crate) async fn run(self) {
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        // Asked for in vain: they wait for the next try, and hold up no others.
        let mut unmet: Vec<String> = Vec::new();
        loop {
            let next = self.wanted.next(&self.loaded, BATCH);
            if next.is_empty() && unmet.is_empty() {
                backoff.reset();
                self.wanted.0.changed.notified().await;
                continue;
            }
            if !next.is_empty() {
                match self.fetch(&next).await {
                    Ok(left) => {
                        unmet.extend(left);
                        continue;
                    }
                    Err(NoAnswer) => unmet.extend(next),
                }
            }
            let wait = backoff.next_wait(rand::random());
            // A change is worth trying soon, but not more often than the first wait.
            tokio::select! {
                () = tokio::time::sleep(wait) => self.wanted.again(unmet.drain(..)),
                () = self.wanted.0.changed.notified() => tokio::time::sleep(wait.min(RETRY_MIN)).await,
            }
        }
    }

    /// Forgets a domain.
    pub(crate) fn forget(loaded: &Certificates, changed: &Changed, domain: &str) {
        loaded.remove(domain);
        changed.note([domain.to_owned()]);
    }

    /// Fetches the certificates of some domains; gives those that it did not get.
    async fn fetch(&self, domains: &[String]) -> Result<Vec<String>, NoAnswer> {
        let mut client =
            NodePlaneClient::new(self.node_plane.clone()).max_decoding_message_size(REPLY_BYTES_MAX);
        let request = FetchCertificatesRequest { domains: domains.to_vec() };
        let reply = tokio::time::timeout(FETCH_TIMEOUT, client.fetch_certificates(request)).await;
        let certificates = match reply {
            Ok(Ok(reply)) => reply.into_inner().certificates,
            Ok(Err(status)) => {
                warn!(code = ?status.code(), message = status.message(), "control gives no certificates; trying again");
                return Err(NoAnswer);
            }
            Err(_elapsed) => {
                warn!("control does not answer a fetch of certificates; trying again");
                return Err(NoAnswer);
            }
        };
        // Only what was asked for, and what is still wanted.
        let asked = |domain: &String| domains.contains(domain) && self.wanted.wants(domain);
        let usable: Vec<_> = certificates
            .into_iter()
            .filter(|received| asked(&received.domain))
            .filter(|received| match Certificate::new(received) {
                Ok(_) => true,
                Err(error) => {
                    warn!(domain = %received.domain, %error, "control gave a certificate that can't be used");
                    false
                }
            })
            .collect();
        let names: Vec<String> = usable.iter().map(|received| received.domain.clone()).collect();
        debug!(count = names.len(), "certificates loaded");
        self.loaded.insert(usable);
        self.changed.note(names);
        Ok(self.wanted.unmet(domains, &self.loaded))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::received;
    use super::*;

    #[test]
    fn the_newest_wish_comes_first_and_what_is_loaded_is_not_asked_for() {
        let (wanted, loaded) = (Wanted::default(), Certificates::default());
        let certificate = received("b.example", &["b.example"]);
        loaded.insert([certificate.clone()]);
        let other = "00".repeat(32);
        wanted.set("a.example", Some(&other));
        wanted.set("b.example", Some(&certificate.fingerprint));
        wanted.set("c.example", Some(&other));
        wanted.set("d.example", Some(&other));
        wanted.set("c.example", None);
        wanted.set("e.example", Some("no hash"));
        assert_eq!(wanted.next(&loaded, 1), ["d.example"]);
        assert_eq!(wanted.next(&loaded, 9), ["a.example"]);
        assert!(wanted.next(&loaded, 9).is_empty());
        wanted.set("b.example", Some(&other));
        wanted.again(["a.example".to_owned(), "c.example".to_owned()]);
        assert_eq!(wanted.next(&loaded, 9), ["a.example", "b.example"]);
        let these = ["a.example", "b.example", "c.example"].map(str::to_owned);
        assert_eq!(wanted.unmet(&these, &loaded), ["a.example", "b.example"]);
        assert!(wanted.domains().pending.is_empty());
    }
}
