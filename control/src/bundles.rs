//! Bundles as control keeps them: for each organization the contents that it uploaded, and the lists that they
//! make bundles of. Below the data folder: `uploads/<organization>/contents` and `…/lists`.
//!
//! An organization's store is its own: what another one has is neither told nor used, though it be the same.
//! What no revision refers to goes after a while.

mod receive;
#[cfg(test)]
mod tests;

use crate::store::Store as ControlStore;
use crate::store::objects::{Org, Revision};
use atoll_bundle::{Digest, LIST_BYTES_MAX, List, Store, StoreError};
use atoll_model::{Bundle, OrgName};
use atoll_process::Metrics;
use prometheus_client::metrics::counter::Counter;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Uploads of contents at a time, all organizations together: each has a thread and half a MiB.
const UPLOADS_MAX: usize = 64;
/// Uploads and lists on their way of one organization: a slow one leaves room for others.
const OF_ORG_MAX: usize = 8;
/// Lists that are checked at a time: each can be 16 MiB and take a second.
const CHECKS_MAX: usize = 4;
/// How long a request waits for its turn.
const TURN_WAIT: Duration = Duration::from_secs(10);

/// How the folders of organizations that are gone begin; no name of one does.
const ASIDE: &str = ".gone-";

/// What an operator sets about bundles: the section `[control.bundles]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BundlesConfig {
    /// Most bytes that one organization keeps. Default 20 GiB.
    pub org_bytes_max: u64,
    /// Uploads are refused where they would leave less than this of the disk, so that the store has room.
    /// Default 256 MiB.
    pub keep_free_bytes: u64,
    /// What no revision uses is kept this long, ms. Default a day.
    pub unused_kept_ms: u64,
    /// How often it is looked for, ms. Default ten minutes.
    pub sweep_every_ms: u64,
}

impl Default for BundlesConfig {
    fn default() -> Self {
        Self {
            org_bytes_max: 20 << 30,
            keep_free_bytes: 256 << 20,
            unused_kept_ms: 24 * 3_600 * 1_000,
            sweep_every_ms: 600_000,
        }
    }
}

/// Metrics `atoll_control_bundle_*`.
#[derive(Debug)]
struct BundleMetrics {
    uploads: Counter,
    uploaded_bytes: Counter,
    fetched_bytes: Counter,
    removed_bytes: Counter,
}

impl BundleMetrics {
    fn new(metrics: &Metrics) -> Self {
        let counter = |name, help| metrics.counter(name, help);
        Self {
            uploads: counter("atoll_control_bundle_uploads", "Contents of bundles taken"),
            uploaded_bytes: counter("atoll_control_bundle_uploaded_bytes", "Bytes of contents taken"),
            fetched_bytes: counter("atoll_control_bundle_fetched_bytes", "Bytes sent to hosts"),
            removed_bytes: counter("atoll_control_bundle_removed_bytes", "Bytes removed that nothing used"),
        }
    }
}

/// Why something was not taken, or is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The content or the disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The organization has used what it may.
    #[error("the organization's bundles would have more than {} MiB; what no app uses goes after a while", .0 >> 20)]
    OrgFull(u64),
    /// A list says another size than the content has.
    #[error("the content {digest} has {has} bytes, and the list says {says}")]
    Size {
        /// Which.
        digest: Digest,
        /// What it has.
        has: u64,
        /// What is said of it.
        says: u64,
    },
    /// The body of an upload did not arrive whole.
    #[error("the content did not arrive whole")]
    Broken,
    /// Too many do the same.
    #[error("too many uploads at a time: try again")]
    Busy,
}

impl From<io::Error> for BundleError {
    fn from(error: io::Error) -> Self {
        Self::Store(error.into())
    }
}

/// What an offered list lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The bundle's digest.
    pub digest: Digest,
    /// Contents to upload first. None: the bundle can be deployed.
    pub missing: Vec<Digest>,
}

/// Everybody's bundles. Clones share them. What is not `async` blocks.
#[derive(Debug, Clone)]
pub struct Bundles(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    config: BundlesConfig,
    metrics: BundleMetrics,
    orgs: Mutex<HashMap<OrgName, Arc<OrgStore>>>,
    uploads: Arc<Semaphore>,
    checks: Arc<Semaphore>,
}

/// One organization's.
#[derive(Debug)]
struct OrgStore {
    contents: Store,
    lists: Store,
    /// Bytes of all contents, uploads that run included. Two uploads of the same content count twice until the
    /// next sweep.
    used: Mutex<u64>,
    places: Arc<Semaphore>,
}

impl OrgStore {
    fn open(root: &Path, keep_free: u64) -> io::Result<Self> {
        let contents = Store::open(&root.join("contents"), keep_free)?;
        let lists = Store::open(&root.join("lists"), keep_free)?;
        let used = contents.contents()?.iter().map(|(_, bytes)| bytes).sum();
        let places = Arc::new(Semaphore::new(OF_ORG_MAX));
        Ok(Self { contents, lists, used: Mutex::new(used), places })
    }

    fn used(&self) -> u64 {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts `bytes` more, where that stays within `most`.
    fn grow(&self, bytes: u64, most: u64) -> Result<(), BundleError> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let grown = used.saturating_add(bytes);
        if grown > most {
            return Err(BundleError::OrgFull(most));
        }
        *used = grown;
        Ok(())
    }

    fn shrink(&self, bytes: u64) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        *used = used.saturating_sub(bytes);
    }

    fn list(&self, digest: &Digest) -> Option<List> {
        let bytes = self.lists.read_all(digest, LIST_BYTES_MAX as u64).ok()?;
        List::parse(std::str::from_utf8(&bytes).ok()?).ok()
    }
}

impl Bundles {
    /// Keeps them below `data_dir`. Nothing is read before it is asked for.
    #[must_use]
    pub fn new(data_dir: &Path, config: BundlesConfig, metrics: &Metrics) -> Self {
        Self(Arc::new(Inner {
            root: data_dir.join("uploads"),
            config,
            metrics: BundleMetrics::new(metrics),
            orgs: Mutex::default(),
            uploads: Arc::new(Semaphore::new(UPLOADS_MAX)),
            checks: Arc::new(Semaphore::new(CHECKS_MAX)),
        }))
    }

    /// How often to call [`Self::sweep`].
    #[must_use]
    pub fn sweep_every(&self) -> Duration {
        Duration::from_millis(self.0.config.sweep_every_ms.max(100))
    }

    fn of(&self, org: &OrgName) -> Result<Arc<OrgStore>, BundleError> {
        let mut orgs = self.0.orgs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = orgs.get(org) {
            return Ok(store.clone());
        }
        // The name of an organization is a name of a folder: letters, digits and dashes.
        let opened = OrgStore::open(&self.0.root.join(org.as_str()), self.0.config.keep_free_bytes)?;
        let store = Arc::new(opened);
        orgs.insert(org.clone(), store.clone());
        Ok(store)
    }

    /// Takes a list: says which contents the organization has yet to upload. With none missing it is a bundle
    /// from now on.
    pub fn offer(&self, org: &OrgName, list: &List) -> Result<Offer, BundleError> {
        let store = self.of(org)?;
        let (mut missing, mut bytes) = (Vec::new(), 0_u64);
        for (digest, says) in list.contents() {
            match store.contents.touch(&digest) {
                Some(has) if has == says => {}
                Some(has) => return Err(BundleError::Size { digest, has, says }),
                None => {
                    missing.push(digest);
                    bytes = bytes.saturating_add(says);
                }
            }
        }
        if missing.is_empty() {
            store.lists.put(list.text().as_bytes())?;
        } else {
            // Before the client sends half of it in vain.
            let most = self.0.config.org_bytes_max;
            if store.used().saturating_add(bytes) > most {
                return Err(BundleError::OrgFull(most));
            }
            store.contents.check_room(bytes)?;
        }
        Ok(Offer { digest: list.digest(), missing })
    }

    /// The list of a bundle of the organization, which counts as used now. Nothing for what it did not upload.
    #[must_use]
    pub fn list(&self, org: &OrgName, digest: &Digest) -> Option<List> {
        let store = self.of(org).ok()?;
        store.lists.touch(digest)?;
        store.list(digest)
    }

    /// What keeps an app from being deployed with that bundle.
    #[must_use]
    pub fn fault(&self, org: &OrgName, bundle: &Bundle) -> Option<String> {
        let Ok(digest) = bundle.digest.parse() else {
            return Some("the bundle's digest is no SHA-256 in hexadecimal digits".to_owned());
        };
        match self.list(org, &digest) {
            None => Some(format!("there is no bundle {digest}: upload it first, by POST /v1/bundles")),
            Some(list) if list.size() != bundle.size => {
                Some(format!("the bundle has {} bytes, not {}", list.size(), bundle.size))
            }
            Some(_) => None,
        }
    }

    /// A content of the organization.
    pub(crate) fn content(&self, org: &OrgName, digest: &Digest) -> io::Result<std::fs::File> {
        let store = self.of(org).map_err(io::Error::other)?;
        store.contents.read(digest)
    }

    /// Counts what hosts get.
    pub(crate) fn count_fetched(&self, bytes: u64) {
        self.0.metrics.fetched_bytes.inc_by(bytes);
    }

    /// A place among the requests of the organization, waited for if need be.
    pub(crate) async fn place(&self, org: &OrgName) -> Result<OwnedSemaphorePermit, BundleError> {
        let (bundles, org) = (self.clone(), org.clone());
        let store = tokio::task::spawn_blocking(move || bundles.of(&org)).await;
        let store = store.map_err(|_panicked| BundleError::Busy)??;
        in_turn(&store.places).await
    }

    /// A place among those whose lists are checked.
    pub(crate) async fn check_place(&self) -> Result<OwnedSemaphorePermit, BundleError> {
        in_turn(&self.0.checks).await
    }

    /// Takes all that an organization uploaded away from its name, at once: another one of that name is to find
    /// nothing. [`Self::clear`] removes it.
    pub fn set_aside(&self, org: &OrgName) -> io::Result<()> {
        let mut orgs = self.0.orgs.lock().unwrap_or_else(PoisonError::into_inner);
        orgs.remove(org);
        let aside = format!("{ASIDE}{:032x}", rand::random::<u128>());
        match std::fs::rename(self.0.root.join(org.as_str()), self.0.root.join(aside)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes what was set aside.
    pub fn clear(&self) -> io::Result<()> {
        for name in self.names()?.into_iter().filter(|name| name.starts_with(ASIDE)) {
            match std::fs::remove_dir_all(self.0.root.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes what no revision refers to and nobody asked for lately. `now` is the wall clock.
    pub fn sweep(&self, store: &ControlStore, now: SystemTime) -> Result<(), BundleError> {
        self.clear()?;
        let unused_since = now
            .checked_sub(Duration::from_millis(self.0.config.unused_kept_ms))
            .unwrap_or(SystemTime::UNIX_EPOCH);
        for org in self.orgs()? {
            if org != OrgName::default_org() && store.get::<Org>(org.as_str()).is_none() {
                self.set_aside(&org)?;
                self.clear()?;
                continue;
            }
            let revisions = store.list::<Revision>(&format!("{org}/"));
            let in_use: HashSet<Digest> = revisions
                .iter()
                .filter_map(|revision| revision.spec.bundle.as_ref()?.digest.parse().ok())
                .collect();
            drop(revisions);
            let of_org = self.of(&org)?;
            let lists = of_org.lists.sweep(|digest| in_use.contains(digest), unused_since)?;
            let mut referred = HashSet::new();
            for (digest, _) in of_org.lists.contents()? {
                let Some(list) = of_org.list(&digest) else { continue };
                referred.extend(list.contents().into_iter().map(|(digest, _)| digest));
            }
            let contents = of_org.contents.sweep(|digest| referred.contains(digest), unused_since)?;
            of_org.shrink(contents.bytes);
            if lists.contents + contents.contents > 0 {
                self.0.metrics.removed_bytes.inc_by(contents.bytes);
                tracing::info!(%org, bundles = lists.contents, contents = contents.contents, bytes = contents.bytes,
                    "bundles that nothing uses were removed");
            }
        }
        Ok(())
    }

    /// Those that ever uploaded something.
    fn orgs(&self) -> io::Result<Vec<OrgName>> {
        Ok(self.names()?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// What is in the folder of all of them.
    fn names(&self) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.0.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let names = entries.map(|entry| Ok(entry?.file_name().to_str().map(str::to_owned)));
        names.filter_map(io::Result::transpose).collect()
    }
}

async fn in_turn(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, BundleError> {
    let turn = tokio::time::timeout(TURN_WAIT, places.clone().acquire_owned()).await;
    turn.ok().and_then(Result::ok).ok_or(BundleError::Busy)
}
