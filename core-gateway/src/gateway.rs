//! Binding and running the role.

use crate::config::Config;
use crate::metrics::CallMetrics;
use crate::records::{self, Follower};
use crate::serving::Serving;
use crate::summaries::{self, Touched};
use crate::usage::Usage;
use crate::views::Views;
use crate::worker;
use arc_swap::ArcSwap;
use atoll_gossip::{Gossip, Subscription};
use atoll_identity::{Identity, PeerPolicy};
use atoll_model::{Hop, NodeName, RegionName, Role, Roles};
use atoll_process::{Drain, Metrics, Tasks};
use atoll_proxy::ProxyMetrics;
use atoll_proxy::admission::Admissions;
use atoll_proxy::listen::{ConnectionCap, bind_workers};
use atoll_proxy::region::Reach;
use atoll_proxy::regions::{Board, TunnelFacts};
use atoll_proxy::server::MeshAcceptor;
use atoll_proxy::workers::{self, until_forced};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// What the node hands to the role.
#[derive(Debug, Clone)]
pub struct Handles {
    /// The node.
    pub name: NodeName,
    /// Its region.
    pub region: RegionName,
    /// What edges, sidecars and other gateways are shown.
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
    pub(crate) views: Views,
    pub(crate) reach: Reach,
    pub(crate) usage: Usage,
    /// The workers' tunnels to other regions.
    pub(crate) board: Board,
    pub(crate) tunnel_facts: TunnelFacts,
    pub(crate) metrics: ProxyMetrics,
    pub(crate) calls: CallMetrics,
    pub(crate) connections: ConnectionCap,
    /// Those of them that are sidecars'.
    pub(crate) sidecar_connections: Admissions,
    pub(crate) drain: Drain,
    pub(crate) apply_errors: ArcSwap<Vec<(String, String)>>,
    pub(crate) admissions: Admissions,
}

/// The role gateway.
#[derive(Debug)]
pub struct Gateway;

/// The socket is bound; nothing is served yet.
#[derive(Debug)]
pub struct Bound {
    /// Where tunnels and sidecars come in.
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
    let (address, sockets) = bind_workers(config.listen, workers::count(config.workers))
        .map_err(|source| BindError::Listen { address: config.listen, source })?;
    let metrics = ProxyMetrics::register(&parts.metrics, "gateway");
    let wan = config.wan.iter().map(|(region, ms)| (region.clone(), Duration::from_millis(*ms)));
    let tunnel_facts = TunnelFacts {
        hop: Hop::Gateway,
        node: parts.name.clone(),
        region: parts.region.clone(),
        identity: parts.identity.clone(),
        wan: Arc::new(wan.collect()),
        metrics: metrics.clone(),
    };
    let shared = Arc::new(Shared {
        name: parts.name,
        region: parts.region,
        identity: parts.identity,
        views: Views::default(),
        reach: Reach::default(),
        usage: Usage::default(),
        board: Board::new(sockets.len()),
        tunnel_facts,
        metrics,
        calls: CallMetrics::register(&parts.metrics),
        connections: ConnectionCap::new(config.connections_max),
        sidecar_connections: Admissions::new(config.sidecar_connections_max),
        drain: parts.drain,
        apply_errors: ArcSwap::default(),
        admissions: Admissions::new(config.requests_max),
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
        let mut records = Follower::new(records, Arc::clone(&shared), touched.clone());
        records.catch_up();
        tasks.spawn("gateway records", until_forced(drain.clone(), records.run()));
        let publish = summaries::publish(gossip, shared.region.clone(), Arc::clone(&shared), touched);
        tasks.spawn("gateway summaries", until_forced(drain.clone(), publish));
        let tunnels = PeerPolicy::NodeWithAny(Roles::NONE.with(Role::Edge).with(Role::Gateway));
        let who = PeerPolicy::AnyOf(vec![tunnels, PeerPolicy::AnyWorkload]);
        let acceptor = MeshAcceptor::new(&shared.identity, who);
        let run = move |worker: workers::Worker, socket| {
            worker::run(Arc::clone(&shared), worker.index, acceptor.clone(), socket)
        };
        let workers = workers::spawn_each(sockets, "gateway", run).map_err(BindError::Workers)?;
        if !workers.drained(&drain).await {
            warn!("the gateway's workers did not all end well");
        }
        Ok(())
    }
}
