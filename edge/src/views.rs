//! What the edge knows from gossip, as one snapshot that data-path workers load once a request.
//!
//! [`ViewWriter`] has one owner, a task of the control runtime; everyone else reads. A record that can't be
//! applied changes nothing: the last good one stays, and the error is kept for the node's facts.

use crate::cache::counts::{AppCounts, Counts, Shareable};
use crate::peers::{self, PeerEdge};
use arc_swap::ArcSwap;
use atoll_gossip::{Entry, Owner};
use atoll_model::{ClusterName, Kind, NodeName, RegionName, Role};
use atoll_proxy::Destination;
use atoll_proxy::journal::Journal;
use atoll_proxy::regions::{BadAddress, Gateway, Gateways, Summaries};
use atoll_routing::hosts::{HostRule, Route, VirtualHost, VirtualHostError};
use atoll_routing::{HostTable, ShardedMap};
use atoll_wire::record;
use std::sync::Arc;
use std::time::Duration;

const RESPONSE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const RESPONSE_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// A cluster, as far as the edge cares.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    /// Where it runs, sorted.
    pub(crate) regions: Vec<RegionName>,
    pub(crate) to: Arc<Destination>,
    /// `org/app`.
    pub(crate) app: Arc<str>,
    /// What the cache did for the app.
    pub(crate) counts: Arc<AppCounts>,
    /// What was learned of the service's responses. Outlives changes of the record.
    pub(crate) shareable: Arc<Shareable>,
}

/// Everything that a request is decided by. A clone costs a few reference counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    pub(crate) hosts: HostTable,
    pub(crate) clusters: ShardedMap<Arc<Cluster>>,
    pub(crate) summaries: Summaries,
    /// The other edges that can be asked, by name.
    pub(crate) edges: Arc<[PeerEdge]>,
    /// The newest desired state that was seen: the store's epoch and revision.
    pub(crate) desired: (u64, u64),
    /// Something was heard from another node.
    pub(crate) heard: bool,
}

/// The snapshot that is current. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Views {
    current: Arc<ArcSwap<Snapshot>>,
    gateways: Gateways,
}

impl Views {
    pub(crate) fn load(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.current.load()
    }

    pub(crate) fn gateways(&self) -> &Gateways {
        &self.gateways
    }
}

/// A record that can't be applied.
#[derive(Debug, thiserror::Error)]
enum ApplyError {
    #[error("not a message of its kind")]
    Decode(#[from] atoll_wire::DecodeError),
    #[error(transparent)]
    VirtualHost(#[from] VirtualHostError),
    #[error("route `{route}` leads to `{cluster}`, which is no cluster's name")]
    Cluster { route: String, cluster: String },
    #[error(transparent)]
    Address(#[from] BadAddress),
    #[error("`{0}` is no cluster's name")]
    Name(String),
    #[error("the key is not `region/cluster`")]
    SummaryKey,
    #[error(transparent)]
    CacheRule(#[from] atoll_wire::CacheRuleError),
}

/// Applies records.
#[derive(Debug)]
pub(crate) struct ViewWriter {
    views: Views,
    working: Snapshot,
    own_name: NodeName,
    counts: Counts,
    journal: Journal,
}

impl ViewWriter {
    pub(crate) fn new(views: Views, own_name: NodeName, counts: Counts) -> Self {
        let working = Snapshot::clone(&views.load());
        Self { views, working, own_name, counts, journal: Journal::default() }
    }

    /// Applies a batch and publishes the result at once.
    pub(crate) fn apply(&mut self, entries: &[Arc<Entry>]) {
        for entry in entries {
            self.note(entry);
            let outcome = self.apply_one(entry);
            self.journal.note(entry.kind, &entry.key, outcome);
        }
        (self.working.desired, self.working.heard) = (self.journal.desired, self.journal.heard);
        self.views.current.store(Arc::new(self.working.clone()));
    }

    /// Records that could not be applied, and why.
    pub(crate) fn errors(&self) -> Vec<(String, String)> {
        self.journal.errors()
    }

    fn note(&mut self, entry: &Entry) {
        match &entry.owner {
            Owner::Control => self.journal.heard_desired((entry.epoch, entry.version)),
            Owner::Node(name) => self.journal.heard |= *name != self.own_name,
        }
    }

    fn apply_one(&mut self, entry: &Entry) -> Result<(), ApplyError> {
        match entry.kind {
            Kind::VIRTUAL_HOST => self.virtual_host(entry),
            Kind::CLUSTER => self.cluster(entry),
            Kind::NODE => self.node(entry),
            Kind::SUMMARY => self.summary(entry),
            _ => Ok(()),
        }
    }

    fn virtual_host(&mut self, entry: &Entry) -> Result<(), ApplyError> {
        if entry.deleted {
            self.working.hosts.remove(&entry.key);
            return Ok(());
        }
        let body: record::VirtualHost = entry.decode()?;
        let routes: Vec<Route> = body.routes.into_iter().map(route).collect::<Result<_, _>>()?;
        let host = VirtualHost::new(&*entry.key, entry.version, body.domains, routes)?;
        let host = host.with_cache_rules(body.cache.into_iter().map(cache_rule).collect::<Result<_, _>>()?);
        self.working.hosts.insert(host);
        Ok(())
    }

    fn cluster(&mut self, entry: &Entry) -> Result<(), ApplyError> {
        if entry.deleted {
            self.working.clusters.remove(&entry.key);
            return Ok(());
        }
        let body: record::Cluster = entry.decode()?;
        let response_timeout = match body.response_timeout_ms {
            0 => RESPONSE_TIMEOUT_DEFAULT,
            ms => Duration::from_millis(ms).min(RESPONSE_TIMEOUT_MAX),
        };
        let mut regions: Vec<RegionName> =
            body.regions.iter().filter_map(|name| RegionName::new(name).ok()).collect();
        regions.sort_unstable();
        let name = entry.key.parse().map_err(|_| ApplyError::Name(entry.key.to_string()))?;
        let to = Arc::new(Destination::new(name, response_timeout));
        let app: Arc<str> = format!("{}/{}", to.name.org, to.name.app).into();
        let known = self.working.clusters.get(&entry.key);
        let shareable = known.map(|known| Arc::clone(&known.shareable)).unwrap_or_default();
        let counts = self.counts.of(&app);
        let cluster = Cluster { regions, to, app, counts, shareable };
        self.working.clusters.insert(&entry.key, Arc::new(cluster));
        Ok(())
    }

    fn node(&mut self, entry: &Entry) -> Result<(), ApplyError> {
        let signer = &entry.signer;
        let facts: Option<record::NodeFacts> = if entry.deleted { None } else { Some(entry.decode()?) };
        let is_other = signer.node != self.own_name;
        let edge = facts.as_ref().filter(|_| signer.roles.has(Role::Edge) && is_other);
        let edge = edge.and_then(|facts| PeerEdge::of(&signer.node, &signer.site, &signer.region, facts));
        if let Some(edges) = peers::with(&self.working.edges, &entry.key, edge) {
            self.working.edges = edges;
        }
        let gateway = facts.filter(|_| signer.roles.has(Role::Gateway));
        let gateway = gateway.map(|facts| Gateway::of(&signer.node, &signer.region, &facts)).transpose()?;
        self.views.gateways.set(&entry.key, gateway);
        Ok(())
    }

    fn summary(&mut self, entry: &Entry) -> Result<(), ApplyError> {
        let (region, cluster) = entry.key.split_once('/').ok_or(ApplyError::SummaryKey)?;
        let region = RegionName::new(region).map_err(|_| ApplyError::SummaryKey)?;
        let Owner::Node(said_by) = &entry.owner else { return Ok(()) };
        let body: Option<record::RegionSummary> = if entry.deleted { None } else { Some(entry.decode()?) };
        self.working.summaries.say(cluster, region, said_by, body.as_ref());
        Ok(())
    }
}

fn cache_rule(rule: record::CacheRule) -> Result<HostRule, ApplyError> {
    let domains = rule.domains.clone();
    Ok(HostRule { domains, rule: Arc::new(rule.try_into()?) })
}

fn route(route: record::Route) -> Result<Route, ApplyError> {
    if route.cluster.parse::<ClusterName>().is_err() {
        return Err(ApplyError::Cluster { route: route.name, cluster: route.cluster });
    }
    Ok(Route { name: route.name, path_prefix: route.path_prefix, cluster: route.cluster.into() })
}

#[cfg(test)]
mod tests;
