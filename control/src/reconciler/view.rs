//! What the reconciler knows: wishes, the world, and what was noted; and which services it has to look at.
//!
//! A service is *at rest* when nothing is to be done for it and the passing of time does not change that. It is
//! looked at again when the store changed it, or gossip says something else of its instances or their hosts.
//! All others are looked at each time. A few more are, in turn: what was overlooked is found in the end.

use super::memory::Memory;
use super::plan::{Action, Situation, Wanted, is_at_rest, plan};
use super::wishes::Wishes;
use crate::config::Timing;
use crate::store::Store;
use crate::world::World;
use atoll_model::{AppName, ClusterName, NodeName, OrgName};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Services that are looked at in turn, though nothing was heard of them.
const SWEEP: usize = 32;

/// It.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) wishes: Wishes,
    pub(super) memory: Memory,
    pub(super) world: Arc<World>,
    /// Services that are not at rest.
    restless: BTreeSet<ClusterName>,
    /// How many services were planned for at the last look.
    pub(super) looked_at: usize,
}

impl View {
    /// Takes in what changed in the store and in the world.
    pub(super) fn update(&mut self, now_ms: u64, store: &Store, world: Arc<World>) {
        self.wishes.sweep(store, SWEEP);
        self.update_without_sweep(now_ms, store, world);
    }

    fn update_without_sweep(&mut self, now_ms: u64, store: &Store, world: Arc<World>) {
        self.looked_at = 0;
        self.wishes.refresh(store);
        let before = std::mem::replace(&mut self.world, world);
        let mut touched = self.touched_by_world(&before);
        for host in self.memory.observe_hosts(now_ms, &self.world, self.wishes.load.hosts()) {
            touched.extend(self.wishes.on_host(&host).cloned());
        }
        self.wishes.dirty.extend(touched);
        for id in self.wishes.take_gone() {
            self.memory.forget(&id);
        }
        for service in self.wishes.dirty.iter().filter_map(|name| self.wishes.services.get(name)) {
            for placed in &service.placed {
                self.memory.observe_instance(now_ms, &self.world, &placed.placement);
            }
        }
    }

    /// Services on whose instances or hosts the world says something else now.
    fn touched_by_world(&self, before: &Arc<World>) -> BTreeSet<ClusterName> {
        if Arc::ptr_eq(before, &self.world) {
            return BTreeSet::new();
        }
        let changed = self.world.instances.changed_since(&before.instances);
        let mut touched: BTreeSet<ClusterName> =
            changed.filter_map(|id| self.wishes.instances.get(&id).cloned()).collect();
        let state = |world: &World, host: &NodeName| {
            let seen = world.nodes.get(host);
            seen.map(|seen| (seen.alive, seen.takes_instances(), seen.region.clone()))
        };
        for host in self.wishes.load.hosts().filter(|host| state(before, host) != state(&self.world, host)) {
            touched.extend(self.wishes.on_host(host).cloned());
        }
        touched
    }

    /// What decisions rest on.
    pub(super) fn situation<'a>(&'a self, timing: &'a Timing, now_ms: u64) -> Situation<'a> {
        Situation {
            world: &self.world,
            memory: &self.memory,
            removed_nodes: &self.wishes.removed_nodes,
            drained_nodes: &self.wishes.drained_nodes,
            timing,
            now_ms,
        }
    }

    /// The next steps, but of services whose app is about to change: what they are to have is not known yet.
    pub(super) fn plan(
        &mut self,
        timing: &Timing,
        now_ms: u64,
        changing: &BTreeSet<(OrgName, AppName)>,
    ) -> Vec<Action> {
        let mut names = std::mem::take(&mut self.wishes.dirty);
        names.append(&mut self.restless);
        let wait = |name: &&ClusterName| {
            !changing.is_empty() && changing.contains(&(name.org.clone(), name.app.clone()))
        };
        let waiting: BTreeSet<ClusterName> = names.iter().filter(wait).cloned().collect();
        names.retain(|name| !waiting.contains(name));
        let services: Vec<&Wanted> = names.iter().filter_map(|name| self.wishes.services.get(name)).collect();
        let situation = self.situation(timing, now_ms);
        let actions = plan(services.iter().copied(), &self.wishes.load, &situation);
        let restless = services.iter().filter(|service| !is_at_rest(service, &situation));
        let restless = restless.map(|service| service.cluster.clone()).collect();
        self.looked_at = services.len();
        self.restless = restless;
        self.restless.extend(waiting);
        actions
    }
}

#[cfg(test)]
mod tests;
