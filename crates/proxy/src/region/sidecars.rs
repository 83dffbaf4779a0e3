//! One worker's connections to the region's sidecars, and which of them it leaves out.

use super::reach::{Ejection, Reach};
use crate::client::{H2Peer, H2PeerConfig, MeshConnector};
use crate::metrics::ProxyMetrics;
use crate::workers::spawn_task;
use atoll_identity::{Identity, PeerPolicy};
use atoll_model::{ClusterName, Hop};
use atoll_routing::endpoint::{self, State};
use atoll_routing::outlier::Outlier;
use atoll_routing::placed::Endpoint;
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{debug, info};

/// How long a probe of an ejected instance waits for a connection.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// A sidecar, as this worker sees it.
#[derive(Debug)]
pub struct Sidecar {
    key: Arc<str>,
    cluster: ClusterName,
    peer: H2Peer,
    outlier: RefCell<Outlier>,
    /// While it is left out. A task probes it until it can be reached again.
    ejection: RefCell<Option<Ejection>>,
}

/// The sidecars. Stays on its worker.
#[derive(Debug)]
pub struct Sidecars {
    hop: Hop,
    identity: Identity,
    metrics: ProxyMetrics,
    reach: Reach,
    /// Outlier times count from here.
    start: Instant,
    open: RefCell<HashMap<Arc<str>, Rc<Sidecar>>>,
}

impl Sidecars {
    /// None open yet. `hop` is who we are in the answers that we make; it shows its sidecars `identity`.
    #[must_use]
    pub fn new(hop: Hop, identity: Identity, metrics: ProxyMetrics, reach: Reach) -> Self {
        Self { hop, identity, metrics, reach, start: Instant::now(), open: RefCell::default() }
    }

    /// Who we are in the answers that we make.
    #[must_use]
    pub fn hop(&self) -> Hop {
        self.hop
    }

    /// Closes the connections that are no longer of use: those of which `current` (cluster, `host/instance`,
    /// address) is false. To be called when the instances have changed.
    pub fn keep(&self, current: impl Fn(&ClusterName, &str, SocketAddr) -> bool) {
        self.open.borrow_mut().retain(|key, sidecar| current(&sidecar.cluster, key, sidecar.peer.address()));
    }

    /// The less loaded of two instances taken by chance; those of `tried` are left out.
    pub fn pick(
        &self,
        cluster: &ClusterName,
        endpoints: &[Endpoint],
        tried: &[Arc<str>],
        random: u64,
    ) -> Option<Rc<Sidecar>> {
        let open = self.open.borrow();
        let candidate = |endpoint: &Endpoint| {
            let known = open.get(&endpoint.key);
            let left_out = known.is_some_and(|sidecar| sidecar.ejection.borrow().is_some());
            let load = known.map_or(0, |sidecar| sidecar.peer.in_flight());
            endpoint::Candidate {
                state: seen(endpoint.state, left_out),
                load: u32::try_from(load).unwrap_or(u32::MAX),
                excluded: tried.contains(&endpoint.key),
            }
        };
        let pick = endpoint::pick(endpoints.iter().map(candidate), random)?;
        drop(open);
        endpoints.get(pick.index).map(|endpoint| self.sidecar(cluster, endpoint))
    }

    fn sidecar(&self, cluster: &ClusterName, endpoint: &Endpoint) -> Rc<Sidecar> {
        let mut open = self.open.borrow_mut();
        let is_it =
            |known: &&Rc<Sidecar>| known.peer.address() == endpoint.address && known.cluster == *cluster;
        if let Some(known) = open.get(&endpoint.key).filter(is_it) {
            return Rc::clone(known);
        }
        // Whoever answers there must prove that it is an instance of this very service.
        let connector = MeshConnector::new(&self.identity, PeerPolicy::Workload(cluster.clone()));
        let peer = H2Peer::open(H2PeerConfig::near(endpoint.address), connector, self.metrics.clone());
        let sidecar = Rc::new(Sidecar {
            key: Arc::clone(&endpoint.key),
            cluster: cluster.clone(),
            peer,
            outlier: RefCell::default(),
            ejection: RefCell::default(),
        });
        open.insert(Arc::clone(&endpoint.key), Rc::clone(&sidecar));
        sidecar
    }

    /// It could not be connected to: perhaps it is left out from now on.
    pub fn connect_failed(&self, sidecar: &Rc<Sidecar>) {
        let wait = sidecar.outlier.borrow_mut().connect_failed(self.start.elapsed(), rand::random());
        let Some(wait) = wait else { return };
        if sidecar.ejection.borrow().is_some() {
            return;
        }
        info!(instance = %sidecar.key, cluster = %sidecar.cluster, why = sidecar.peer.last_error(),
              "an instance can't be connected to; left out until it can");
        *sidecar.ejection.borrow_mut() = Some(self.reach.eject(&sidecar.key));
        let (probed, start) = (Rc::downgrade(sidecar), self.start);
        spawn_task("probe", &self.metrics, async move {
            let mut wait = wait;
            loop {
                tokio::time::sleep(wait).await;
                // Closed meanwhile: the instance is gone.
                let Some(sidecar) = probed.upgrade() else { return };
                if sidecar.ejection.borrow().is_none() {
                    return;
                }
                if sidecar.peer.ready(PROBE_TIMEOUT).await {
                    info!(instance = %sidecar.key, "an instance can be connected to again");
                    sidecar.answered();
                    return;
                }
                debug!(instance = %sidecar.key, why = sidecar.peer.last_error(), "still not");
                let next = sidecar.outlier.borrow_mut().connect_failed(start.elapsed(), rand::random());
                wait = next.unwrap_or(PROBE_TIMEOUT);
            }
        });
    }
}

impl Sidecar {
    /// `host/instance`.
    #[must_use]
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// The connection to it.
    #[must_use]
    pub fn peer(&self) -> &H2Peer {
        &self.peer
    }

    /// It answered: nothing is held against it any more.
    pub fn answered(&self) {
        self.outlier.borrow_mut().succeeded();
        self.ejection.borrow_mut().take();
    }
}

/// What a host says of an instance, and what we have seen of it ourselves.
#[must_use]
pub const fn seen(said: State, left_out: bool) -> State {
    match said {
        State::Healthy if left_out => State::Ejected,
        said => said,
    }
}
