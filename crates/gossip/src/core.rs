//! What all parts of a node's gossip share: the store with its readers, the own records that wait to be
//! signed, and what the disk has yet to be told. No I/O here.

mod publish;

use crate::authority::Refusal;
use crate::batch::{BatchSigner, Hash, Verifier};
use crate::exchange;
use crate::hub::{Hub, Subscription};
use crate::records::{Applied, DENIALS, Delta, Limits, LogId, Store, Verified, Watermark};
use crate::scope::{Entry, Owner, Scope};
use crate::signers::{self, CertificateCheck, KnownSigner, Signers};
use crate::stats::Stats;
use atoll_model::{Kind, NodeName};
use atoll_wire::gossip;
use atoll_wire::record::{Denial, Record, RecordCertificate, SignedRecord};
use publish::Outbox;
use std::collections::hash_map::Entry as Place;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

pub use publish::{DesiredChange, PublishError};

/// More new records at once than this are a node catching up, not news to be passed on at once.
const NEWS_RECORDS_MAX: usize = 256;
/// Threads that check what was kept on disk.
const VERIFIERS_MAX: usize = 8;
/// Bytes of records in one message, about.
pub(crate) const DELTA_BYTES: usize = 1 << 20;

/// A record's place on disk.
pub(crate) type DiskId = (LogId, Kind, Arc<str>);

/// The first epoch of the node that the denial leaves alone; one that can't be read denies all.
fn denied_before(denial: &Entry) -> u64 {
    let before = denial.decode::<Denial>().map_or(0, |denial| denial.before_epoch);
    if before == 0 { u64::MAX } else { before }
}

/// What changed since the disk was last told. Bounded by the number of keys.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    /// Nothing for what is held no more.
    pub(crate) records: HashMap<DiskId, Option<Verified>>,
    pub(crate) logs: HashSet<LogId>,
    pub(crate) certificates: HashMap<Hash, Option<Arc<RecordCertificate>>>,
}

impl Dirty {
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.logs.is_empty() && self.certificates.is_empty()
    }

    fn note(&mut self, applied: &Applied) {
        for record in &applied.kept {
            self.records.insert(disk_id(&record.entry), Some(record.clone()));
        }
        self.forget(&applied.dropped);
    }

    fn forget(&mut self, entries: &[Arc<Entry>]) {
        for entry in entries {
            self.records.insert(disk_id(entry), None);
        }
    }
}

pub(crate) fn disk_id(entry: &Entry) -> DiskId {
    (LogId { owner: entry.owner.clone(), scope: entry.scope.clone() }, entry.kind, Arc::clone(&entry.key))
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) signers: Signers,
    hub: Hub,
    pub(crate) dirty: Dirty,
}

/// Something new in a scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// This node wrote it.
    Own,
    /// It came from that peer, and was not known here.
    From(NodeName),
}

/// The shared part of a node's gossip.
pub(crate) struct Core {
    pub(crate) name: NodeName,
    pub(crate) scopes: Vec<Scope>,
    signer: BatchSigner,
    own: KnownSigner,
    // Held for lookups and merges, never over an await; signatures are checked outside.
    state: Mutex<State>,
    outbox: Mutex<Outbox>,
    verifier: Verifier,
    check: Box<dyn CertificateCheck>,
    pub(crate) stats: Arc<Stats>,
    /// Something waits to be signed.
    pub(crate) unsigned: Notify,
    /// What peers should hear at once.
    pub(crate) news: Mutex<HashMap<Scope, News>>,
    pub(crate) spread: Notify,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("name", &self.name).field("scopes", &self.scopes).finish_non_exhaustive()
    }
}

impl Core {
    /// Fails with the reason when the own record certificate does not pass the check that the peers make.
    pub(crate) fn new(
        name: NodeName,
        scopes: Vec<Scope>,
        signer: BatchSigner,
        check: Box<dyn CertificateCheck>,
        stats: Arc<Stats>,
        limits: Limits,
        next_version: u64,
    ) -> Result<Self, Refusal> {
        let own = signers::admit(&*check, signer.certificate().clone())?;
        if own.signer.node != name || crate::authority::is_reserved(name.as_str()) {
            return Err(Refusal::Owner);
        }
        let mut signers = Signers::default();
        signers.insert(own.clone())?;
        let mut dirty = Dirty::default();
        dirty.certificates.insert(signers::fingerprint(&own.certificate), Some(Arc::clone(&own.certificate)));
        let state = State { store: Store::new(limits), signers, hub: Hub::default(), dirty };
        Ok(Self {
            name,
            scopes,
            signer,
            own,
            state: Mutex::new(state),
            outbox: Mutex::new(Outbox::new(next_version)),
            verifier: Verifier::new(),
            check,
            stats,
            unsigned: Notify::new(),
            news: Mutex::default(),
            spread: Notify::new(),
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn entries(&self, kind: Kind) -> Vec<Arc<Entry>> {
        self.state().store.entries(kind).cloned().collect()
    }

    pub(crate) fn find(&self, kind: Kind, scope: &Scope, key: &str) -> Option<Arc<Entry>> {
        self.state().store.find(kind, scope, key).cloned()
    }

    pub(crate) fn desired_version(&self, scope: &Scope) -> (u64, u64) {
        let log = LogId { owner: Owner::Control, scope: scope.clone() };
        self.state().store.watermark(&log).map_or((0, 0), |mark| (mark.epoch, mark.version))
    }

    pub(crate) fn subscribe(&self, kinds: &[Kind]) -> Subscription {
        let mut state = self.state();
        let State { store, hub, .. } = &mut *state;
        hub.subscribe(kinds, kinds.iter().flat_map(|kind| store.entries(*kind)))
    }

    pub(crate) fn close(&self) {
        self.state().hub.close();
    }

    /// The first message of an exchange: how far this node is.
    pub(crate) fn request(&self, scopes: &[Scope]) -> gossip::Exchange {
        let digest = self.state().store.digest(scopes);
        gossip::Exchange {
            watermarks: exchange::write_digest(&digest),
            scopes: scopes.iter().map(|scope| scope.as_str().to_owned()).collect(),
            ..gossip::Exchange::default()
        }
    }

    /// The first message of an exchange that may turn out to have nothing to say.
    pub(crate) fn summary_request(&self, scopes: &[Scope]) -> gossip::Exchange {
        gossip::Exchange {
            summary: self.summary(scopes),
            scopes: scopes.iter().map(|scope| scope.as_str().to_owned()).collect(),
            ..gossip::Exchange::default()
        }
    }

    /// A hash of how far this node is in the scopes.
    pub(crate) fn summary(&self, scopes: &[Scope]) -> Vec<u8> {
        exchange::summary(&self.state().store.digest(scopes))
    }

    /// What the sender of `message` lacks, in the scopes that both are in. True when there is more.
    pub(crate) fn deltas_for(
        &self,
        message: &gossip::Exchange,
        scopes: &[Scope],
        into: &mut gossip::Exchange,
    ) -> bool {
        let digest = exchange::read_digest(&message.watermarks);
        let state = self.state();
        let (deltas, more) = state.store.deltas(&digest, scopes, DELTA_BYTES);
        let mut named = HashSet::new();
        for record in deltas.iter().flat_map(|delta| &delta.records) {
            if named.insert(record.proof.batch.signer) {
                let known = state.signers.find(&record.proof.batch.signer);
                into.certificates.extend(known.map(|known| RecordCertificate::clone(&known.certificate)));
            }
        }
        drop(state);
        into.deltas = deltas.iter().map(exchange::write_delta).collect();
        more
    }

    /// Takes what a peer sent, as far as it verifies and is in `scopes`.
    pub(crate) fn take(&self, message: gossip::Exchange, scopes: &[Scope], from: &NodeName, now_ms: u64) {
        for certificate in message.certificates {
            self.learn(certificate, from);
        }
        for delta in message.deltas {
            let Some(log) = exchange::log_id(&delta.owner, &delta.scope) else {
                self.refuse(Refusal::Malformed, from, None);
                continue;
            };
            if !scopes.contains(&log.scope) {
                self.refuse(Refusal::Scope, from, None);
                continue;
            }
            if self.is_denied(&log.owner, delta.epoch) {
                self.refuse(Refusal::Denied, from, None);
                continue;
            }
            let held = self.state().store.watermark(&log);
            let signer_of = |fingerprint: &[u8]| self.state().signers.find(fingerprint).cloned();
            let refuse = |refusal, record: &Record| self.refuse(refusal, from, Some(record));
            let read = exchange::read_delta(delta, log, held, &self.verifier, signer_of, refuse);
            self.apply(read, from, now_ms);
        }
    }

    /// Whether a node was removed, and has not joined again under an epoch as high as this.
    fn is_denied(&self, owner: &Owner, epoch: u64) -> bool {
        let state = self.state();
        let denials = self.scopes.iter().flat_map(|scope| DENIALS.map(|kind| (kind, scope)));
        denials
            .filter_map(|(kind, scope)| state.store.find(kind, scope, owner.as_str()))
            .any(|denial| denial.owner == Owner::Control && epoch < denied_before(denial))
    }

    fn learn(&self, certificate: RecordCertificate, from: &NodeName) {
        if self.state().signers.holds(&certificate) {
            return;
        }
        let admitted = signers::admit(&*self.check, certificate).and_then(|known| self.keep_signer(known));
        if let Err(refusal) = admitted {
            self.refuse(refusal, from, None);
        }
    }

    fn keep_signer(&self, known: KnownSigner) -> Result<(), Refusal> {
        let mut state = self.state();
        let certificate = Arc::clone(&known.certificate);
        let fingerprint = state.signers.insert(known)?;
        state.dirty.certificates.insert(fingerprint, Some(certificate));
        Ok(())
    }

    fn apply(&self, delta: Delta, from: &NodeName, now_ms: u64) {
        let log = delta.log.clone();
        let applied = {
            let mut state = self.state();
            let applied = state.store.apply(delta, now_ms);
            self.settle(&mut state, &log, &applied);
            applied
        };
        for refusal in &applied.refused {
            self.refuse(*refusal, from, None);
        }
        if log.owner == Owner::Node(self.name.clone()) {
            self.hear_of_myself(&applied.kept);
        } else if (1..=NEWS_RECORDS_MAX).contains(&applied.kept.len()) {
            self.tell(log.scope, News::From(from.clone()));
        }
    }

    /// Peers should hear of what is new in the scope.
    fn tell(&self, scope: Scope, news: News) {
        let mut waiting = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.entry(scope) {
            Place::Vacant(vacant) => drop(vacant.insert(news)),
            // What is this node's own, or came from two peers, goes to anybody.
            Place::Occupied(mut known) if *known.get() != news => drop(known.insert(News::Own)),
            Place::Occupied(_) => {}
        }
        drop(waiting);
        self.spread.notify_one();
    }

    /// After every change of the store, before the lock is released: readers see changes in order.
    fn settle(&self, state: &mut State, log: &LogId, applied: &Applied) {
        self.note(state, log, applied);
        let is_denial = |entry: &&Arc<Entry>| DENIALS.contains(&entry.kind) && !entry.deleted;
        for denial in applied.changes.iter().filter(is_denial) {
            // A node may still be told of its own removal; it is for the others to drop it.
            let owner = Owner::parse(&denial.key).ok().filter(|owner| owner.as_str() != self.name.as_str());
            let Some(owner) = owner else { continue };
            for (log, forgotten) in state.store.forget(&owner, denied_before(denial)) {
                tracing::info!(%owner, scope = %log.scope, "dropped the records of a removed node");
                self.note(state, &log, &forgotten);
            }
        }
    }

    fn note(&self, state: &mut State, log: &LogId, applied: &Applied) {
        state.dirty.note(applied);
        if applied.moved || !applied.kept.is_empty() {
            state.dirty.logs.insert(log.clone());
        }
        state.hub.send(&applied.changes);
        self.stats.changes.inc_by(applied.changes.len() as u64);
        self.stats.records.set(state.store.len() as i64);
    }

    fn refuse(&self, refusal: Refusal, from: &NodeName, record: Option<&Record>) {
        if self.stats.refuse(refusal) {
            let what = record.map(|record| format!("{}/{} of {}", record.kind, record.key, record.owner));
            tracing::warn!(
                peer = %from,
                record = what.as_deref().unwrap_or("unread"),
                reason = refusal.label(),
                "refused a record: {refusal} (further ones are only counted for a while)"
            );
        }
    }

    /// Puts back what was on disk, verified again. `read` hands over the records, some at a time, and tells
    /// whether they were all. Returns how many are held.
    pub(crate) fn restore(
        &self,
        kept: Kept,
        read: impl FnOnce(&mut dyn FnMut(Vec<SignedRecord>)) -> bool,
        now_ms: u64,
    ) -> usize {
        for certificate in kept.certificates {
            if let Ok(known) = signers::admit(&*self.check, certificate) {
                let _over_quota = self.state().signers.insert(known);
            }
        }
        for (id, mark) in &kept.logs {
            self.state().store.begin_restore(id, *mark);
        }
        let verifier = Verifier::unforgetting();
        let whole = read(&mut |some| {
            let verified = self.verify_all(some, &verifier);
            let mut state = self.state();
            verified.into_iter().for_each(|record| state.store.restore_record(record, now_ms));
        });
        let own = Owner::Node(self.name.clone());
        let ours = |(id, mark): &&(LogId, Watermark)| id.owner == own && mark.epoch == self.own.signer.epoch;
        if let Some(newest) = kept.logs.iter().filter(ours).map(|(_, mark)| mark.version).max() {
            self.outbox().rise_to(newest);
        }
        let mut state = self.state();
        for (id, mark) in &kept.logs {
            state.store.end_restore(id, *mark, whole);
        }
        state.store.len()
    }

    /// The records that are good, in no order that means anything. On all of the machine's processors: a node
    /// does not serve before it is through.
    fn verify_all(&self, records: Vec<SignedRecord>, verifier: &Verifier) -> Vec<Verified> {
        let signers: HashMap<Hash, KnownSigner> =
            self.state().signers.known().map(|(hash, known)| (*hash, known.clone())).collect();
        let signer_of = |fingerprint: &[u8]| signers.get(&Hash::try_from(fingerprint).ok()?).cloned();
        let verify = |signed| match exchange::read_record(signed, verifier, signer_of) {
            Ok(record) => Some(record),
            Err((refusal, record)) => {
                self.refuse(refusal, &self.name, Some(&record));
                None
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(VERIFIERS_MAX));
        let share = records.len().div_ceil(threads).max(1);
        let mut records = records.into_iter();
        std::thread::scope(|scope| {
            let shares: Vec<_> = std::iter::from_fn(|| {
                let share: Vec<SignedRecord> = records.by_ref().take(share).collect();
                (!share.is_empty()).then_some(share)
            })
            .map(|share| scope.spawn(move || share.into_iter().filter_map(verify).collect::<Vec<_>>()))
            .collect();
            shares.into_iter().flat_map(|share| share.join().unwrap_or_default()).collect()
        })
    }

    /// Once in a while: collects old deletions, and certificates that no record needs.
    pub(crate) fn collect(&self, now_ms: u64) {
        let mut state = self.state();
        let State { store, signers, dirty, .. } = &mut *state;
        let collected = store.collect(now_ms);
        dirty.forget(&collected);
        for entry in &collected {
            dirty.logs.insert(disk_id(entry).0);
        }
        let own = signers::fingerprint(&self.own.certificate);
        let mut used: HashSet<Hash> = HashSet::new();
        let mut last = None;
        for record in store.records() {
            // Most records are of few batches: their hash is not worth the while.
            if last.replace(Arc::as_ptr(&record.proof.batch)) != Some(Arc::as_ptr(&record.proof.batch)) {
                used.insert(record.proof.batch.signer);
            }
        }
        let gone = signers.retain(|hash| *hash == own || used.contains(hash));
        for hash in gone {
            dirty.certificates.insert(hash, None);
        }
    }
}

/// What was on disk, not verified, beside the records.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) logs: Vec<(LogId, Watermark)>,
    pub(crate) certificates: Vec<RecordCertificate>,
}

#[cfg(test)]
pub(crate) mod tests;
