//! What to do next, for every service and region.
//!
//! Replacing keeps capacity: at most one instance above what is wanted; an old one is drained only when a
//! new one has settled in its stead. The same rule does a first deploy (there are no old ones: all at
//! once), a scale-up, a roll-back, and the repair after a host was lost.

use super::memory::Memory;
use crate::config::Timing;
use crate::store::objects::{Placement, PlacementState};
use crate::world::{InstanceState, NodeSeen, World};
use atoll_model::{ClusterName, NodeName, RegionName, RevisionId, Role};
use std::collections::{BTreeMap, BTreeSet};

/// A service as the store wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The service.
    pub cluster: ClusterName,
    /// What is to run; nothing: none of it.
    pub target: Option<Target>,
    /// Revisions whose deploy failed: what of them isn't healthy goes at once.
    pub condemned: BTreeSet<RevisionId>,
    /// Everything that is placed of it, with the drain time of its revision (ms).
    pub placed: Vec<Placed>,
}

/// What is to run of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The revision.
    pub revision: RevisionId,
    /// How many instances in each region.
    pub regions: BTreeMap<RegionName, u32>,
}

/// A placement, with what the plan needs of its revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// It.
    pub placement: Placement,
    /// How long its instance may drain, ms.
    pub drain_ms: u64,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Place a new instance.
    Place {
        /// Of which service.
        cluster: ClusterName,
        /// Of which revision.
        revision: RevisionId,
        /// In which region.
        region: RegionName,
        /// On which host.
        host: NodeName,
    },
    /// Let an instance finish what it has.
    Drain {
        /// The placement.
        placement: Placement,
        /// For logs.
        why: &'static str,
    },
    /// Remove a placement: its instance is over, or is to be.
    Remove {
        /// The placement.
        placement: Placement,
        /// For logs.
        why: &'static str,
    },
}

/// Everything that a decision rests on.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// What gossip says.
    pub world: &'a World,
    /// What was noted.
    pub memory: &'a Memory,
    /// Nodes that were removed from the platform.
    pub removed_nodes: &'a BTreeSet<NodeName>,
    /// Nodes that an operator has drained: they get no instances, and theirs move.
    pub drained_nodes: &'a BTreeSet<NodeName>,
    /// Waits and deadlines.
    pub timing: &'a Timing,
    /// Now, ms since 1970.
    pub now_ms: u64,
}

/// The next steps for some services; `load` is of all that are placed.
#[must_use]
pub fn plan<'a>(
    wanted: impl IntoIterator<Item = &'a Wanted>,
    load: &Load,
    situation: &Situation<'_>,
) -> Vec<Action> {
    let mut load = Planned { now: load, more: Load::default() };
    wanted.into_iter().flat_map(|service| plan_service(service, situation, &mut load)).collect()
}

/// Whether a service has what it is to have, so that nothing is to be done until something changes.
#[must_use]
pub fn is_at_rest(service: &Wanted, situation: &Situation<'_>) -> bool {
    let Some(target) = &service.target else { return service.placed.is_empty() };
    let mut placed: BTreeMap<&RegionName, u32> = BTreeMap::new();
    for Placed { placement, .. } in &service.placed {
        let stays = placement.state == PlacementState::Run
            && placement.revision == target.revision
            && situation.is_settled(placement)
            && situation.world.is_alive(&placement.host)
            && situation.memory.dead_for(&placement.host, situation.now_ms).is_none()
            && !situation.removed_nodes.contains(&placement.host)
            && !situation.drained_nodes.contains(&placement.host);
        if !stays {
            return false;
        }
        *placed.entry(&placement.region).or_default() += 1;
    }
    let wanted = target.regions.iter().filter(|(_, want)| **want > 0).map(|(region, want)| (region, *want));
    wanted.eq(placed)
}

fn plan_service(service: &Wanted, situation: &Situation<'_>, load: &mut Planned<'_>) -> Vec<Action> {
    let none = BTreeMap::new();
    let regions = service.target.as_ref().map_or(&none, |target| &target.regions);
    let all: BTreeSet<&RegionName> =
        regions.keys().chain(service.placed.iter().map(|placed| &placed.placement.region)).collect();
    let sorted: Vec<(&RegionName, u32, InRegion<'_>)> = all
        .into_iter()
        .map(|region| {
            let want = regions.get(region).copied().unwrap_or(0);
            (region, want, InRegion::sort(service, region, want, situation))
        })
        .collect();
    // A region is left only when the others can serve.
    let may_leave = sorted.iter().all(|(_, want, here)| here.settled(situation) >= *want as usize);
    let mut actions = Vec::new();
    for (region, want, here) in sorted {
        here.end_what_is_over(&mut actions);
        if want == 0 {
            if may_leave {
                here.drain_all(&mut actions);
            }
            continue;
        }
        if let Some(target) = &service.target {
            here.place(service, target, region, want as usize, situation, load, &mut actions);
        }
        here.drain_old(want as usize, situation, &mut actions);
        here.drain_excess(want as usize, situation, &mut actions);
    }
    actions
}

/// A service's placements in one region.
#[derive(Debug, Default)]
struct InRegion<'a> {
    new: Vec<&'a Placement>,
    old: Vec<&'a Placement>,
    draining: usize,
    over: Vec<(&'a Placement, &'static str)>,
}

impl<'a> InRegion<'a> {
    fn sort(service: &'a Wanted, region: &RegionName, want: u32, situation: &Situation<'_>) -> Self {
        let mut here = Self::default();
        let target = service.target.as_ref().map(|target| &target.revision);
        for placed in service.placed.iter().filter(|placed| placed.placement.region == *region) {
            let placement = &placed.placement;
            let healthy = situation.memory.is_healthy(&placement.instance);
            // Without another host to go to, it waits for its own to come back.
            let replaceable = || {
                want == 0
                    || situation.removed_nodes.contains(&placement.host)
                    || situation.hosts(region).any(|host| *host != placement.host)
            };
            if situation.is_gone(&placement.host) && replaceable() {
                here.over.push((placement, "its host is gone"));
            } else if placement.state == PlacementState::Drain {
                match situation.drained(placed) {
                    Some(why) => here.over.push((placement, why)),
                    None => here.draining += 1,
                }
            } else if service.condemned.contains(&placement.revision) && !healthy {
                here.over.push((placement, "its deploy failed"));
            } else if Some(&placement.revision) == target && !situation.moves(placement) {
                here.new.push(placement);
            } else {
                here.old.push(placement);
            }
        }
        here
    }

    fn settled(&self, situation: &Situation<'_>) -> usize {
        self.new.iter().filter(|placement| situation.is_settled(placement)).count()
    }

    fn end_what_is_over(&self, actions: &mut Vec<Action>) {
        actions.extend(
            self.over.iter().map(|(placement, why)| Action::Remove { placement: (*placement).clone(), why }),
        );
    }

    fn drain_all(&self, actions: &mut Vec<Action>) {
        for placement in self.new.iter().chain(&self.old) {
            actions.push(Action::Drain { placement: (*placement).clone(), why: "not wanted in this region" });
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one decision, all of whose inputs are named")]
    fn place(
        &self,
        service: &Wanted,
        target: &Target,
        region: &RegionName,
        want: usize,
        situation: &Situation<'_>,
        load: &mut Planned<'_>,
        actions: &mut Vec<Action>,
    ) {
        let missing = want.saturating_sub(self.new.len());
        // What drains still holds resources, but can't serve: it counts for one at most.
        let running = self.new.len() + self.old.len() + self.draining.min(1);
        // Where there are more old ones than are wanted now, one above them makes the beginning.
        let begins = self.draining == 0 && self.settled(situation) == self.new.len();
        let room = (want + 1).saturating_sub(running).max(usize::from(begins));
        for _ in 0..missing.min(room) {
            let hosts = situation.hosts(region);
            let rank = |host: &&NodeName| load.rank(&service.cluster, &target.revision, host);
            let Some(host) = hosts.min_by_key(rank) else { return };
            load.more.add(&service.cluster, &target.revision, host);
            actions.push(Action::Place {
                cluster: service.cluster.clone(),
                revision: target.revision.clone(),
                region: region.clone(),
                host: host.clone(),
            });
        }
    }

    fn drain_old(&self, want: usize, situation: &Situation<'_>, actions: &mut Vec<Action>) {
        let settled = self.settled(situation);
        if settled == 0 {
            return;
        }
        let drain = |placement: &Placement| {
            let moves = situation.moves(placement);
            let why = if moves { "its host is drained" } else { "replaced by a new revision" };
            Action::Drain { placement: placement.clone(), why }
        };
        if settled >= want {
            actions.extend(self.old.iter().map(|placement| drain(placement)));
            return;
        }
        if self.draining > 0 {
            return;
        }
        let (healthy, unhealthy): (Vec<_>, Vec<_>) =
            self.old.iter().copied().partition(|placement| situation.memory.is_healthy(&placement.instance));
        let next = unhealthy.first().or_else(|| healthy.first().filter(|_| settled + healthy.len() > want));
        if let Some(placement) = next {
            actions.push(drain(placement));
        }
    }

    /// More new ones than wanted: after a scale-down, or when a lost host came back.
    fn drain_excess(&self, want: usize, situation: &Situation<'_>, actions: &mut Vec<Action>) {
        let excess = self.new.len().saturating_sub(want);
        let mut candidates = self.new.clone();
        // Unhealthy first, then the youngest.
        candidates.sort_by_key(|placement| {
            (situation.memory.is_healthy(&placement.instance), std::cmp::Reverse(placement.placed_ms))
        });
        for placement in candidates.into_iter().take(excess) {
            actions.push(Action::Drain { placement: placement.clone(), why: "more than wanted" });
        }
    }
}

impl Situation<'_> {
    /// Hosts of a region that take instances.
    pub(super) fn hosts(&self, region: &RegionName) -> impl Iterator<Item = &NodeName> {
        let out = |name: &NodeName| self.removed_nodes.contains(name) || self.drained_nodes.contains(name);
        self.world
            .nodes
            .iter()
            .filter(move |(name, seen)| seen.region == *region && seen.takes_instances() && !out(name))
            .map(|(name, _)| name)
    }

    /// Live hosts of a region that an operator has drained.
    pub(super) fn drained_hosts(&self, region: &RegionName) -> impl Iterator<Item = &NodeName> {
        let here = move |(name, seen): &(&NodeName, &NodeSeen)| {
            seen.region == *region
                && seen.alive
                && seen.roles.has(Role::Host)
                && self.drained_nodes.contains(*name)
        };
        self.world.nodes.iter().filter(here).map(|(name, _)| name)
    }

    /// Whether a placement is to go to another host of its region: its own is drained, and there is another.
    fn moves(&self, placement: &Placement) -> bool {
        self.drained_nodes.contains(&placement.host) && self.hosts(&placement.region).next().is_some()
    }

    fn is_gone(&self, host: &NodeName) -> bool {
        self.removed_nodes.contains(host)
            || self.memory.dead_for(host, self.now_ms).is_some_and(|ms| ms > self.timing.host_gone_ms)
    }

    fn is_settled(&self, placement: &Placement) -> bool {
        self.memory.is_settled(&placement.instance, self.now_ms, self.timing.settle_ms)
    }

    /// Why a draining placement may be removed, if it may.
    fn drained(&self, placed: &Placed) -> Option<&'static str> {
        let placement = &placed.placement;
        let age = self.memory.watched_for(placement.state_ms, self.now_ms);
        match self.world.instances.get(&placement.instance).map(|seen| seen.state) {
            Some(InstanceState::Stopped) => Some("it has stopped"),
            // Its host does not know it (any more), and has had time to say so.
            None if age >= self.timing.settle_ms.saturating_mul(2) => Some("its host does not run it"),
            _ if age > placed.drain_ms.saturating_add(self.timing.drain_grace_ms) => {
                Some("it did not stop in time")
            }
            _ => None,
        }
    }
}

/// How many instances each host has, so that they spread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Load(BTreeMap<NodeName, OnHost>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct OnHost {
    all: usize,
    of_service: BTreeMap<ClusterName, usize>,
    of_revision: BTreeMap<RevisionId, usize>,
}

impl Load {
    /// Of all that is placed.
    #[must_use]
    pub fn of<'a>(wanted: impl IntoIterator<Item = &'a Wanted>) -> Self {
        let mut load = Self::default();
        for service in wanted {
            for placed in &service.placed {
                load.add(&service.cluster, &placed.placement.revision, &placed.placement.host);
            }
        }
        load
    }

    /// One more.
    pub fn add(&mut self, cluster: &ClusterName, revision: &RevisionId, host: &NodeName) {
        let host = self.0.entry(host.clone()).or_default();
        host.all += 1;
        *host.of_service.entry(cluster.clone()).or_default() += 1;
        *host.of_revision.entry(revision.clone()).or_default() += 1;
    }

    /// One fewer.
    pub fn remove(&mut self, cluster: &ClusterName, revision: &RevisionId, host: &NodeName) {
        let Some(on) = self.0.get_mut(host) else { return };
        on.all -= 1;
        one_fewer(&mut on.of_service, cluster);
        one_fewer(&mut on.of_revision, revision);
        if on.all == 0 {
            self.0.remove(host);
        }
    }

    /// Hosts that have any.
    pub fn hosts(&self) -> impl Iterator<Item = &NodeName> + Clone {
        self.0.keys()
    }

    /// The services that a host has instances of.
    pub fn services_on(&self, host: &NodeName) -> impl Iterator<Item = &ClusterName> {
        self.0.get(host).into_iter().flat_map(|on| on.of_service.keys())
    }

    /// Least first. The revision comes first: the old one's instances are about to go.
    fn rank(&self, cluster: &ClusterName, revision: &RevisionId, host: &NodeName) -> [usize; 3] {
        let Some(on) = self.0.get(host) else { return [0; 3] };
        let count = |found: Option<&usize>| found.copied().unwrap_or(0);
        [count(on.of_revision.get(revision)), count(on.of_service.get(cluster)), on.all]
    }
}

fn one_fewer<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// The load as it will be.
#[derive(Debug)]
struct Planned<'a> {
    now: &'a Load,
    more: Load,
}

impl Planned<'_> {
    fn rank(&self, cluster: &ClusterName, revision: &RevisionId, host: &NodeName) -> [usize; 3] {
        let (now, more) = (self.now.rank(cluster, revision, host), self.more.rank(cluster, revision, host));
        std::array::from_fn(|i| now[i] + more[i])
    }
}
