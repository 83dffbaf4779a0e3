#![allow(clippy::unwrap_used, reason = "tests")]

use super::simulation::{Behaviour, Simulation, regions};
use super::verdict::Verdict;

const TWO_REGIONS: &[(&str, &str)] = &[("fra1-host", "fra"), ("fra2-host", "fra"), ("was1-host", "was")];

fn deployed(list: &[(&str, u32)]) -> Simulation {
    let mut simulation = Simulation::new(TWO_REGIONS);
    simulation.target = Some((1, regions(list)));
    simulation.until(10_000, |s| s.settled(1));
    simulation
}

#[test]
fn a_first_deploy_places_all_at_once_and_spreads() {
    let mut simulation = Simulation::new(TWO_REGIONS);
    simulation.target = Some((1, regions(&[("fra", 2), ("was", 1)])));
    simulation.step();
    assert_eq!(simulation.placements.len(), 3);
    let hosts: std::collections::BTreeSet<_> =
        simulation.placements.values().map(|p| p.host.as_str()).collect();
    assert_eq!(hosts.len(), 3, "spread over the hosts: {hosts:?}");
    let took_ms = simulation.until(10_000, |s| s.settled(1));
    assert!(took_ms < 2_500, "{took_ms}");
}

#[test]
fn a_roll_replaces_one_by_one_and_never_loses_capacity() {
    let mut simulation = deployed(&[("fra", 3), ("was", 1)]);
    simulation.target = Some((2, regions(&[("fra", 3), ("was", 1)])));
    simulation.until(60_000, |s| {
        assert!(s.serving("fra") >= 3, "{:#?}", s.log);
        assert!(s.serving("was") >= 1, "{:#?}", s.log);
        assert!(s.placements.values().filter(|p| p.region.as_str() == "fra").count() <= 4 + 1);
        s.settled(2)
    });
    assert_eq!((simulation.healthy("fra", 2), simulation.healthy("fra", 1)), (3, 0));
}

#[test]
fn an_old_instance_is_drained_only_after_the_new_one_has_settled() {
    let mut simulation = deployed(&[("was", 1)]);
    simulation.log.clear();
    simulation.target = Some((2, regions(&[("was", 1)])));
    simulation.until(20_000, |s| s.settled(2));
    let at = |word: &str| simulation.log.iter().find(|(_, text)| text.starts_with(word)).unwrap().0;
    assert!(at("drain") - at("place") >= 500 + simulation.timing.settle_ms, "{:?}", simulation.log);
}

#[test]
fn a_deploy_that_exits_fails_with_its_last_words_within_a_second() {
    let mut simulation = deployed(&[("fra", 2)]);
    simulation.behaviour.insert(2, Behaviour::Exits(400));
    simulation.target = Some((2, regions(&[("fra", 2)])));
    let start = simulation.now_ms;
    let took_ms = simulation.until(10_000, |s| matches!(s.verdict(Some(2), start), Verdict::Failed(_)));
    // Two starts of 400 ms each.
    assert!(took_ms <= 2 * 400 + 1_000, "{took_ms}");
    let Verdict::Failed(cause) = simulation.verdict(Some(2), start) else { panic!() };
    assert_eq!(cause.exit_status, Some(7));
    assert_eq!(cause.output.last().unwrap(), "the database is not there");
    assert_eq!(cause.region.unwrap().as_str(), "fra");
    assert_eq!(simulation.serving("fra"), 2, "the old revision still serves");

    // The roll-back: the target goes back, the new revision is condemned.
    simulation.condemned.insert(2);
    simulation.target = Some((1, regions(&[("fra", 2)])));
    simulation.log.clear();
    simulation.until(10_000, |s| {
        assert_eq!(s.serving("fra"), 2);
        s.settled(1)
    });
    assert_eq!(simulation.placements.len(), 2);
    assert!(simulation.log.iter().all(|(_, text)| !text.starts_with("place")), "{:?}", simulation.log);
}

#[test]
fn a_failure_in_one_region_rolls_back_what_another_has_replaced() {
    let mut simulation = deployed(&[("fra", 1), ("was", 1)]);
    simulation.target = Some((2, regions(&[("fra", 1), ("was", 1)])));
    simulation.until(20_000, |s| s.settled(2));
    simulation.condemned.insert(2);
    simulation.target = Some((1, regions(&[("fra", 1), ("was", 1)])));
    simulation.until(20_000, |s| {
        assert!(s.serving("fra") >= 1 && s.serving("was") >= 1, "{:#?}", s.log);
        s.settled(1)
    });
}

#[test]
fn a_failed_first_deploy_leaves_nothing() {
    let mut simulation = Simulation::new(TWO_REGIONS);
    simulation.behaviour.insert(1, Behaviour::NeverHealthy);
    simulation.target = Some((1, regions(&[("fra", 2)])));
    let start = simulation.now_ms;
    let took_ms = simulation.until(100_000, |s| matches!(s.verdict(Some(1), start), Verdict::Failed(_)));
    assert!(took_ms >= simulation.timing.healthy_deadline_ms);
    simulation.condemned.insert(1);
    simulation.target = None;
    simulation.until(1_000, |s| s.placements.is_empty());
}

#[test]
fn a_region_without_a_host_fails_the_deploy_by_name() {
    let mut simulation = Simulation::new(TWO_REGIONS);
    simulation.target = Some((1, regions(&[("sin", 1)])));
    let start = simulation.now_ms;
    simulation.until(100_000, |s| matches!(s.verdict(Some(1), start), Verdict::Failed(_)));
    let Verdict::Failed(cause) = simulation.verdict(Some(1), start) else { panic!() };
    assert!(cause.message.contains("sin"), "{}", cause.message);
}

#[test]
fn a_scale_down_drains_what_is_too_many() {
    let mut simulation = deployed(&[("fra", 3)]);
    simulation.target = Some((1, regions(&[("fra", 1)])));
    simulation.until(10_000, |s| {
        assert!(s.serving("fra") >= 1);
        s.placements.len() == 1
    });
    assert!(simulation.log.iter().any(|(_, text)| text.contains("more than wanted")));
}

#[test]
fn a_new_revision_with_fewer_instances_takes_over() {
    let mut simulation = deployed(&[("fra", 5), ("was", 2)]);
    simulation.target = Some((2, regions(&[("fra", 2), ("was", 1)])));
    simulation.until(60_000, |s| {
        assert!(s.serving("fra") >= 2 && s.serving("was") >= 1, "{:#?}", s.log);
        s.settled(2)
    });
    simulation.until(20_000, |s| s.placements.len() == 3);
    assert_eq!((simulation.healthy("fra", 2), simulation.healthy("was", 2)), (2, 1));
}

#[test]
fn a_roll_spreads_over_the_hosts_again() {
    let mut simulation = deployed(&[("fra", 2)]);
    simulation.target = Some((2, regions(&[("fra", 2)])));
    simulation.until(30_000, |s| s.settled(2) && s.placements.len() == 2);
    let hosts: std::collections::BTreeSet<_> =
        simulation.placements.values().map(|p| p.host.as_str()).collect();
    assert_eq!(hosts.len(), 2, "{hosts:?}");
}

#[test]
fn a_region_is_left_only_when_the_others_can_serve() {
    let mut simulation = deployed(&[("fra", 1)]);
    simulation.log.clear();
    simulation.target = Some((2, regions(&[("was", 1)])));
    simulation.until(20_000, |s| {
        assert!(s.serving("fra") + s.serving("was") >= 1, "{:#?}", s.log);
        s.settled(2)
    });
    assert_eq!(simulation.serving("fra"), 0);
}

#[test]
fn a_lost_hosts_instances_move_within_the_region_after_a_while() {
    let mut simulation = deployed(&[("fra", 2), ("was", 1)]);
    let lost_at = simulation.now_ms;
    simulation.kill_host("fra1-host");
    simulation.kill_host("was1-host");
    simulation.until(60_000, |s| s.now_ms - lost_at > 20_000);
    assert_eq!(simulation.serving("fra"), 1, "not yet given up");
    simulation.until(60_000, |s| s.serving("fra") == 2);
    assert!(simulation.now_ms - lost_at > simulation.timing.host_gone_ms);
    // There is no other host in was: its instance stays where it is, for the host to come back to.
    assert!(simulation.placements.values().any(|p| p.host.as_str() == "was1-host"));
}

#[test]
fn a_broken_old_instance_does_not_hold_up_its_repair() {
    let mut simulation = Simulation::new(TWO_REGIONS);
    simulation.behaviour.insert(1, Behaviour::NeverHealthy);
    simulation.target = Some((1, regions(&[("fra", 2)])));
    simulation.until(5_000, |s| s.placements.len() == 2);
    simulation.target = Some((2, regions(&[("fra", 2)])));
    simulation.until(30_000, |s| s.settled(2));
}

#[test]
fn a_drained_hosts_instances_move_first_start_then_drain() {
    let mut simulation = deployed(&[("fra", 3)]);
    let on = |s: &Simulation, host: &str| s.placements.values().filter(|p| p.host.as_str() == host).count();
    simulation.drained.insert("fra1-host".parse().unwrap());
    simulation.log.clear();
    simulation.until(60_000, |s| {
        assert!(s.serving("fra") >= 3, "{:#?}", s.log);
        on(s, "fra1-host") == 0
    });
    simulation.until(10_000, |s| s.settled(1));
    assert_eq!((on(&simulation, "fra2-host"), simulation.serving("fra")), (3, 3));
    assert!(
        simulation.log.iter().any(|(_, text)| text.contains("its host is drained")),
        "{:#?}",
        simulation.log
    );
    // A deploy meanwhile goes to the other host as well, and nothing comes back by itself.
    simulation.target = Some((2, regions(&[("fra", 3)])));
    simulation.until(60_000, |s| s.settled(2));
    simulation.until(20_000, |s| s.placements.len() == 3);
    assert_eq!(on(&simulation, "fra1-host"), 0);
}

#[test]
fn without_another_host_a_drained_hosts_instances_stay_and_a_deploy_there_says_why() {
    let mut simulation = deployed(&[("fra", 1), ("was", 1)]);
    simulation.drained.insert("was1-host".parse().unwrap());
    simulation.log.clear();
    let until_ms = simulation.now_ms + 5_000;
    simulation.until(10_000, |s| s.now_ms > until_ms);
    assert!(simulation.log.is_empty(), "{:?}", simulation.log);
    assert_eq!(simulation.serving("was"), 1);
    simulation.target = Some((2, regions(&[("fra", 1), ("was", 1)])));
    let start = simulation.now_ms;
    simulation.until(100_000, |s| matches!(s.verdict(Some(2), start), Verdict::Failed(_)));
    let Verdict::Failed(cause) = simulation.verdict(Some(2), start) else { panic!() };
    assert!(cause.message.contains("was1-host: drained"), "{}", cause.message);
    assert_eq!(simulation.serving("was"), 1, "what ran there still does");
}

#[test]
fn a_scale_settles_when_there_are_so_many_whatever_was_sick_before() {
    let mut simulation = deployed(&[("fra", 2)]);
    let start = simulation.now_ms;
    let same = |s: &Simulation| s.verdict_of(Some(1), Some(1), start);
    simulation.target = Some((1, regions(&[("fra", 4)])));
    assert_eq!(same(&simulation), Verdict::Underway);
    simulation.until(20_000, |s| same(s) == Verdict::Settled);
    assert_eq!(simulation.serving("fra"), 4);
    simulation.target = Some((1, regions(&[("fra", 1)])));
    assert_eq!(same(&simulation), Verdict::Underway, "there are too many");
    simulation.until(20_000, |s| same(s) == Verdict::Settled);
    assert_eq!(simulation.serving("fra"), 1);
}
