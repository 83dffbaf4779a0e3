//! What the nodes say of themselves, as control sees it now: one snapshot, replaced on each change.

use atoll_model::{InstanceId, NodeName, RegionName, Role, Roles};
use atoll_routing::ShardedMap;
use atoll_wire::record::{self, NodeFacts};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A snapshot. Nothing in it is durable or certain: it is what gossip carried here.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Instances, as their hosts report them.
    pub instances: Instances,
    /// Nodes, as they describe themselves.
    pub nodes: BTreeMap<NodeName, NodeSeen>,
}

/// Instances by id. A copy is cheap, and so are one change and the comparison of two copies.
#[derive(Debug, Clone, Default)]
pub struct Instances(ShardedMap<Arc<Observed>>);

impl Instances {
    /// What is known of an instance.
    #[must_use]
    pub fn get(&self, id: &InstanceId) -> Option<&Observed> {
        self.0.get(id.as_str()).map(|seen| &**seen)
    }

    /// Whether anything is known of it.
    #[must_use]
    pub fn contains_key(&self, id: &InstanceId) -> bool {
        self.get(id).is_some()
    }

    /// Takes note of an instance.
    pub fn insert(&mut self, id: &InstanceId, seen: Observed) {
        self.0.insert(id.as_str(), Arc::new(seen));
    }

    /// Forgets an instance.
    pub fn remove(&mut self, id: &InstanceId) {
        self.0.remove(id.as_str());
    }

    /// All of them, by id, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Observed)> {
        self.0.iter().map(|(id, seen)| (id, &**seen))
    }

    /// The instances of which this says something else than `before`.
    pub fn changed_since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = InstanceId> + 'a {
        let differing = self.0.differing(&before.0, Arc::ptr_eq);
        differing.into_iter().filter_map(|id| id.parse().ok())
    }
}

/// How an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceState {
    /// Its process runs, its checks have not passed yet.
    Starting,
    /// It can serve.
    Healthy,
    /// It can't.
    Unhealthy,
    /// It finishes what it has.
    Draining,
    /// Its process ended; the host will start it again.
    Exited,
    /// It is over.
    Stopped,
}

impl InstanceState {
    /// As shown to people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
            Self::Exited => "exited",
            Self::Stopped => "stopped",
        }
    }
}

/// An instance, as its host reports it.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// The reporting host.
    pub host: NodeName,
    /// Its region.
    pub region: String,
    /// How it is.
    pub state: InstanceState,
    /// The record.
    pub facts: record::Instance,
}

/// A node, as it describes itself.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeSeen {
    /// Its roles.
    pub roles: Roles,
    /// Its region.
    pub region: RegionName,
    /// Whether membership has it alive.
    pub alive: bool,
    /// The record.
    pub facts: NodeFacts,
    /// When it was written, by the node's clock, ms since 1970.
    pub written_ms: u64,
    /// The kind of the record: which scope it came by.
    pub kind: atoll_model::Kind,
}

impl Observed {
    /// Reads an `Instance` record's body.
    #[must_use]
    pub fn from_record(host: NodeName, region: &str, facts: record::Instance) -> Self {
        use record::instance::State;
        let state = match facts.state() {
            State::Starting => InstanceState::Starting,
            State::Healthy => InstanceState::Healthy,
            State::Unhealthy => InstanceState::Unhealthy,
            State::Draining => InstanceState::Draining,
            State::Exited => InstanceState::Exited,
            State::Stopped => InstanceState::Stopped,
        };
        Self { host, region: region.to_owned(), state, facts }
    }
}

impl NodeSeen {
    /// Whether new instances may be placed here.
    #[must_use]
    pub fn takes_instances(&self) -> bool {
        self.alive && self.roles.has(Role::Host) && !self.facts.draining
    }
}

impl World {
    /// Whether membership has the node alive.
    #[must_use]
    pub fn is_alive(&self, node: &NodeName) -> bool {
        self.nodes.get(node).is_some_and(|seen| seen.alive)
    }

    /// Live nodes with a role.
    pub fn alive_with(&self, role: Role) -> impl Iterator<Item = (&NodeName, &NodeSeen)> {
        self.nodes.iter().filter(move |(_, seen)| seen.alive && seen.roles.has(role))
    }
}
