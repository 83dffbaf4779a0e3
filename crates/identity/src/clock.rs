//! The time by which certificates are judged.
//!
//! A machine's clock may be days off, and certificates live for days: judged by such a clock, every peer's
//! would be over or not begun. Nodes tell each other the time on connections that are verified already; a
//! node whose clock most others contradict judges by their time, and says that its own is wrong. What it
//! can't do is to verify a first peer where its clock is ahead by more than certificates live.
//!
//! Only where the clock disagrees by more than [`TOLERANCE`], so that nobody can move it in small steps, and
//! only by the word of more than half of those heard, the node itself counted. Each node has one vote, however
//! often it speaks, and control two, its own clock's too; a removed node has none. Nobody is heard who names a
//! time at which its own certificate isn't valid.

use crate::certificate::PeerIdentity;
use crate::spiffe::SpiffeId;
use atoll_model::{Role, Roles};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::time_provider::TimeProvider;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
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
    /// Votes of the machine's own clock beyond one.
    own_votes_more: AtomicUsize,
    /// What is to be added to the machine's clock, ms.
    correction_ms: watch::Sender<i64>,
    /// It can't be earlier than this, ms since 1970: our own certificate was issued then.
    floor_ms: AtomicU64,
    /// When a certificate out of its time was last written of. Held for a comparison.
    complained: Mutex<Option<Instant>>,
    // Held for one sample; a few in a second.
    heard: Mutex<BTreeMap<SpiffeId, Sample>>,
}

/// What a peer's clock showed, against ours.
#[derive(Debug, Clone, Copy)]
struct Sample {
    ahead_ms: i64,
    votes: usize,
    epoch: u64,
    at: Instant,
}

/// Control, by whose clock certificates are issued, counts twice.
fn votes_of(roles: Roles) -> usize {
    if roles.has(Role::Control) { 2 } else { 1 }
}

impl Clock {
    /// The clock of a node with these roles.
    pub(crate) fn of(roles: Roles) -> Self {
        let clock = Self::default();
        clock.0.own_votes_more.store(votes_of(roles) - 1, Ordering::Relaxed);
        clock
    }

    fn own_votes(&self) -> usize {
        1 + self.0.own_votes_more.load(Ordering::Relaxed)
    }

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

    /// A peer says what time it has, on a connection on which it showed this certificate `connected_for` ago.
    /// True when the correction changed. `is_denied` tells of whom nothing counts any more, by id and epoch.
    pub(crate) fn heard(
        &self,
        peer: &PeerIdentity,
        connected_for: Duration,
        their_ms: u64,
        is_denied: impl Fn(&SpiffeId, u64) -> bool,
    ) -> bool {
        let mut heard = self.0.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if is_possible(peer, connected_for, their_ms) {
            let ahead_ms = i64::try_from(their_ms).unwrap_or(i64::MAX).saturating_sub_unsigned(machine_ms());
            let (votes, epoch) = (votes_of(peer.roles), peer.epoch.unwrap_or(0));
            heard.insert(peer.id.clone(), Sample { ahead_ms, votes, epoch, at: now });
        }
        heard.retain(|id, sample| now.duration_since(sample.at) < HEARD_FOR && !is_denied(id, sample.epoch));
        while heard.len() > PEERS_MAX {
            let oldest = heard.iter().min_by_key(|(_, sample)| sample.at).map(|(id, _)| id.clone());
            let Some(oldest) = oldest else { break };
            heard.remove(&oldest);
        }
        let votes: Vec<(i64, usize)> = heard.values().map(|sample| (sample.ahead_ms, sample.votes)).collect();
        drop(heard);
        self.correct(correction(self.own_votes(), votes))
    }

    /// Whether enough others have told us the time lately to outvote our own clock.
    pub(crate) fn is_confirmed(&self) -> bool {
        let heard = self.0.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = heard.values().filter(|sample| sample.at.elapsed() < HEARD_FOR);
        lately.map(|sample| sample.votes).sum::<usize>() > self.own_votes()
    }

    /// What the machine's clock shows, where others contradict it.
    pub(crate) fn contradicted(&self) -> Option<UnixTime> {
        (self.correction_ms() != 0).then(|| UnixTime::since_unix_epoch(Duration::from_millis(machine_ms())))
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

/// Whether the peer can mean it: at its time the certificate that it showed is, or was when it was shown, valid.
/// So nobody moves us to a time for which our CA has not certified it: not before that, not by more than a life.
fn is_possible(peer: &PeerIdentity, connected_for: Duration, their_ms: u64) -> bool {
    let tolerance_ms = tolerance_ms().unsigned_abs();
    let age_ms = u64::try_from(connected_for.as_millis()).unwrap_or(u64::MAX);
    let earliest = peer.not_before_ms.saturating_add(age_ms).saturating_sub(tolerance_ms);
    let latest = peer.not_after_ms.saturating_add(age_ms).saturating_add(tolerance_ms);
    (earliest..=latest).contains(&their_ms)
}

/// How far most others are ahead, if that is more than is tolerated. `heard`: how far ahead, and how many
/// votes. The node itself has `own` votes, for its own clock.
fn correction(own: usize, mut heard: Vec<(i64, usize)>) -> i64 {
    heard.push((0, own));
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
        assert_eq!(correction(1, vec![]), 0);
        assert_eq!(correction(1, vec![(DAY, 1)]), 0, "word against word");
        assert_eq!(correction(1, vec![(DAY, 2)]), DAY, "control knows");
        assert_eq!(correction(1, vec![(DAY, 1), (DAY + 40, 1)]), DAY);
        assert_eq!(correction(1, vec![(DAY, 2), (3, 1), (-5, 1)]), 0, "control's own clock is wrong");
        assert_eq!(correction(1, vec![(-DAY, 1), (DAY, 1), (0, 1)]), 0);
        assert_eq!(correction(1, vec![(9_000, 2), (9_500, 1)]), 0, "near enough");
        assert_eq!(correction(2, vec![(DAY, 1), (DAY, 1)]), 0, "two against control");
        assert_eq!(correction(2, vec![(DAY, 1), (DAY, 1), (DAY, 1)]), DAY);
        for (own, honest) in
            [(1, vec![]), (1, vec![(0, 1)]), (1, vec![(0, 2)]), (2, vec![]), (2, vec![(0, 1)])]
        {
            for lie in [DAY, -DAY, i64::MAX, i64::MIN] {
                let heard = honest.iter().copied().chain([(lie, 1)]).collect();
                assert_eq!(correction(own, heard), 0, "one of two or three: {own} {honest:?} {lie}");
            }
        }
    }

    /// A node whose certificate began an hour ago and has a week.
    fn node(name: &str, role: Role) -> PeerIdentity {
        PeerIdentity {
            id: SpiffeId::parse(&format!("spiffe://td/node/fra1/{name}")).unwrap(),
            roles: Roles::NONE.with(role),
            region: Some("fra".parse().unwrap()),
            epoch: Some(1),
            serial: Vec::new(),
            not_before_ms: machine_ms() - 3_600_000,
            not_after_ms: machine_ms() + 7 * DAY as u64,
        }
    }

    fn told(clock: &Clock, peer: &PeerIdentity, ahead: i64) -> bool {
        clock.heard(peer, Duration::ZERO, machine_ms().saturating_add_signed(ahead), |_, _| false)
    }

    #[test]
    fn the_time_is_corrected_and_never_before_what_is_known() {
        let clock = Clock::default();
        let peers = ["a", "b", "c"].map(|name| node(name, Role::Edge));
        let real = machine_ms();
        assert!(!told(&clock, &peers[0], DAY));
        assert!(told(&clock, &peers[1], DAY));
        assert!(clock.now_ms().abs_diff(real + DAY as u64) < 5_000, "{}", clock.correction_ms());
        assert!(told(&clock, &peers[2], 0), "two against two: the machine's own clock holds");
        assert_eq!(clock.correction_ms(), 0);
        clock.not_before(real + 7 * DAY as u64);
        assert_eq!(clock.now_ms(), real + 7 * DAY as u64);
    }

    #[test]
    fn a_node_has_one_vote_however_often_it_speaks() {
        let (clock, liar) = (Clock::default(), node("a", Role::Edge));
        for more in 0..100 {
            assert!(!told(&clock, &liar, DAY + more));
            assert!(!clock.is_confirmed(), "one voice confirms nothing");
        }
        assert!(!told(&Clock::of(Roles::NONE.with(Role::Control)), &liar, DAY));
        assert!(!told(&clock, &node("control", Role::Control), 0));
        assert!(clock.is_confirmed());
    }

    #[test]
    fn a_removed_node_has_no_vote_and_loses_those_it_had() {
        let clock = Clock::default();
        let [a, b] = ["a", "b"].map(|name| node(name, Role::Edge));
        told(&clock, &a, DAY);
        assert!(told(&clock, &b, DAY));
        let is_a = |id: &SpiffeId, epoch: u64| *id == a.id && epoch < 2;
        assert!(clock.heard(&b, Duration::ZERO, machine_ms() + DAY as u64, is_a), "b alone can't");
        assert_eq!(clock.correction_ms(), 0);
        clock.heard(&a, Duration::ZERO, machine_ms() + DAY as u64, is_a);
        assert_eq!(clock.correction_ms(), 0);
        let joined_again = PeerIdentity { epoch: Some(2), ..a.clone() };
        assert!(clock.heard(&joined_again, Duration::ZERO, machine_ms() + DAY as u64, is_a));
    }

    #[test]
    fn nobody_is_heard_outside_of_its_certificates_time() {
        let clock = Clock::default();
        let [a, b] = ["a", "b"].map(|name| node(name, Role::Control));
        for ahead in [-DAY, 8 * DAY, 4_000 * DAY, i64::MAX, i64::MIN] {
            assert!(!told(&clock, &a, ahead) && !told(&clock, &b, ahead), "{ahead}");
        }
        assert!(!clock.is_confirmed());
        // On a connection that has been open for three days, the time is three days on.
        let on_for = Duration::from_secs(3 * 86_400);
        assert!(!is_possible(&a, on_for, machine_ms()));
        assert!(is_possible(&a, on_for, machine_ms() + 9 * DAY as u64));
        // A machine's clock in 1970 is told the time: what counts is the peer's.
        assert!(is_possible(&a, Duration::ZERO, a.not_before_ms));
    }

    proptest! {
        /// Fewer than half can't move it beyond where the others are.
        #[test]
        fn a_minority_has_no_say(honest in 1usize..20, liars in proptest::collection::vec(any::<i64>(), 0..20)) {
            prop_assume!(liars.len() <= honest);
            let heard = (0..honest).map(|n| (n as i64 % 7, 1)).chain(liars.into_iter().map(|lie| (lie, 1)));
            prop_assert_eq!(correction(1, heard.collect()), 0);
        }
    }
}
