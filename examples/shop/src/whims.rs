//! How the instance has been told to behave.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// Shared by all connections.
#[derive(Debug, Default)]
pub(crate) struct Whims(Mutex<Told>);

#[derive(Debug, Default, Clone, Copy)]
struct Told {
    unhealthy: Unhealthy,
    slow: Duration,
}

#[derive(Debug, Default, Clone, Copy)]
enum Unhealthy {
    #[default]
    No,
    Until(Instant),
    Always,
}

impl Whims {
    /// `/healthz` fails, for a time or until it is told otherwise.
    pub(crate) fn become_unhealthy(&self, now: Instant, for_time: Option<Duration>) {
        let until = for_time.and_then(|time| now.checked_add(time));
        self.told().unhealthy = until.map_or(Unhealthy::Always, Unhealthy::Until);
    }

    /// All is well again.
    pub(crate) fn become_healthy(&self) {
        *self.told() = Told::default();
    }

    /// Every answer but those of `/healthz` and `/control` waits this long.
    pub(crate) fn become_slow(&self, wait: Duration) {
        self.told().slow = wait;
    }

    pub(crate) fn is_healthy(&self, now: Instant) -> bool {
        match self.told().unhealthy {
            Unhealthy::No => true,
            Unhealthy::Until(end) => now >= end,
            Unhealthy::Always => false,
        }
    }

    pub(crate) fn wait(&self) -> Duration {
        self.told().slow
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `10s`, `250ms`, `2m`; a bare number is milliseconds. At most an hour.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit_ms = match &text[digits..] {
        "" | "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return None,
    };
    let ms = number.checked_mul(unit_ms)?;
    (ms <= 3_600_000).then(|| Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ill_health_ends() {
        let (whims, now) = (Whims::default(), Instant::now());
        assert!(whims.is_healthy(now));
        whims.become_unhealthy(now, Some(Duration::from_secs(10)));
        assert!(!whims.is_healthy(now + Duration::from_secs(9)));
        assert!(whims.is_healthy(now + Duration::from_secs(10)));
        whims.become_unhealthy(now, None);
        assert!(!whims.is_healthy(now + Duration::from_secs(1_000)));
        whims.become_healthy();
        assert!(whims.is_healthy(now));
    }

    #[test]
    fn durations_are_read() {
        for (text, ms) in [("10s", 10_000), ("250ms", 250), ("7", 7), ("2m", 120_000)] {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "10h", "-1s", "99999999999999999999", "2000m"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
