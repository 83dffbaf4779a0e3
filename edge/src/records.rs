//! Reads records from gossip, and keeps views and certificates in step. Runs on the control runtime.

use crate::certificates::{Fetcher, Wanted};
use crate::edge::Shared;
use crate::views::ViewWriter;
use atoll_gossip::{Entry, Subscription};
use atoll_model::Kind;
use atoll_wire::record::{CertificateVersion, Purges};
use std::sync::Arc;
use tracing::warn;

/// What the edge reads.
pub(crate) const KINDS: [Kind; 6] =
    [Kind::VIRTUAL_HOST, Kind::CLUSTER, Kind::NODE, Kind::SUMMARY, Kind::CERTIFICATE, Kind::PURGES];

/// Applies records until there are no more.
pub(crate) async fn follow(mut records: Subscription, shared: Arc<Shared>, wanted: Wanted) {
    let mut writer = ViewWriter::new(shared.views.clone(), shared.tunnel_facts.node.clone());
    while let Some(entries) = records.next().await {
        for entry in entries.iter().filter(|entry| entry.kind == Kind::CERTIFICATE) {
            certificate(entry, &shared, &wanted);
        }
        purges(&entries, &shared);
        writer.apply(&entries);
        shared.apply_errors.store(Arc::new(writer.errors()));
    }
}

/// An app that is gone leaves its marks: its name may come back while entries of it are here.
fn purges(entries: &[Arc<Entry>], shared: &Shared) {
    let Some(cache) = &shared.cache else { return };
    for entry in entries.iter().filter(|entry| entry.kind == Kind::PURGES && !entry.deleted) {
        match entry.decode::<Purges>() {
            Ok(told) => cache.purge(&entry.key, &told),
            Err(error) => warn!(app = %entry.key, %error, "purges can't be read"),
        }
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
