//! Reads records from gossip, and keeps views and certificates in step. Runs on the control runtime.

use crate::cache::rules::policy;
use crate::certificates::{Fetcher, Wanted};
use crate::edge::Shared;
use crate::views::ViewWriter;
use atoll_gossip::{Entry, Subscription};
use atoll_model::Kind;
use atoll_wire::record::{CertificateVersion, Purges};
use futures_util::FutureExt;
use std::borrow::Cow;
use std::sync::Arc;
use tracing::warn;

/// What the edge reads.
pub(crate) const KINDS: [Kind; 6] =
    [Kind::VIRTUAL_HOST, Kind::CLUSTER, Kind::NODE, Kind::SUMMARY, Kind::CERTIFICATE, Kind::PURGES];

/// Applies records.
pub(crate) struct Follower {
    records: Subscription,
    writer: ViewWriter,
    shared: Arc<Shared>,
    wanted: Wanted,
}

impl Follower {
    pub(crate) fn new(records: Subscription, shared: Arc<Shared>, wanted: Wanted) -> Self {
        let counts = shared.cache.as_ref().map(|cache| cache.counts.clone()).unwrap_or_default();
        let writer = ViewWriter::new(shared.views.clone(), shared.tunnel_facts.node.clone(), counts);
        Self { records, writer, shared, wanted }
    }

    /// Applies what is known already, from disk most often. Before that no request is to be answered: a host that is served would
    /// be called unknown.
    pub(crate) fn catch_up(&mut self) {
        if let Some(Some(entries)) = self.records.next().now_or_never() {
            self.apply(&entries);
        }
    }

    /// Until there are no more.
    pub(crate) async fn run(mut self) {
        while let Some(entries) = self.records.next().await {
            self.apply(&entries);
        }
    }

    fn apply(&mut self, entries: &[Arc<Entry>]) {
        for entry in entries.iter().filter(|entry| entry.kind == Kind::CERTIFICATE) {
            certificate(entry, &self.shared, &self.wanted);
        }
        self.writer.apply(entries);
        // With the rules that are known by now.
        purges(entries, &self.shared);
        self.shared.apply_errors.store(Arc::new(self.writer.errors()));
    }
}

/// An app that is gone leaves its marks: its name may come back while entries of it are here.
fn purges(entries: &[Arc<Entry>], shared: &Shared) {
    let Some(cache) = &shared.cache else { return };
    for entry in entries.iter().filter(|entry| entry.kind == Kind::PURGES && !entry.deleted) {
        match entry.decode::<Purges>() {
            Ok(told) => cache.purge(&entry.key, &told, |host, target| keyed(shared, host, target)),
            Err(error) => warn!(app = %entry.key, %error, "purges can't be read"),
        }
    }
}

/// A host's path and query as its app's rules have them in keys, where that is not as they are.
fn keyed(shared: &Shared, host: &str, target: &str) -> Option<String> {
    let snapshot = shared.views.load();
    let path = target.split('?').next().unwrap_or(target);
    let rule = snapshot.hosts.find_normal(host)?.cache_rule(host, path)?;
    match policy::target(target, Some(rule)) {
        Cow::Owned(keyed) => Some(keyed),
        Cow::Borrowed(_) => None,
    }
}

fn certificate(entry: &Entry, shared: &Shared, wanted: &Wanted) {
    if entry.deleted {
        wanted.set(&entry.key, None);
        Fetcher::forget(&shared.certificates, &shared.certificates_changed, &entry.key);
        return;
    }
    match entry.decode::<CertificateVersion>() {
        Ok(version) => wanted.set(&entry.key, Some(&version.fingerprint)),
        Err(error) => warn!(domain = %entry.key, %error, "a certificate's record can't be read"),
    }
}
