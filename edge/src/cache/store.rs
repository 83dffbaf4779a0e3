//! A store in memory, bounded in bytes, shared by threads and by owners.
//!
//! - What is asked for often stays (W-TinyLFU by bytes, for each owner), so that what is asked for once does not sweep it out.
//! - [`Store::bytes`] is never above [`Store::capacity`], which can be lowered and raised at any time.
//! - A hit takes a read lock on one of 64 maps for a moment, and writes little: an entry that is asked for all the time is only read.
//!   What changes the store is one at a time.
//! - While there is room, an owner may take all of it. Without room, who has less than its share (the capacity, divided by the number
//!   of owners that have entries) takes from who has most, and who has more makes room by what is its own.
//!
//! Hashes are seeded: nobody can choose keys that collide.

mod list;
mod owners;
mod policy;
mod shards;
mod sketch;
#[cfg(test)]
mod tests;

use list::Queue;
use policy::Policy;
use shards::{Shards, Slot};
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// Entries that go in one step when the capacity is lowered; others have their turn between steps.
const STEP: usize = 64;

/// Entries by key. Values are cloned for who asks: handles, rather than bytes.
pub struct Store<K, V> {
    shards: Shards<K, V>,
    random: RandomState,
    /// Taken by all that changes the store. Whoever holds it may take a shard's lock, not the other way round.
    policy: Mutex<Policy>,
    bytes: AtomicU64,
    entries: AtomicU64,
    queued: AtomicU64,
    evicted: AtomicU64,
    refused: AtomicU64,
}

/// What an owner has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// Who.
    pub owner: Arc<str>,
    /// What its entries weigh.
    pub bytes: u64,
    /// How many they are.
    pub entries: u64,
}

/// What there is and may be, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// What all entries weigh; at most the capacity.
    pub bytes: u64,
    /// How many they are.
    pub entries: u64,
    /// What they may weigh.
    pub capacity: u64,
}

impl<K: Hash + Eq, V: Clone> Store<K, V> {
    /// At most so many bytes. `entries` is about how many there will be; more cost a little while it grows. No entry is larger than one
    /// in `largest` parts of the capacity (8: an eighth).
    #[must_use]
    pub fn new(capacity: u64, entries: usize, largest: u64) -> Self {
        Self {
            shards: Shards::new(entries),
            random: RandomState::new(),
            policy: Mutex::new(Policy::new(capacity, largest)),
            bytes: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            queued: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// What is stored. That it was asked for is counted, also where there is nothing.
    pub fn get(&self, key: &K) -> Option<V> {
        let hash = self.random.hash_one(key);
        let shard = self.shards.read(hash);
        shard.count(hash);
        let slot = shard.get(hash).filter(|slot| slot.key == *key)?;
        slot.visit();
        Some(slot.value.clone())
    }

    /// What is stored, without counting.
    pub fn peek(&self, key: &K) -> Option<V> {
        let hash = self.random.hash_one(key);
        self.shards.read(hash).get(hash).filter(|slot| slot.key == *key).map(|slot| slot.value.clone())
    }

    /// Stores a value that takes so many bytes, in place of the one before. False: it is refused, because it is too large, or would have
    /// to take the place of what is asked for more often; the one before is gone all the same.
    pub fn insert(&self, key: K, value: V, weight: u64, owner: &str) -> bool {
        self.insert_with(key, owner, |_| Some((value, weight)))
    }

    /// Stores what `with` makes of the value before, if there is one, and of nothing else's: no other insert comes between. `with` is
    /// called with others waiting, and gives nothing to leave all as it is; with the value it says how many bytes that takes.
    pub fn insert_with(
        &self,
        key: K,
        owner: &str,
        with: impl FnOnce(Option<&V>) -> Option<(V, u64)>,
    ) -> bool {
        let hash = self.random.hash_one(&key);
        let mut policy = self.policy();
        let made = {
            let shard = self.shards.read(hash);
            with(shard.get(hash).filter(|slot| slot.key == key).map(|slot| &slot.value))
        };
        let Some((value, weight)) = made else { return false };
        let weight = weight.max(1);
        let before = self.shards.read(hash).get(hash).map(|slot| {
            let visits = if slot.key == key { slot.visits.load(Ordering::Relaxed) } else { 0 };
            (slot.id, slot.key == key, visits)
        });
        // It is found until the new one is.
        let known = before.is_some_and(|(id, same, _)| (policy.remove(id) == Queue::Main) && same);
        let id = policy.insert(&self.shards, (hash, weight), owner, known);
        let evicted = self.settle(&mut policy);
        let replaced = match id {
            Some(id) => {
                let visits = AtomicU8::new(before.map_or(0, |(_, _, visits)| visits));
                self.shards.write(hash).insert(hash, Slot { key, value, id, visits })
            }
            None => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                before.and_then(|_| self.shards.write(hash).remove(hash))
            }
        };
        drop(policy);
        // Large ones take a while.
        drop((evicted, replaced));
        id.is_some()
    }

    /// Forgets an entry. Whether there was one.
    pub fn remove(&self, key: &K) -> bool {
        let hash = self.random.hash_one(key);
        // Mostly there is none, and nobody has to wait.
        if self.shards.read(hash).get(hash).is_none_or(|slot| slot.key != *key) {
            return false;
        }
        let mut policy = self.policy();
        let mut shard = self.shards.write(hash);
        if shard.get(hash).is_none_or(|slot| slot.key != *key) {
            return false;
        }
        let removed = shard.remove(hash);
        drop(shard);
        if let Some(slot) = &removed {
            policy.remove(slot.id);
        }
        self.settle(&mut policy);
        drop(policy);
        removed.is_some()
    }

    /// Sets the capacity, bytes. Where that is less than what is stored, entries go in steps, and the capacity goes down with them; it
    /// is what was asked for when this returns, unless another call asked for something else meanwhile.
    pub fn set_capacity(&self, capacity: u64) {
        let mut first = true;
        loop {
            let mut policy = self.policy();
            if first {
                policy.aim(capacity);
            }
            let done = policy.target() != capacity || policy.shrink(&self.shards, STEP);
            let evicted = self.settle(&mut policy);
            drop(policy);
            drop(evicted);
            if done {
                return;
            }
            first = false;
        }
    }

    /// What all entries weigh.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// How many they are.
    pub fn len(&self) -> u64 {
        self.entries.load(Ordering::Acquire)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bound of the bytes.
    pub fn capacity(&self) -> u64 {
        self.usage().capacity
    }

    /// Bytes, entries and capacity as they are at one moment.
    pub fn usage(&self) -> Usage {
        let policy = self.policy();
        Usage { bytes: policy.bytes(), entries: policy.entries(), capacity: policy.capacity() }
    }

    /// What an owner's entries weigh.
    pub fn bytes_of(&self, owner: &str) -> u64 {
        self.policy().owners.named(owner).map_or(0, owners::Owner::bytes)
    }

    /// All that have entries, in no order.
    pub fn owners(&self) -> Vec<Owned> {
        let owned = |owner: &owners::Owner| Owned {
            owner: Arc::clone(&owner.name),
            bytes: owner.bytes(),
            entries: owner.count(),
        };
        self.policy().owners.iter().map(owned).collect()
    }

    /// How often one of the maps was not had at once, by a hit or a change.
    pub fn contended(&self) -> u64 {
        self.shards.contended()
    }

    /// How often a change had to wait for another.
    pub fn queued(&self) -> u64 {
        self.queued.load(Ordering::Relaxed)
    }

    /// Entries that went to make room.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Entries that were not let in when they came.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn policy(&self) -> MutexGuard<'_, Policy> {
        match self.policy.try_lock() {
            Ok(policy) => policy,
            Err(TryLockError::Poisoned(policy)) => policy.into_inner(),
            Err(TryLockError::WouldBlock) => {
                self.queued.fetch_add(1, Ordering::Relaxed);
                self.policy.lock().unwrap_or_else(PoisonError::into_inner)
            }
        }
    }

    /// Takes what has gone from the maps, and tells the sums. What it gives is dropped once the policy is let go.
    fn settle(&self, policy: &mut Policy) -> Vec<Slot<K, V>> {
        let gone = policy.take_gone();
        self.evicted.fetch_add(gone.len() as u64, Ordering::Relaxed);
        let slots = gone.into_iter().filter_map(|hash| self.shards.write(hash).remove(hash)).collect();
        self.bytes.store(policy.bytes(), Ordering::Release);
        self.entries.store(policy.entries(), Ordering::Release);
        slots
    }
}

impl<K, V> fmt::Debug for Store<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes.load(Ordering::Relaxed);
        let entries = self.entries.load(Ordering::Relaxed);
        f.debug_struct("Store").field("bytes", &bytes).field("entries", &entries).finish_non_exhaustive()
    }
}
