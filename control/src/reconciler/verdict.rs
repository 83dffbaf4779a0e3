//! How a deploy is doing: failed and why, settled, or how far.

use super::plan::{Situation, Wanted};
use crate::store::objects::{Cause, Deploy, Placement, PlacementState};
use crate::world::{InstanceState, Observed};
use atoll_model::{NodeName, RegionName, ServiceName};
use serde::Serialize;
use std::collections::BTreeMap;

/// Lines of output that a failed deploy shows.
const OUTPUT_LINES_MAX: usize = 20;
/// Starts that may fail before the deploy does.
const FAILED_STARTS: u32 = 2;

/// What is to become of a running deploy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It can't succeed.
    Failed(Cause),
    /// Instances are as wanted everywhere, old ones are out of use.
    Settled,
    /// Not yet.
    Underway,
}

/// Instances of one service in one region, of the revision that is being deployed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Counts {
    /// How many there are to be.
    pub wanted: u32,
    /// Placed on a host.
    pub placed: u32,
    /// Their process has been started.
    pub starting: u32,
    /// Healthy.
    pub healthy: u32,
    /// Instances of older revisions that still take requests.
    pub old: u32,
}

/// Progress by region and service.
pub type Regions = BTreeMap<RegionName, BTreeMap<ServiceName, Counts>>;

/// Judges a deploy. `wanted` holds at least the services that it changes.
#[must_use]
pub fn judge(deploy: &Deploy, wanted: &[&Wanted], situation: &Situation<'_>) -> Verdict {
    for service in changed(deploy, wanted) {
        if let Some(cause) = failure(deploy, service, situation) {
            return Verdict::Failed(cause);
        }
    }
    match changed(deploy, wanted).all(|service| is_settled(service, deploy, situation)) {
        true => Verdict::Settled,
        false => Verdict::Underway,
    }
}

/// Counts for people.
#[must_use]
pub fn progress(deploy: &Deploy, wanted: &[&Wanted], situation: &Situation<'_>) -> Regions {
    let mut regions = Regions::new();
    for service in changed(deploy, wanted) {
        let name = &service.cluster.service;
        for (region, want) in service.target.iter().flat_map(|target| &target.regions) {
            regions
                .entry(region.clone())
                .or_default()
                .insert(name.clone(), Counts { wanted: *want, ..Counts::default() });
        }
        for placed in &service.placed {
            let placement = &placed.placement;
            let region = regions.entry(placement.region.clone()).or_default();
            count(region.entry(name.clone()).or_default(), service, placement, situation);
        }
    }
    regions
}

fn count(counts: &mut Counts, service: &Wanted, placement: &Placement, situation: &Situation<'_>) {
    if placement.state == PlacementState::Drain {
        return;
    }
    if service.target.as_ref().is_none_or(|target| target.revision != placement.revision) {
        counts.old += 1;
        return;
    }
    counts.placed += 1;
    if situation.memory.is_healthy(&placement.instance) {
        counts.healthy += 1;
    } else if situation.world.instances.contains_key(&placement.instance) {
        counts.starting += 1;
    }
}

fn changed<'a>(deploy: &'a Deploy, wanted: &[&'a Wanted]) -> impl Iterator<Item = &'a Wanted> {
    wanted.iter().copied().filter(|service| {
        service.cluster.org == deploy.org
            && service.cluster.app == deploy.app
            // What a deploy leaves out stays as it is until the rest has settled.
            && deploy.services.get(&service.cluster.service).is_some_and(|to| to.to.is_some() || deploy.delete)
    })
}

/// Whether the deploy leaves the service's revision as it is, and changes how many instances there are.
fn only_scales(deploy: &Deploy, service: &Wanted) -> bool {
    let change = deploy.services.get(&service.cluster.service);
    change.is_some_and(|change| change.to.is_some() && change.from == change.to)
}

fn is_settled(service: &Wanted, deploy: &Deploy, situation: &Situation<'_>) -> bool {
    let settle_ms = situation.timing.settle_ms;
    let (gone, only_scales) = (deploy.delete, only_scales(deploy, service));
    let target = service.target.as_ref();
    let out_of_use = |placement: &Placement| {
        let age = situation.now_ms.saturating_sub(placement.state_ms);
        !gone && placement.state == PlacementState::Drain && age >= settle_ms
    };
    let others_out = service.placed.iter().map(|placed| &placed.placement).all(|placement| {
        let is_new = placement.state == PlacementState::Run
            && target.is_some_and(|target| {
                target.revision == placement.revision && target.regions.contains_key(&placement.region)
            });
        is_new || out_of_use(placement)
    });
    let enough = target.is_none_or(|target| {
        target.regions.iter().all(|(region, want)| {
            let here = || {
                service.placed.iter().map(|placed| &placed.placement).filter(|placement| {
                    placement.region == *region
                        && placement.revision == target.revision
                        && placement.state == PlacementState::Run
                })
            };
            let settled = here().filter(|placement| {
                situation.memory.is_settled(&placement.instance, situation.now_ms, settle_ms)
                    // What was sick before is not the scaling's to mend.
                    || (only_scales && placement.placed_ms < deploy.started_ms)
            });
            let too_many = only_scales && here().count() > *want as usize;
            settled.count() >= *want as usize && !too_many
        })
    });
    others_out && enough
}

fn failure(deploy: &Deploy, service: &Wanted, situation: &Situation<'_>) -> Option<Cause> {
    let target = service.target.as_ref()?;
    let placements = service.placed.iter().map(|placed| &placed.placement);
    let only_scales = only_scales(deploy, service);
    let of_target = placements.filter(|placement| {
        placement.revision == target.revision
            && placement.state == PlacementState::Run
            && (!only_scales || placement.placed_ms >= deploy.started_ms)
    });
    for placement in of_target {
        if let Some(message) = instance_failure(placement, situation) {
            return Some(cause(message, service, placement, situation));
        }
    }
    homeless(deploy, service, situation)
}

fn instance_failure(placement: &Placement, situation: &Situation<'_>) -> Option<String> {
    if situation.memory.is_healthy(&placement.instance) {
        return None;
    }
    let seen = situation.world.instances.get(&placement.instance);
    let exit = seen.and_then(|seen| seen.facts.last_exit.as_ref());
    if let Some(exit) = exit.filter(|exit| !exit.start_error.is_empty()) {
        return Some(format!("the program could not be started: {}", exit.start_error));
    }
    if let (Some(seen), Some(exit)) = (seen, exit)
        && failed_starts(placement, seen, situation) >= FAILED_STARTS
    {
        return Some(match exit.signal {
            0 => format!("the instance exited with status {}", exit.status),
            signal => format!("the instance was ended by signal {signal}"),
        });
    }
    let waited_ms = situation.memory.watched_for(placement.placed_ms, situation.now_ms);
    (waited_ms > situation.timing.healthy_deadline_ms).then(|| unhealthy(seen, placement, waited_ms))
}

/// Ends that we saw, or that the host counted: an end between two looks shows only in its count.
fn failed_starts(placement: &Placement, seen: &Observed, situation: &Situation<'_>) -> u32 {
    let last = u32::from(seen.state == InstanceState::Exited);
    situation.memory.exits(&placement.instance).max(seen.facts.restarts.saturating_add(last))
}

fn unhealthy(seen: Option<&Observed>, placement: &Placement, waited_ms: u64) -> String {
    let detail = match seen {
        None => format!("host {} has not reported it", placement.host),
        Some(seen) if seen.facts.detail.is_empty() => format!("it is {}", seen.state.as_str()),
        Some(seen) => seen.facts.detail.clone(),
    };
    format!("the instance was not healthy after {} s: {detail}", waited_ms / 1000)
}

/// A region without a host to place on.
fn homeless(deploy: &Deploy, service: &Wanted, situation: &Situation<'_>) -> Option<Cause> {
    let waited_ms = situation.memory.watched_for(deploy.started_ms, situation.now_ms);
    if waited_ms <= situation.timing.healthy_deadline_ms {
        return None;
    }
    let target = service.target.as_ref()?;
    let region = target.regions.iter().find_map(|(region, want)| {
        let of_target =
            |placement: &&Placement| placement.region == *region && placement.revision == target.revision;
        let placed = service.placed.iter().map(|placed| &placed.placement).filter(of_target).count();
        let needed =
            if only_scales(deploy, service) { *want as usize } else { want.min(&1).to_owned() as usize };
        (placed < needed).then_some(region)
    })?;
    let drained: Vec<&str> = situation.drained_hosts(region).map(NodeName::as_str).collect();
    let why = match drained.as_slice() {
        [] => String::new(),
        names => format!(" ({}: drained; `atoll drain NAME --off` ends that)", names.join(", ")),
    };
    Some(Cause {
        message: format!("region {region} has no live host to run an instance{why}"),
        service: Some(service.cluster.service.clone()),
        region: Some(region.clone()),
        ..Cause::default()
    })
}

fn cause(message: String, service: &Wanted, placement: &Placement, situation: &Situation<'_>) -> Cause {
    let seen = situation.world.instances.get(&placement.instance);
    let exit = seen.and_then(|seen| seen.facts.last_exit.as_ref());
    let lines: Vec<&str> = exit.map_or("", |exit| exit.output_tail.as_str()).lines().collect();
    Cause {
        message,
        service: Some(service.cluster.service.clone()),
        region: Some(placement.region.clone()),
        instance: Some(placement.instance.clone()),
        exit_status: exit
            .filter(|exit| exit.signal == 0 && exit.start_error.is_empty())
            .map(|exit| exit.status),
        signal: exit.map(|exit| exit.signal).filter(|signal| *signal != 0),
        output: lines[lines.len().saturating_sub(OUTPUT_LINES_MAX)..]
            .iter()
            .map(|&line| line.to_owned())
            .collect(),
    }
}
