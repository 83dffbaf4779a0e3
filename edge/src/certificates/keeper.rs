//! Writes certificates to disk as they change, behind the back of whoever uses them: a slow disk holds up nobody,
//! and what a full one refuses is written once it has room.

use super::{Certificates, Journal};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tracing::{info, warn};

/// Domains written at a time: about 1 KiB each.
const AT_A_TIME: usize = 512;
/// After a failed write.
const RETRY: Duration = Duration::from_secs(5);

/// Which domains' certificates have changed. Clones share it; bounded by the number of domains.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changed(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    domains: Mutex<BTreeSet<String>>,
    some: Notify,
}

impl Changed {
    /// What the disk has of these domains is past.
    pub(crate) fn note(&self, domains: impl IntoIterator<Item = String>) {
        self.domains().extend(domains);
        self.0.some.notify_one();
    }

    fn take(&self) -> Vec<String> {
        let mut domains = self.domains();
        std::iter::from_fn(|| domains.pop_first()).take(AT_A_TIME).collect()
    }

    fn domains(&self) -> MutexGuard<'_, BTreeSet<String>> {
        // Whole whenever the lock is free: no section can panic half-way.
        self.0.domains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes; one task owns it.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) certificates: Certificates,
    pub(crate) changed: Changed,
    pub(crate) journal: Journal,
}

impl Keeper {
    /// Runs for ever.
    pub(crate) async fn run(self) {
        let Self { certificates, changed, mut journal } = self;
        let mut failing = false;
        loop {
            let domains = changed.take();
            if domains.is_empty() {
                changed.0.some.notified().await;
                continue;
            }
            let (names, all) = (domains.clone(), certificates.clone());
            let write = tokio::task::spawn_blocking(move || {
                let written = write(&mut journal, &names, &all);
                (journal, written)
            });
            let written;
            (journal, written) = match write.await {
                Ok(done) => done,
                Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
            };
            match written {
                Ok(()) if failing => {
                    failing = false;
                    info!("certificates are kept on disk again");
                }
                Ok(()) => {}
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        let cause = std::error::Error::source(&error).map(ToString::to_string);
                        warn!(%error, cause, "can't keep certificates on disk; they are served from memory");
                    }
                    changed.note(domains);
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

fn write(
    journal: &mut Journal,
    domains: &[String],
    certificates: &Certificates,
) -> Result<(), super::SealedError> {
    let current = |domain: &String| {
        let kept = certificates.of_domain(domain);
        (domain.clone(), kept.map(|kept| kept.received(domain)))
    };
    let changes: Vec<_> = domains.iter().map(current).collect();
    journal.append(&changes)?;
    if journal.is_mostly_past(certificates.len()) {
        let all = certificates.all();
        journal.rewrite(all.iter().map(|(domain, kept)| kept.received(domain)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::journal::tests::open;
    use super::super::tests::received;
    use super::*;

    #[tokio::test]
    async fn what_changes_is_written_also_after_a_disk_that_refused() {
        let data = tempfile::tempdir().unwrap();
        let (journal, _) = open(data.path());
        let (certificates, changed) = (Certificates::default(), Changed::default());
        // A folder in the file's place: every write fails.
        let path = data.path().join("edge-certificates.sealed");
        std::fs::create_dir(&path).unwrap();
        let keeper = Keeper { certificates: certificates.clone(), changed: changed.clone(), journal };
        let running = tokio::spawn(keeper.run());
        certificates.insert([received("a.example", &["a.example"]), received("b.example", &["b.example"])]);
        changed.note(["a.example".to_owned(), "b.example".to_owned()]);
        tokio::time::timeout(Duration::from_secs(10), async {
            while !changed.domains().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        std::fs::remove_dir(&path).unwrap();
        certificates.remove("b.example");
        changed.note(["b.example".to_owned()]);
        let kept = || open(data.path()).1;
        tokio::time::timeout(Duration::from_secs(20), async {
            while kept().len() != 1 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .unwrap();
        assert_eq!(kept()[0].domain, "a.example");
        running.abort();
    }
}
