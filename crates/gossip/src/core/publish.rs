//! Own records: waiting, signed in batches, written into the own store.

use super::{Core, News};
use crate::authority::{BODY_BYTES_MAX, KEY_BYTES_MAX, Refusal};
use crate::batch::BATCH_MAX;
use crate::exchange;
use crate::records::{LogId, Verified};
use crate::scope::{Owner, Scope};
use atoll_model::{Kind, Role};
use atoll_wire::record::Record;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, MutexGuard, PoisonError};

/// Keys that a node may publish.
const PUBLISHED_MAX: usize = 200_000;
/// Records of one revision of desired state.
const REVISION_RECORDS_MAX: usize = 4096;
/// Their bytes.
const REVISION_BYTES_MAX: usize = 4 << 20;

type OwnId = (Kind, Scope, Arc<str>);

/// Own records that wait to be signed, the newest of each key.
#[derive(Debug)]
pub(crate) struct Outbox {
    waiting: HashMap<OwnId, Waiting>,
    order: VecDeque<OwnId>,
    /// What this process has said, so that it can be said again.
    published: HashMap<OwnId, Bytes>,
    last_version: u64,
}

#[derive(Debug)]
struct Waiting {
    body: Option<Bytes>,
    /// Write it though the same is held.
    again: bool,
}

impl Outbox {
    pub(super) fn new(next_version: u64) -> Self {
        Self {
            waiting: HashMap::new(),
            order: VecDeque::new(),
            published: HashMap::new(),
            last_version: next_version.saturating_sub(1),
        }
    }

    pub(super) fn rise_to(&mut self, version: u64) {
        self.last_version = self.last_version.max(version);
    }

    fn put(&mut self, id: OwnId, waiting: Waiting) {
        if self.waiting.insert(id.clone(), waiting).is_none() {
            self.order.push_back(id);
        }
    }

    fn pop(&mut self) -> Option<(OwnId, Waiting)> {
        let id = self.order.pop_front()?;
        let waiting = self.waiting.remove(&id)?;
        Some((id, waiting))
    }
}

/// A change of desired state.
#[derive(Debug, Clone)]
pub struct DesiredChange {
    /// What it is about; a kind that control writes.
    pub kind: Kind,
    /// How far it spreads.
    pub scope: Scope,
    /// Which one of its kind.
    pub key: String,
    /// The store's revision; several changes may share one, and stay together.
    pub revision: u64,
    /// The encoded message; nothing for a deletion.
    pub body: Option<Bytes>,
}

/// Why desired state was not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Only a node with the role control may.
    #[error("only a node with the role control publishes desired state; {0} has not got it")]
    NotControl(atoll_model::NodeName),
    /// Changes of one revision travel together, and these are too many or too large.
    #[error(
        "revision {revision} changes {records} objects ({bytes} bytes) in one scope; at most {REVISION_RECORDS_MAX} \
         objects and {REVISION_BYTES_MAX} bytes fit one revision: split it"
    )]
    TooLarge {
        /// The revision.
        revision: u64,
        /// Its changes in one scope.
        records: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// One change is not one that control may write, or is too long.
    #[error("{key}: {refusal}")]
    Refused {
        /// Its key.
        key: String,
        /// Why.
        refusal: Refusal,
    },
}

impl Core {
    pub(super) fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest version used, to be reserved ahead on disk.
    pub(crate) fn last_version(&self) -> u64 {
        self.outbox().last_version
    }

    /// Goes on behind `version`: what is below may have been used.
    pub(crate) fn skip_versions_to(&self, version: u64) {
        self.outbox().rise_to(version);
    }

    /// Says a fact of this node's own. Coalesced: what is said again before it was signed is signed once.
    pub(crate) fn publish(&self, kind: Kind, scope: &Scope, key: &str, body: Bytes) {
        if key.len() > KEY_BYTES_MAX || body.len() > BODY_BYTES_MAX {
            self.drop_publication(kind, key, "it is too long");
            return;
        }
        let id: OwnId = (kind, scope.clone(), key.into());
        let mut outbox = self.outbox();
        if outbox.published.len() >= PUBLISHED_MAX && !outbox.published.contains_key(&id) {
            drop(outbox);
            self.drop_publication(kind, key, "this node publishes too many records");
            return;
        }
        if outbox.published.get(&id) == Some(&body) {
            return;
        }
        outbox.published.insert(id.clone(), body.clone());
        outbox.put(id, Waiting { body: Some(body), again: false });
        drop(outbox);
        self.unsigned.notify_one();
    }

    /// Says that a fact of this node's own is no longer so.
    pub(crate) fn withdraw(&self, kind: Kind, scope: &Scope, key: &str) {
        let id: OwnId = (kind, scope.clone(), key.into());
        let mut outbox = self.outbox();
        outbox.published.remove(&id);
        outbox.put(id, Waiting { body: None, again: false });
        drop(outbox);
        self.unsigned.notify_one();
    }

    fn drop_publication(&self, kind: Kind, key: &str, why: &str) {
        self.stats.publish_dropped.inc();
        if self.stats.may_log("publish") {
            tracing::error!(kind = kind.0, key, "a record of this node's own was not published: {why}");
        }
    }

    /// Signs what waits, at most one batch. True when more waits.
    pub(crate) fn flush(&self, now_ms: u64) -> bool {
        let (records, more) = self.next_batch(now_ms);
        if records.is_empty() {
            return more;
        }
        let own = Owner::Node(self.name.clone());
        let proofs = self.signer.prove(&records);
        let mut scopes: BTreeMap<Scope, Vec<Verified>> = BTreeMap::new();
        for (record, proof) in records.into_iter().zip(proofs) {
            let Ok(scope) = Scope::parse(&record.scope) else { continue };
            let id = LogId { owner: own.clone(), scope: scope.clone() };
            scopes.entry(scope).or_default().push(exchange::verified(id, record, proof, &self.own));
        }
        for (scope, records) in scopes {
            self.write(LogId { owner: own.clone(), scope }, self.own.signer.epoch, records, now_ms);
        }
        more
    }

    fn next_batch(&self, now_ms: u64) -> (Vec<Record>, bool) {
        let mut outbox = self.outbox();
        let state = self.state();
        let mut records = Vec::new();
        while records.len() < BATCH_MAX {
            let Some(((kind, scope, key), waiting)) = outbox.pop() else { break };
            let id = LogId { owner: Owner::Node(self.name.clone()), scope: scope.clone() };
            let held = state.store.held(&id, kind, &key).map(|record| &record.entry);
            let held = held.filter(|entry| !entry.deleted && entry.epoch == self.own.signer.epoch);
            let same = held.map(|entry| &entry.body) == waiting.body.as_ref();
            if same && !waiting.again {
                continue;
            }
            let record = Record {
                owner: self.name.as_str().to_owned(),
                kind: kind.0,
                scope: scope.as_str().to_owned(),
                key: key.to_string(),
                epoch: self.own.signer.epoch,
                version: outbox.last_version + 1,
                deleted: waiting.body.is_none(),
                body: waiting.body.unwrap_or_default(),
                written_ms: now_ms,
            };
            if let Err(refusal) = crate::authority::check(&self.own.signer, &record) {
                self.drop_publication(kind, &key, &refusal.to_string());
                continue;
            }
            outbox.last_version += 1;
            records.push(record);
        }
        let more = !outbox.waiting.is_empty();
        (records, more)
    }

    fn write(&self, log: LogId, epoch: u64, records: Vec<Verified>, now_ms: u64) {
        self.stats.published.inc_by(records.len() as u64);
        let refused = {
            let mut state = self.state();
            let applied = state.store.write(&log, epoch, records, now_ms);
            self.settle(&mut state, &log, &applied);
            applied.refused
        };
        for refusal in refused {
            self.refuse(refusal, &self.name, None);
        }
        self.tell(log.scope, News::Own);
    }

    /// Desired state, as the store changed it. What is held already, or newer, is passed over.
    pub(crate) fn publish_desired(
        &self,
        epoch: u64,
        changes: Vec<DesiredChange>,
        now_ms: u64,
    ) -> Result<(), PublishError> {
        if !self.own.signer.roles.has(Role::Control) {
            return Err(PublishError::NotControl(self.name.clone()));
        }
        let mut scopes: BTreeMap<Scope, Vec<Record>> = BTreeMap::new();
        for change in changes {
            let record = self.desired_record(epoch, &change, now_ms)?;
            scopes.entry(change.scope).or_default().push(record);
        }
        for (scope, mut records) in scopes {
            let log = LogId { owner: Owner::Control, scope };
            self.leave_out_held(&log, &mut records);
            records.sort_by_key(|record| record.version);
            check_revisions(&records)?;
            if records.is_empty() {
                continue;
            }
            let pairs = self.signer.prove(&records).into_iter().zip(records);
            let verified =
                pairs.map(|(proof, record)| exchange::verified(log.clone(), record, proof, &self.own));
            self.write(log.clone(), epoch, verified.collect(), now_ms);
        }
        Ok(())
    }

    fn desired_record(
        &self,
        epoch: u64,
        change: &DesiredChange,
        now_ms: u64,
    ) -> Result<Record, PublishError> {
        let record = Record {
            owner: crate::scope::CONTROL_OWNER.to_owned(),
            kind: change.kind.0,
            scope: change.scope.as_str().to_owned(),
            key: change.key.clone(),
            epoch,
            version: change.revision,
            deleted: change.body.is_none(),
            body: change.body.clone().unwrap_or_default(),
            written_ms: now_ms,
        };
        crate::authority::check(&self.own.signer, &record)
            .map_err(|refusal| PublishError::Refused { key: change.key.clone(), refusal })?;
        Ok(record)
    }

    fn leave_out_held(&self, log: &LogId, records: &mut Vec<Record>) {
        let state = self.state();
        let upto = state.store.watermark(log).filter(|mark| mark.version > 0);
        records.retain(|record| {
            let key: Arc<str> = record.key.as_str().into();
            let held = state.store.held(log, Kind(record.kind), &key).map(|held| &held.entry);
            let place = (record.epoch, record.version);
            if held.is_some_and(|entry| (entry.epoch, entry.version) >= place) {
                return false;
            }
            let gone = record.deleted && held.is_none();
            // A deletion that was collected, or of something that was never said here.
            !(gone && upto.is_some_and(|mark| (mark.epoch, mark.version) >= place))
        });
    }

    /// A peer held newer records of this node than the node itself: the disk was lost. They are taken
    /// for the past: the counter goes on behind them, and what is so now is said again.
    pub(super) fn hear_of_myself(&self, kept: &[Verified]) {
        let epoch = self.own.signer.epoch;
        let ours = kept.iter().filter(|record| record.entry.epoch == epoch);
        let Some(newest) = ours.clone().map(|record| record.entry.version).max() else { return };
        let mut outbox = self.outbox();
        if newest <= outbox.last_version {
            return;
        }
        outbox.last_version = newest;
        for record in ours {
            let entry = &record.entry;
            let id: OwnId = (entry.kind, entry.scope.clone(), Arc::clone(&entry.key));
            if !entry.deleted && !outbox.published.contains_key(&id) {
                outbox.put(id, Waiting { body: None, again: false });
            }
        }
        let published: Vec<(OwnId, Bytes)> =
            outbox.published.iter().map(|(id, body)| (id.clone(), body.clone())).collect();
        for (id, body) in published {
            outbox.put(id, Waiting { body: Some(body), again: true });
        }
        drop(outbox);
        tracing::warn!(
            version = newest,
            "peers knew newer records of this node than its disk did; saying all again"
        );
        self.unsigned.notify_one();
    }
}

fn check_revisions(records: &[Record]) -> Result<(), PublishError> {
    for revision in records.chunk_by(|a, b| a.version == b.version) {
        let bytes = revision.iter().map(|record| record.body.len() + record.key.len() + 64).sum();
        if revision.len() > REVISION_RECORDS_MAX || bytes > REVISION_BYTES_MAX {
            let revision_number = revision.first().map_or(0, |record| record.version);
            return Err(PublishError::TooLarge { revision: revision_number, records: revision.len(), bytes });
        }
    }
    Ok(())
}
