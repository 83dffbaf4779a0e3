//! What the nodes say of themselves, as control sees it now: one snapshot, replaced on each change.

use atoll_model::{InstanceId, NodeName, RegionName, Role, Roles};
use atoll_wire::record::{self, NodeFacts};
use std::collections::BTreeMap;

/// A snapshot. Nothing in it is durable or certain: it is what gossip carried here.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Instances, as their hosts report them.
    pub instances: BTreeMap<InstanceId, Observed>,
    /// Nodes, as they describe themselves.
    pub nodes: BTreeMap<NodeName, NodeSeen>,
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
