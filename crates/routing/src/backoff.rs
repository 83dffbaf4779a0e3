//! Jittered exponential waits between attempts.

use crate::mix::spread;
use std::time::Duration;

/// Waits that double from `first` up to `longest`, each cut by a random part of up to a half, so that
/// many who failed together do not come back together.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    attempts: u32,
}

impl Backoff {
    /// Begins at `first`; no wait is longer than `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, attempts: 0 }
    }

    /// The wait before the next attempt, between half and all of this step's length.
    pub fn next_wait(&mut self, random: u64) -> Duration {
        let factor = 1_u32.checked_shl(self.attempts.min(31)).unwrap_or(u32::MAX);
        let step = self.first.saturating_mul(factor).min(self.longest);
        self.attempts = self.attempts.saturating_add(1);
        let half = step / 2;
        let half_ns = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX - 1);
        (half + Duration::from_nanos(spread(random) % half_ns.saturating_add(1))).min(self.longest)
    }

    /// An attempt went well: the next wait is short again.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Attempts since the start or the last reset.
    #[must_use]
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn waits_stay_between_half_the_step_and_the_longest(
            first_ms in 1_u64..2_000,
            longest_ms in 1_u64..100_000,
            randoms in proptest::collection::vec(any::<u64>(), 1..60),
        ) {
            let first = Duration::from_millis(first_ms);
            let longest = Duration::from_millis(longest_ms);
            let mut backoff = Backoff::new(first, longest);
            for (n, random) in randoms.into_iter().enumerate() {
                let wait = backoff.next_wait(random);
                let step = first.saturating_mul(1 << n.min(31)).min(longest);
                prop_assert!(wait <= step, "{wait:?} of {step:?}");
                prop_assert!(wait >= step / 2, "{wait:?} of {step:?}");
            }
            backoff.reset();
            prop_assert!(backoff.next_wait(7) <= first);
        }
    }

    #[test]
    fn two_who_fail_together_wait_differently() {
        let mut a = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        let mut b = a.clone();
        assert_ne!(a.next_wait(1), b.next_wait(2));
    }
}
