//! Binding and running the role.

use crate::cache::metrics::CacheMetrics;
use crate::cache::{Cache, pressure};
use crate::certificates::{Certificates, Changed, Fetcher, Keeper, SealedError, Wanted};
use crate::config::Config;
use crate::records::{self, Follower};
use crate::serving::Serving;
use crate::tls;
use crate::views::Views;
use crate::worker::{self, Sockets};
use arc_swap::ArcSwap;
use atoll_gossip::{Gossip, Subscription};
use atoll_identity::Identity;
use atoll_model::{Hop, NodeName, RegionName, SiteName};
use atoll_process::{Drain, Metrics, Tasks};
use atoll_proxy::ProxyMetrics;
use atoll_proxy::access_log::AccessLog;
use atoll_proxy::admission::Admissions;
use atoll_proxy::listen::{ConnectionCap, bind_workers};
use atoll_proxy::regions::{Board, TunnelFacts};
use atoll_proxy::workers::{self, until_forced};
use http::HeaderValue;
use rustls::ServerConfig;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tonic::transport::Channel;
use tracing::{info, warn};

/// What the node hands to the role.
#[derive(Debug, Clone)]
pub struct Handles {
    /// The node.
    pub name: NodeName,
    /// Its site.
    pub site: SiteName,
    /// Its region.
    pub region: RegionName,
    /// Where sealed certificates are kept.
    pub data_dir: PathBuf,
    /// For tunnels.
    pub identity: Identity,
    /// Where records come from.
    pub gossip: Gossip,
    /// The node's metrics.
    pub metrics: Metrics,
    /// When to stop.
    pub drain: Drain,
    /// Spawns on the control runtime.
    pub tasks: Tasks,
    /// The node plane over mutual TLS; connects again by itself.
    pub node_plane: Channel,
}

/// Why the role can't start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A listening address.
    #[error("can't listen on {address}; is it taken, or not an address of this machine?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The access log.
    #[error("can't write the access log {path}")]
    AccessLog {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Certificates on disk.
    #[error(transparent)]
    Certificates(#[from] SealedError),
    /// The TLS library.
    #[error("can't set up TLS")]
    Tls(#[from] rustls::Error),
    /// Threads.
    #[error("can't start the workers")]
    Workers(#[source] io::Error),
}

/// Connections that other edges may have here at a time: one or two for each of their workers.
const EDGE_CONNECTIONS_MAX: usize = 4_096;

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) site: SiteName,
    /// The same, as answers carry it.
    pub(crate) site_value: HeaderValue,
    pub(crate) https_port: u16,
    pub(crate) views: Views,
    pub(crate) certificates: Certificates,
    pub(crate) certificates_changed: Changed,
    pub(crate) tls: ServerConfig,
    pub(crate) board: Board,
    pub(crate) tunnel_facts: TunnelFacts,
    pub(crate) metrics: ProxyMetrics,
    pub(crate) access_log: Option<AccessLog>,
    pub(crate) connections: ConnectionCap,
    /// Those of other edges.
    pub(crate) edge_connections: ConnectionCap,
    pub(crate) drain: Drain,
    pub(crate) apply_errors: ArcSwap<Vec<(String, String)>>,
    pub(crate) admissions: Admissions,
    /// Nothing where the operator wants none.
    pub(crate) cache: Option<Arc<Cache>>,
    pub(crate) cache_metrics: CacheMetrics,
    /// `Cache-Status` has the key.
    pub(crate) tells_cache_keys: bool,
}

/// The role edge.
#[derive(Debug)]
pub struct Edge;

/// All sockets are bound; nothing is served yet.
#[derive(Debug)]
pub struct Bound {
    /// Where plain HTTP is served.
    pub http: Vec<SocketAddr>,
    /// Where HTTPS is served.
    pub https: Vec<SocketAddr>,
    /// Where other edges are served, if they are: what they are to be told.
    pub peers: Option<SocketAddr>,
    shared: Arc<Shared>,
    sockets: Vec<Sockets>,
    tasks: Tasks,
    records: Subscription,
    fetcher: Fetcher,
    keeper: Keeper,
    cache_memory: CacheMemory,
}

/// What the cache may take.
#[derive(Debug, Clone, Copy)]
struct CacheMemory {
    /// At most.
    bytes_max: u64,
    /// Of the process; 0: to be found out.
    limit: u64,
}

impl Edge {
    /// Binds the listeners and loads what is kept on disk. Blocks on the disk for moments.
    ///
    /// # Errors
    /// What keeps it from starting; nothing is left behind.
    pub fn bind(config: Config, handles: Handles) -> Result<Bound, BindError> {
        bind(config, handles)
    }
}

fn bind(config: Config, parts: Handles) -> Result<Bound, BindError> {
    let records = parts.gossip.subscribe(&records::KINDS);
    let count = workers::count(config.workers);
    let mut sockets: Vec<Sockets> = (0..count).map(|_| Sockets::default()).collect();
    let http = listen(&config.http, &mut sockets, |sockets| &mut sockets.http)?;
    let https = listen(&config.https, &mut sockets, |sockets| &mut sockets.https)?;
    let peers = config.peer_listen.as_slice();
    let peers = listen(peers, &mut sockets, |sockets| &mut sockets.edges)?.first().copied();
    let peers = peers.map(|bound| config.peer_advertise.unwrap_or(bound));
    let https_port = match config.public_https_port {
        0 => https.first().map_or(443, SocketAddr::port),
        port => port,
    };
    let metrics = ProxyMetrics::register(&parts.metrics, "edge");
    let access_log = config.access_log.as_deref().map(|path| open_log(path, &metrics)).transpose()?;
    let (certificates, journal) = Certificates::load(&parts.data_dir)?;
    let changed = Changed::default();
    let shared = Arc::new(Shared {
        site_value: HeaderValue::try_from(parts.site.as_str()).unwrap_or(HeaderValue::from_static("-")),
        site: parts.site,
        https_port,
        views: Views::default(),
        certificates: certificates.clone(),
        certificates_changed: changed.clone(),
        tls: tls::base_config()?,
        board: Board::new(count),
        tunnel_facts: TunnelFacts {
            hop: Hop::Edge,
            node: parts.name,
            region: parts.region,
            identity: parts.identity,
            wan: Arc::new(config.wan_delays()),
            metrics: metrics.clone(),
        },
        metrics,
        access_log,
        connections: ConnectionCap::new(config.connections_max),
        edge_connections: ConnectionCap::new(EDGE_CONNECTIONS_MAX),
        drain: parts.drain,
        apply_errors: ArcSwap::default(),
        admissions: Admissions::new(config.requests_max),
        cache: (config.cache_bytes_max > 0).then(|| {
            Cache::new(config.cache_bytes_max, config.cache_object_bytes_max, parts.gossip.behind())
        }),
        cache_metrics: CacheMetrics::register(&parts.metrics),
        tells_cache_keys: config.cache_status_key,
    });
    let keeper = Keeper { certificates: certificates.clone(), changed: changed.clone(), journal };
    let cache_memory = CacheMemory { bytes_max: config.cache_bytes_max, limit: config.memory_limit_bytes };
    let wanted = Wanted::default();
    let fetcher = Fetcher { wanted, loaded: certificates, changed, node_plane: parts.node_plane };
    Ok(Bound {
        http,
        https,
        peers,
        shared,
        sockets,
        tasks: parts.tasks,
        records,
        fetcher,
        keeper,
        cache_memory,
    })
}

impl Bound {
    /// Answers questions about the edge.
    #[must_use]
    pub fn serving(&self) -> Serving {
        Serving { shared: Arc::clone(&self.shared) }
    }

    /// Serves until the drain is over: every connection has finished, or the drain was forced.
    ///
    /// # Errors
    /// When the workers can't be started.
    pub async fn run(self) -> Result<(), BindError> {
        let Self { shared, sockets, tasks, records, fetcher, keeper, http, https, peers, cache_memory } =
            self;
        info!(
            ?http,
            ?https,
            ?peers,
            workers = sockets.len(),
            certificates = shared.certificates.len(),
            "the edge serves"
        );
        let drain = shared.drain.clone();
        let wanted = fetcher.wanted.clone();
        let mut records = Follower::new(records, Arc::clone(&shared), wanted);
        records.catch_up();
        tasks.spawn("edge records", until_forced(drain.clone(), records.run()));
        tasks.spawn("edge certificates", until_forced(drain.clone(), fetcher.run()));
        tasks.spawn("edge certificates on disk", until_forced(drain.clone(), keeper.run()));
        if let Some(cache) = shared.cache.clone() {
            let keep = keep_cache(Arc::clone(&shared), cache, cache_memory);
            tasks.spawn("cache memory", until_forced(drain.clone(), keep));
        }
        let run = move |worker: workers::Worker, own| worker::run(Arc::clone(&shared), worker.index, own);
        let workers = workers::spawn_each(sockets, "edge", run).map_err(BindError::Workers)?;
        if !workers.drained(&drain).await {
            warn!("the edge's workers did not all end well");
        }
        Ok(())
    }
}

/// Gives the cache what memory allows, and says what it has. For ever.
async fn keep_cache(shared: Arc<Shared>, cache: Arc<Cache>, memory: CacheMemory) {
    let index = &cache.index;
    let apply = |bytes| index.set_capacity(bytes);
    tokio::join!(
        pressure::follow(memory.bytes_max, memory.limit, apply, || index.capacity_in_use()),
        shared.cache_metrics.follow(&cache),
    );
}

fn listen(
    addresses: &[SocketAddr],
    workers: &mut [Sockets],
    place: impl Fn(&mut Sockets) -> &mut Vec<TcpListener>,
) -> Result<Vec<SocketAddr>, BindError> {
    let mut bound = Vec::new();
    for address in addresses {
        let (local, sockets) = bind_workers(*address, workers.len())
            .map_err(|source| BindError::Listen { address: *address, source })?;
        for (worker, socket) in workers.iter_mut().zip(sockets) {
            place(worker).push(socket);
        }
        bound.push(local);
    }
    Ok(bound)
}

fn open_log(path: &Path, metrics: &ProxyMetrics) -> Result<AccessLog, BindError> {
    let failed = |source| BindError::AccessLog { path: path.to_owned(), source };
    let log = if path == Path::new("-") {
        AccessLog::start(io::stdout(), metrics.clone())
    } else {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        AccessLog::start(file, metrics.clone())
    };
    log.map_err(failed)
}
