//! Whether this node may have missed what others know: it was away, and has not been told all since.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So long after the last exchange that left nothing to say, this node counts as having been away. Between two of them are 1.3 s at most where all is
/// well, and one in three may fail.
const AWAY_AFTER: Duration = Duration::from_secs(15);
/// Who has heard of others within this is not cut off.
const IN_TOUCH: Duration = Duration::from_secs(2);
/// A driver that has not run for so long stood still, and with it the whole process.
const STOOD_STILL: Duration = Duration::from_secs(3);
/// How long one that stood still waits for others, before it counts as cut off.
const PATIENCE: Duration = Duration::from_secs(5);
/// Whoever follows the records has them so long after an exchange.
const SETTLED_AFTER: Duration = Duration::from_millis(200);

/// How this node stands to the others in the global scope.
#[derive(Debug)]
pub(crate) struct Standing {
    started: Instant,
    times: Mutex<Times>,
    behind: Arc<AtomicBool>,
}

/// All since the start.
#[derive(Debug, Clone, Copy, Default)]
struct Times {
    /// When the last exchange that left nothing to say began, and when it ended.
    level: Duration,
    told: Duration,
    /// The last word of anybody.
    heard: Duration,
    /// The driver's last turn.
    turn: Duration,
    /// When it last went on after it had stood still.
    resumed: Option<Duration>,
    behind: bool,
}

impl Times {
    fn judge(&mut self, now: Duration) {
        let ago = |then: Duration| now.saturating_sub(then);
        let resumed = self.resumed.filter(|at| ago(*at) < PATIENCE);
        let told_nothing_since = resumed.is_some_and(|at| self.level < at);
        let is_back = ago(self.level) > AWAY_AFTER && ago(self.heard) < IN_TOUCH;
        let settles = self.behind && ago(self.told) < SETTLED_AFTER;
        self.behind = told_nothing_since || is_back || settles;
    }

    fn turn(&mut self, now: Duration) {
        if now.saturating_sub(self.turn) > STOOD_STILL {
            self.resumed = Some(now);
        }
        self.turn = now;
        self.judge(now);
    }
}

impl Standing {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), times: Mutex::default(), behind: Arc::default() }
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver has a turn.
    pub(crate) fn note_turn(&self) {
        let behind = {
            let mut times = self.times();
            times.turn(self.started.elapsed());
            times.behind
        };
        match (self.behind.swap(behind, Ordering::AcqRel), behind) {
            (false, true) => tracing::info!("this node was away: what happened meanwhile is being asked for"),
            (true, false) => {
                tracing::info!("this node has been told what happened while it was away, or is cut off")
            }
            _ => {}
        }
    }

    /// Somebody has said something.
    pub(crate) fn note_heard(&self) {
        self.times().heard = self.started.elapsed();
    }

    /// An exchange that began then has left nothing to say.
    pub(crate) fn note_level(&self, began: Instant) {
        let mut times = self.times();
        times.level = times.level.max(began.saturating_duration_since(self.started));
        times.told = self.started.elapsed();
    }

    pub(crate) fn behind(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Turns each 500 ms from one time to another, with what happens at each.
    fn live(times: &mut Times, from: u64, to: u64, each: impl Fn(&mut Times, Duration)) -> Vec<bool> {
        let turns = (from..to).step_by(500).map(ms);
        turns
            .map(|now| {
                each(times, now);
                times.turn(now);
                times.behind
            })
            .collect()
    }

    fn well(times: &mut Times, now: Duration) {
        (times.level, times.told, times.heard) = (now, now, now);
    }

    #[test]
    fn who_is_cut_off_is_not_behind_until_somebody_is_heard_again() {
        let mut times = Times::default();
        assert!(!live(&mut times, 0, 10_000, well).contains(&true));
        assert!(!live(&mut times, 10_000, 60_000, |_, _| {}).contains(&true), "it serves what it has");
        let back = live(&mut times, 60_000, 63_000, |times, now| times.heard = now);
        assert!(!back.contains(&false), "before it has been told all");
        (times.level, times.told) = (ms(62_900), ms(63_000));
        times.turn(ms(63_100));
        assert!(times.behind, "whoever follows is yet to hear");
        times.turn(ms(63_300));
        assert!(!times.behind);
    }

    #[test]
    fn who_stood_still_is_behind_at_once_but_not_for_ever() {
        let mut times = Times::default();
        live(&mut times, 0, 10_000, well);
        times.turn(ms(14_000));
        assert!(times.behind);
        let mut alone = times;
        assert!(live(&mut alone, 14_500, 18_500, |_, _| {}).iter().all(|behind| *behind));
        assert!(!live(&mut alone, 19_000, 30_000, |_, _| {}).contains(&true), "it is cut off");
        // One that had begun before tells nothing of what came since.
        (times.level, times.told) = (ms(10_900), ms(14_100));
        times.turn(ms(14_400));
        assert!(times.behind);
        well(&mut times, ms(14_500));
        times.turn(ms(14_800));
        assert!(!times.behind);
    }

    #[test]
    fn exchanges_that_fail_now_and_then_are_no_absence() {
        let mut times = Times::default();
        let behind = live(&mut times, 0, 120_000, |times, now| {
            times.heard = now;
            if now.as_millis().is_multiple_of(14_000) {
                times.level = now;
            }
        });
        assert!(!behind.contains(&true));
    }
}
