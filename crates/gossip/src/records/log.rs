//! One owner's records in one scope: the order, the watermark, deletions, resets.

use super::{DENIALS, Limits, Verified, Watermark, is_known};
use crate::authority::Refusal;
use crate::scope::{Entry, Owner};
use atoll_model::Kind;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

type RecordId = (Kind, Arc<str>);

#[derive(Debug)]
struct Held {
    record: Verified,
    received_ms: u64,
    /// Told since the last reset began.
    confirmed: bool,
}

/// What is held of one owner in one scope.
#[derive(Debug, Default)]
pub(crate) struct Log {
    epoch: u64,
    version: u64,
    floor: u64,
    /// While a reset is under way: the version at which what was not told again may be dropped.
    resync_until: Option<u64>,
    records: HashMap<RecordId, Held>,
    /// Confirmed records in the owner's order.
    order: BTreeSet<(u64, RecordId)>,
    /// Confirmed deletions, oldest first.
    tombstones: BTreeSet<(u64, RecordId)>,
    bytes: usize,
    opaque: usize,
    opaque_bytes: usize,
}

/// What becomes of a record that comes in.
#[derive(Debug)]
pub(crate) enum Insertion {
    /// Held now; readers need to know.
    Changed,
    /// Held already, or nothing that readers could see.
    Unseen,
    /// Not taken.
    Refused(Refusal),
}

/// A run of records in order, bounded in bytes.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) records: Vec<Verified>,
    pub(crate) upto: u64,
    pub(crate) more: bool,
    pub(crate) bytes: usize,
}

impl Log {
    pub(crate) fn new(epoch: u64) -> Self {
        Self { epoch, ..Self::default() }
    }

    pub(crate) fn watermark(&self) -> Watermark {
        Watermark {
            epoch: self.epoch,
            version: self.version,
            floor: self.floor,
            resyncing: self.resync_until.is_some(),
        }
    }

    pub(crate) fn find(&self, kind: Kind, key: &Arc<str>) -> Option<&Verified> {
        self.records.get(&(kind, Arc::clone(key))).map(|held| &held.record)
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &Verified> {
        self.records.values().map(|held| &held.record)
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Deletions up to `version` were never held one by one: whoever is behind it is to be reset.
    pub(crate) fn raise_floor(&mut self, version: u64) {
        self.floor = self.floor.max(version);
    }

    /// Records below the floor were told by one who does not know the deletions up to it: whoever does is to reset it.
    pub(crate) fn lower_floor(&mut self, floor: u64) {
        self.floor = self.floor.min(floor);
    }

    /// The watermark, for what was told in full but could not all be kept.
    pub(crate) fn advance(&mut self, version: u64) {
        self.version = self.version.max(version);
    }

    /// From here everything is told anew. What is held stays visible until [`Self::end_resync`].
    pub(crate) fn begin_resync(&mut self, epoch: u64, floor: u64) {
        // Not the floor: nobody signs it, so that nothing may wait for it.
        let until = if epoch == self.epoch { self.resync_until.unwrap_or(0).max(self.version) } else { 0 };
        self.epoch = epoch;
        self.version = 0;
        self.floor = floor;
        self.resync_until = Some(until);
        self.order.clear();
        self.tombstones.clear();
        for held in self.records.values_mut() {
            held.confirmed = false;
        }
    }

    /// Ends a reset, if one is under way and far enough; returns what was dropped.
    pub(crate) fn end_resync(&mut self) -> Vec<Arc<Entry>> {
        if self.resync_until.is_none_or(|until| self.version < until) {
            return Vec::new();
        }
        self.resync_until = None;
        self.floor = self.floor.min(self.version);
        self.keep_denials();
        let mut dropped = Vec::new();
        let gone: Vec<RecordId> =
            self.records.iter().filter(|(_, held)| !held.confirmed).map(|(id, _)| id.clone()).collect();
        for id in gone {
            if let Some(held) = self.records.remove(&id) {
                self.uncount(&held.record);
                if !held.record.entry.deleted {
                    dropped.push(Arc::new(held.record.entry.dropped()));
                }
            }
        }
        dropped
    }

    /// Within an epoch a denial is never taken back, only replaced: that it was not told again says that somebody
    /// withheld it, and must not let a removed node in.
    fn keep_denials(&mut self) {
        for (id, held) in &mut self.records {
            let entry = &held.record.entry;
            if !held.confirmed && DENIALS.contains(&id.0) && entry.epoch == self.epoch && !entry.deleted {
                held.confirmed = true;
                self.order.insert((entry.version, id.clone()));
            }
        }
    }

    /// Takes one record of this log's epoch. The caller has checked that its version is above the
    /// watermark as it was before this run of records.
    pub(crate) fn insert(&mut self, record: Verified, limits: &Limits, now_ms: u64) -> Insertion {
        let entry = Arc::clone(&record.entry);
        let id = (entry.kind, Arc::clone(&entry.key));
        let before = self.records.get(&id);
        if before.is_some_and(|held| held.confirmed && held.record.entry.version >= entry.version) {
            return Insertion::Refused(Refusal::Outdated);
        }
        if let Err(refusal) = self.room_for(&record, before.map(|held| &held.record), limits) {
            return Insertion::Refused(refusal);
        }
        let received_ms =
            before.filter(|held| same(&held.record.entry, &entry)).map_or(now_ms, |held| held.received_ms);
        let seen = match before {
            Some(held) => !(same(&held.record.entry, &entry) || (held.record.entry.deleted && entry.deleted)),
            None => !entry.deleted,
        };
        self.count(&record);
        let old = self.records.insert(id.clone(), Held { record, received_ms, confirmed: true });
        if let Some(old) = old {
            self.uncount(&old.record);
            let place = (old.record.entry.version, id.clone());
            if old.confirmed {
                self.order.remove(&place);
                self.tombstones.remove(&place);
            }
        }
        self.order.insert((entry.version, id.clone()));
        if entry.deleted {
            self.tombstones.insert((entry.version, id));
        }
        self.version = self.version.max(entry.version);
        if seen { Insertion::Changed } else { Insertion::Unseen }
    }

    fn room_for(&self, record: &Verified, before: Option<&Verified>, limits: &Limits) -> Result<(), Refusal> {
        let entry = &record.entry;
        let (most, bytes_most) = match entry.owner {
            Owner::Node(_) => (limits.node_records, limits.node_bytes),
            Owner::Control => (limits.control_records, usize::MAX),
        };
        let (count, bytes) = before.map_or((0, 0), |old| (1, old.bytes()));
        if before.is_none() && self.records.len() >= most
            || self.bytes + record.bytes() - bytes.min(self.bytes) > bytes_most
        {
            return Err(Refusal::Quota);
        }
        if is_known(entry.kind) {
            return Ok(());
        }
        if self.opaque + 1 - count > limits.opaque_records
            || self.opaque_bytes + record.bytes() - bytes.min(self.opaque_bytes) > limits.opaque_bytes
        {
            return Err(Refusal::Quota);
        }
        Ok(())
    }

    fn count(&mut self, record: &Verified) {
        self.bytes += record.bytes();
        if !is_known(record.entry.kind) {
            self.opaque += 1;
            self.opaque_bytes += record.bytes();
        }
    }

    fn uncount(&mut self, record: &Verified) {
        self.bytes -= record.bytes();
        if !is_known(record.entry.kind) {
            self.opaque -= 1;
            self.opaque_bytes -= record.bytes();
        }
    }

    /// The records above `after`, whole versions only, until `budget` bytes are reached. At least one
    /// version, however large.
    pub(crate) fn run(&self, after: u64, budget: usize) -> Run {
        let mut run = Run { records: Vec::new(), upto: after, more: self.resync_until.is_some(), bytes: 0 };
        let Some(first) = after.checked_add(1) else { return run };
        let from = (first, (Kind(0), Arc::from("")));
        for (version, id) in self.order.range(from..) {
            if *version != run.upto && run.bytes >= budget {
                run.more = true;
                break;
            }
            if let Some(held) = self.records.get(id) {
                run.bytes += held.record.bytes();
                run.records.push(held.record.clone());
                run.upto = *version;
            }
        }
        run
    }

    /// Collects deletions that are old, or too many; returns what was collected. The newest record of
    /// all stays, because it is what proves the watermark.
    pub(crate) fn collect(&mut self, limits: &Limits, now_ms: u64) -> Vec<Verified> {
        let mut collected = Vec::new();
        if self.resync_until.is_some() {
            return collected;
        }
        while let Some((version, id)) = self.tombstones.first().cloned() {
            let Some(held) = self.records.get(&id) else { break };
            let old = held.received_ms.saturating_add(limits.tombstone_ms) <= now_ms;
            if version >= self.version || !(old || self.tombstones.len() > limits.tombstones) {
                break;
            }
            self.tombstones.pop_first();
            self.order.remove(&(version, id.clone()));
            if let Some(held) = self.records.remove(&id) {
                self.uncount(&held.record);
                collected.push(held.record);
            }
            self.floor = self.floor.max(version);
        }
        collected
    }
}

fn same(left: &Entry, right: &Entry) -> bool {
    left.epoch == right.epoch
        && left.version == right.version
        && left.deleted == right.deleted
        && left.body == right.body
}
