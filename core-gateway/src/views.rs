//! What the gateway knows from gossip, as one snapshot that data-path workers load once a request.

use crate::counts::Counts;
use arc_swap::ArcSwap;
use atoll_gossip::{Entry, Owner};
use atoll_model::{ClusterName, Kind, NodeName, RegionName, Role};
use atoll_proxy::Destination;
use atoll_proxy::journal::Journal;
use atoll_proxy::regions::{BadAddress, Gateway, Gateways, Summaries};
use atoll_routing::ShardedMap;
use atoll_routing::placed::{Endpoints, Instance, Placed, Placement, Said};
use atoll_wire::record;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;
use tokio::sync::watch;

const RESPONSE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const RESPONSE_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// A cluster's policy.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// Edges may ask for it.
    pub(crate) public: bool,
    pub(crate) to: Arc<Destination>,
    /// Where it runs, sorted.
    pub(crate) regions: Vec<RegionName>,
    /// Requests in flight to its instances here, over all workers. Kept when the policy changes.
    pub(crate) in_flight: Arc<AtomicU32>,
    /// Kept when the policy changes.
    pub(crate) counts: Arc<Counts>,
}

/// Everything that a request is decided by. A clone costs a few reference counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    pub(crate) clusters: ShardedMap<Arc<Cluster>>,
    pub(crate) endpoints: ShardedMap<Arc<Endpoints>>,
    /// What other regions say.
    pub(crate) summaries: Summaries,
    /// The newest desired state that was seen: the store's epoch and revision.
    pub(crate) desired: (u64, u64),
    /// Something was heard from another node.
    pub(crate) heard: bool,
}

/// The snapshot that is current. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Views {
    current: Arc<ArcSwap<Snapshot>>,
    /// For the workers' pools.
    changed: watch::Sender<u64>,
    /// Of other regions.
    gateways: Gateways,
}

impl Default for Views {
    fn default() -> Self {
        Self { current: Arc::default(), changed: watch::Sender::new(0), gateways: Gateways::default() }
    }
}

impl Views {
    pub(crate) fn load(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.current.load()
    }

    pub(crate) fn gateways(&self) -> &Gateways {
        &self.gateways
    }

    /// Moves on whenever the instances of some cluster have changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// A record that can't be applied.
#[derive(Debug, thiserror::Error)]
enum ApplyError {
    #[error("not a message of its kind")]
    Decode(#[from] atoll_wire::DecodeError),
    #[error("`{0}` is not an address")]
    Address(String),
    #[error("`{0}` is no cluster's name")]
    Cluster(String),
    #[error(transparent)]
    Gateway(#[from] BadAddress),
    #[error("the key is not `region/cluster`")]
    SummaryKey,
}

/// Applies records; one task owns it.
#[derive(Debug)]
pub(crate) struct ViewWriter {
    views: Views,
    working: Snapshot,
    own_name: NodeName,
    own_region: RegionName,
    placed: Placed,
    journal: Journal,
}

impl ViewWriter {
    pub(crate) fn new(views: Views, own_name: NodeName, own_region: RegionName) -> Self {
        Self {
            working: Snapshot::clone(&views.load()),
            views,
            own_name,
            own_region,
            placed: Placed::default(),
            journal: Journal::default(),
        }
    }

    /// Applies a batch and publishes the result at once. Returns the clusters whose instances, or whose
    /// existence, may have changed.
    pub(crate) fn apply(&mut self, entries: &[Arc<Entry>]) -> BTreeSet<String> {
        let mut touched = BTreeSet::new();
        for entry in entries {
            self.note(entry);
            let outcome = self.apply_one(entry, &mut touched);
            self.journal.note(entry.kind, &entry.key, outcome);
        }
        for cluster in &touched {
            match self.placed.endpoints(cluster) {
                Some(endpoints) => self.working.endpoints.insert(cluster, Arc::new(endpoints)),
                None => self.working.endpoints.remove(cluster),
            };
        }
        (self.working.desired, self.working.heard) = (self.journal.desired, self.journal.heard);
        self.views.current.store(Arc::new(self.working.clone()));
        if !touched.is_empty() {
            self.views.changed.send_modify(|generation| *generation += 1);
        }
        touched
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

    fn apply_one(&mut self, entry: &Entry, touched: &mut BTreeSet<String>) -> Result<(), ApplyError> {
        match entry.kind {
            Kind::CLUSTER => {
                self.cluster(entry)?;
                touched.insert(entry.key.to_string());
                Ok(())
            }
            Kind::INSTANCE => self.instance(entry, touched),
            Kind::PLACEMENT => self.placement(entry, touched),
            Kind::NODE => self.node(entry),
            Kind::SUMMARY => self.summary(entry),
            _ => Ok(()),
        }
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
        let old = self.working.clusters.get(&entry.key);
        let in_flight = old.map(|old| Arc::clone(&old.in_flight)).unwrap_or_default();
        let counts = old.map(|old| Arc::clone(&old.counts)).unwrap_or_default();
        let to = Arc::new(Destination::new(cluster_name(&entry.key)?, response_timeout));
        let mut regions: Vec<RegionName> =
            body.regions.iter().filter_map(|name| RegionName::new(name).ok()).collect();
        regions.sort_unstable();
        let cluster = Cluster { public: body.public, to, regions, in_flight, counts };
        self.working.clusters.insert(&entry.key, Arc::new(cluster));
        Ok(())
    }

    fn instance(&mut self, entry: &Entry, touched: &mut BTreeSet<String>) -> Result<(), ApplyError> {
        let Owner::Node(host) = &entry.owner else { return Ok(()) };
        let fact = if entry.deleted {
            None
        } else {
            let body: record::Instance = entry.decode()?;
            let said = said(body.state());
            let address = match body.sidecar_address.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| ApplyError::Address(text.to_owned()))?),
            };
            cluster_name(&body.cluster)?;
            Some(Instance { cluster: body.cluster, host: host.to_string(), said, address })
        };
        self.placed.instance(&entry.key, fact, touched);
        Ok(())
    }

    fn placement(&mut self, entry: &Entry, touched: &mut BTreeSet<String>) -> Result<(), ApplyError> {
        let fact = if entry.deleted {
            None
        } else {
            let body: record::Placement = entry.decode()?;
            let drains = body.state() == record::placement::State::Drain;
            cluster_name(&body.cluster)?;
            Some(Placement { cluster: body.cluster, host: body.host, drains })
        };
        self.placed.placement(&entry.key, fact, touched);
        Ok(())
    }

    /// Calls that this region can't serve go to the gateways of others.
    fn node(&self, entry: &Entry) -> Result<(), ApplyError> {
        let signer = &entry.signer;
        let is_far = signer.roles.has(Role::Gateway) && signer.region != self.own_region;
        let gateway = if entry.deleted || !is_far {
            None
        } else {
            Some(Gateway::of(&signer.node, &signer.region, &entry.decode()?)?)
        };
        self.views.gateways.set(&entry.key, gateway);
        Ok(())
    }

    fn summary(&mut self, entry: &Entry) -> Result<(), ApplyError> {
        let (region, cluster) = entry.key.split_once('/').ok_or(ApplyError::SummaryKey)?;
        let region = RegionName::new(region).map_err(|_| ApplyError::SummaryKey)?;
        let Owner::Node(said_by) = &entry.owner else { return Ok(()) };
        if region == self.own_region {
            return Ok(());
        }
        let body: Option<record::RegionSummary> = if entry.deleted { None } else { Some(entry.decode()?) };
        self.working.summaries.say(cluster, region, said_by, body.as_ref());
        Ok(())
    }
}

fn cluster_name(text: &str) -> Result<ClusterName, ApplyError> {
    text.parse().map_err(|_| ApplyError::Cluster(text.escape_debug().take(80).collect()))
}

const fn said(state: record::instance::State) -> Said {
    use record::instance::State;
    match state {
        State::Starting => Said::Starting,
        State::Healthy => Said::Healthy,
        State::Unhealthy => Said::Unhealthy,
        State::Draining => Said::Draining,
        State::Exited | State::Stopped => Said::Ended,
    }
}

#[cfg(test)]
mod tests;
