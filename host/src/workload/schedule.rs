//! When to ask for a certificate.

/// From when to when a certificate is valid, ms since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Validity {
    /// Its start.
    pub not_before_ms: u64,
    /// Its end.
    pub not_after_ms: u64,
}

const RETRY_FIRST_MS: u64 = 100;
const RETRY_MAX_MS: u64 = 30_000;

/// How long to wait before the next request. `jitter` is in 0..1: a service's hosts don't all ask at once.
///
/// Renewal comes between 45 and 55 % of the life; after a failure it is tried again, ever less often, but
/// at least 20 times in a life, also when the certificate has run out.
pub(super) fn wait_ms(validity: Option<Validity>, now_ms: u64, failures: u32, jitter: f64) -> u64 {
    let life = validity.map(|validity| validity.not_after_ms.saturating_sub(validity.not_before_ms));
    if failures > 0 {
        let most = life.map_or(RETRY_MAX_MS, |life| (life / 20).clamp(RETRY_FIRST_MS, RETRY_MAX_MS));
        let pause = RETRY_FIRST_MS.saturating_mul(1 << failures.min(16)).min(most);
        return share(pause, 0.5 + 0.5 * jitter);
    }
    let (Some(validity), Some(life)) = (validity, life) else { return 0 };
    let due = validity.not_before_ms.saturating_add(share(life, 0.45 + 0.1 * jitter));
    due.saturating_sub(now_ms)
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn share(ms: u64, part: f64) -> u64 {
    (ms as f64 * part) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_comes_around_half_life() {
        let validity = Some(Validity { not_before_ms: 1_000, not_after_ms: 11_000 });
        assert_eq!(wait_ms(None, 5_000, 0, 0.3), 0);
        assert_eq!(wait_ms(validity, 1_000, 0, 0.0), 4_500);
        assert_eq!(wait_ms(validity, 1_000, 0, 1.0), 5_500);
        assert_eq!(wait_ms(validity, 9_000, 0, 0.5), 0, "overdue");
    }

    #[test]
    fn failures_are_retried_within_the_life() {
        let short = Some(Validity { not_before_ms: 0, not_after_ms: 10_000 });
        for failures in 1..40 {
            assert!((50..=500).contains(&wait_ms(short, 99_000, failures, 0.0)));
            assert!(wait_ms(None, 0, failures, 1.0) <= RETRY_MAX_MS);
        }
        assert_eq!(wait_ms(None, 0, 30, 1.0), RETRY_MAX_MS);
    }
}
