//! Workload certificates: one a service, shared by its instances, kept on disk, renewed at half of its life.

mod schedule;
mod store;

use store::Validity;
pub use store::Workload;

use crate::metrics::HostMetrics;
use atoll_identity::Clock;
use atoll_model::ClusterName;
use atoll_wire::node::IdentityReply;
use futures_util::future::BoxFuture;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{info, warn};

/// Asks the CA for a certificate: the service and a PKCS#10 request (DER). The error is one line.
pub type Issue =
    Arc<dyn Fn(ClusterName, Vec<u8>) -> BoxFuture<'static, Result<IdentityReply, String>> + Send + Sync>;

/// The longest wait in one go: clocks are set, machines sleep.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The certificates of the services that have instances here.
pub struct Workloads {
    folder: PathBuf,
    issue: Issue,
    metrics: HostMetrics,
    clock: Clock,
    services: Mutex<HashMap<ClusterName, watch::Sender<Option<Arc<Workload>>>>>,
}

impl std::fmt::Debug for Workloads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workloads").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Workloads {
    /// Keeps them in `folder`, which exists and is private, and renews by `clock`.
    #[must_use]
    pub fn new(folder: PathBuf, issue: Issue, metrics: HostMetrics, clock: Clock) -> Self {
        Self { folder, issue, metrics, clock, services: Mutex::default() }
    }

    /// What is added to the machine's clock when certificates are judged, as it changes.
    #[must_use]
    pub fn corrections(&self) -> watch::Receiver<i64> {
        self.clock.corrections()
    }

    /// The service's certificate, now and whenever it is renewed; nothing until there is one. It is
    /// renewed for as long as somebody holds a receiver.
    pub fn follow(&self, cluster: &ClusterName) -> watch::Receiver<Option<Arc<Workload>>> {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        services.retain(|_, sender| !sender.is_closed());
        if let Some(sender) = services.get(cluster) {
            return sender.subscribe();
        }
        let kept = store::load(&self.folder, cluster).map(Arc::new);
        let (sender, receiver) = watch::channel(kept);
        services.insert(cluster.clone(), sender.clone());
        let keeper = Keeper {
            cluster: cluster.clone(),
            folder: self.folder.clone(),
            issue: Arc::clone(&self.issue),
            metrics: self.metrics.clone(),
            clock: self.clock.clone(),
            sender,
        };
        tokio::spawn(keeper.run());
        receiver
    }
}

/// Renews one service's certificate.
struct Keeper {
    cluster: ClusterName,
    folder: PathBuf,
    issue: Issue,
    metrics: HostMetrics,
    clock: Clock,
    sender: watch::Sender<Option<Arc<Workload>>>,
}

impl Keeper {
    async fn run(self) {
        let mut failures = 0;
        let mut jitter = rand::random::<f64>();
        let mut renewed: Option<Instant> = None;
        loop {
            let wait = self.wait(failures, jitter).max(self.rest(renewed));
            if !wait.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(wait.min(WAIT_MAX)) => {}
                    () = self.sender.closed() => return,
                }
                if wait > WAIT_MAX {
                    continue;
                }
            }
            let outcome = tokio::select! {
                outcome = self.renew() => outcome,
                () = self.sender.closed() => return,
            };
            jitter = rand::random();
            match outcome {
                Ok(()) => (failures, renewed) = (0, Some(Instant::now())),
                Err(cause) => {
                    failures += 1;
                    self.metrics.certificate_failures.inc();
                    warn!(cluster = %self.cluster, %cause, failures, "no workload certificate; trying again");
                }
            }
        }
    }

    /// By a clock that is days ahead every certificate is due as soon as it is there: at most ten in a life.
    fn rest(&self, renewed: Option<Instant>) -> Duration {
        let life = self.sender.borrow().as_ref().map_or(Duration::ZERO, |workload| {
            let Validity { not_before_ms, not_after_ms } = workload.validity;
            Duration::from_millis(not_after_ms.saturating_sub(not_before_ms))
        });
        renewed.map_or(Duration::ZERO, |at| (life / 10).saturating_sub(at.elapsed()))
    }

    fn wait(&self, failures: u32, jitter: f64) -> Duration {
        let validity = self.sender.borrow().as_ref().map(|workload| workload.validity);
        Duration::from_millis(schedule::wait_ms(validity, self.clock.now_ms(), failures, jitter))
    }

    async fn renew(&self) -> Result<(), String> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|cause| cause.to_string())?;
        let request =
            CertificateParams::default().serialize_request(&key).map_err(|cause| cause.to_string())?;
        let reply = (self.issue)(self.cluster.clone(), request.der().to_vec()).await?;
        let workload = Workload::new(reply, key.serialize_der())?;
        if let Err(cause) = store::save(&self.folder, &self.cluster, &workload) {
            // It works without; only a restart while the CA is away would miss it.
            self.metrics.state_errors.inc();
            warn!(cluster = %self.cluster, %cause, "the workload certificate could not be kept on disk");
        }
        self.metrics.certificates.inc();
        info!(cluster = %self.cluster, not_after_ms = workload.validity.not_after_ms, "workload certificate");
        self.sender.send_replace(Some(Arc::new(workload)));
        Ok(())
    }
}
