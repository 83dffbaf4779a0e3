//! What can only be known by watching: since when an instance is healthy, since when a host is gone.

use crate::store::objects::Placement;
use crate::world::{InstanceState, World};
use atoll_model::{InstanceId, NodeName};
use std::collections::{BTreeMap, BTreeSet};

/// Notes of what was seen. Lost with the process; bounded by the number of placements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// When it first looked: what happened before, it did not see.
    started_ms: Option<u64>,
    healthy_since: BTreeMap<InstanceId, u64>,
    dead_since: BTreeMap<NodeName, u64>,
    exits: BTreeMap<InstanceId, Exits>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Exits {
    last_at_ms: u64,
    count: u32,
}

impl Memory {
    /// Takes note of which of the hosts are alive; returns those of which that has changed.
    pub fn observe_hosts<'a>(
        &mut self,
        now_ms: u64,
        world: &World,
        hosts: impl Iterator<Item = &'a NodeName>,
    ) -> Vec<NodeName> {
        self.started_ms.get_or_insert(now_ms);
        let hosts: BTreeSet<&NodeName> = hosts.collect();
        let mut changed = Vec::new();
        self.dead_since.retain(|host, _| {
            let dead = hosts.contains(host) && !world.is_alive(host);
            if !dead {
                changed.push(host.clone());
            }
            dead
        });
        for host in hosts {
            if !world.is_alive(host) && !self.dead_since.contains_key(host) {
                self.dead_since.insert(host.clone(), now_ms);
                changed.push(host.clone());
            }
        }
        changed
    }

    /// An instance's placement is gone.
    pub fn forget(&mut self, id: &InstanceId) {
        self.healthy_since.remove(id);
        self.exits.remove(id);
    }

    /// Takes note of an instance, after its host; to be called when what the world says of either has changed.
    pub fn observe_instance(&mut self, now_ms: u64, world: &World, placement: &Placement) {
        let id = &placement.instance;
        let seen = world.instances.get(id);
        let healthy =
            seen.is_some_and(|seen| seen.state == InstanceState::Healthy && seen.host == placement.host);
        if healthy && !self.dead_since.contains_key(&placement.host) {
            self.healthy_since.entry(id.clone()).or_insert(now_ms);
        } else {
            self.healthy_since.remove(id);
        }
        if let Some(exit) = seen.and_then(|seen| seen.facts.last_exit.as_ref()) {
            let exits = self.exits.entry(id.clone()).or_default();
            if exits.last_at_ms != exit.at_ms || exits.count == 0 {
                *exits = Exits { last_at_ms: exit.at_ms, count: exits.count.saturating_add(1) };
            }
        }
    }

    /// The wall clock was set, by so much, and is `now_ms` now. What was seen happened as long ago as
    /// before; for stored times the watch begins anew, so that no deadline has passed unseen.
    pub fn clock_was_set(&mut self, now_ms: u64, by_ms: i64) {
        self.started_ms = Some(now_ms);
        for since in self.healthy_since.values_mut().chain(self.dead_since.values_mut()) {
            *since = since.saturating_add_signed(by_ms);
        }
    }

    /// How long we have been able to watch something that began at `since_ms`. A deadline that passed while
    /// control was not running has not been missed by anyone.
    #[must_use]
    pub fn watched_for(&self, since_ms: u64, now_ms: u64) -> u64 {
        now_ms.saturating_sub(since_ms.max(self.started_ms.unwrap_or(now_ms)))
    }

    /// Whether the instance is healthy, on a host that lives.
    #[must_use]
    pub fn is_healthy(&self, id: &InstanceId) -> bool {
        self.healthy_since.contains_key(id)
    }

    /// Whether it has been healthy for `settle_ms`: everyone has heard of it.
    #[must_use]
    pub fn is_settled(&self, id: &InstanceId, now_ms: u64, settle_ms: u64) -> bool {
        self.healthy_since.get(id).is_some_and(|since| now_ms.saturating_sub(*since) >= settle_ms)
    }

    /// How long the host has been dead, ms; nothing while it lives.
    #[must_use]
    pub fn dead_for(&self, host: &NodeName, now_ms: u64) -> Option<u64> {
        self.dead_since.get(host).map(|since| now_ms.saturating_sub(*since))
    }

    /// How many ends of the instance's process were seen.
    #[must_use]
    pub fn exits(&self, id: &InstanceId) -> u32 {
        self.exits.get(id).map_or(0, |exits| exits.count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::store::objects::PlacementState;
    use atoll_model::RevisionId;

    #[test]
    fn a_clock_that_is_set_makes_nobody_late() {
        let hour_ms = 3_600_000;
        let placement = Placement {
            instance: InstanceId::from_parts(1, 1),
            cluster: "default/shop/web".parse().unwrap(),
            revision: RevisionId::from_parts(1, 1),
            region: "fra".parse().unwrap(),
            host: "fra1-host".parse().unwrap(),
            state: PlacementState::Run,
            placed_ms: 10 * hour_ms,
            state_ms: 10 * hour_ms,
        };
        for (now_ms, by_ms) in
            [(11 * hour_ms + 5_000, hour_ms as i64), (9 * hour_ms + 5_000, -(hour_ms as i64))]
        {
            let mut memory = Memory::default();
            memory.observe_hosts(10 * hour_ms, &World::default(), std::iter::once(&placement.host));
            memory.clock_was_set(now_ms, by_ms);
            memory.observe_hosts(now_ms, &World::default(), std::iter::once(&placement.host));
            assert_eq!(memory.dead_for(&placement.host, now_ms), Some(5_000));
            assert_eq!(memory.watched_for(placement.placed_ms, now_ms), 0);
        }
    }
}
