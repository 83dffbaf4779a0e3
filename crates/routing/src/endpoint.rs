//! Which instance serves a request: the less loaded of two random choices.

use crate::mix::{below, spread};

/// What is known of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Its checks pass.
    Healthy,
    /// It passes, but connections to it have failed just now.
    Ejected,
    /// It runs, and its checks fail.
    Unhealthy,
    /// It is to finish what it has.
    Draining,
    /// It can't serve: it starts, or has ended.
    Absent,
}

/// One instance for one request.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// What is known of it.
    pub state: State,
    /// Requests in flight to it, as the chooser counts them.
    pub load: u32,
    /// Not for this request: it was tried.
    pub excluded: bool,
}

/// A choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// Index among the candidates.
    pub index: usize,
    /// The state that the choice was made from. Other than healthy: no better one was left.
    pub state: State,
    /// How many were as good.
    pub among: usize,
}

/// Picks among the best state that has a candidate left: healthy ones while there is any; then, rather
/// than fail, those ejected, those unhealthy that run, and last those draining. `random` decides which
/// two are compared. `None` when nothing is left.
pub fn pick(candidates: impl Iterator<Item = Candidate> + Clone, random: u64) -> Option<Pick> {
    let usable = candidates.enumerate().filter(|(_, c)| !c.excluded && c.state != State::Absent);
    let state = usable.clone().map(|(_, c)| c.state).min()?;
    let mut best = usable.filter(|(_, c)| c.state == state);
    let among = best.clone().count();
    let first = below(spread(random), among);
    let (first_index, first_candidate) = best.clone().nth(first)?;
    if among == 1 {
        return Some(Pick { index: first_index, state, among });
    }
    // Another than the first: skip over it.
    let second = below(spread(random.wrapping_add(0x9e37_79b9_7f4a_7c15)), among - 1);
    let second = second + usize::from(second >= first);
    let (second_index, second_candidate) = best.nth(second)?;
    let index = if second_candidate.load < first_candidate.load { second_index } else { first_index };
    Some(Pick { index, state, among })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn candidate(state: u8, load: u32, excluded: bool) -> Candidate {
        let state = [State::Healthy, State::Ejected, State::Unhealthy, State::Draining, State::Absent]
            [usize::from(state)];
        Candidate { state, load, excluded }
    }

    proptest! {
        #[test]
        fn the_best_state_left_serves(
            facts in proptest::collection::vec((0_u8..5, 0_u32..9, any::<bool>()), 0..12),
            random in any::<u64>(),
        ) {
            let all: Vec<Candidate> = facts.into_iter().map(|(s, l, e)| candidate(s, l, e)).collect();
            let left: Vec<&Candidate> = all.iter().filter(|c| !c.excluded && c.state != State::Absent).collect();
            match pick(all.iter().copied(), random) {
                None => prop_assert!(left.is_empty()),
                Some(pick) => {
                    let chosen = all[pick.index];
                    prop_assert!(!chosen.excluded);
                    prop_assert_eq!(chosen.state, left.iter().map(|c| c.state).min().unwrap());
                    prop_assert_eq!(chosen.state, pick.state);
                    let same: Vec<u32> = left.iter().filter(|c| c.state == chosen.state).map(|c| c.load).collect();
                    prop_assert_eq!(pick.among, same.len());
                    // The most loaded is never chosen while another is less loaded.
                    if same.len() > 1 && same.iter().filter(|load| **load >= chosen.load).count() == 1 {
                        prop_assert!(same.iter().all(|load| *load == chosen.load));
                    }
                }
            }
        }
    }

    #[test]
    fn every_instance_gets_its_part() {
        let all = [candidate(0, 0, false); 5];
        let mut hits = [0_u32; 5];
        for random in 0..5_000 {
            hits[pick(all.iter().copied(), random).unwrap().index] += 1;
        }
        assert!(hits.iter().all(|n| (800..1200).contains(n)), "{hits:?}");
    }

    #[test]
    fn load_evens_out() {
        let mut load = [0_u32; 10];
        for random in 0..10_000 {
            let all = load.map(|load| candidate(0, load, false));
            load[pick(all.iter().copied(), random).unwrap().index] += 1;
        }
        let (min, max) = (load.iter().min().unwrap(), load.iter().max().unwrap());
        assert!(max - min < 10, "{load:?}");
    }
}
