//! A bound on requests at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many requests a role takes at a time, over all of its workers. Clones share it.
#[derive(Debug, Clone)]
pub struct Admissions {
    in_flight: Arc<AtomicUsize>,
    max: usize,
}

/// A place among them; given back when dropped.
#[derive(Debug)]
pub struct Admission(Arc<AtomicUsize>);

impl Admissions {
    /// At most `max` at a time.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { in_flight: Arc::default(), max }
    }

    /// How many there are.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// A place, if one is left.
    #[must_use]
    pub fn take(&self) -> Option<Admission> {
        // Counted before the look, so that two can't take the last place.
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let admission = Admission(Arc::clone(&self.in_flight));
        (before < self.max).then_some(admission)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
}
