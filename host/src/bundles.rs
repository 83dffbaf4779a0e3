//! Bundles on a host: fetched from control once, kept by content, unpacked anew for each start of a program.
//!
//! Below the data folder: `bundles/contents` and `bundles/lists`, which no instance runs in. What is here needs no
//! control. What no instance uses goes after a while.

mod fetch;
#[cfg(test)]
pub(crate) mod tests;

pub use fetch::{Fetch, FetchError};

use atoll_bundle::{Digest, LIST_BYTES_MAX, List, Store, StoreError, UnpackError, unpack};
use atoll_model::{Bundle, ClusterName};
use atoll_process::Metrics;
use prometheus_client::metrics::counter::Counter;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};
use tokio::sync::{Semaphore, watch};
use tracing::info;

/// Bundles that are fetched at a time.
const FETCHES_MAX: usize = 4;
/// A content that is found damaged is fetched again this often before that is the instance's failure.
const TRIES: u32 = 3;

/// Metrics `atoll_host_bundle_*`.
#[derive(Debug)]
struct BundleMetrics {
    fetches: Counter,
    fetch_failures: Counter,
    contents: Counter,
    bytes: Counter,
    unpacked: Counter,
}

impl BundleMetrics {
    fn new(metrics: &Metrics) -> Self {
        let counter = |name, help| metrics.counter(name, help);
        Self {
            fetches: counter("atoll_host_bundle_fetches", "Bundles of which something was fetched"),
            fetch_failures: counter(
                "atoll_host_bundle_fetch_failures",
                "Tries to fetch from control that failed",
            ),
            contents: counter("atoll_host_bundle_contents", "Contents of bundles fetched"),
            bytes: counter("atoll_host_bundle_bytes", "Bytes of contents fetched"),
            unpacked: counter("atoll_host_bundle_unpacked", "Bundles unpacked for a program"),
        }
    }
}

/// What an instance says while its files are not there yet, for people; empty when there is nothing to say.
pub type Say = watch::Sender<String>;

/// The bundles of a host.
pub struct Bundles {
    contents: Arc<Store>,
    lists: Arc<Store>,
    fetch: Fetch,
    metrics: BundleMetrics,
    places: Semaphore,
    /// One fetch for each bundle, however many instances wait for it.
    turns: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

impl std::fmt::Debug for Bundles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bundles").field("contents", &self.contents).finish_non_exhaustive()
    }
}

impl Bundles {
    /// Opens them below `data_dir`; downloads that an earlier run did not finish are removed. `keep_free` bytes
    /// of the disk are left to others.
    pub fn open(data_dir: &Path, keep_free: u64, fetch: Fetch, metrics: &Metrics) -> io::Result<Self> {
        let root = data_dir.join("bundles");
        Ok(Self {
            // What a power failure damages is noticed at its next use, and fetched again.
            contents: Arc::new(Store::open(&root.join("contents"), keep_free)?.unsynced()),
            lists: Arc::new(Store::open(&root.join("lists"), keep_free)?.unsynced()),
            fetch,
            metrics: BundleMetrics::new(metrics),
            places: Semaphore::new(FETCHES_MAX),
            turns: Mutex::default(),
        })
    }

    /// Makes the folder `name` in `above` of a service's bundle, fetching what is not here. While control can't be
    /// reached it is asked again; any other trouble is given back, in words for the developer. `before` runs on a
    /// thread that may block, right before the folder is made. Dropped, it leaves nothing half done but, where it
    /// was unpacking, the folder.
    pub async fn prepare(
        self: &Arc<Self>,
        cluster: &ClusterName,
        bundle: &Bundle,
        say: &Say,
        above: &Path,
        name: &'static str,
        before: impl Fn() + Clone + Send + 'static,
    ) -> Result<(), String> {
        let digest =
            bundle.digest.parse().map_err(|_| format!("the bundle `{}` has no valid name", bundle.digest))?;
        let mut tries = 0;
        loop {
            tries += 1;
            let list = self.ready(cluster, digest, bundle, say).await.map_err(|error| error.to_string())?;
            say.send_replace(String::new());
            let (contents, above, before) = (Arc::clone(&self.contents), above.to_owned(), before.clone());
            let unpacking = move || {
                before();
                unpack(&list, &contents, &above, name)
            };
            let unpacked = tokio::task::spawn_blocking(unpacking).await;
            match unpacked.map_err(|_panicked| "the host failed while it unpacked the files".to_owned())? {
                Ok(()) => {
                    self.metrics.unpacked.inc();
                    return Ok(());
                }
                Err(UnpackError::Content(path)) if tries < TRIES => {
                    tracing::warn!(%cluster, bundle = %digest, path, "a kept content is damaged or gone: fetched again");
                }
                Err(UnpackError::Full(bytes)) => return Err(no_room(bytes)),
                Err(error) => return Err(format!("the files could not be unpacked: {error}")),
            }
        }
    }

    /// Everything of the bundle is in the store.
    async fn ready(
        &self,
        cluster: &ClusterName,
        digest: Digest,
        bundle: &Bundle,
        say: &Say,
    ) -> Result<List, FetchError> {
        let turn = self.turn(digest);
        let _turn = turn.lock().await;
        let (list, missing) = match self.kept(digest).await {
            Some(kept) => kept,
            None => {
                let _place = self.places.acquire().await;
                let ask = fetch::Ask { cluster, digest, bundle };
                self.fetch_list(ask, say).await?;
                self.kept(digest)
                    .await
                    .ok_or_else(|| FetchError::Refused("its list could not be kept".to_owned()))?
            }
        };
        if missing.is_empty() {
            return Ok(list);
        }
        let _place = self.places.acquire().await;
        let bytes = missing.iter().map(|(_, bytes)| bytes).sum();
        if let Err(StoreError::Full) = self.contents.check_room(bytes) {
            return Err(FetchError::Refused(no_room(bytes)));
        }
        let count = missing.len() as u64;
        self.fetch_contents(fetch::Ask { cluster, digest, bundle }, missing, say).await?;
        info!(%cluster, bundle = %digest, contents = count, bytes, "bundle fetched");
        self.metrics.fetches.inc();
        self.metrics.contents.inc_by(count);
        self.metrics.bytes.inc_by(bytes);
        Ok(list)
    }

    /// The list, if it is here, and which contents are not.
    async fn kept(&self, digest: Digest) -> Option<(List, Vec<(Digest, u64)>)> {
        let (lists, contents) = (Arc::clone(&self.lists), Arc::clone(&self.contents));
        let look = move || {
            lists.touch(&digest)?;
            let text = lists.read_all(&digest, LIST_BYTES_MAX as u64).ok();
            let list = text.and_then(|text| List::parse(std::str::from_utf8(&text).ok()?).ok());
            if list.is_none() {
                // Damaged: better fetched again than kept.
                let _gone_already = lists.remove(&digest).is_err();
            }
            let list = list?;
            let missing =
                list.contents().into_iter().filter(|(digest, size)| contents.touch(digest) != Some(*size));
            Some((missing.collect(), list))
        };
        let (missing, list) = tokio::task::spawn_blocking(look).await.ok()??;
        Some((list, missing))
    }

    fn turn(&self, digest: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(&digest).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(digest, Arc::downgrade(&turn));
        turn
    }

    /// Removes what none of the bundles `in_use` needs and was not used for `unused_kept`. Blocks.
    pub fn sweep(&self, in_use: &HashSet<Digest>, unused_kept: Duration) -> io::Result<()> {
        let unused_since = SystemTime::now().checked_sub(unused_kept).unwrap_or(SystemTime::UNIX_EPOCH);
        let lists = self.lists.sweep(|digest| in_use.contains(digest), unused_since)?;
        let mut needed = HashSet::new();
        for (digest, _) in self.lists.contents()? {
            // One that is damaged is fetched again with what it needs.
            let text = self.lists.read_all(&digest, LIST_BYTES_MAX as u64).ok();
            let list = text.and_then(|text| List::parse(std::str::from_utf8(&text).ok()?).ok());
            let Some(list) = list else { continue };
            needed.extend(list.contents().into_iter().map(|(digest, _)| digest));
        }
        let contents = self.contents.sweep(|digest| needed.contains(digest), unused_since)?;
        if lists.contents + contents.contents > 0 {
            info!(
                bundles = lists.contents,
                contents = contents.contents,
                bytes = contents.bytes,
                "bundles that no instance uses were removed"
            );
        }
        Ok(())
    }
}

fn no_room(bytes: u64) -> String {
    format!("this host's disk has no room for the service's files ({} MiB)", bytes.div_ceil(1 << 20))
}
