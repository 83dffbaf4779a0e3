//! The time by which certificates are judged.
//!
//! A machine's clock may be days off, and certificates live for days: judged by such a clock, every peer's
//! would be over or not begun. Nodes tell each other the time on connections that are verified already; a
//! node whose clock most others contradict judges by their time, and says that its own is wrong. What it
//! can't do is to verify a first peer where its clock is ahead by more than certificates live.
//!
//! Only where the clock disagrees by more than [`TOLERANCE`], so that nobody can move it in small steps, and
//! only by the word of more than half of those heard, the node itself counted.

use crate::certificate::PeerIdentity;
use atoll_model::NodeName;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::time_provider::TimeProvider;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// A clock that is off by less is right enough: certificates begin a minute before they are issued.
pub const TOLERANCE: Duration = Duration::from_secs(10);
/// A correction is not changed by less, ms.
const NEWS_MS: u64 = 5_000;
/// What a peer said counts for so long.
const HEARD_FOR: Duration = Duration::from_secs(10 * 60);
/// Least time between two lines about certificates that are out of their time.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// Peers whose word is kept.
const PEERS_MAX: usize = 512;

/// The time as the mesh has it. Clones share.
#[derive(Debug, Clone, Default)]
pub struct Clock(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// What is to be added to the machine's clock, ms.
    correction_ms: watch::Sender<i64>,
    /// It can't be earlier than this, ms since 1970: our own certificate was issued then.
    floor_ms: AtomicU64,
    /// When a certificate out of its time was last written of. Held for a comparison.
    complained: Mutex<Option<Instant>>,
    // Held for one sample; a few in a second.
    heard: Mutex<BTreeMap<NodeName, Sample>>,
}

/// What a peer's clock showed, against ours.
#[derive(Debug, Clone, Copy)]
struct Sample {
    ahead_ms: i64,
    votes: usize,
    at: Instant,
}

impl Clock {
    /// Milliseconds since 1970, corrected.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        let corrected = machine_ms().saturating_add_signed(self.correction_ms());
        corrected.max(self.0.floor_ms.load(Ordering::Relaxed))
    }

    /// What is added to the machine's clock, ms: 0 where that is right, as far as is known.
    #[must_use]
    pub fn correction_ms(&self) -> i64 {
        *self.0.correction_ms.borrow()
    }

    /// The correction, as it changes.
    #[must_use]
    pub fn corrections(&self) -> watch::Receiver<i64> {
        self.0.correction_ms.subscribe()
    }

    /// A peer whose certificate was verified says what time it has. Control, by whose clock certificates are
    /// issued, counts twice. True when the correction changed.
    pub fn heard(&self, peer: &NodeName, is_control: bool, their_ms: u64) -> bool {
        let mut heard = self.0.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let ahead_ms = i64::try_from(their_ms).unwrap_or(i64::MAX).saturating_sub_unsigned(machine_ms());
        heard.insert(peer.clone(), Sample { ahead_ms, votes: if is_control { 2 } else { 1 }, at: now });
        heard.retain(|_, sample| now.duration_since(sample.at) < HEARD_FOR);
        while heard.len() > PEERS_MAX {
            let oldest = heard.iter().min_by_key(|(_, sample)| sample.at).map(|(name, _)| name.clone());
            let Some(oldest) = oldest else { break };
            heard.remove(&oldest);
        }
        let votes: Vec<(i64, usize)> = heard.values().map(|sample| (sample.ahead_ms, sample.votes)).collect();
        drop(heard);
        self.correct(correction(votes))
    }

    /// Whether other nodes have told us the time lately.
    pub(crate) fn is_confirmed(&self) -> bool {
        let heard = self.0.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.values().any(|sample| sample.at.elapsed() < HEARD_FOR)
    }

    /// Sets the correction, as somebody says who knows more (a sidecar's host). True when it changed by more
    /// than a few seconds.
    pub fn correct(&self, correction_ms: i64) -> bool {
        // It moves by a few ms with each peer's word; that is no news.
        let is_news = |before: i64| {
            before != correction_ms && (correction_ms == 0 || before.abs_diff(correction_ms) > NEWS_MS)
        };
        self.0.correction_ms.send_if_modified(|correction| {
            let news = is_news(*correction);
            if news {
                *correction = correction_ms;
            }
            news
        })
    }

    /// A peer's certificate was refused because of the time. Says so, once a minute: a machine whose clock is off
    /// by more than certificates live refuses all, and nobody can tell it.
    pub(crate) fn out_of_time(&self, leaf: &CertificateDer<'_>) {
        let mut complained = self.0.complained.lock().unwrap_or_else(PoisonError::into_inner);
        if complained.is_some_and(|at| at.elapsed() < COMPLAIN_EVERY) {
            return;
        }
        *complained = Some(Instant::now());
        let Ok(peer) = PeerIdentity::from_certificate(leaf) else { return };
        let now_s = self.now_ms() / 1000;
        let (from_s, until_s) = (peer.not_before_ms / 1000, peer.not_after_ms / 1000);
        tracing::error!(
            peer = %peer.id, now_s, from_s, until_s,
            "a peer's certificate is not of this time, by this machine's clock (seconds since 1970): is the clock right?"
        );
    }

    /// It is at least this time.
    pub(crate) fn not_before(&self, ms: u64) {
        self.0.floor_ms.fetch_max(ms, Ordering::Relaxed);
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.now_ms())))
    }
}

/// How far most others are ahead, if that is more than is tolerated. `heard`: how far ahead, and how many
/// votes. The node itself has one vote, for its own clock.
fn correction(mut heard: Vec<(i64, usize)>) -> i64 {
    heard.push((0, 1));
    heard.sort_unstable();
    let all: usize = heard.iter().map(|(_, votes)| votes).sum();
    let at = |rank: usize| {
        let mut passed = 0;
        let found = heard.iter().find(|(_, votes)| {
            passed += votes;
            passed > rank
        });
        found.map_or(0, |(ahead, _)| *ahead)
    };
    // Of two in the middle, that which changes less.
    let (lower, upper) = (at((all - 1) / 2), at(all / 2));
    let middle = if lower.unsigned_abs() <= upper.unsigned_abs() { lower } else { upper };
    if middle.unsigned_abs() > tolerance_ms().unsigned_abs() { middle } else { 0 }
}

fn tolerance_ms() -> i64 {
    i64::try_from(TOLERANCE.as_millis()).unwrap_or(i64::MAX)
}

/// The machine's clock, ms since 1970; 0 before that.
fn machine_ms() -> u64 {
    let age = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    const DAY: i64 = 86_400_000;

    #[test]
    fn most_must_say_so() {
        assert_eq!(correction(vec![]), 0);
        assert_eq!(correction(vec![(DAY, 1)]), 0, "word against word");
        assert_eq!(correction(vec![(DAY, 2)]), DAY, "control knows");
        assert_eq!(correction(vec![(DAY, 1), (DAY + 40, 1)]), DAY);
        assert_eq!(correction(vec![(DAY, 2), (3, 1), (-5, 1)]), 0, "control's own clock is wrong");
        assert_eq!(correction(vec![(-DAY, 1), (DAY, 1), (0, 1)]), 0);
        assert_eq!(correction(vec![(9_000, 2), (9_500, 1)]), 0, "near enough");
    }

    #[test]
    fn the_time_is_corrected_and_never_before_what_is_known() {
        let clock = Clock::default();
        let names: Vec<NodeName> = ["a", "b", "c"].map(|name| name.parse().unwrap()).to_vec();
        let real = machine_ms();
        let told = |clock: &Clock, name, ahead: i64| {
            clock.heard(name, false, machine_ms().saturating_add_signed(ahead))
        };
        assert!(!told(&clock, &names[0], DAY));
        assert!(told(&clock, &names[1], DAY));
        assert!(clock.now_ms().abs_diff(real + DAY as u64) < 5_000, "{}", clock.correction_ms());
        assert!(told(&clock, &names[2], 0), "two against two: the machine's own clock holds");
        assert_eq!(clock.correction_ms(), 0);
        clock.not_before(real + 7 * DAY as u64);
        assert_eq!(clock.now_ms(), real + 7 * DAY as u64);
    }

    proptest! {
        /// Fewer than half can't move it beyond where the others are.
        #[test]
        fn a_minority_has_no_say(honest in 1usize..20, liars in proptest::collection::vec(any::<i64>(), 0..20)) {
            prop_assume!(liars.len() <= honest);
            let heard = (0..honest).map(|n| (n as i64 % 7, 1)).chain(liars.into_iter().map(|lie| (lie, 1)));
            prop_assert_eq!(correction(heard.collect()), 0);
        }
    }
}
