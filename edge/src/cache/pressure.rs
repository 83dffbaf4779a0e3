//! How much of its memory the cache may have, so that the process is not killed for want of it.
//!
//! [`Pressure`] decides, [`reading`] looks, [`follow`] does both once a second. It does not make room itself: the caller applies the
//! capacity.

pub mod reading;

use reading::Reading;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// How often memory is looked at.
const PERIOD: Duration = Duration::from_secs(1);
/// Percent of the limit. Above `HIGH` the cache gives back what is over it, at `DANGER` nearly all; below `LOW` it grows again.
const LOW: u64 = 80;
const HIGH: u64 = 85;
const DANGER: u64 = 95;
/// The part of its maximum that the cache always has, and the part by which it grows each time.
const PART: u64 = 16;

/// The capacity of a cache, as memory is short or not. Pure: readings and the cache's size are told.
#[derive(Debug, Clone)]
pub struct Pressure {
    max: u64,
    capacity: u64,
}

impl Pressure {
    /// For a cache with this maximum, bytes, which is what it has at first.
    #[must_use]
    pub const fn new(cache_max: u64) -> Self {
        Self { max: cache_max, capacity: cache_max }
    }

    /// The capacity that the cache should have now, bytes; `cache_bytes` is what it holds. Between a sixteenth of the maximum
    /// and the maximum.
    ///
    /// What was asked for before and is not given back yet is not asked for again. Filled at once, the cache would not take the process
    /// above 85 % of the limit: clients can fill it faster than memory is looked at, and it would shrink and grow for ever.
    pub fn next(&mut self, reading: Reading, cache_bytes: u64) -> u64 {
        let Reading { used, limit } = reading;
        let floor = self.max / PART;
        let high = percent(limit, HIGH);
        if limit == 0 {
            return self.capacity;
        }
        if used >= percent(limit, DANGER) {
            self.capacity = floor;
        } else if used > high {
            let kept = cache_bytes.saturating_sub(used - high);
            self.capacity = self.capacity.min(kept).max(floor);
        } else {
            if used < percent(limit, LOW) {
                self.capacity = self.capacity.saturating_add(self.max.div_ceil(PART)).min(self.max);
            }
            // What is free bounds what may be filled before the next look.
            let room = cache_bytes.saturating_add(high - used);
            self.capacity = self.capacity.min(room).max(floor);
        }
        self.capacity
    }
}

fn percent(of: u64, percent: u64) -> u64 {
    u64::try_from(u128::from(of) * u128::from(percent) / 100).unwrap_or(u64::MAX)
}

/// Keeps the capacity of a cache of at most `cache_max` bytes right, for ever: `apply` is called with it each time that it changes,
/// `bytes` says which capacity it has in use. `limit` is that of the process, bytes; 0 finds out which one there is. Nothing happens
/// where memory can't be read.
pub(crate) async fn follow(cache_max: u64, limit: u64, apply: impl Fn(u64), bytes: impl Fn() -> u64) {
    let mut pressure = Pressure::new(cache_max);
    let mut applied = cache_max;
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let limit = (limit > 0).then_some(limit);
        // Such files are in memory, but the kernel adds up for some of them.
        let read = tokio::task::spawn_blocking(move || reading::read_with(limit)).await;
        let Ok(Some(reading)) = read else { continue };
        let capacity = pressure.next(reading, bytes());
        if capacity != applied {
            tell((applied, bytes()), capacity, cache_max, reading);
            apply(capacity);
            applied = capacity;
        }
    }
}

/// Logs the turns, not each step.
fn tell((before, held): (u64, u64), now: u64, max: u64, Reading { used, limit }: Reading) {
    if before >= held && now < held {
        tracing::warn!(used, limit, capacity = now, "memory is short: the cache gives some back");
    } else if now == max / PART {
        tracing::warn!(used, limit, capacity = now, "memory is short: the cache is as small as it gets");
    } else if now == max {
        tracing::info!(used, limit, capacity = now, "there is memory again: the cache has its full size");
    }
}

#[cfg(test)]
mod tests;
