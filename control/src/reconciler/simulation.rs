#![allow(clippy::unwrap_used, reason = "tests")]

//! A platform in virtual time, for tests: hosts that start what they are told, in their own way.

use super::memory::Memory;
use super::plan::{Action, Load, Placed, Situation, Target, Wanted, is_at_rest, plan};
use super::verdict::{Verdict, judge};
use crate::config::Timing;
use crate::store::objects::{Deploy, DeployState, Placement, PlacementState, ServiceChange};
use crate::world::{NodeSeen, Observed, World};
use atoll_model::{ClusterName, InstanceId, NodeName, ObjectId, RegionName, RevisionId, Role, Roles};
use atoll_wire::record::{self, NodeFacts, instance::State};
use std::collections::{BTreeMap, BTreeSet};

pub(super) const STEP_MS: u64 = 100;
const START_MS: u64 = 500;
const DRAIN_MS: u64 = 300;

/// How instances of a revision behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behaviour {
    Works,
    /// Ends with status 7 this long after each start.
    Exits(u64),
    NeverHealthy,
}

pub(super) struct Simulation {
    pub(super) now_ms: u64,
    pub(super) placements: BTreeMap<InstanceId, Placement>,
    pub(super) world: World,
    pub(super) target: Option<(u64, BTreeMap<RegionName, u32>)>,
    pub(super) condemned: BTreeSet<u64>,
    pub(super) behaviour: BTreeMap<u64, Behaviour>,
    pub(super) timing: Timing,
    pub(super) log: Vec<(u64, String)>,
    pub(super) memory: Memory,
    pub(super) drained: BTreeSet<NodeName>,
    ids: u128,
}

pub(super) fn revision(number: u64) -> RevisionId {
    RevisionId::from_parts(number, 0)
}

pub(super) fn cluster() -> ClusterName {
    "default/shop/web".parse().unwrap()
}

pub(super) fn regions(list: &[(&str, u32)]) -> BTreeMap<RegionName, u32> {
    list.iter().map(|(name, count)| (name.parse().unwrap(), *count)).collect()
}

impl Simulation {
    pub(super) fn new(hosts: &[(&str, &str)]) -> Self {
        let mut world = World::default();
        for (name, region) in hosts {
            let seen = NodeSeen {
                roles: Roles::NONE.with(Role::Host),
                region: region.parse().unwrap(),
                alive: true,
                facts: NodeFacts::default(),
                written_ms: 0,
                kind: atoll_model::Kind::REGION_NODE,
            };
            world.nodes.insert(name.parse().unwrap(), seen);
        }
        Self {
            now_ms: 1_000_000,
            placements: BTreeMap::new(),
            world,
            target: None,
            condemned: BTreeSet::new(),
            behaviour: BTreeMap::new(),
            timing: Timing::default(),
            log: Vec::new(),
            memory: Memory::default(),
            drained: BTreeSet::new(),
            ids: 0,
        }
    }

    pub(super) fn kill_host(&mut self, name: &str) {
        self.world.nodes.get_mut(name).unwrap().alive = false;
    }

    pub(super) fn wanted(&self) -> Wanted {
        Wanted {
            cluster: cluster(),
            target: self
                .target
                .clone()
                .map(|(number, regions)| Target { revision: revision(number), regions }),
            condemned: self.condemned.iter().map(|number| revision(*number)).collect(),
            placed: self
                .placements
                .values()
                .map(|placement| Placed { placement: placement.clone(), drain_ms: 10_000 })
                .collect(),
        }
    }

    /// One decision, and the hosts' next step.
    pub(super) fn step(&mut self) {
        self.now_ms += STEP_MS;
        self.run_hosts();
        let hosts = self.placements.values().map(|placement| &placement.host);
        self.memory.observe_hosts(self.now_ms, &self.world, hosts);
        for placement in self.placements.values() {
            self.memory.observe_instance(self.now_ms, &self.world, placement);
        }
        let wanted = [self.wanted()];
        let none = BTreeSet::new();
        let situation = self.situation(&none);
        let actions = plan(&wanted, &Load::of(&wanted), &situation);
        assert!(actions.is_empty() || !is_at_rest(&wanted[0], &situation), "{actions:?}");
        for action in actions {
            self.act(action);
        }
    }

    pub(super) fn situation<'a>(&'a self, removed_nodes: &'a BTreeSet<NodeName>) -> Situation<'a> {
        Situation {
            world: &self.world,
            memory: &self.memory,
            removed_nodes,
            drained_nodes: &self.drained,
            timing: &self.timing,
            now_ms: self.now_ms,
        }
    }

    pub(super) fn verdict(&self, to: Option<u64>, started_ms: u64) -> Verdict {
        self.verdict_of(None, to, started_ms)
    }

    pub(super) fn verdict_of(&self, from: Option<u64>, to: Option<u64>, started_ms: u64) -> Verdict {
        let change = ServiceChange { from: from.map(revision), to: to.map(revision) };
        let deploy = Deploy {
            id: ObjectId::from_parts(0, 0),
            org: cluster().org,
            app: cluster().app,
            state: DeployState::Running,
            delete: to.is_none(),
            services: [(cluster().service, change)].into(),
            started_ms,
            state_ms: started_ms,
            version: 0,
            cause: None,
            by: "test".into(),
            scale_before: BTreeMap::new(),
            hosts_before: None,
        };
        judge(&deploy, &[&self.wanted()], &self.situation(&BTreeSet::new()))
    }

    /// Steps until `done`; panics after `limit_ms` of virtual time.
    pub(super) fn until(&mut self, limit_ms: u64, mut done: impl FnMut(&Self) -> bool) -> u64 {
        let start = self.now_ms;
        while !done(self) {
            assert!(self.now_ms - start < limit_ms, "not after {limit_ms} ms: {:#?}", self.log);
            self.step();
        }
        self.now_ms - start
    }

    pub(super) fn healthy(&self, region: &str, number: u64) -> usize {
        let of = |placement: &&Placement| {
            placement.region.as_str() == region
                && placement.revision == revision(number)
                && placement.state == PlacementState::Run
                && self.memory.is_healthy(&placement.instance)
        };
        self.placements.values().filter(of).count()
    }

    pub(super) fn serving(&self, region: &str) -> usize {
        let of = |placement: &&Placement| {
            placement.region.as_str() == region
                && placement.state == PlacementState::Run
                && self.memory.is_healthy(&placement.instance)
        };
        self.placements.values().filter(of).count()
    }

    pub(super) fn settled(&self, to: u64) -> bool {
        self.verdict(Some(to), self.now_ms) == Verdict::Settled
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Place { cluster, revision, region, host } => {
                self.ids += 1;
                let instance = InstanceId::from_parts(self.now_ms, self.ids);
                self.log.push((self.now_ms, format!("place {region} {host} {revision}")));
                let placement = Placement {
                    instance: instance.clone(),
                    cluster,
                    revision,
                    region,
                    host,
                    state: PlacementState::Run,
                    placed_ms: self.now_ms,
                    state_ms: self.now_ms,
                };
                self.placements.insert(instance, placement);
            }
            Action::Drain { placement, why } => {
                self.log
                    .push((self.now_ms, format!("drain {} {}: {why}", placement.region, placement.revision)));
                let placement = self.placements.get_mut(&placement.instance).unwrap();
                placement.state = PlacementState::Drain;
                placement.state_ms = self.now_ms;
            }
            Action::Remove { placement, why } => {
                self.log.push((
                    self.now_ms,
                    format!("remove {} {}: {why}", placement.region, placement.revision),
                ));
                self.placements.remove(&placement.instance);
                self.memory.forget(&placement.instance);
            }
        }
    }

    fn run_hosts(&mut self) {
        let now_ms = self.now_ms;
        let alive: BTreeSet<NodeName> =
            self.world.nodes.iter().filter(|(_, seen)| seen.alive).map(|(name, _)| name.clone()).collect();
        let placements = &self.placements;
        let gone = |(id, seen): (&str, &Observed)| {
            let id: InstanceId = id.parse().unwrap();
            (!placements.contains_key(&id) && alive.contains(&seen.host)).then_some(id)
        };
        let gone: Vec<InstanceId> = self.world.instances.iter().filter_map(gone).collect();
        gone.iter().for_each(|id| self.world.instances.remove(id));
        for (id, placement) in placements.iter().filter(|(_, placement)| alive.contains(&placement.host)) {
            let number = (1..100).find(|number| revision(*number) == placement.revision).unwrap();
            let behaviour = self.behaviour.get(&number).copied().unwrap_or(Behaviour::Works);
            let facts = instance(behaviour, placement, now_ms);
            let seen = Observed::from_record(placement.host.clone(), placement.region.as_str(), facts);
            self.world.instances.insert(id, seen);
        }
    }
}

fn instance(behaviour: Behaviour, placement: &Placement, now_ms: u64) -> record::Instance {
    let age = now_ms - placement.placed_ms;
    let mut facts = record::Instance { started_ms: placement.placed_ms, ..Default::default() };
    if placement.state == PlacementState::Drain {
        let over = now_ms - placement.state_ms >= DRAIN_MS;
        facts.set_state(if over { State::Stopped } else { State::Draining });
        return facts;
    }
    match behaviour {
        Behaviour::Works if age >= START_MS => facts.set_state(State::Healthy),
        Behaviour::Works | Behaviour::NeverHealthy => facts.set_state(State::Starting),
        // Started again as soon as it has ended, seen as ended for one step.
        Behaviour::Exits(after) => {
            let ends = age / after;
            facts.restarts = u32::try_from(ends).unwrap().saturating_sub(1);
            facts.set_state(if ends > 0 && age % after < STEP_MS { State::Exited } else { State::Starting });
            if ends > 0 {
                let at_ms = placement.placed_ms + ends * after;
                let output_tail = "first line\nthe database is not there\n".into();
                facts.last_exit = Some(record::Exit { status: 7, output_tail, at_ms, ..Default::default() });
            }
        }
    }
    facts
}
