//! Log lines of what may happen to any request: a sample, and a count of what was left out.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Lines in one interval.
const LINES_MAX: u32 = 5;
const INTERVAL: Duration = Duration::from_secs(1);

/// Decides which events are logged. One for each kind of event and worker.
#[derive(Debug, Default)]
pub struct Sample {
    since: Cell<Option<Instant>>,
    logged: Cell<u32>,
    left_out: Cell<u64>,
}

impl Sample {
    /// Whether to log an event at `now`; then, how many before it were left out.
    pub fn take(&self, now: Instant) -> Option<u64> {
        let fresh = self.since.get().is_none_or(|since| now.saturating_duration_since(since) >= INTERVAL);
        if fresh {
            self.since.set(Some(now));
            self.logged.set(0);
        }
        if self.logged.get() >= LINES_MAX {
            self.left_out.set(self.left_out.get() + 1);
            return None;
        }
        self.logged.set(self.logged.get() + 1);
        Some(self.left_out.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_logged_and_the_others_counted() {
        let (sample, start) = (Sample::default(), Instant::now());
        let logged: Vec<_> = (0..100).filter_map(|_| sample.take(start)).collect();
        assert_eq!(logged, [0; LINES_MAX as usize]);
        assert_eq!(sample.take(start + INTERVAL), Some(95));
        assert_eq!(sample.take(start + INTERVAL), Some(0));
    }
}
