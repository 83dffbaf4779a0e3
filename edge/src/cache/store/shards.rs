//! Where entries are found: maps behind locks that are held for moments, and the sketches of what they are asked for.

use super::list::Id;
use super::policy::Signals;
use super::sketch::Sketch;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

const SHARDS: usize = 64;
/// Visits that an entry can have in store. What is asked for more is not written to.
const VISITS_MAX: u8 = 3;

/// An entry.
pub(super) struct Slot<K, V> {
    pub(super) key: K,
    pub(super) value: V,
    /// Its place in the policy.
    pub(super) id: Id,
    /// Times it was asked for since it was last looked at, at most [`VISITS_MAX`].
    pub(super) visits: AtomicU8,
}

/// The entries of a shard by the hash of their key: of two keys with the same hash, which nobody can find, one has a place.
pub(super) struct Shard<K, V> {
    map: HashMap<u64, Slot<K, V>, BuildHasherDefault<AsItIs>>,
    sketch: Sketch,
}

/// Alone in its lines of the processor's cache: locks are written to.
#[repr(align(128))]
struct Aligned<K, V>(RwLock<Shard<K, V>>);

/// All of them.
pub(super) struct Shards<K, V> {
    shards: Box<[Aligned<K, V>]>,
    contended: AtomicU64,
}

/// Keys are hashes already.
#[derive(Default)]
pub(super) struct AsItIs(u64);

impl<K, V> Shards<K, V> {
    /// Empty, for about so many entries.
    pub(super) fn new(entries: usize) -> Self {
        let shard = || Shard { map: HashMap::default(), sketch: Sketch::new(entries.div_ceil(SHARDS)) };
        Self {
            shards: (0..SHARDS).map(|_| Aligned(RwLock::new(shard()))).collect(),
            contended: AtomicU64::new(0),
        }
    }

    /// The shard of a hash, to look at. Waits while it is written to.
    pub(super) fn read(&self, hash: u64) -> RwLockReadGuard<'_, Shard<K, V>> {
        let lock = self.lock(hash);
        match lock.try_read() {
            Ok(shard) => shard,
            Err(TryLockError::Poisoned(shard)) => shard.into_inner(),
            Err(TryLockError::WouldBlock) => {
                self.contended.fetch_add(1, Ordering::Relaxed);
                lock.read().unwrap_or_else(PoisonError::into_inner)
            }
        }
    }

    /// The shard of a hash, to change. Only the policy's holder does.
    pub(super) fn write(&self, hash: u64) -> RwLockWriteGuard<'_, Shard<K, V>> {
        let lock = self.lock(hash);
        match lock.try_write() {
            Ok(shard) => shard,
            Err(TryLockError::Poisoned(shard)) => shard.into_inner(),
            Err(TryLockError::WouldBlock) => {
                self.contended.fetch_add(1, Ordering::Relaxed);
                lock.write().unwrap_or_else(PoisonError::into_inner)
            }
        }
    }

    /// How often a lock was not had at once.
    pub(super) fn contended(&self) -> u64 {
        self.contended.load(Ordering::Relaxed)
    }

    fn lock(&self, hash: u64) -> &RwLock<Shard<K, V>> {
        &self.shards[(hash >> 48) as usize % SHARDS].0
    }
}

impl<K, V> Shard<K, V> {
    /// Counts that it was asked for, whether it is here or not.
    pub(super) fn count(&self, hash: u64) {
        self.sketch.count(hash);
    }

    pub(super) fn get(&self, hash: u64) -> Option<&Slot<K, V>> {
        self.map.get(&hash)
    }

    /// Gives what was there before.
    pub(super) fn insert(&mut self, hash: u64, slot: Slot<K, V>) -> Option<Slot<K, V>> {
        let before = self.map.insert(hash, slot);
        if self.map.len() > self.sketch.entries() {
            self.sketch.grow();
        }
        before
    }

    pub(super) fn remove(&mut self, hash: u64) -> Option<Slot<K, V>> {
        self.map.remove(&hash)
    }
}

impl<K, V> Slot<K, V> {
    /// Notes that it was asked for.
    pub(super) fn visit(&self) {
        let visits = self.visits.load(Ordering::Relaxed);
        if visits < VISITS_MAX {
            self.visits.store(visits + 1, Ordering::Relaxed);
        }
    }
}

impl<K, V> Signals for Shards<K, V> {
    fn frequency(&self, hash: u64) -> u8 {
        self.read(hash).sketch.estimate(hash)
    }

    fn spare(&self, hash: u64) -> bool {
        let shard = self.read(hash);
        let Some(slot) = shard.get(hash) else { return false };
        let visits = slot.visits.load(Ordering::Relaxed);
        if visits > 0 {
            slot.visits.store(visits - 1, Ordering::Relaxed);
        }
        visits > 0
    }
}

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    /// Of no use here; there has to be one.
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }
}
