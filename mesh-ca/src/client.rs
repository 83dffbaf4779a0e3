//! A certificate holder's side: the keys for a join, when to renew, how long to wait after a failure.

use atoll_identity::{KeyError, RecordKey, TlsKey};
use std::time::Duration;

/// The keys that a node makes before it joins.
#[derive(Debug)]
pub struct JoinKeys {
    /// For TLS.
    pub tls: TlsKey,
    /// For its records.
    pub record: RecordKey,
}

impl JoinKeys {
    /// New ones.
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self { tls: TlsKey::generate()?, record: RecordKey::generate()? })
    }
}

/// When to renew a certificate, ms since 1970: between 40 % and 50 % of its life, by `random` (any
/// number; the same certificate keeps its number). Never after half, so that a holder that reaches no
/// control from then on has the other half; spread, so that those that were issued together don't come
/// back together.
#[must_use]
pub fn renew_at_ms(not_before_ms: u64, not_after_ms: u64, random: u64) -> u64 {
    let life_ms = not_after_ms.saturating_sub(not_before_ms);
    let spread_ms = life_ms / 10;
    let early_ms = if spread_ms == 0 { 0 } else { random % (spread_ms + 1) };
    not_before_ms.saturating_add(life_ms / 2).saturating_sub(early_ms)
}

/// How long to wait after the `failures`th failure in a row (from 1): it doubles from a second to five
/// minutes, and a random part of up to half is taken off. Never more than a tenth of `left`, the time
/// until the certificate ends, so that a short-lived one gets its tries; at least 100 ms.
#[must_use]
pub fn retry_after(failures: u32, left: Duration, random: u64) -> Duration {
    const FIRST_MS: u64 = 1_000;
    const LONGEST_MS: u64 = 5 * 60 * 1_000;
    let doubled = FIRST_MS.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_MS);
    let tenth = u64::try_from(left.as_millis() / 10).unwrap_or(u64::MAX);
    // One that has ended is tried at the full pace of the backoff.
    let bounded = if left.is_zero() { doubled } else { doubled.min(tenth) };
    Duration::from_millis((bounded - random % (bounded / 2 + 1)).max(100))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn renewal_is_before_half_and_not_before_two_fifths(start in 0u64..1 << 42, life in 2_000u64..1 << 40, random: u64) {
            let at = renew_at_ms(start, start + life, random);
            prop_assert!(at <= start + life / 2);
            prop_assert!(at >= start + life / 5 * 2);
        }

        #[test]
        fn retries_stay_within_their_bounds(failures: u32, left_ms in 0u64..1 << 40, random: u64) {
            let wait = retry_after(failures, Duration::from_millis(left_ms), random);
            prop_assert!(wait >= Duration::from_millis(100) && wait <= Duration::from_secs(300));
            prop_assert!(left_ms < 1_000 || wait <= Duration::from_millis(left_ms / 10));
        }
    }

    #[test]
    fn renewals_of_certificates_issued_together_are_spread() {
        let day = 86_400_000;
        let mut at: Vec<u64> =
            (0..1000u64).map(|i| renew_at_ms(0, 2 * day, i.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
        at.sort_unstable();
        // 4.8 hours of spread: no ten minutes see more than a tenth of them.
        let busiest =
            at.iter().map(|start| at.iter().filter(|t| (*start..start + 600_000).contains(t)).count()).max();
        assert!(busiest < Some(100), "{busiest:?}");
    }

    /// Control comes back after a time in which every certificate came due: all try, and not at once.
    #[test]
    fn renewals_that_waited_for_control_come_back_spread() {
        let (hour, left) = (3_600_000, Duration::from_secs(12 * 3600));
        let next_try = |node: u64| {
            let mut random = node.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let (mut at_ms, mut failures) = (0, 0);
            while at_ms < hour {
                failures += 1;
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                at_ms += retry_after(failures, left, random >> 33).as_millis() as u64;
            }
            at_ms
        };
        let at: Vec<u64> = (0..1000).map(next_try).collect();
        let within = |from: u64| at.iter().filter(|t| (from..from + 10_000).contains(*t)).count();
        let busiest = at.iter().map(|from| within(*from)).max();
        assert!(busiest < Some(100), "no ten seconds see a tenth of them: {busiest:?}");
        assert!(at.iter().all(|t| *t <= hour + 300_000), "and none waits longer than five minutes");
    }
}
