//! Binding and running the role.

use crate::config::Config;
use crate::reach::Reach;
use crate::records;
use crate::serving::Serving;
use crate::summaries::{self, Touched};
use crate::usage::Usage;
use crate::views::Views;
use crate::worker;
use arc_swap::ArcSwap;
use atoll_gossip::{Gossip, Subscription};
use atoll_identity::{ClientAuth, Identity, PeerPolicy};
use atoll_model::{NodeName, RegionName, Role, Roles};
use atoll_process::{Drain, Metrics, Tasks};
use atoll_proxy::ProxyMetrics;
use atoll_proxy::listen::{ConnectionCap, bind_workers};
use atoll_proxy::workers::{self, Workers};
use rustls::ServerConfig;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tracing::{info, warn};

/// How long workers may take to end once the drain was forced.
const END_WITHIN: Duration = Duration::from_secs(2);

/// What the node hands to the role.
#[derive(Debug, Clone)]
pub struct Handles {
    /// The node.
    pub name: NodeName,
    /// Its region.
    pub region: RegionName,
    /// For tunnels and for sidecars.
    pub identity: Identity,
    /// Where records come from, and summaries go to.
    pub gossip: Gossip,
    /// The node's metrics.
    pub metrics: Metrics,
    /// When to stop.
    pub drain: Drain,
    /// Spawns on the control runtime.
    pub tasks: Tasks,
}

/// Why the role can't start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The listening address.
    #[error("can't listen on {address}; is it taken, or not an address of this machine?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Threads.
    #[error("can't start the workers")]
    Workers(#[source] io::Error),
}

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) name: NodeName,
    pub(crate) region: RegionName,
    pub(crate) identity: Identity,
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) views: Views,
    pub(crate) reach: Reach,
    pub(crate) usage: Usage,
    pub(crate) metrics: ProxyMetrics,
    pub(crate) connections: ConnectionCap,
    pub(crate) drain: Drain,
    pub(crate) apply_errors: ArcSwap<Vec<(String, String)>>,
    in_flight: AtomicUsize,
    requests_max: usize,
}

impl Shared {
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// A place among the requests that the gateway takes at a time; given back when dropped.
#[derive(Debug)]
pub(crate) struct Admission(Arc<Shared>);

impl Admission {
    pub(crate) fn take(shared: &Arc<Shared>) -> Option<Self> {
        // Counted before the look, so that two can't take the last place.
        let admission = Self(Arc::clone(shared));
        let before = shared.in_flight.fetch_add(1, Ordering::Relaxed);
        (before < shared.requests_max).then_some(admission)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The role gateway.
#[derive(Debug)]
pub struct Gateway;

/// The socket is bound; nothing is served yet.
#[derive(Debug)]
pub struct Bound {
    /// Where tunnels come in.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    sockets: Vec<TcpListener>,
    tasks: Tasks,
    records: Subscription,
    gossip: Gossip,
}

impl Gateway {
    /// Binds the listener.
    ///
    /// # Errors
    /// When the address can't be listened on.
    pub fn bind(config: Config, handles: Handles) -> Result<Bound, BindError> {
        bind(&config, handles)
    }
}

fn bind(config: &Config, parts: Handles) -> Result<Bound, BindError> {
    let records = parts.gossip.subscribe(&records::KINDS);
    let (address, sockets) = bind_workers(config.listen, config.worker_count())
        .map_err(|source| BindError::Listen { address: config.listen, source })?;
    let tunnels = Roles::NONE.with(Role::Edge).with(Role::Gateway);
    let shared = Arc::new(Shared {
        name: parts.name,
        region: parts.region,
        tls: parts.identity.server_config(&[b"h2"], PeerPolicy::NodeWithAny(tunnels), ClientAuth::Required),
        identity: parts.identity,
        views: Views::default(),
        reach: Reach::default(),
        usage: Usage::default(),
        metrics: ProxyMetrics::register(&parts.metrics, "gateway"),
        connections: ConnectionCap::new(config.connections_max),
        drain: parts.drain,
        apply_errors: ArcSwap::default(),
        in_flight: AtomicUsize::new(0),
        requests_max: config.requests_max,
    });
    Ok(Bound { address, shared, sockets, tasks: parts.tasks, records, gossip: parts.gossip })
}

impl Bound {
    /// Answers questions about the gateway.
    #[must_use]
    pub fn serving(&self) -> Serving {
        Serving { shared: Arc::clone(&self.shared) }
    }

    /// Serves until the drain is over: every connection has finished, or the drain was forced.
    ///
    /// # Errors
    /// When the workers can't be started.
    pub async fn run(self) -> Result<(), BindError> {
        let Self { address, shared, sockets, tasks, records, gossip } = self;
        info!(%address, workers = sockets.len(), "the gateway serves");
        let drain = shared.drain.clone();
        let touched = Touched::default();
        let follow = records::follow(records, Arc::clone(&shared), touched.clone());
        tasks.spawn("gateway records", until_forced(drain.clone(), follow));
        let publish = summaries::publish(gossip, shared.region.clone(), Arc::clone(&shared), touched);
        tasks.spawn("gateway summaries", until_forced(drain.clone(), publish));
        let workers = start(&shared, sockets).map_err(BindError::Workers)?;
        let ended = workers.finished(Duration::MAX);
        tokio::pin!(ended);
        let well = tokio::select! {
            well = &mut ended => well,
            () = drain.forced() => tokio::time::timeout(END_WITHIN, ended).await.unwrap_or(false),
        };
        if !well {
            warn!("the gateway's workers did not all end well");
        }
        Ok(())
    }
}

async fn until_forced(drain: Drain, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = drain.forced() => {}
    }
}

fn start(shared: &Arc<Shared>, sockets: Vec<TcpListener>) -> io::Result<Workers> {
    let count = sockets.len();
    // Each worker takes its own, on its own thread.
    let sockets: Mutex<Vec<Option<TcpListener>>> = Mutex::new(sockets.into_iter().map(Some).collect());
    let shared = Arc::clone(shared);
    workers::spawn(count, "gateway", move |worker| {
        let mut all = sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = all.get_mut(worker.index).and_then(Option::take);
        let shared = Arc::clone(&shared);
        async move {
            if let Some(socket) = socket {
                worker::run(shared, socket).await;
            }
        }
    })
}
