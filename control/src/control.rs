//! Putting the parts together.

use crate::api::{self, Api, Parts, ServerTls};
use crate::apps::{Context, records};
use crate::attach::Attached;
use crate::bundles::Bundles;
use crate::certificates::{Certificates, renew_due, warn_of_expiry};
use crate::config::Config;
use crate::metrics::{ControlMetrics, NodePlaneMetrics};
use crate::node_plane::{self, NodePlaneService};
use crate::observer;
use crate::publisher::{Held, Publisher};
use crate::reconciler::Reconciler;
use crate::reconciler::progress::Progresses;
use crate::store::objects::{App, Deploy, JoinToken, Node};
use crate::store::seal::Sealer;
use crate::store::{DesiredFeed, Store, StoreError};
use crate::world::World;
use atoll_gossip::Gossip;
use atoll_identity::{Identity, TrustDomain};
use atoll_mesh_ca::MeshCa;
use atoll_model::{NodeName, OrgName, RegionName, SiteName};
use atoll_process::clock::unix_ms;
use atoll_process::{Drain, Metrics, Tasks};
use rustls::pki_types::ServerName;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// Between two sweeps of what has run out in the store.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// Between two warnings of certificates that run out and that only their owners can renew.
const WARN_EVERY: Duration = Duration::from_secs(24 * 3_600);
/// Ended deploys of apps that are gone, and used or expired join tokens, are kept this long.
const REMAINS_KEPT_MS: u64 = 24 * 3_600 * 1_000;
/// How long the parts may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// What the node gives its control role.
#[derive(Debug)]
pub struct Handles {
    /// The node's name.
    pub name: NodeName,
    /// Its site.
    pub site: SiteName,
    /// Its region.
    pub region: RegionName,
    /// Where the store, the tokens and the public CA are.
    pub data_dir: PathBuf,
    /// The node's mesh identity.
    pub identity: Identity,
    /// The node's gossip, joined to the global scope and to every region's.
    pub gossip: Gossip,
    /// Where metrics go.
    pub metrics: Metrics,
    /// When to stop.
    pub drain: Drain,
    /// The mesh CA.
    pub mesh_ca: Arc<MeshCa>,
    /// The name that identities are under.
    pub trust_domain: TrustDomain,
}

/// Why control can't start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A socket.
    #[error("the {what} cannot listen at {address}: {source}; is another process using the port?")]
    Listen {
        /// Which listener.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A file of the data folder, or a certificate.
    #[error("control cannot prepare {what}: {source}")]
    Prepare {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The control role.
#[derive(Debug)]
pub struct Control;

/// Control with its store open and its sockets bound.
#[derive(Debug)]
pub struct Bound {
    /// Where the API listens.
    pub api_addr: SocketAddr,
    /// Where nodes reach control.
    pub node_plane_addr: SocketAddr,
    /// The admin token, also in the file `admin-token`.
    pub admin_token: String,
    api_listener: TcpListener,
    node_plane_listener: TcpListener,
    parts: BoundParts,
}

#[derive(Debug)]
struct BoundParts {
    config: Arc<Config>,
    handles: Handles,
    store: Store,
    feed: DesiredFeed,
    sealer: Sealer,
    certificates: Certificates,
    tls: Option<Arc<ServerTls>>,
}

impl Control {
    /// Opens the store (or makes it) and binds both listeners. Nothing is served yet.
    pub async fn bind(config: Config, handles: Handles) -> Result<Bound, BindError> {
        let now_ms = unix_ms();
        let prepare = |what| move |source| BindError::Prepare { what, source };
        let dir = &handles.data_dir;
        atoll_process::files::private_dir(dir).map_err(prepare("its data folder"))?;
        let (store, feed) = Store::open(dir, now_ms)?;
        let sealer = Sealer::open_or_create(&dir.join("seal.key")).map_err(prepare("its sealing key"))?;
        let certificates =
            Certificates::open(&config, dir, sealer.clone(), now_ms).map_err(prepare("the public CA"))?;
        let admin_token = api::admin_token(&store, dir, now_ms).await.map_err(prepare("the admin token"))?;
        register_self(&store, &handles, now_ms).await?;
        let api_listener = listen("API", config.api_listen).await?;
        let node_plane_listener = listen("node plane", config.node_plane_listen).await?;
        let api_addr = local_addr("API", &api_listener, config.api_listen)?;
        let node_plane_addr = local_addr("node plane", &node_plane_listener, config.node_plane_listen)?;
        let tls = match api_addr.ip().is_loopback() {
            true => None,
            false => Some(
                ServerTls::new(handles.mesh_ca.clone(), api_names(&config, api_addr), now_ms)
                    .map_err(prepare("the API's certificate"))?,
            ),
        };
        let config = Arc::new(config);
        let parts = BoundParts { config, handles, store, feed, sealer, certificates, tls };
        Ok(Bound { api_addr, node_plane_addr, admin_token, api_listener, node_plane_listener, parts })
    }
}

impl Bound {
    /// Serves until `drain` starts, and ends what is open.
    pub async fn run(self, drain: Drain) {
        let Self { api_listener, node_plane_listener, parts, .. } = self;
        let BoundParts { config, handles, store, feed, sealer, certificates, tls } = parts;
        let metrics = ControlMetrics::new(&handles.metrics);
        let attached = Attached::default();
        let bundles = Bundles::new(&handles.data_dir, config.bundles, &handles.metrics);
        let progresses = Progresses::default();
        let held = Held::default();
        let (world_in, world) = watch::channel(Arc::new(World::default()));
        let context = Context {
            zone: config.zone.as_str().into(),
            regions: config.regions.as_slice().into(),
            certificates: certificates.clone(),
            now_ms: 0,
        };
        let tasks = Tasks::new(Handle::current());
        let gossip = handles.gossip.clone();
        bring_up_to_date(&store, &context).await;
        tasks.spawn_vital(
            "control observer",
            observer::run(gossip.clone(), handles.name.clone(), world_in, drain.clone()),
        );
        let publisher =
            Publisher { store: store.clone(), feed, gossip, held: held.clone(), metrics: metrics.clone() };
        tasks.spawn_vital("control publisher", publisher.run(drain.clone()));
        let reconciler = Reconciler {
            store: store.clone(),
            world: world.clone(),
            attached: attached.clone(),
            context: context.clone(),
            config: config.clone(),
            progresses: progresses.clone(),
            metrics: metrics.clone(),
        };
        tasks.spawn_vital("control reconciler", reconciler.run(drain.clone()));
        tasks.spawn_vital(
            "control upkeep",
            upkeep(store.clone(), certificates.clone(), config.clone(), drain.clone()),
        );
        tasks.spawn_vital("control bundles", sweep_bundles(bundles.clone(), store.clone(), drain.clone()));
        let plane = NodePlaneMetrics::new(&handles.metrics);
        match NodePlaneService::new(
            store.clone(),
            handles.mesh_ca.clone(),
            certificates,
            attached.clone(),
            config.regions.as_slice().into(),
            bundles.clone(),
            plane,
        ) {
            Ok(service) => {
                let identity = handles.identity.clone();
                let service = service.by_clock(identity.clock().clone());
                tasks.spawn_vital(
                    "node plane",
                    node_plane::serve(node_plane_listener, identity, service, drain.clone()),
                );
            }
            Err(error) => return tracing::error!(%error, "the node plane could not be started"),
        }
        let ca = handles.mesh_ca;
        let parts =
            Parts { store, world, attached, context, config, progresses, sealer, ca, held, bundles, metrics };
        let api = Api::new(parts);
        let router = api.router();
        drop(api);
        tasks.spawn_vital("API", api::serve(api_listener, tls, router, drain.clone()));
        tokio::select! {
            () = drain.draining() => {}
            // Half a control is worse than one that is started again: nodes go on without it.
            part = tasks.vital_end() => tracing::error!(part, "a part of control ended; the role control ends"),
        }
        if !tasks.finished(END_TIMEOUT).await {
            tracing::warn!("some of control had not ended in time");
        }
    }
}

/// A store of an earlier version lacks the records that have come since.
async fn bring_up_to_date(store: &Store, context: &Context) {
    let context = context.clone();
    let published = store.change(move |change| {
        records::publish_region_clusters(change, &context);
        Ok::<_, StoreError>(())
    });
    if let Err(error) = published.await {
        tracing::error!(%error, "what hosts are to know of services could not be brought up to date");
    }
}

/// The control node is a node like others in lists, though it never joins by token.
async fn register_self(store: &Store, handles: &Handles, now_ms: u64) -> Result<(), StoreError> {
    let own = handles.identity.own();
    let org = OrgName::default_org();
    let before = store.get::<Node>(&format!("{org}/{}", handles.name));
    let node = Node {
        org,
        name: handles.name.clone(),
        site: handles.site.clone(),
        region: handles.region.clone(),
        roles: own.roles,
        epoch: own.epoch.unwrap_or(0),
        joined_ms: before.as_ref().map_or(now_ms, |before| before.joined_ms),
        removed: false,
    };
    if before.as_ref() == Some(&node) {
        return Ok(());
    }
    store.change(move |change| change.put(&node)).await.map(|_| ())
}

/// Renews public certificates, and forgets what has run out.
async fn upkeep(store: Store, certificates: Certificates, config: Arc<Config>, drain: Drain) {
    let check = Duration::from_millis(config.timing.certificate_check_ms.max(100));
    let mut certificate_check = tokio::time::interval(check);
    let mut sweep_check = tokio::time::interval(SWEEP_EVERY);
    let mut expiry_check = tokio::time::interval(WARN_EVERY);
    loop {
        tokio::select! {
            () = drain.draining() => return,
            _ = expiry_check.tick() => warn_of_expiry(&store, unix_ms()).await,
            _ = certificate_check.tick() => {
                if let Err(error) = renew_due(&store, &certificates).await {
                    tracing::error!(%error, "public certificates could not be renewed");
                }
            }
            _ = sweep_check.tick() => {
                if let Err(error) = sweep(&store, unix_ms()).await {
                    tracing::warn!(%error, "the store could not be swept");
                }
            }
        }
    }
}

/// Forgets bundles that nothing uses.
async fn sweep_bundles(bundles: Bundles, store: Store, drain: Drain) {
    let mut check = tokio::time::interval(bundles.sweep_every());
    loop {
        tokio::select! {
            () = drain.draining() => return,
            _ = check.tick() => {}
        }
        let (bundles, store) = (bundles.clone(), store.clone());
        let swept = tokio::task::spawn_blocking(move || bundles.sweep(&store, std::time::SystemTime::now()));
        if let Ok(Err(error)) = swept.await {
            tracing::warn!(%error, "bundles could not be swept");
        }
    }
}

/// Looks for what has run out outside the change, which holds up all others.
async fn sweep(store: &Store, now_ms: u64) -> Result<(), StoreError> {
    let old = move |ended_ms: u64| now_ms.saturating_sub(ended_ms) > REMAINS_KEPT_MS;
    let ended = move |deploy: &Deploy| deploy.state.is_final() && old(deploy.state_ms);
    let deploys = store.select(ended).await;
    let swept = store.change(move |change| {
        api::sweep(change, now_ms)?;
        for token in change.list::<JoinToken>("") {
            let ended_ms = token.record.used_by.as_ref().map_or(token.record.expires_ms, |used| used.at_ms);
            if old(ended_ms) {
                change.remove::<JoinToken>(&format!("{}/{}", token.org, token.record.id));
            }
        }
        for deploy in deploys {
            let app = change.get::<App>(&format!("{}/{}", deploy.org, deploy.app));
            if !app.is_some_and(|app| app.deploy == deploy.id || app.past.contains(&deploy.id)) {
                change.remove::<Deploy>(&format!("{}/{}", deploy.org, deploy.id));
            }
        }
        Ok::<_, StoreError>(())
    });
    swept.await.map(|_| ())
}

async fn listen(what: &'static str, address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError::Listen { what, address, source })
}

fn local_addr(
    what: &'static str,
    listener: &TcpListener,
    address: SocketAddr,
) -> Result<SocketAddr, BindError> {
    listener.local_addr().map_err(|source| BindError::Listen { what, address, source })
}

/// What the API's certificate covers.
fn api_names(config: &Config, address: SocketAddr) -> Vec<ServerName<'static>> {
    let listed = config.api_names.iter().filter_map(|name| {
        let parsed = ServerName::try_from(name.clone());
        parsed
            .inspect_err(|_| tracing::warn!(name, "not a host name; left out of the API's certificate"))
            .ok()
    });
    let own = (!address.ip().is_unspecified()).then(|| ServerName::from(address.ip()));
    listed.chain(own).chain(ServerName::try_from("localhost")).collect()
}

#[cfg(test)]
mod tests;
