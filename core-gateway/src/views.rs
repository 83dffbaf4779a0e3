//! What the gateway knows from gossip, as one snapshot that data-path workers load once a request.
//!
//! An instance is used when its host says that it runs *and* control says that it is to: INSTANCE joined
//! with PLACEMENT of the same key, host and cluster.

use arc_swap::ArcSwap;
use atoll_gossip::{Entry, Owner};
use atoll_model::{ClusterName, Kind, NodeName};
use atoll_routing::ShardedMap;
use atoll_routing::endpoint::State;
use atoll_wire::record;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;
use tokio::sync::watch;
use tracing::warn;

const RESPONSE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const RESPONSE_TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// Errors that are remembered, to be shown.
const APPLY_ERRORS_MAX: usize = 16;

/// A cluster's policy.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// Edges may ask for it.
    pub(crate) public: bool,
    pub(crate) response_timeout: Duration,
    /// Requests of edges in flight to it, over all workers. Kept when the policy changes.
    pub(crate) in_flight: Arc<AtomicU32>,
}

/// An instance that is placed here and has a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `host/instance`.
    pub(crate) key: Arc<str>,
    /// Of the sidecar.
    pub(crate) address: SocketAddr,
    pub(crate) state: State,
}

/// The instances of a cluster in this region.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Endpoints {
    pub(crate) all: Vec<Endpoint>,
    /// How many should serve: placed to run, and past their start.
    pub(crate) expected: u32,
}

/// Everything that a request is decided by. A clone costs a few reference counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    pub(crate) clusters: ShardedMap<Arc<Cluster>>,
    pub(crate) endpoints: ShardedMap<Arc<Endpoints>>,
    /// The newest desired state that was seen: the store's epoch and revision.
    pub(crate) desired: (u64, u64),
    /// Something was heard from another node.
    pub(crate) heard: bool,
}

/// The snapshot that is current. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Views {
    current: Arc<ArcSwap<Snapshot>>,
    /// The clusters whose instances changed last; for the workers' pools.
    changed: watch::Sender<u64>,
}

impl Default for Views {
    fn default() -> Self {
        Self { current: Arc::default(), changed: watch::Sender::new(0) }
    }
}

impl Views {
    pub(crate) fn load(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.current.load()
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
}

#[derive(Debug)]
struct Instance {
    cluster: String,
    host: NodeName,
    state: record::instance::State,
    /// None while it has no sidecar.
    address: Option<SocketAddr>,
}

#[derive(Debug)]
struct Placement {
    cluster: String,
    host: String,
    drains: bool,
}

/// Applies records; one task owns it.
#[derive(Debug)]
pub(crate) struct ViewWriter {
    views: Views,
    working: Snapshot,
    own_name: NodeName,
    instances: BTreeMap<Arc<str>, Instance>,
    placements: BTreeMap<Arc<str>, Placement>,
    /// Cluster → keys of instances and placements.
    keys: BTreeMap<String, BTreeSet<Arc<str>>>,
    errors: BTreeMap<String, String>,
}

impl ViewWriter {
    pub(crate) fn new(views: Views, own_name: NodeName) -> Self {
        Self {
            working: Snapshot::clone(&views.load()),
            views,
            own_name,
            instances: BTreeMap::new(),
            placements: BTreeMap::new(),
            keys: BTreeMap::new(),
            errors: BTreeMap::new(),
        }
    }

    /// Applies a batch and publishes the result at once. Returns the clusters whose instances, or whose
    /// existence, may have changed.
    pub(crate) fn apply(&mut self, entries: &[Arc<Entry>]) -> BTreeSet<String> {
        let mut touched = BTreeSet::new();
        for entry in entries {
            self.note(entry);
            let record = format!("{:#x}/{}", entry.kind.0, entry.key);
            match self.apply_one(entry, &mut touched) {
                Ok(()) => {
                    self.errors.remove(&record);
                }
                Err(error) => {
                    warn!(%record, %error, "a record can't be applied; the last good one stays");
                    if self.errors.len() < APPLY_ERRORS_MAX {
                        self.errors.insert(record, error.to_string());
                    }
                }
            }
        }
        for cluster in &touched {
            self.join(cluster);
        }
        self.views.current.store(Arc::new(self.working.clone()));
        if !touched.is_empty() {
            self.views.changed.send_modify(|generation| *generation += 1);
        }
        touched
    }

    /// Records that could not be applied, and why.
    pub(crate) fn errors(&self) -> Vec<(String, String)> {
        self.errors.iter().map(|(record, why)| (record.clone(), why.clone())).collect()
    }

    fn note(&mut self, entry: &Entry) {
        match &entry.owner {
            Owner::Control => {
                self.working.desired = self.working.desired.max((entry.epoch, entry.version));
                self.working.heard = true;
            }
            Owner::Node(name) => self.working.heard |= *name != self.own_name,
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
        let in_flight = self.working.clusters.get(&entry.key).map(|old| Arc::clone(&old.in_flight));
        let in_flight = in_flight.unwrap_or_default();
        let cluster = Cluster { public: body.public, response_timeout, in_flight };
        self.working.clusters.insert(&entry.key, Arc::new(cluster));
        Ok(())
    }

    fn instance(&mut self, entry: &Entry, touched: &mut BTreeSet<String>) -> Result<(), ApplyError> {
        let Owner::Node(host) = &entry.owner else { return Ok(()) };
        let new = if entry.deleted {
            None
        } else {
            let body: record::Instance = entry.decode()?;
            let state = body.state();
            let address = match body.sidecar_address.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| ApplyError::Address(text.to_owned()))?),
            };
            let cluster = cluster_name(body.cluster)?;
            Some(Instance { cluster, host: host.clone(), state, address })
        };
        let cluster = new.as_ref().map(|instance| instance.cluster.clone());
        let old = match new {
            Some(instance) => self.instances.insert(Arc::clone(&entry.key), instance),
            None => self.instances.remove(&entry.key),
        };
        self.index(&entry.key, old.map(|old| old.cluster), cluster, touched);
        Ok(())
    }

    fn placement(&mut self, entry: &Entry, touched: &mut BTreeSet<String>) -> Result<(), ApplyError> {
        let new = if entry.deleted {
            None
        } else {
            let body: record::Placement = entry.decode()?;
            let drains = body.state() == record::placement::State::Drain;
            let cluster = cluster_name(body.cluster)?;
            Some(Placement { cluster, host: body.host, drains })
        };
        let cluster = new.as_ref().map(|placement| placement.cluster.clone());
        let old = match new {
            Some(placement) => self.placements.insert(Arc::clone(&entry.key), placement),
            None => self.placements.remove(&entry.key),
        };
        self.index(&entry.key, old.map(|old| old.cluster), cluster, touched);
        Ok(())
    }

    /// Keeps the keys of each cluster.
    fn index(
        &mut self,
        key: &Arc<str>,
        old: Option<String>,
        new: Option<String>,
        touched: &mut BTreeSet<String>,
    ) {
        for cluster in [old, new].into_iter().flatten() {
            let named = self.instances.get(key).is_some_and(|i| i.cluster == cluster)
                || self.placements.get(key).is_some_and(|p| p.cluster == cluster);
            let keys = self.keys.entry(cluster.clone()).or_default();
            if named {
                keys.insert(Arc::clone(key));
            } else {
                keys.remove(key);
            }
            if keys.is_empty() {
                self.keys.remove(&cluster);
            }
            touched.insert(cluster);
        }
    }

    fn join(&mut self, cluster: &str) {
        let mut endpoints = Endpoints::default();
        for key in self.keys.get(cluster).into_iter().flatten() {
            let (Some(instance), Some(placement)) = (self.instances.get(key), self.placements.get(key))
            else {
                continue;
            };
            if instance.cluster != placement.cluster || instance.host.as_str() != placement.host {
                continue;
            }
            let state = state_of(instance.state, placement.drains);
            let started = instance.state != record::instance::State::Starting;
            endpoints.expected += u32::from(started && !placement.drains);
            if let Some(address) = instance.address {
                endpoints.all.push(Endpoint { key: Arc::clone(key), address, state });
            }
        }
        if self.keys.contains_key(cluster) {
            self.working.endpoints.insert(cluster, Arc::new(endpoints));
        } else {
            self.working.endpoints.remove(cluster);
        }
    }
}

fn cluster_name(text: String) -> Result<String, ApplyError> {
    match text.parse::<ClusterName>() {
        Ok(_) => Ok(text),
        Err(_) => Err(ApplyError::Cluster(text.escape_debug().take(80).collect())),
    }
}

const fn state_of(state: record::instance::State, drains: bool) -> State {
    use record::instance::State as Told;
    match (state, drains) {
        (Told::Healthy, false) => State::Healthy,
        (Told::Unhealthy, false) => State::Unhealthy,
        (Told::Healthy | Told::Unhealthy, true) | (Told::Draining, _) => State::Draining,
        (Told::Starting | Told::Exited | Told::Stopped, _) => State::Absent,
    }
}

#[cfg(test)]
mod tests;
