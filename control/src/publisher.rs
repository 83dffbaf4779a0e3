//! Hands the store's desired records to gossip, in order, and makes gossip hold what the store does.

use crate::metrics::ControlMetrics;
use crate::reconciler::guard::must_confirm;
use crate::store::{DesiredFeed, DesiredRecord, Feed, Store, StoreError};
use atoll_gossip::{DesiredChange, Entry, Gossip, Owner, PublishError, Scope};
use atoll_model::Kind;
use atoll_process::Drain;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// The kinds of desired state.
const KINDS: [Kind; 10] = [
    Kind::VIRTUAL_HOST,
    Kind::CLUSTER,
    Kind::CERTIFICATE,
    Kind::DENIAL,
    Kind::REGION_DENIAL,
    Kind::DRAIN,
    Kind::REGION_DRAIN,
    Kind::PLACEMENT,
    Kind::REGION_CLUSTER,
    Kind::PURGES,
];
/// After a comparison that failed.
const RETRY: Duration = Duration::from_secs(1);
/// After the start, for what gossip's peers keep to arrive before what is too much is removed.
const EXTRA_AFTER: Duration = Duration::from_secs(5);

/// Removals that wait until someone confirms them. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Held(Arc<HeldState>);

#[derive(Debug, Default)]
struct HeldState {
    names: Mutex<Vec<String>>,
    confirmed: Notify,
}

impl Held {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Which: kind, scope and key.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Let them go.
    pub fn confirm(&self) {
        self.0.confirmed.notify_one();
    }

    fn set(&self, names: Vec<String>) {
        *self.0.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }
}

/// Publishes until the drain starts or the store is closed.
#[derive(Debug)]
pub struct Publisher {
    /// The truth.
    pub store: Store,
    /// What is committed.
    pub feed: DesiredFeed,
    /// Where it goes.
    pub gossip: Gossip,
    /// What waits for a confirmation.
    pub held: Held,
    /// What is counted.
    pub metrics: ControlMetrics,
}

impl Publisher {
    /// Runs it.
    pub async fn run(mut self, drain: Drain) {
        self.catch_up().await;
        let mut blocked = self.would_replace_much();
        if !blocked {
            self.publish_all().await;
        }
        let extra = tokio::time::sleep(EXTRA_AFTER);
        tokio::pin!(extra);
        let mut looked = false;
        loop {
            tokio::select! {
                () = drain.draining() => break,
                () = &mut extra, if !looked && !blocked => {
                    looked = true;
                    self.remove_extra(false).await;
                }
                () = self.held.0.confirmed.notified() => {
                    if std::mem::take(&mut blocked) {
                        self.publish_all().await;
                    }
                    self.remove_extra(true).await;
                }
                fed = self.feed.next() => match fed {
                    None => return,
                    // All is published once it is confirmed.
                    Some(_) if blocked => {}
                    Some(Feed::CompareAll) => self.compare_all(looked).await,
                    Some(Feed::Batch(batch)) => {
                        if !self.publish(batch).await {
                            tokio::time::sleep(RETRY).await;
                            self.compare_all(looked).await;
                        }
                    }
                },
            }
        }
    }

    /// A store that was put back from a copy must not use revisions again that gossip has seen.
    async fn catch_up(&self) {
        let epoch = self.store.epoch();
        let seen = self.gossip.scopes().iter().map(|scope| self.gossip.desired_version(scope));
        let newest = seen.filter(|(of, _)| *of == epoch).map(|(_, revision)| revision).max().unwrap_or(0);
        if seen_later(self.gossip.scopes().iter().map(|scope| self.gossip.desired_version(scope).0), epoch) {
            tracing::error!(
                epoch,
                "nodes have desired state of a newer store than this one: what this one says is not heard"
            );
        }
        if newest > *self.store.revisions().borrow() {
            tracing::warn!(
                newest,
                "the store is older than what nodes have seen of it: it goes on after that"
            );
            let skipped = self.store.change(move |change| {
                change.skip_to(newest);
                Ok::<_, StoreError>(())
            });
            if let Err(error) = skipped.await {
                tracing::error!(%error, "it could not");
            }
        }
    }

    /// A new store's first record makes nodes forget all of the store before. Where that is much, it waits
    /// for a confirmation: the store may have been lost, not emptied.
    fn would_replace_much(&self) -> bool {
        let epoch = self.store.epoch();
        let old = |entry: &Arc<Entry>| entry.owner == Owner::Control && entry.epoch < epoch;
        let entries: Vec<Arc<Entry>> =
            KINDS.into_iter().flat_map(|kind| self.gossip.entries(kind)).filter(old).collect();
        let blocked = must_confirm(entries.len(), entries.len(), false);
        if blocked {
            tracing::error!(
                count = entries.len(),
                "nodes have desired state of a store before this one; nothing is published until `POST /v1/held/confirm`"
            );
            let name =
                |entry: &Arc<Entry>| format!("{:08x}/{}/{}", entry.kind.0, entry.scope.as_str(), entry.key);
            self.metrics.held.set(entries.len().try_into().unwrap_or(i64::MAX));
            self.held.set(entries.iter().map(name).collect());
        }
        blocked
    }

    /// After changes that did not come by the feed: what was added, and what was removed. Before the first
    /// look at what is too much, that look does the latter.
    async fn compare_all(&self, looked: bool) {
        self.publish_all().await;
        if looked {
            self.remove_extra(false).await;
        }
    }

    /// Everything that the store has; what gossip has already it passes over.
    async fn publish_all(&self) {
        let mut all = self.store.desired();
        all.sort_by_key(|record| record.revision);
        tracing::info!(records = all.len(), epoch = self.store.epoch(), "publishing desired state");
        self.publish(all).await;
    }

    /// False when some could not be published.
    async fn publish(&self, records: Vec<DesiredRecord>) -> bool {
        let mut changes: Vec<DesiredChange> = records.into_iter().filter_map(to_change).collect();
        while !changes.is_empty() {
            let Err(error) = self.gossip.publish_desired(self.store.epoch(), changes.clone()).await else {
                return true;
            };
            tracing::error!(%error, "desired state could not be published as it is");
            // What gossip refuses must not hold up the rest, and the rest must stay together: the first call
            // of an epoch replaces everything.
            let before = changes.len();
            match error {
                PublishError::Refused { key, .. } => changes.retain(|change| change.key != key),
                PublishError::TooLarge { revision, .. } => {
                    changes.retain(|change| change.revision != revision)
                }
                PublishError::NotControl(_) => return false,
            }
            if changes.len() == before {
                return false;
            }
        }
        true
    }

    /// Deletes what gossip holds and the store does not: what an earlier run could not say any more. Where
    /// that is much, the store may be the one that is wrong: it waits for a confirmation.
    async fn remove_extra(&self, confirmed: bool) {
        // Gossip first: what is committed after that is in what we read of the store.
        let present = KINDS.map(|kind| {
            let entries = self.gossip.entries(kind).into_iter();
            (kind, entries.filter(|entry| entry.owner == Owner::Control).collect::<Vec<Arc<Entry>>>())
        });
        let wanted: BTreeSet<(Kind, String, String)> =
            self.store.desired().into_iter().map(|record| (record.kind, record.scope, record.key)).collect();
        let mut remove = Vec::new();
        let mut held = Vec::new();
        for (kind, entries) in present {
            let id = |entry: &Arc<Entry>| (kind, entry.scope.as_str().to_owned(), entry.key.to_string());
            let extra: Vec<_> = entries.iter().map(id).filter(|id| !wanted.contains(id)).collect();
            if must_confirm(extra.len(), entries.len(), confirmed) {
                held.extend(
                    extra.into_iter().map(|(kind, scope, key)| format!("{:08x}/{scope}/{key}", kind.0)),
                );
            } else {
                remove.extend(extra);
            }
        }
        if !held.is_empty() {
            tracing::error!(
                count = held.len(),
                "much of the desired state that nodes have is not in the store: its removal waits for `POST /v1/held/confirm`"
            );
        }
        self.metrics.held.set(held.len().try_into().unwrap_or(i64::MAX));
        self.held.set(held);
        if remove.is_empty() {
            return;
        }
        tracing::warn!(count = remove.len(), "removing desired records that the store does not have");
        let buried = self.store.change(move |change| {
            remove.iter().for_each(|(kind, scope, key)| change.bury(*kind, scope, key));
            Ok::<_, StoreError>(())
        });
        if let Err(error) = buried.await {
            tracing::error!(%error, "they could not be removed");
        }
    }
}

fn seen_later(mut epochs: impl Iterator<Item = u64>, epoch: u64) -> bool {
    epochs.any(|seen| seen > epoch)
}

fn to_change(record: DesiredRecord) -> Option<DesiredChange> {
    let scope =
        Scope::parse(&record.scope).inspect_err(|error| tracing::error!(%error, "a stored scope")).ok()?;
    Some(DesiredChange {
        kind: record.kind,
        scope,
        key: record.key,
        revision: record.revision,
        body: record.body.map(Into::into),
    })
}
