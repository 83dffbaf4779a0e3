//! The host as a role of a node: placements come by gossip, reports go out by it.

mod denials;
mod node_plane;
mod placements;
mod usage;

use crate::bundles::Bundles;
use crate::config::Config;
use crate::fleet::Fleet;
use crate::instance::{Ground, Report, Reporter, Shown};
use crate::logs::{self, Janitor};
use crate::metrics::HostMetrics;
use crate::ports::Ports;
use crate::program::base_environment;
use crate::region::{self, Region};
use crate::sidecars::Sidecars;
use crate::workload::Workloads;
use atoll_bundle::Digest;
use atoll_gossip::{Gossip, Scope};
use atoll_identity::Identity;
use atoll_model::{InstanceId, Kind, NodeName, RegionName, SiteName};
use atoll_process::files::private_dir;
use atoll_process::{Drain, Metrics};
use atoll_wire::node::{LogLines, ReadLogs};
use atoll_wire::sidecar::Denied;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::transport::Channel;
use tracing::warn;

/// Placements that wait to be followed.
const ORDERS: usize = 256;

/// Between two looks for bundles that nothing uses.
const SWEEP_LEAST: Duration = Duration::from_millis(100);
const SWEEP_MOST: Duration = Duration::from_secs(600);

/// What the node lends to its host.
#[derive(Debug, Clone)]
pub struct Handles {
    /// The node.
    pub name: NodeName,
    /// Where it is.
    pub site: SiteName,
    /// The site's region.
    pub region: RegionName,
    /// The node's data folder. The host keeps `instances/`, `workloads/`, `bundles/` and `run/` in it.
    pub data_dir: PathBuf,
    /// The node's identity; the roots it trusts are also given to sidecars.
    pub identity: Identity,
    /// Where placements come from and instances are reported.
    pub gossip: Gossip,
    /// Where the host's metrics are registered.
    pub metrics: Metrics,
    /// The node plane, for workload certificates and bundles.
    pub node_plane: Channel,
    /// How a sidecar is started, such as `["/path/atoll", "sidecar"]`; `--socket PATH --instance ID` is added.
    pub sidecar_command: Vec<String>,
}

/// Why a host can't begin.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A folder could not be made or narrowed.
    #[error("the host cannot use the folder {}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The sidecars' socket.
    #[error("the host cannot listen for sidecars below {}", data_dir.display())]
    Socket {
        /// The node's data folder.
        data_dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread that keeps output within its bound.
    #[error("the host cannot start a thread")]
    Thread(#[source] io::Error),
    /// Nothing to start sidecars with.
    #[error("no command for sidecars is given")]
    NoSidecar,
}

/// The host role.
#[derive(Debug)]
pub struct Host;

impl Host {
    /// Makes the folders and the sidecars' socket. Nothing is started or taken over before [`Bound::run`].
    pub fn bind(config: Config, handles: Handles) -> Result<Bound, BindError> {
        if handles.sidecar_command.is_empty() {
            return Err(BindError::NoSidecar);
        }
        let workloads = handles.data_dir.join("workloads");
        for path in [&crate::state::instances_dir(&handles.data_dir), &workloads] {
            private_dir(path).map_err(|source| BindError::Folder { path: path.clone(), source })?;
        }
        let metrics = HostMetrics::new(&handles.metrics);
        let denied = watch::Sender::new(Vec::new());
        let (sidecars, listener) = Sidecars::bind(&handles.data_dir, metrics.clone())
            .map_err(|source| BindError::Socket { data_dir: handles.data_dir.clone(), source })?;
        let fetch = node_plane::fetch(handles.node_plane.clone());
        let bundles =
            Bundles::open(&handles.data_dir, config.bundles_keep_free_bytes, fetch, &handles.metrics)
                .map_err(|source| BindError::Folder { path: handles.data_dir.join("bundles"), source })?;
        let clock = handles.identity.clock().clone();
        let issue = node_plane::issue(handles.node_plane, handles.identity);
        let ground = Ground {
            config,
            site: handles.site,
            region: handles.region.clone(),
            data_dir: handles.data_dir,
            base_environment: base_environment(),
            sidecar_command: handles.sidecar_command,
            sidecars,
            workloads: Workloads::new(workloads, issue, metrics.clone(), clock),
            ports: Ports::default(),
            janitor: Janitor::start(metrics.clone()).map_err(BindError::Thread)?,
            reporter: reporter(handles.gossip.clone(), handles.name.clone(), Scope::Region(handles.region)),
            metrics,
            board: Arc::default(),
            denied: denied.subscribe(),
            bundles: Arc::new(bundles),
            neighbourhood: Arc::<Region>::default(),
        };
        let view = HostView { board: Arc::clone(&ground.board), socket: ground.sidecars.path().to_owned() };
        Ok(Bound {
            ground: Arc::new(ground),
            name: handles.name,
            gossip: handles.gossip,
            listener,
            view,
            denied,
        })
    }
}

/// A host that is ready to run.
pub struct Bound {
    ground: Arc<Ground>,
    name: NodeName,
    gossip: Gossip,
    listener: UnixListener,
    view: HostView,
    denied: watch::Sender<Vec<Denied>>,
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Bound {
    /// What can be asked of the host while it runs, and before.
    #[must_use]
    pub fn view(&self) -> HostView {
        self.view.clone()
    }

    /// Takes over what an earlier run left, then follows placements until the drain starts. Then it leaves
    /// instances and sidecars running, or ends them all where `stop_instances_on_exit` is set.
    ///
    /// # Errors
    /// The folder of instances can't be read.
    pub async fn run(self, drain: Drain) -> io::Result<()> {
        let mut subscription = self.gossip.subscribe(&[Kind::PLACEMENT]);
        let known = placements::known(&mut subscription, &self.name).await;
        let mut of_region = self.gossip.subscribe(&region::KINDS);
        let neighbourhood = Arc::clone(&self.ground.neighbourhood);
        neighbourhood.begin(&mut of_region).await;
        let fleet = Fleet::open(Arc::clone(&self.ground), known)?;
        placements::withdraw_stale(&self.gossip, &self.name, &self.view);
        let (orders, inbox) = mpsc::channel(ORDERS);
        let sidecars = Arc::clone(&self.ground.sidecars).serve(self.listener);
        let denials = denials::follow(self.gossip.subscribe(&denials::KINDS), self.denied);
        let sweeping = sweep_bundles(Arc::clone(&self.ground));
        let following = placements::follow(subscription, self.name, orders);
        tokio::select! {
            () = fleet.run(inbox, drain) => {}
            () = sidecars => {}
            () = following => {}
            () = denials => {}
            () = sweeping => {}
            () = neighbourhood.keep(of_region) => {}
        }
        Ok(())
    }
}

/// Removes bundles that no instance here uses. Not before an instance of an earlier run whose placement isn't known
/// yet is either started or given up: control may be away, and it needs its files.
async fn sweep_bundles(ground: Arc<Ground>) {
    let unused_kept = Duration::from_millis(ground.config.bundles_unused_kept_ms);
    let period = (unused_kept / 4).clamp(SWEEP_LEAST, SWEEP_MOST);
    let orphans_gone = Duration::from_millis(ground.config.orphan_grace_ms);
    let mut check = tokio::time::interval_at(Instant::now() + orphans_gone + period, period);
    loop {
        check.tick().await;
        let in_use: HashSet<Digest> = {
            let board = ground.board.lock().unwrap_or_else(PoisonError::into_inner);
            let bundles = board.values().filter_map(|shown| shown.saved.spec.bundle.as_ref());
            bundles.filter_map(|bundle| bundle.digest.parse().ok()).collect()
        };
        let bundles = Arc::clone(&ground.bundles);
        let swept = tokio::task::spawn_blocking(move || bundles.sweep(&in_use, unused_kept)).await;
        if let Ok(Err(cause)) = swept {
            warn!(%cause, "bundles could not be swept");
        }
    }
}

fn reporter(gossip: Gossip, name: NodeName, scope: Scope) -> Reporter {
    Arc::new(move |report| match report {
        Report::Instance(record) => {
            let key = format!("{name}/{}", record.instance);
            gossip.publish(Kind::INSTANCE, &scope, &key, &*record);
        }
        Report::Withdraw(instance) => gossip.withdraw(Kind::INSTANCE, &scope, &format!("{name}/{instance}")),
    })
}

/// What can be asked of a host. Clones are cheap and see the same.
#[derive(Debug, Clone)]
pub struct HostView {
    board: Arc<Mutex<BTreeMap<InstanceId, Shown>>>,
    socket: PathBuf,
}

impl HostView {
    /// What the host knows, for `/state`.
    #[must_use]
    pub fn state(&self) -> Value {
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let instances: Vec<Value> = board.values().map(shown).collect();
        json!({ "isolation": "none", "sidecar_socket": self.socket, "instances": instances })
    }

    /// The lines of an instance's output that the question asks for, and with `follow` what comes after,
    /// until the instance is removed or the stream dropped. After an error nothing comes. Nothing for an
    /// instance that is not here.
    #[must_use]
    pub fn read_logs(
        &self,
        question: ReadLogs,
    ) -> Option<impl Stream<Item = io::Result<LogLines>> + Send + Unpin + use<>> {
        let instance: InstanceId = question.instance.parse().ok()?;
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        board.get(&instance).map(|shown| logs::read(&shown.log, question))
    }

    pub(crate) fn knows(&self, instance: &str) -> bool {
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        board.keys().any(|known| known.as_str() == instance)
    }
}

fn shown(shown: &Shown) -> Value {
    json!({
        "instance": shown.saved.instance,
        "cluster": shown.saved.cluster.to_string(),
        "revision": shown.saved.revision,
        "run": shown.saved.spec.run,
        "working_dir": shown.saved.spec.working_dir,
        "bundle": shown.saved.spec.bundle.as_ref().map(|bundle| &bundle.digest),
        "log": shown.log.path(),
        "now": shown.view,
    })
}
