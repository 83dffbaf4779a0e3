//! What is counted of each cluster, for `atoll top`: requests, failures, and how long answers took.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets of times: four for each doubling, from 100 µs to 26 s. One is 19 % wide.
const BUCKETS: usize = 73;
const FIRST_US: f64 = 100.0;

/// Counted since the gateway began, by all workers. Takes memory (some 600 bytes) only once it is used.
#[derive(Debug, Default)]
pub(crate) struct Counts(OnceLock<Box<Cells>>);

#[derive(Debug)]
struct Cells {
    failures: AtomicU64,
    latency: [AtomicU64; BUCKETS],
}

impl Counts {
    /// One answer: how long its head took, and whether it was a failure (a status of 500 or above).
    pub(crate) fn answered(&self, took: Duration, failed: bool) {
        let none = || AtomicU64::new(0);
        let new = || Box::new(Cells { failures: none(), latency: std::array::from_fn(|_| none()) });
        let cells = self.0.get_or_init(new);
        cells.latency[bucket(took)].fetch_add(1, Ordering::Relaxed);
        if failed {
            cells.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn failures(&self) -> u64 {
        self.0.get().map_or(0, |cells| cells.failures.load(Ordering::Relaxed))
    }

    /// By bucket; nothing where nothing was answered.
    pub(crate) fn latency(&self) -> Vec<u64> {
        let cells = self.0.get().map(|cells| &cells.latency);
        cells.into_iter().flatten().map(|count| count.load(Ordering::Relaxed)).collect()
    }
}

fn bucket(took: Duration) -> usize {
    let doublings = (took.as_secs_f64() * 1e6 / FIRST_US).max(1.0).log2();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and some 200")]
    let index = (doublings * 4.0) as usize;
    index.min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_their_buckets() {
        let of = |us: u64| bucket(Duration::from_micros(us));
        assert_eq!([of(0), of(100), of(118), of(119), of(200), of(400)], [0, 0, 0, 1, 4, 8]);
        assert_eq!(of(60_000_000), BUCKETS - 1);
        let counts = Counts::default();
        counts.answered(Duration::from_micros(250), true);
        counts.answered(Duration::from_micros(90), false);
        assert_eq!((counts.failures(), counts.latency().iter().sum::<u64>()), (1, 2));
    }
}
