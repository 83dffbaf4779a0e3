//! What the edge knows from gossip, as one snapshot that data-path workers load once a request.
//!
//! [`ViewWriter`] has one owner, a task of the control runtime; everyone else reads. A record that can't be
//! applied changes nothing: the last good one stays, and the error is kept for the node's facts.

use arc_swap::ArcSwap;
use atoll_gossip::{Entry, Owner};
use atoll_model::{ClusterName, Kind, NodeName, RegionName, Role};
use atoll_routing::hosts::{Route, VirtualHost, VirtualHostError};
use atoll_routing::region::Health;
use atoll_routing::{HostTable, ShardedMap};
use atoll_wire::record;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::warn;

/// Errors that are remembered, to be shown.
const APPLY_ERRORS_MAX: usize = 16;
const RESPONSE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const RESPONSE_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// A cluster, as far as the edge cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cluster {
    /// Where it runs, sorted.
    pub(crate) regions: Vec<RegionName>,
    /// Longest wait of the sidecar for the instance's response head.
    pub(crate) response_timeout: Duration,
}

/// A gateway that tunnels go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gateway {
    pub(crate) name: NodeName,
    /// From its record certificate, not from what it says.
    pub(crate) region: RegionName,
    pub(crate) address: SocketAddr,
    pub(crate) draining: bool,
}

/// What one gateway says of a cluster in its region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RegionHealth {
    pub(crate) region: RegionName,
    pub(crate) said_by: NodeName,
    pub(crate) health: Health,
}

/// Everything that a request is decided by. A clone costs a few reference counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    pub(crate) hosts: HostTable,
    pub(crate) clusters: ShardedMap<Arc<Cluster>>,
    /// By cluster.
    pub(crate) health: ShardedMap<Arc<[RegionHealth]>>,
    /// How many gateways are known.
    pub(crate) gateway_count: usize,
    /// The newest desired state that was seen: the store's epoch and revision.
    pub(crate) desired: (u64, u64),
    /// Something was heard from another node.
    pub(crate) heard: bool,
}

/// The snapshot that is current. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Views {
    current: Arc<ArcSwap<Snapshot>>,
    /// Apart from the snapshot, so that workers look at their tunnels only when a gateway has changed.
    gateways: watch::Sender<Arc<[Gateway]>>,
}

impl Default for Views {
    fn default() -> Self {
        Self { current: Arc::default(), gateways: watch::Sender::new(Arc::new([])) }
    }
}

impl Views {
    pub(crate) fn load(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.current.load()
    }

    pub(crate) fn gateways(&self) -> watch::Receiver<Arc<[Gateway]>> {
        self.gateways.subscribe()
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
    #[error("`{0}` is not an address")]
    Address(String),
    #[error("the key is not `region/cluster`")]
    SummaryKey,
}

/// Applies records.
#[derive(Debug)]
pub(crate) struct ViewWriter {
    views: Views,
    working: Snapshot,
    own_name: NodeName,
    gateways: BTreeMap<NodeName, Gateway>,
    /// Record (`kind/key`) → why it can't be applied.
    errors: BTreeMap<String, String>,
}

impl ViewWriter {
    pub(crate) fn new(views: Views, own_name: NodeName) -> Self {
        let working = Snapshot::clone(&views.load());
        Self { views, working, own_name, gateways: BTreeMap::new(), errors: BTreeMap::new() }
    }

    /// Applies a batch and publishes the result at once.
    pub(crate) fn apply(&mut self, entries: &[Arc<Entry>]) {
        for entry in entries {
            self.note(entry);
            let record = format!("{:#x}/{}", entry.kind.0, entry.key);
            match self.apply_one(entry) {
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
        self.views.current.store(Arc::new(self.working.clone()));
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
        let cluster = Cluster { regions, response_timeout };
        self.working.clusters.insert(&entry.key, Arc::new(cluster));
        Ok(())
    }

    fn node(&mut self, entry: &Entry) -> Result<(), ApplyError> {
        let signer = &entry.signer;
        let gateway = if entry.deleted || !signer.roles.has(Role::Gateway) {
            None
        } else {
            let body: record::NodeFacts = entry.decode()?;
            let address =
                body.gateway_address.parse().map_err(|_| ApplyError::Address(body.gateway_address))?;
            let (name, region) = (signer.node.clone(), signer.region.clone());
            Some(Gateway { name, region, address, draining: body.draining })
        };
        let changed = match gateway {
            Some(gateway) => {
                self.gateways.insert(gateway.name.clone(), gateway.clone()).as_ref() != Some(&gateway)
            }
            None => self.gateways.remove(&*entry.key).is_some(),
        };
        if changed {
            self.working.gateway_count = self.gateways.len();
            self.views.gateways.send_replace(self.gateways.values().cloned().collect());
        }
        Ok(())
    }

    fn summary(&mut self, entry: &Entry) -> Result<(), ApplyError> {
        let (region, cluster) = entry.key.split_once('/').ok_or(ApplyError::SummaryKey)?;
        let region = RegionName::new(region).map_err(|_| ApplyError::SummaryKey)?;
        let Owner::Node(said_by) = &entry.owner else { return Ok(()) };
        let old = self.working.health.get(cluster).map_or(&[][..], |all| &all[..]);
        let mut all: Vec<RegionHealth> =
            old.iter().filter(|h| h.region != region || h.said_by != *said_by).cloned().collect();
        if !entry.deleted {
            let body: record::RegionSummary = entry.decode()?;
            let health = match body.health() {
                record::region_summary::Health::None => Health::None,
                record::region_summary::Health::Some => Health::Some,
                record::region_summary::Health::Full => Health::Full,
            };
            all.push(RegionHealth { region, said_by: said_by.clone(), health });
        }
        if all.is_empty() {
            self.working.health.remove(cluster);
        } else {
            self.working.health.insert(cluster, all.into());
        }
        Ok(())
    }
}

fn route(route: record::Route) -> Result<Route, ApplyError> {
    let Ok(cluster) = route.cluster.parse::<ClusterName>() else {
        return Err(ApplyError::Cluster { route: route.name, cluster: route.cluster });
    };
    Ok(Route { name: route.name, path_prefix: route.path_prefix, cluster })
}

#[cfg(test)]
mod tests;
