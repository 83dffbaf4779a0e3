//! All logs of a node, what their readers see, and the exchange between two stores.

use super::log::{Insertion, Log};
use super::{Limits, LogId, Verified, Watermark};
use crate::authority::Refusal;
use crate::scope::{Entry, Owner, Scope};
use atoll_model::Kind;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A part of a log, from one store to another.
#[derive(Debug, Clone)]
pub(crate) struct Delta {
    pub(crate) log: LogId,
    pub(crate) epoch: u64,
    pub(crate) after: u64,
    pub(crate) reset: bool,
    pub(crate) floor: u64,
    pub(crate) more: bool,
    pub(crate) records: Vec<Verified>,
}

/// What came of a delta, or of a record of one's own.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// What readers see changed, in order.
    pub(crate) changes: Vec<Arc<Entry>>,
    /// Records that are held now, to be kept on disk.
    pub(crate) kept: Vec<Verified>,
    /// Entries that are held no more.
    pub(crate) dropped: Vec<Arc<Entry>>,
    /// Records that were not taken, and why.
    pub(crate) refused: Vec<Refusal>,
    /// Logs whose place (epoch, watermark, floor) moved.
    pub(crate) moved: bool,
}

type EntryId = (Scope, Arc<str>, Owner);

/// Every record that a node holds.
#[derive(Debug, Default)]
pub(crate) struct Store {
    logs: BTreeMap<LogId, Log>,
    /// What readers see: live entries only.
    live: HashMap<Kind, BTreeMap<EntryId, Arc<Entry>>>,
    limits: Limits,
}

impl Store {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    pub(crate) fn entries(&self, kind: Kind) -> impl Iterator<Item = &Arc<Entry>> {
        self.live.get(&kind).into_iter().flat_map(BTreeMap::values)
    }

    pub(crate) fn find(&self, kind: Kind, scope: &Scope, key: &str) -> Option<&Arc<Entry>> {
        let of_kind = self.live.get(&kind)?;
        // `Control` is the greatest owner: the last entry up to here is one of this key, if there is any.
        let from: EntryId = (scope.clone(), Arc::from(key), Owner::Control);
        let last = of_kind.range(..=from).next_back().map(|(_, entry)| entry);
        last.filter(|entry| entry.scope == *scope && &*entry.key == key)
    }

    /// One's own view of a log.
    pub(crate) fn watermark(&self, log: &LogId) -> Option<Watermark> {
        self.logs.get(log).map(Log::watermark)
    }

    pub(crate) fn held(&self, log: &LogId, kind: Kind, key: &Arc<str>) -> Option<&Verified> {
        self.logs.get(log)?.find(kind, key)
    }

    pub(crate) fn logs(&self) -> impl Iterator<Item = (&LogId, &Log)> {
        self.logs.iter()
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &Verified> {
        self.logs.values().flat_map(Log::records)
    }

    pub(crate) fn len(&self) -> usize {
        self.logs.values().map(Log::len).sum()
    }

    /// How far this store is, for the scopes.
    pub(crate) fn digest(&self, scopes: &[Scope]) -> Vec<(LogId, Watermark)> {
        let wanted = self.logs.iter().filter(|(id, _)| scopes.contains(&id.scope));
        wanted.map(|(id, log)| (id.clone(), log.watermark())).collect()
    }

    /// What somebody with this digest lacks, in the scopes, within about `budget` bytes. True when
    /// there is more.
    pub(crate) fn deltas(
        &self,
        theirs: &[(LogId, Watermark)],
        scopes: &[Scope],
        budget: usize,
    ) -> (Vec<Delta>, bool) {
        let theirs: HashMap<&LogId, Watermark> = theirs.iter().map(|(id, mark)| (id, *mark)).collect();
        let mut deltas = Vec::new();
        let mut left = budget;
        let mut more = false;
        for (id, log) in self.logs.iter().filter(|(id, _)| scopes.contains(&id.scope)) {
            if left == 0 {
                return (deltas, true);
            }
            let Some((delta, bytes)) = delta_of(id, log, theirs.get(id).copied(), left) else { continue };
            left = left.saturating_sub(bytes);
            more |= delta.more;
            deltas.push(delta);
        }
        (deltas, more)
    }

    /// Takes what another store sent.
    pub(crate) fn apply(&mut self, delta: Delta, now_ms: u64) -> Applied {
        let mut applied = Applied::default();
        let Some(log) = admit(&mut self.logs, &self.limits, &delta, &mut applied) else { return applied };
        let mark_before = log.watermark();
        for record in delta.records {
            let entry = &record.entry;
            if entry.version <= mark_before.version {
                applied.refused.push(Refusal::Outdated);
                continue;
            }
            if entry.version <= log.watermark().floor {
                log.lower_floor(delta.floor);
            }
            take(log, record, &self.limits, now_ms, &mut applied);
        }
        if !delta.more {
            let dropped = log.end_resync();
            applied.changes.extend(dropped.iter().cloned());
            applied.dropped.extend(dropped);
        }
        applied.moved |= log.watermark() != mark_before;
        self.show(&applied.changes);
        applied
    }

    /// Takes records that this node signed itself: all of one log and epoch, in ascending version.
    /// In a new epoch they replace all that the log held.
    pub(crate) fn write(&mut self, id: &LogId, epoch: u64, records: Vec<Verified>, now_ms: u64) -> Applied {
        let mut applied = Applied::default();
        if !self.logs.contains_key(id) && self.logs.len() >= self.limits.logs {
            applied.refused.extend(records.iter().map(|_| Refusal::Quota));
            return applied;
        }
        let log = self.logs.entry(id.clone()).or_insert_with(|| Log::new(epoch));
        let fresh = log.len() == 0 && log.watermark().version == 0;
        if epoch < log.watermark().epoch {
            applied.refused.extend(records.iter().map(|_| Refusal::Outdated));
            return applied;
        }
        let replaces = epoch > log.watermark().epoch;
        if replaces {
            log.begin_resync(epoch, 0);
        }
        let mark_before = log.watermark();
        for record in records {
            if record.entry.version <= mark_before.version {
                applied.refused.push(Refusal::Outdated);
                continue;
            }
            take(log, record, &self.limits, now_ms, &mut applied);
        }
        if fresh && id.owner == Owner::Control {
            // The store's deletions before now were never held here.
            log.raise_floor(log.watermark().version);
        }
        if replaces {
            let dropped = log.end_resync();
            applied.changes.extend(dropped.iter().cloned());
            applied.dropped.extend(dropped);
        }
        applied.moved = log.watermark() != mark_before || !applied.kept.is_empty();
        self.show(&applied.changes);
        applied
    }

    /// Begins to put back a log as it was kept on disk.
    pub(crate) fn begin_restore(&mut self, id: &LogId, mark: Watermark) {
        let log = self.logs.entry(id.clone()).or_insert_with(|| Log::new(mark.epoch));
        log.raise_floor(mark.floor);
    }

    /// Puts back one of its records, which was verified again.
    pub(crate) fn restore_record(&mut self, record: Verified, now_ms: u64) {
        let entry = &record.entry;
        let id = LogId { owner: entry.owner.clone(), scope: entry.scope.clone() };
        let log = self.logs.get_mut(&id).filter(|log| log.watermark().epoch == entry.epoch);
        let Some(log) = log else { return };
        let mut applied = Applied::default();
        take(log, record, &self.limits, now_ms, &mut applied);
        self.show(&applied.changes);
    }

    /// Ends it. A log of which not all could be read is to be told again.
    pub(crate) fn end_restore(&mut self, id: &LogId, mark: Watermark, whole: bool) {
        let Some(log) = self.logs.get_mut(id) else { return };
        if whole {
            log.advance(mark.version);
        }
        if mark.resyncing || !whole {
            log.begin_resync(mark.epoch, 0);
        }
    }

    /// Forgets what an owner said in epochs below `before`.
    pub(crate) fn forget(&mut self, owner: &Owner, before: u64) -> Vec<(LogId, Applied)> {
        let of_owner =
            self.logs.iter().filter(|(id, log)| id.owner == *owner && log.watermark().epoch < before);
        let ids: Vec<LogId> = of_owner.map(|(id, _)| id.clone()).collect();
        let mut forgotten = Vec::new();
        for id in ids {
            let Some(log) = self.logs.remove(&id) else { continue };
            let dropped: Vec<Arc<Entry>> =
                log.records().map(|record| Arc::new(record.entry.dropped())).collect();
            self.show(&dropped);
            forgotten
                .push((id, Applied { changes: dropped.clone(), dropped, moved: true, ..Applied::default() }));
        }
        forgotten
    }

    /// Collects old deletions; returns their entries.
    pub(crate) fn collect(&mut self, now_ms: u64) -> Vec<Arc<Entry>> {
        let collected = self.logs.values_mut().flat_map(|log| log.collect(&self.limits, now_ms));
        collected.map(|record| record.entry).collect()
    }

    fn show(&mut self, changes: &[Arc<Entry>]) {
        for entry in changes {
            let id = (entry.scope.clone(), Arc::clone(&entry.key), entry.owner.clone());
            let of_kind = self.live.entry(entry.kind).or_default();
            if entry.deleted {
                of_kind.remove(&id);
                if of_kind.is_empty() {
                    self.live.remove(&entry.kind);
                }
            } else {
                of_kind.insert(id, Arc::clone(entry));
            }
        }
    }
}

/// Finds the log that the delta fits, and begins a reset where it asks for one with reason.
fn admit<'a>(
    logs: &'a mut BTreeMap<LogId, Log>,
    limits: &Limits,
    delta: &Delta,
    applied: &mut Applied,
) -> Option<&'a mut Log> {
    let fits = |record: &Verified| {
        let entry = &record.entry;
        entry.owner == delta.log.owner
            && entry.scope == delta.log.scope
            && entry.epoch == delta.epoch
            && entry.version > delta.after
    };
    let ascending = delta.records.is_sorted_by_key(|record| record.entry.version);
    if !ascending || !delta.records.iter().all(fits) {
        applied.refused.push(Refusal::Malformed);
        return None;
    }
    let known = logs.contains_key(&delta.log);
    // An epoch, like a watermark, is believed only with a record that its owner signed.
    if delta.records.is_empty() && (!known || logs.get(&delta.log)?.watermark().epoch != delta.epoch) {
        return None;
    }
    if !known && logs.len() >= limits.logs {
        applied.refused.push(Refusal::Quota);
        return None;
    }
    let mark = logs.get(&delta.log).map(Log::watermark).unwrap_or_default();
    let newer = delta.epoch > mark.epoch || !known;
    if delta.epoch < mark.epoch || (newer && delta.after != 0) || (delta.after > mark.version && !newer) {
        applied.refused.push(Refusal::Outdated);
        return None;
    }
    let log = logs.entry(delta.log.clone()).or_default();
    let behind = mark.version < delta.floor && mark.floor < delta.floor;
    if newer || (delta.reset && behind && delta.after == 0 && !delta.records.is_empty()) {
        log.begin_resync(delta.epoch, delta.floor);
        applied.moved = true;
    }
    Some(log)
}

fn take(log: &mut Log, record: Verified, limits: &Limits, now_ms: u64, applied: &mut Applied) {
    match log.insert(record.clone(), limits, now_ms) {
        Insertion::Changed => {
            applied.changes.push(Arc::clone(&record.entry));
            applied.kept.push(record);
        }
        Insertion::Unseen => applied.kept.push(record),
        Insertion::Refused(refusal) => {
            // Told in full, though not kept: asking again would not help.
            if refusal == Refusal::Quota {
                log.advance(record.entry.version);
            }
            applied.refused.push(refusal);
        }
    }
}

fn delta_of(id: &LogId, log: &Log, theirs: Option<Watermark>, budget: usize) -> Option<(Delta, usize)> {
    let mine = log.watermark();
    let theirs = theirs.unwrap_or_default();
    if theirs.epoch > mine.epoch {
        return None;
    }
    let behind = theirs.version < mine.floor && theirs.floor < mine.floor;
    let reset = theirs.epoch < mine.epoch || behind;
    let after = if reset { 0 } else { theirs.version };
    let run = log.run(after, budget);
    let completes = !reset && theirs.resyncing && !run.more && theirs.version <= mine.version;
    if run.records.is_empty() && !completes {
        return None;
    }
    let delta = Delta {
        log: id.clone(),
        epoch: mine.epoch,
        after,
        reset,
        floor: mine.floor,
        more: run.more,
        records: run.records,
    };
    Some((delta, run.bytes))
}

#[cfg(test)]
mod tests;
