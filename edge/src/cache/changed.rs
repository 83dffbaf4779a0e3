//! What a change has made unusable here (RFC 9111, section 4.4), and other edges may still have: they are asked to validate it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// So many are remembered; behind that the oldest are forgotten, and an edge that is asked may answer with what was before the change until
/// it is no longer fresh.
const CHANGED_MAX: usize = 4096;

/// The places of changed resources on the ring on which edges share. Two with one place cost a validation.
///
/// A lock, for a few instructions at each fetch and change.
#[derive(Debug, Default)]
pub(crate) struct Changed(Mutex<Places>);

#[derive(Debug, Default)]
struct Places {
    /// When each was changed last.
    known: HashMap<u64, Change>,
    by_age: VecDeque<u64>,
    last: u64,
}

/// One change, in the order of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change(u64);

impl Changed {
    /// What is there was changed.
    pub(crate) fn note(&self, place: u64) {
        let mut places = self.lock();
        places.last += 1;
        let change = Change(places.last);
        if places.known.insert(place, change).is_some() {
            return;
        }
        places.by_age.push_back(place);
        if places.by_age.len() > CHANGED_MAX
            && let Some(oldest) = places.by_age.pop_front()
        {
            places.known.remove(&oldest);
        }
    }

    /// The last change from before which another edge may have what is there.
    pub(crate) fn of(&self, place: u64) -> Option<Change> {
        self.lock().known.get(&place).copied()
    }

    /// The edge that is asked for it has what was there after that change.
    pub(crate) fn forget(&self, place: u64, change: Change) {
        let mut places = self.lock();
        // Another one since is yet to be told.
        if places.known.get(&place) == Some(&change) {
            places.known.remove(&place);
            places.by_age.retain(|known| *known != place);
        }
    }

    /// How many are remembered.
    pub(crate) fn count(&self) -> usize {
        self.lock().known.len()
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_and_none_is_there_twice() {
        let changed = Changed::default();
        for place in 0..CHANGED_MAX as u64 {
            changed.note(place);
            changed.note(place);
        }
        assert!(changed.of(0).is_some() && changed.count() == CHANGED_MAX);
        changed.note(u64::MAX);
        assert!(changed.of(0).is_none() && changed.of(1).is_some() && changed.count() == CHANGED_MAX);
    }

    #[test]
    fn a_change_while_another_edge_is_asked_is_not_forgotten_with_the_one_before() {
        let changed = Changed::default();
        changed.note(1);
        let first = changed.of(1).expect("it was noted");
        changed.note(1);
        changed.forget(1, first);
        let second = changed.of(1).expect("it was changed again");
        changed.forget(1, second);
        changed.forget(1, second);
        assert!(changed.of(1).is_none() && changed.count() == 0);
    }
}
