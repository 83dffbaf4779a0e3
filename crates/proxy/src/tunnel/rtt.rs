//! The distance that round-trip times tell of.

use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// How far back the least is looked for, as BBR does (draft-ietf-ccwg-bbr, `MinRTTFilterLen`). A shorter way
/// counts at once, a longer one after this.
const WINDOW: Duration = Duration::from_secs(10);

/// The least of the round-trip times of the last [`WINDOW`]. A time is never too short, but a large body
/// before the ping on the same connection, or a busy machine, makes it too long by any amount: neither is
/// distance.
#[derive(Debug, Default)]
pub(crate) struct Rtt {
    /// What may yet become the least: each is newer and longer than the one before. So many at most as
    /// pings are answered within the window.
    least: VecDeque<(Instant, Duration)>,
}

impl Rtt {
    /// Takes a time in; tells the least.
    pub(crate) fn add(&mut self, now: Instant, measured: Duration) -> Duration {
        while self.least.back().is_some_and(|(_, time)| *time >= measured) {
            self.least.pop_back();
        }
        self.least.push_back((now, measured));
        while self.least.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > WINDOW) {
            self.least.pop_front();
        }
        self.least.front().map_or(measured, |(_, time)| *time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NEAR: Duration = Duration::from_millis(10);
    const FAR: Duration = Duration::from_millis(80);

    #[test]
    fn a_queue_is_not_distance_and_a_longer_way_is_learnt() {
        let (mut rtt, start) = (Rtt::default(), Instant::now());
        let mut now = start;
        rtt.add(now, NEAR);
        while now < start + WINDOW {
            now += Duration::from_millis(250);
            assert_eq!(rtt.add(now, FAR), NEAR);
        }
        assert_eq!(rtt.add(now + Duration::from_millis(1), FAR), FAR, "it lasted: the way is longer");
        assert_eq!(rtt.add(now + Duration::from_millis(2), NEAR), NEAR, "a shorter way counts at once");
    }

    proptest! {
        #[test]
        fn it_is_the_least_of_the_window(times in proptest::collection::vec((0_u64..4000, 1_u64..100), 1..100)) {
            let (mut rtt, mut now) = (Rtt::default(), Instant::now());
            let mut all = Vec::new();
            for (pause, time) in times {
                now += Duration::from_millis(pause);
                all.push((now, Duration::from_millis(time)));
                let least = all.iter().filter(|(at, _)| now - *at <= WINDOW).map(|(_, time)| *time).min();
                prop_assert_eq!(Some(rtt.add(now, Duration::from_millis(time))), least);
            }
        }
    }
}
