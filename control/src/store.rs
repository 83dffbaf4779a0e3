//! The control store: one file (redb), one writer thread, every accepted change on disk before it is
//! answered.
//!
//! All objects are also held in memory as they are on disk, so that reads neither wait for the disk
//! nor stop when it is full or broken. Memory: about 1 KiB an object.
//!
//! Keys are `<kind>/<organization>/…`; values are JSON, but for desired records (see [`change`]).

pub mod change;
mod disk;
mod image;
pub mod objects;
pub mod seal;
mod writer;

pub use change::{Change, DesiredRecord};
pub use disk::{Backing, FileBacking};

use image::Image;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::{mpsc, oneshot, watch};

/// The layout of stored data. A store with a newer one is refused.
pub const SCHEMA_VERSION: u64 = 1;

/// Changes that wait for the writer.
const QUEUE_MAX: usize = 256;
/// Batches of desired records that wait for the publisher; when they don't fit, it compares all.
const PUBLISH_QUEUE_MAX: usize = 1024;

/// Objects that a look at all of them reads at a time.
const SELECT_PAGE: usize = 1_000;

/// A stored type and where its objects are.
pub trait Stored: Serialize + DeserializeOwned {
    /// First part of every key.
    const KIND: &'static str;
    /// The whole key of this object.
    fn key(&self) -> String;
    /// What it is found by beside its key, see [`Store::filed`]. Only of kinds that the image files.
    fn filed_under(&self) -> Option<String> {
        None
    }
}

/// Some objects of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// They.
    pub items: Vec<T>,
    /// Where the next page begins: the tail of the last one's key. Nothing: there are no more.
    pub next: Option<String>,
}

/// Why a change was not made, or the store not opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The file was written by a newer version of Atoll.
    #[error(
        "the store {path} has schema version {found}, this version of atoll knows {SCHEMA_VERSION}: run a newer atoll"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// Another process has the store open.
    #[error("the store {0} is in use by another process: stop it first")]
    InUse(PathBuf),
    /// The disk has no room; nothing was changed.
    #[error("the control node's disk is full; nothing was changed")]
    Full,
    /// The disk failed; whether the change is on disk will show when the store is read again.
    #[error("the control store cannot be written: {0}")]
    Broken(String),
    /// The file's content makes no sense.
    #[error("the control store is damaged: {0}")]
    Damaged(String),
    /// Too many changes wait already.
    #[error("too many changes wait for the control store")]
    Busy,
    /// The store is closed.
    #[error("the control store is closed")]
    Closed,
}

type Value = Arc<[u8]>;

/// A handle to the store; clones share it. The file is closed when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
    jobs: Arc<JobQueue>,
}

#[derive(Debug)]
struct Shared {
    image: RwLock<Image>,
    epoch: u64,
    revision: watch::Sender<u64>,
    /// Desired records were committed and did not reach the feed.
    gap: AtomicBool,
}

#[derive(Debug)]
struct JobQueue {
    sender: Option<mpsc::Sender<writer::Job>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// What the publisher takes from the store.
#[derive(Debug)]
pub struct DesiredFeed {
    batches: mpsc::Receiver<Vec<DesiredRecord>>,
    shared: Arc<Shared>,
}

/// What there is to publish.
#[derive(Debug, PartialEq, Eq)]
pub enum Feed {
    /// These were committed, in this order.
    Batch(Vec<DesiredRecord>),
    /// Some were not handed on: compare everything.
    CompareAll,
}

impl DesiredFeed {
    /// Waits for the next; nothing once the store is closed.
    pub async fn next(&mut self) -> Option<Feed> {
        let batch = self.batches.recv().await?;
        if self.shared.gap.swap(false, Ordering::AcqRel) {
            while self.batches.try_recv().is_ok() {}
            return Some(Feed::CompareAll);
        }
        Some(Feed::Batch(batch))
    }
}

impl Store {
    /// Opens or makes the store in `folder`.
    pub fn open(folder: &Path, now_ms: u64) -> Result<(Self, DesiredFeed), StoreError> {
        Self::open_on(Arc::new(FileBacking::new(folder.join("control.redb"))), now_ms)
    }

    /// Opens a store on any backing (tests: one that fails).
    pub fn open_on(backing: Arc<dyn Backing>, now_ms: u64) -> Result<(Self, DesiredFeed), StoreError> {
        let (disk, image, counters) = disk::Disk::open(backing, now_ms)?;
        let (published, batches) = mpsc::channel(PUBLISH_QUEUE_MAX);
        let shared = Arc::new(Shared {
            image: RwLock::new(image),
            epoch: counters.epoch,
            revision: watch::Sender::new(counters.revision),
            gap: AtomicBool::new(false),
        });
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("control-store".into())
            .spawn(move || writer::run(disk, &for_thread, receiver, published))
            .map_err(|error| StoreError::Broken(error.to_string()))?;
        let jobs = JobQueue { sender: Some(sender), thread: Mutex::new(Some(thread)) };
        Ok((Self { shared: shared.clone(), jobs: Arc::new(jobs) }, DesiredFeed { batches, shared }))
    }

    /// The store's epoch: greater for each store that was ever made.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.shared.epoch
    }

    /// The newest committed revision; changes with each commit.
    #[must_use]
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.shared.revision.subscribe()
    }

    /// One object by its key's tail (all but the kind).
    #[must_use]
    pub fn get<T: Stored>(&self, tail: &str) -> Option<T> {
        let bytes = self.image().get(&format!("{}/{tail}", T::KIND)).cloned();
        bytes.and_then(|bytes| decode(&bytes))
    }

    /// Every object of a kind whose key's tail starts with `prefix`, in the order of keys.
    #[must_use]
    pub fn list<T: Stored>(&self, prefix: &str) -> Vec<T> {
        self.page(prefix, None, usize::MAX).items
    }

    /// At most `limit` of them, from the one after the tail `after`.
    #[must_use]
    pub fn page<T: Stored>(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page<T> {
        let start = format!("{}/{prefix}", T::KIND);
        let after = after.map(|tail| format!("{}/{tail}", T::KIND));
        let (values, next) = {
            let image = self.image();
            let mut range = image.range(&start, after.as_deref());
            let mut last = None;
            let mut values = Vec::new();
            for (key, value) in range.by_ref().take(limit) {
                last = Some(key);
                values.push(value.clone());
            }
            let next = last.filter(|_| range.next().is_some());
            (values, next.map(|key| key[T::KIND.len() + 1..].to_owned()))
        };
        // Read outside the lock, which changes wait for.
        Page { items: values.iter().filter_map(|bytes| decode(bytes)).collect(), next }
    }

    /// The objects of a kind that `wanted` picks. It looks at all of them, off the runtime and some at a time.
    pub async fn select<T: Stored + Send + 'static>(
        &self,
        wanted: impl Fn(&T) -> bool + Send + 'static,
    ) -> Vec<T> {
        let store = self.clone();
        let look = move || {
            let (mut found, mut after) = (Vec::new(), None);
            loop {
                let page = store.page::<T>("", after.as_deref(), SELECT_PAGE);
                found.extend(page.items.into_iter().filter(&wanted));
                after = page.next;
                if after.is_none() {
                    return found;
                }
            }
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(found) => found,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }

    /// The tails of the keys of a kind's objects that start with `prefix`.
    #[must_use]
    pub fn tails<T: Stored>(&self, prefix: &str) -> Vec<String> {
        let start = format!("{}/{prefix}", T::KIND);
        self.image().range(&start, None).map(|(key, _)| key[T::KIND.len() + 1..].to_owned()).collect()
    }

    /// The objects that are filed under something that starts with `prefix`: domains under their cluster.
    #[must_use]
    pub fn filed<T: Stored>(&self, prefix: &str) -> Vec<T> {
        let values: Vec<Value> = {
            let image = self.image();
            image.filed::<T>(prefix).filter_map(|key| image.get(key).cloned()).collect()
        };
        values.iter().filter_map(|bytes| decode(bytes)).collect()
    }

    /// The tails of their keys.
    #[must_use]
    pub fn filed_tails<T: Stored>(&self, prefix: &str) -> Vec<String> {
        self.image().filed::<T>(prefix).map(|key| key[T::KIND.len() + 1..].to_owned()).collect()
    }

    /// The newest revision, and the keys of the objects that changed since an earlier one; nothing when that
    /// is too long ago. Desired records are left out.
    #[must_use]
    pub fn changed_since(&self, revision: u64) -> (u64, Option<BTreeSet<String>>) {
        let image = self.image();
        (image.revision(), image.changed_since(revision))
    }

    /// Every desired record.
    #[must_use]
    pub fn desired(&self) -> Vec<DesiredRecord> {
        let image = self.image();
        image
            .range(change::DESIRED, None)
            .filter_map(|(key, value)| DesiredRecord::from_stored(key, value))
            .collect()
    }

    fn image(&self) -> std::sync::RwLockReadGuard<'_, Image> {
        self.shared.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` on the writer thread, alone; what it wrote is on disk when this returns. Its own
    /// error undoes what it wrote. Returns what it made and the revision of the commit.
    pub async fn change<T, E>(
        &self,
        change: impl FnOnce(&mut Change<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<(T, u64), E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job = writer::job(change, answer);
        let sender = self.jobs.sender.as_ref().ok_or(StoreError::Closed)?;
        sender.try_send(job).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => StoreError::Busy,
            mpsc::error::TrySendError::Closed(_) => StoreError::Closed,
        })?;
        answered.await.map_err(|_gone| StoreError::Closed)?
    }
}

impl Drop for JobQueue {
    fn drop(&mut self) {
        // The thread ends when the queue does; the file's lock is free once it has.
        self.sender = None;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the store's writer thread panicked");
        }
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match serde_json::from_slice(bytes) {
        Ok(object) => Some(object),
        Err(error) => {
            tracing::error!(%error, "an object of the control store cannot be read and is left out");
            None
        }
    }
}

#[cfg(test)]
mod tests;
