//! What a change has made unusable here (RFC 9111, section 4.4), and other edges may still have: they are asked to validate it.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

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
    known: HashSet<u64>,
    by_age: VecDeque<u64>,
}

impl Changed {
    /// What is there was changed.
    pub(crate) fn note(&self, place: u64) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !places.known.insert(place) {
            return;
        }
        places.by_age.push_back(place);
        if places.by_age.len() > CHANGED_MAX
            && let Some(oldest) = places.by_age.pop_front()
        {
            places.known.remove(&oldest);
        }
    }

    /// Whether another edge may have what was before a change.
    pub(crate) fn is_known(&self, place: u64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).known.contains(&place)
    }

    /// The edge that is asked for it has what was there after the change.
    pub(crate) fn forget(&self, place: u64) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if places.known.remove(&place) {
            places.by_age.retain(|known| *known != place);
        }
    }

    /// How many are remembered.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).known.len()
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
        assert!(changed.is_known(0) && changed.count() == CHANGED_MAX);
        changed.note(u64::MAX);
        assert!(!changed.is_known(0) && changed.is_known(1) && changed.count() == CHANGED_MAX);
        changed.forget(1);
        changed.forget(1);
        assert!(!changed.is_known(1) && changed.count() == CHANGED_MAX - 1);
    }
}
