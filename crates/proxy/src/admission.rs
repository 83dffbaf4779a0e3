//! A bound on requests, or connections, at a time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who has fewer than this part of all places has few.
const FEW: usize = 64;

/// How many a role takes at a time, over all of its workers. Clones share it.
#[derive(Debug, Clone)]
pub struct Admissions {
    taken: Arc<Taken>,
    max: usize,
}

#[derive(Debug, Default)]
struct Taken {
    all: AtomicUsize,
    /// Of each name that has any; held for a look-up.
    named: Mutex<HashMap<Arc<str>, usize>>,
}

/// A place among them; given back when dropped.
#[derive(Debug)]
pub struct Admission {
    taken: Arc<Taken>,
    name: Option<Arc<str>>,
}

impl Admissions {
    /// At most `max` at a time.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { taken: Arc::default(), max }
    }

    /// How many there are.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.taken.all.load(Ordering::Relaxed)
    }

    /// A place, if one is left.
    #[must_use]
    pub fn take(&self) -> Option<Admission> {
        self.place().map(|(admission, _before)| admission)
    }

    /// A place for `name`, if one is left for it: while no more than a quarter is left, those are for who has few,
    /// so that nobody can take all that there is.
    #[must_use]
    pub fn take_for(&self, name: &str) -> Option<Admission> {
        let (mut admission, before) = self.place()?;
        let mut named = self.taken.named();
        let (name, has) = named
            .get_key_value(name)
            .map_or_else(|| (name.into(), 0), |(name, has)| (Arc::clone(name), *has));
        let last_quarter = before >= self.max - self.max / 4;
        if last_quarter && has >= (self.max / FEW).max(1) {
            return None;
        }
        named.insert(Arc::clone(&name), has + 1);
        drop(named);
        admission.name = Some(name);
        Some(admission)
    }

    /// One, and how many there were.
    fn place(&self) -> Option<(Admission, usize)> {
        // Counted before the look, so that two can't take the last place.
        let before = self.taken.all.fetch_add(1, Ordering::Relaxed);
        let admission = Admission { taken: Arc::clone(&self.taken), name: None };
        (before < self.max).then_some((admission, before))
    }
}

impl Taken {
    fn named(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        // No section can panic half-way.
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.taken.all.fetch_sub(1, Ordering::Relaxed);
        let Some(name) = &self.name else { return };
        let mut named = self.taken.named();
        match named.get_mut(name) {
            Some(has) if *has > 1 => *has -= 1,
            _ => drop(named.remove(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_place_that_is_given_back_can_be_taken_again() {
        let admissions = Admissions::new(1);
        let first = admissions.take().unwrap();
        assert!(admissions.take().is_none() && admissions.in_flight() == 1);
        drop(first);
        assert!(admissions.take().is_some());
    }

    #[test]
    fn nobody_takes_the_places_that_others_need() {
        let admissions = Admissions::new(128);
        let mut many: Vec<_> = std::iter::from_fn(|| admissions.take_for("many")).collect();
        assert_eq!(many.len(), 96, "three quarters");
        let few: Vec<_> = std::iter::from_fn(|| admissions.take_for("few")).collect();
        assert_eq!(few.len(), 2);
        assert!(admissions.take_for("other").is_some() && admissions.take().is_some());
        assert_eq!(admissions.in_flight(), 98);
        many.truncate(90);
        let again: Vec<_> = std::iter::from_fn(|| admissions.take_for("many")).collect();
        assert_eq!(again.len(), 4);
        drop((many, few, again));
        assert!(admissions.in_flight() == 0 && admissions.taken.named().is_empty());
        let whole: Vec<_> = std::iter::from_fn(|| admissions.take()).collect();
        assert_eq!(whole.len(), 128);
        let one = Admissions::new(1);
        let _only = one.take_for("few").unwrap();
        assert!(one.take_for("few").is_none());
    }
}
