//! The handle to a node's gossip.

use crate::authority::Refusal;
use crate::batch::BatchSigner;
use crate::core::{Core, DesiredChange, PublishError};
use crate::driver::{Driver, Members, Plan};
use crate::hub::Subscription;
use crate::membership::{Member, Pace};
use crate::persist::{Disk, LOST_SKIP, Writer};
use crate::records::Limits;
use crate::scope::{Entry, Scope};
use crate::standing::Standing;
use crate::stats::Stats;
use crate::transport::{self, Transport};
use atoll_identity::{Identity, RecordIdentity, SpiffeKind};
use atoll_model::{Kind, NodeName};
use atoll_process::clock::unix_ms;
use atoll_process::drain::Drain;
use atoll_process::metrics::Metrics;
use atoll_process::tasks::Tasks;
use atoll_wire::Message;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot, watch};

/// Membership packets that wait for the driver.
const EVENTS_MAX: usize = 1024;
/// How long publications are gathered into a batch.
const GATHER: Duration = Duration::from_millis(3);
/// How often old deletions are collected.
const COLLECT_EVERY: Duration = Duration::from_secs(60);
/// How long a goodbye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// A node's gossip.
#[derive(Debug)]
pub struct Config {
    /// This node; the name in its certificates.
    pub name: NodeName,
    /// The scopes that it takes part in.
    pub scopes: Vec<Scope>,
    /// UDP address to listen at; port 0 picks a free one.
    pub listen: SocketAddr,
    /// The address that peers are told; the one that it listens at when absent.
    pub advertise: Option<SocketAddr>,
    /// Where to find peers when none is known.
    pub seeds: Vec<SocketAddr>,
    /// Where records are kept.
    pub data_dir: PathBuf,
    /// The node's record key and its certificate, from the join.
    pub record: RecordIdentity,
    /// Between exchanges with a random member of each scope.
    pub interval: Duration,
    /// How fast lost members are noticed.
    pub pace: Pace,
}

impl Config {
    /// A configuration with the usual interval (200 ms) and pace, no seeds.
    #[must_use]
    pub fn new(
        name: NodeName,
        scopes: Vec<Scope>,
        listen: SocketAddr,
        data_dir: impl Into<PathBuf>,
        record: RecordIdentity,
    ) -> Self {
        Self {
            name,
            scopes,
            listen,
            advertise: None,
            seeds: Vec::new(),
            data_dir: data_dir.into(),
            record,
            interval: Duration::from_millis(200),
            pace: Pace::default(),
        }
    }
}

/// Why gossip can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address can't be listened at.
    #[error("gossip can't listen at {address} (UDP): {source}; is another node using the port?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The data folder can't be made, or no thread started.
    #[error("gossip can't use {}: {source}", path.display())]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The TLS identity is not a node's, or another node's.
    #[error("the certificate is not one of node {0}; join the node again")]
    Identity(NodeName),
    /// The record certificate is not one that peers would accept.
    #[error("the record certificate can't be used: {0}; join the node again")]
    RecordCertificate(Refusal),
    /// A scope that the node's roles and region do not admit.
    #[error("this node's roles and region do not admit it to the scope: {0}")]
    Scope(Scope),
}

/// The handle; clones share one gossip, which runs until it is closed or its drain is forced.
#[derive(Clone, Debug)]
pub struct Gossip(Arc<Shared>);

struct Shared {
    core: Arc<Core>,
    address: SocketAddr,
    members: watch::Receiver<Arc<Members>>,
    standing: Arc<Standing>,
    transport: Arc<Transport>,
    stop: Arc<Notify>,
    driven: Mutex<Option<oneshot::Receiver<()>>>,
    writer: Mutex<Option<Writer>>,
    tasks: Tasks,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gossip")
            .field("core", &self.core)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Gossip {
    /// Reads what is on disk, then opens the endpoint and looks for peers. To be called on the runtime
    /// that gossip is to run on.
    pub async fn start(
        config: Config,
        identity: Identity,
        metrics: &Metrics,
        drain: Drain,
    ) -> Result<Self, StartError> {
        let own = identity.own();
        let SpiffeKind::Node { site, node } = own.id.kind() else {
            return Err(StartError::Identity(config.name));
        };
        let region = own.region.clone().filter(|_| node == config.name);
        let Some(region) = region else { return Err(StartError::Identity(config.name)) };
        if let Some(scope) = config.scopes.iter().find(|scope| !scope.admits(own.roles, Some(&region))) {
            return Err(StartError::Scope(scope.clone()));
        }
        let stats = Arc::new(Stats::new(metrics));
        let (core, writer, generation) =
            load(&config.data_dir, &config.name, config.scopes, config.record, &identity, stats).await?;
        let endpoint = transport::bind(&identity, config.listen)
            .map_err(|source| StartError::Listen { address: config.listen, source })?;
        let address =
            endpoint.local_addr().map_err(|source| StartError::Listen { address: config.listen, source })?;
        let advertised = config.advertise.unwrap_or(address);
        let member =
            Member { name: config.name, address: advertised, generation, site, region, roles: own.roles };
        let sender = atoll_wire::gossip::Member {
            name: member.name.as_str().to_owned(),
            address: advertised.to_string(),
            generation,
            // Told anew in each message.
            now_ms: 0,
        };
        let tasks = Tasks::new(Handle::current());
        let (events, inbox) = mpsc::channel(EVENTS_MAX);
        let transport = Transport::new(
            endpoint,
            identity,
            Arc::clone(&core),
            tasks.clone(),
            drain.clone(),
            events,
            sender,
        );
        let (members_in, members) = watch::channel(Arc::new(Members::default()));
        let plan = Plan { own: member, seeds: config.seeds, interval: config.interval, pace: config.pace };
        let standing = Arc::new(Standing::new());
        let driver =
            Driver::new(Arc::clone(&transport), plan, tasks.clone(), members_in, Arc::clone(&standing));
        let stop = Arc::new(Notify::new());
        tasks.spawn_vital("gossip accept", Arc::clone(&transport).accept());
        let (over, driven) = oneshot::channel();
        let driving = driver.run(inbox, drain.clone(), Arc::clone(&stop));
        tasks.spawn_vital("gossip driver", async move {
            driving.await;
            // Nobody waits for it any more when this fails.
            let _closed = over.send(()).is_err();
        });
        tasks.spawn_vital("gossip sign", sign(Arc::clone(&core), drain.clone()));
        tasks.spawn_vital("gossip collect", collect(Arc::clone(&core), drain.clone()));
        let gossip = Self(Arc::new(Shared {
            core,
            address,
            members,
            standing,
            transport,
            stop,
            driven: Mutex::new(Some(driven)),
            writer: Mutex::new(Some(writer)),
            tasks: tasks.clone(),
        }));
        let at_end = gossip.clone();
        tasks.spawn("gossip end", async move {
            drain.forced().await;
            at_end.close().await;
        });
        Ok(gossip)
    }

    /// Where it listens (UDP).
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.0.address
    }

    /// Says a fact of this node's own, until it is said anew or withdrawn. Returns at once; the record is
    /// signed within milliseconds. The same body again makes no new version. What can't be published (too
    /// long, too many, not this node's to say) is logged and counted.
    pub fn publish(&self, kind: Kind, scope: &Scope, key: &str, body: &impl Message) {
        self.0.core.publish(kind, scope, key, body.encode_to_vec().into());
    }

    /// Says that a fact of this node's own is no longer so; also one of an earlier run.
    pub fn withdraw(&self, kind: Kind, scope: &Scope, key: &str) {
        self.0.core.withdraw(kind, scope, key);
    }

    /// Desired state, on a node with the role control: the store's changes in the order of revisions, all
    /// changes of a revision in one call. What was published already is passed over, so that all may be
    /// published again after a restart. The first call with a higher epoch replaces everything of the
    /// epochs before, in the scopes that it names: it must hold all of them.
    pub async fn publish_desired(&self, epoch: u64, changes: Vec<DesiredChange>) -> Result<(), PublishError> {
        let core = Arc::clone(&self.0.core);
        let published = tokio::task::spawn_blocking(move || core.publish_desired(epoch, changes, unix_ms()));
        match published.await {
            Ok(result) => result,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }

    /// The live entries of a kind, in the order of scope and key.
    #[must_use]
    pub fn entries(&self, kind: Kind) -> Vec<Arc<Entry>> {
        self.0.core.entries(kind)
    }

    /// One live entry. Where several owners use one key (summaries), one of them.
    #[must_use]
    pub fn get(&self, kind: Kind, scope: &Scope, key: &str) -> Option<Arc<Entry>> {
        self.0.core.find(kind, scope, key)
    }

    /// Follows some kinds: first everything there is, then changes. A slow reader holds up nobody.
    #[must_use]
    pub fn subscribe(&self, kinds: &[Kind]) -> Subscription {
        self.0.core.subscribe(kinds)
    }

    /// Who is alive, by scope.
    #[must_use]
    pub fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.0.members.clone()
    }

    /// Whether this node was away (cut off, or standing still), is back, and has not been told yet what happened meanwhile. While it is cut off
    /// it is not behind: nobody could tell it. Kept up to date for as long as gossip runs.
    #[must_use]
    pub fn behind(&self) -> Arc<AtomicBool> {
        self.0.standing.behind()
    }

    /// How far this node has the desired state of the scope: the store's (epoch, revision), all of which up
    /// to there is here. (0, 0) when there is none. Falls back while a node that was away for long is told
    /// everything anew; what it held stays visible meanwhile.
    #[must_use]
    pub fn desired_version(&self, scope: &Scope) -> (u64, u64) {
        self.0.core.desired_version(scope)
    }

    /// The scopes that this node takes part in.
    #[must_use]
    pub fn scopes(&self) -> &[Scope] {
        &self.0.core.scopes
    }

    /// The name of the first part of gossip that ended. Before [`Self::close`] and outside a drain that is
    /// a panic, and the node should end: others would go on to hear what was so. Cancel-safe.
    pub async fn broken(&self) -> &'static str {
        self.0.tasks.vital_end().await
    }

    /// Signs what waits, says goodbye, writes what is left to disk, and closes the endpoint. Subscriptions
    /// end. May be called more than once.
    pub async fn close(&self) {
        let shared = &self.0;
        while shared.core.flush(unix_ms()) {}
        shared.stop.notify_one();
        let driven = shared.driven.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(driven) = driven {
            let _gave_up = tokio::time::timeout(CLOSE_TIMEOUT, driven).await;
        }
        shared.transport.close().await;
        shared.core.close();
        let writer = shared.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut writer) = writer {
            let _ended = tokio::task::spawn_blocking(move || writer.finish()).await;
        }
    }
}

/// Everything that comes before the network: off the runtime, because it reads and verifies all.
async fn load(
    dir: &std::path::Path,
    name: &NodeName,
    scopes: Vec<Scope>,
    record: RecordIdentity,
    identity: &Identity,
    stats: Arc<Stats>,
) -> Result<(Arc<Core>, Writer, u64), StartError> {
    let (path, name, check) = (dir.to_owned(), name.clone(), Box::new(identity.clone()));
    let in_dir = dir.to_owned();
    let loaded = tokio::task::spawn_blocking(move || {
        let failed = |source| StartError::DataDir { path: path.clone(), source };
        atoll_process::files::private_dir(&path).map_err(failed)?;
        let now = unix_ms();
        let (mut disk, kept) = Disk::open(&path, Arc::clone(&stats), now);
        let next = disk.counters().next_version();
        let generation = disk.counters().generation();
        let signer = BatchSigner::from(record);
        let core = Core::new(name, scopes, signer, check, stats, Limits::default(), next.unwrap_or(1))
            .map_err(StartError::RecordCertificate)?;
        let held = core.restore(kept, |each| disk.read_records(each), now);
        if next.is_none() && held > 0 {
            core.skip_versions_to(core.last_version() + LOST_SKIP);
        }
        disk.reserve(&core);
        tracing::info!(records = held, "read the records that were kept on disk");
        let core = Arc::new(core);
        let writer = Writer::spawn(disk, Arc::clone(&core)).map_err(failed)?;
        Ok((core, writer, generation))
    });
    match loaded.await {
        Ok(result) => result,
        Err(why) => Err(StartError::DataDir { path: in_dir, source: std::io::Error::other(why) }),
    }
}

async fn sign(core: Arc<Core>, drain: Drain) {
    loop {
        tokio::select! {
            () = drain.forced() => return,
            () = core.unsigned.notified() => {}
        }
        tokio::time::sleep(GATHER).await;
        while core.flush(unix_ms()) {
            tokio::task::yield_now().await;
        }
    }
}

async fn collect(core: Arc<Core>, drain: Drain) {
    loop {
        tokio::select! {
            () = drain.forced() => return,
            () = tokio::time::sleep(COLLECT_EVERY) => core.collect(unix_ms()),
        }
    }
}
