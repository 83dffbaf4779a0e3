//! Smoothing of round-trip times.

use std::collections::VecDeque;
use std::time::Duration;

/// How many of the last times the least is taken of: a queue on the way is not distance.
const WINDOW: usize = 8;
/// Weight of a new value, 1/4.
const WEIGHT: f64 = 0.25;

/// An exponentially weighted mean of the least of the last few times.
#[derive(Debug, Default)]
pub(crate) struct Rtt {
    last: VecDeque<Duration>,
    smoothed: Option<Duration>,
}

impl Rtt {
    pub(crate) fn add(&mut self, measured: Duration) -> Duration {
        if self.last.len() == WINDOW {
            self.last.pop_front();
        }
        self.last.push_back(measured);
        let least = self.last.iter().min().copied().unwrap_or(measured);
        let next = match self.smoothed {
            // The first times after a handshake are noisy, but never too short.
            Some(smoothed) if least >= smoothed => smoothed + (least - smoothed).mul_f64(WEIGHT),
            Some(smoothed) => smoothed - (smoothed - least).mul_f64(WEIGHT),
            None => least,
        };
        self.smoothed = Some(next);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_late_pong_changes_nothing_and_a_longer_way_is_learnt() {
        let mut rtt = Rtt::default();
        let (near, far) = (Duration::from_millis(10), Duration::from_millis(80));
        for _ in 0..20 {
            rtt.add(near);
        }
        assert_eq!(rtt.add(far), near);
        for _ in 0..40 {
            rtt.add(far);
        }
        assert!(rtt.add(far) > Duration::from_millis(75));
        for _ in 0..20 {
            rtt.add(near);
        }
        assert!(rtt.add(near) < Duration::from_millis(12));
    }
}
