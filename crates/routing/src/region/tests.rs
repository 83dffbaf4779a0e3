#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;

fn name(text: &str) -> RegionName {
    RegionName::new(text).unwrap()
}

fn up(region: &RegionName, rtt_ms: u64) -> Candidate<'_> {
    Candidate {
        region,
        rtt: Some(Duration::from_millis(rtt_ms)),
        health: Health::Full,
        tunnel_up: true,
        draining: false,
        excluded: false,
        home: false,
    }
}

#[test]
fn the_nearest_serves_and_the_others_know_why_not() {
    let (fra, was, sin) = (name("fra"), name("was"), name("sin"));
    let down = Candidate { tunnel_up: false, ..up(&fra, 1) };
    let sick = Candidate { health: Health::None, ..up(&was, 2) };
    let decision = choose(&[down, sick, up(&sin, 200)], Some(&fra), Hysteresis::default());
    assert_eq!(decision.chosen, Some(2));
    assert_eq!(decision.verdicts, [Verdict::NoTunnel, Verdict::Unhealthy, Verdict::Chosen]);
    assert!(!decision.panic);
}

#[test]
fn the_choice_moves_only_for_a_real_gain() {
    let (fra, was) = (name("fra"), name("was"));
    let pick = |fra_ms, was_ms| {
        let decision = choose(&[up(&fra, fra_ms), up(&was, was_ms)], Some(&fra), Hysteresis::default());
        (decision.chosen.unwrap(), decision.verdicts)
    };
    assert_eq!(pick(10, 9), (0, vec![Verdict::Kept, Verdict::NotEnoughNearer]));
    assert_eq!(pick(3, 1), (0, vec![Verdict::Kept, Verdict::NotEnoughNearer]));
    assert_eq!(pick(100, 81).0, 0);
    assert_eq!(pick(100, 79).0, 1);
    assert_eq!(pick(9, 10), (0, vec![Verdict::Chosen, Verdict::Farther]));
}

#[test]
fn with_none_healthy_the_nearest_reachable_one_is_tried() {
    let (fra, was) = (name("fra"), name("was"));
    let sick = |region, rtt| Candidate { health: Health::None, ..up(region, rtt) };
    let decision = choose(&[sick(&fra, 50), sick(&was, 5)], None, Hysteresis::default());
    assert_eq!((decision.chosen, decision.panic), (Some(1), true));
    assert_eq!(decision.verdicts[1], Verdict::ChosenInPanic);
    // A healthy one that was tried already: the rest is not worth a panic.
    let tried = Candidate { excluded: true, ..up(&fra, 50) };
    let decision = choose(&[tried, sick(&was, 5)], None, Hysteresis::default());
    assert_eq!((decision.chosen, decision.panic), (None, false));
}

#[test]
fn a_draining_region_is_the_last_resort() {
    let (fra, was) = (name("fra"), name("was"));
    let leaving = Candidate { draining: true, ..up(&fra, 1) };
    let decision = choose(&[leaving, up(&was, 100)], Some(&fra), Hysteresis::default());
    assert_eq!((decision.chosen, decision.verdicts[0]), (Some(1), Verdict::Draining));
    assert_eq!(choose(&[leaving], None, Hysteresis::default()).chosen, Some(0));
}

#[derive(Debug, Clone)]
struct Facts {
    rtt: Option<u64>,
    health: u8,
    tunnel_up: bool,
    draining: bool,
    excluded: bool,
}

prop_compose! {
    fn facts()(rtt in proptest::option::of(0_u64..300), health in 0_u8..3, tunnel_up in any::<bool>(),
               draining in any::<bool>(), excluded in any::<bool>()) -> Facts {
        Facts { rtt, health, tunnel_up, draining, excluded }
    }
}

fn candidates<'a>(names: &'a [RegionName], facts: &[Facts]) -> Vec<Candidate<'a>> {
    let health = |n| [Health::None, Health::Some, Health::Full][usize::from(n)];
    names
        .iter()
        .zip(facts)
        .map(|(region, f)| Candidate {
            region,
            rtt: f.rtt.map(Duration::from_millis),
            health: health(f.health),
            tunnel_up: f.tunnel_up,
            draining: f.draining,
            excluded: f.excluded,
            home: false,
        })
        .collect()
}

proptest! {
    #[test]
    fn the_choice_holds_its_rules(facts in proptest::collection::vec(facts(), 0..8), previous in proptest::option::of(0_usize..8)) {
        let names: Vec<RegionName> = (0..facts.len()).map(|n| name(&format!("r{n}"))).collect();
        let all = candidates(&names, &facts);
        let previous = previous.and_then(|n| names.get(n));
        let decision = choose(&all, previous, Hysteresis::default());
        let serves = |c: &Candidate<'_>| c.tunnel_up && !c.excluded && (decision.panic || c.health != Health::None);
        prop_assert_eq!(decision.verdicts.len(), all.len());
        match decision.chosen {
            None => prop_assert!(!all.iter().any(serves)),
            Some(chosen) => {
                prop_assert!(serves(&all[chosen]));
                prop_assert!(!all[chosen].draining || !all.iter().any(|c| serves(c) && !c.draining));
                // Again with that as the previous choice: it stays.
                let again = choose(&all, Some(all[chosen].region), Hysteresis::default());
                prop_assert_eq!(again.chosen, Some(chosen));
                // With no history it is the nearest of its class.
                let fresh = choose(&all, None, Hysteresis::default()).chosen.unwrap();
                for c in all.iter().filter(|c| serves(c) && c.draining == all[fresh].draining) {
                    prop_assert!(nearer(&all[fresh], c).is_le());
                }
            }
        }
        let winners = decision.verdicts.iter().filter(|v| matches!(v, Verdict::Chosen | Verdict::Kept | Verdict::ChosenInPanic)).count();
        prop_assert_eq!(winners, usize::from(decision.chosen.is_some()));
    }
}

#[test]
fn the_own_region_wins_among_those_as_near() {
    let (fra, was) = (name("fra"), name("was"));
    let home = |ms| Candidate { home: true, ..up(&fra, ms) };
    let choose = |home_ms, other_ms| {
        let candidates = [home(home_ms), up(&was, other_ms)];
        choose(&candidates, Some(&was), Hysteresis::default())
    };
    let near = choose(2, 1);
    assert_eq!((near.chosen, near.verdicts[0]), (Some(0), Verdict::Home));
    assert_eq!(choose(40, 10).chosen, Some(1));
}

#[test]
fn a_time_at_the_bound_does_not_move_the_choice_to_and_fro() {
    let (fra, was) = (name("fra"), name("was"));
    let mut previous: Option<RegionName> = None;
    let mut moves = 0;
    for n in 0..200_u64 {
        // Home is farther by 2 ms, give or take a third of one.
        let home_us = 7_000 + if n % 2 == 0 { 300 } else { 0 } - 150 + 2_000;
        let home = Candidate { home: true, rtt: Some(Duration::from_micros(home_us)), ..up(&fra, 0) };
        let decision = choose(&[home, up(&was, 7)], previous.as_ref(), Hysteresis::default());
        let chosen = [&fra, &was][decision.chosen.unwrap()].clone();
        moves += usize::from(previous.as_ref().is_some_and(|previous| *previous != chosen));
        previous = Some(chosen);
    }
    assert!(moves <= 1, "{moves} moves");
    // Near enough again, home it is.
    let home = Candidate { home: true, ..up(&fra, 7) };
    assert_eq!(choose(&[home, up(&was, 7)], Some(&was), Hysteresis::default()).chosen, Some(0));
}
