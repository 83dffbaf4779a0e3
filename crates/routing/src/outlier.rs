//! Passive ejection: an instance that can't be connected to is left out for a while, by who saw it.

use crate::backoff::Backoff;
use std::time::Duration;

/// Connect failures in a row that eject.
pub const FAILURES_MAX: u32 = 2;
/// The first ejection, before jitter.
pub const EJECTION_FIRST: Duration = Duration::from_secs(2);
/// The longest ejection.
pub const EJECTION_LONGEST: Duration = Duration::from_secs(10);

/// What one caller has seen of one instance. Times are since a start of the caller's choosing.
#[derive(Debug, Clone)]
pub struct Outlier {
    failures: u32,
    until: Duration,
    backoff: Backoff,
}

impl Default for Outlier {
    fn default() -> Self {
        Self { failures: 0, until: Duration::ZERO, backoff: Backoff::new(EJECTION_FIRST, EJECTION_LONGEST) }
    }
}

impl Outlier {
    /// A connect failed. Returns for how long the instance is left out, if this ejects it.
    pub fn connect_failed(&mut self, now: Duration, random: u64) -> Option<Duration> {
        if self.is_ejected(now) {
            return None;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures < FAILURES_MAX {
            return None;
        }
        let wait = self.backoff.next_wait(random);
        self.until = now + wait;
        // Once it is back, one more failure is enough.
        self.failures = FAILURES_MAX - 1;
        Some(wait)
    }

    /// It answered: whatever was held against it is forgotten.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// Whether it is to be left out.
    #[must_use]
    pub fn is_ejected(&self, now: Duration) -> bool {
        now < self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn two_failures_eject_and_a_success_forgives() {
        let mut outlier = Outlier::default();
        assert_eq!(outlier.connect_failed(SECOND, 1), None);
        assert!(outlier.connect_failed(SECOND, 1).is_some());
        assert!(outlier.is_ejected(SECOND));
        assert!(!outlier.is_ejected(SECOND * 12));
        assert!(outlier.connect_failed(SECOND * 12, 1).is_some(), "one more is enough");
        outlier.succeeded();
        assert!(!outlier.is_ejected(SECOND * 12));
        assert_eq!(outlier.connect_failed(SECOND * 12, 1), None);
    }

    proptest! {
        #[test]
        fn an_ejection_lasts_one_to_ten_seconds(
            events in proptest::collection::vec((0_u64..5_000, any::<u64>(), 0_u8..4), 1..60),
        ) {
            let mut outlier = Outlier::default();
            let mut now = Duration::ZERO;
            for (wait_ms, random, what) in events {
                now += Duration::from_millis(wait_ms);
                if what == 0 {
                    outlier.succeeded();
                    prop_assert!(!outlier.is_ejected(now));
                } else if let Some(wait) = outlier.connect_failed(now, random) {
                    prop_assert!(wait >= SECOND && wait <= EJECTION_LONGEST);
                    prop_assert!(outlier.is_ejected(now) && !outlier.is_ejected(now + wait));
                }
            }
        }
    }
}
