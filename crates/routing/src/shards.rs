//! A map whose copies share what is equal, so that one change among 100,000 entries costs little.

use crate::mix::{fnv, spread};
use std::collections::HashMap;
use std::sync::Arc;

/// 100,000 entries give about 100 a shard; a change copies one shard and the list of shards.
const SHARDS: usize = 1024;

type Shard<V> = HashMap<Arc<str>, V>;

/// A map from text to cheaply cloned values. [`Clone`] is one reference count; a change to one copy
/// leaves the others as they were.
#[derive(Debug, Clone)]
pub struct ShardedMap<V> {
    shards: Arc<[Arc<Shard<V>>]>,
    len: usize,
}

impl<V: Clone> Default for ShardedMap<V> {
    fn default() -> Self {
        // All start as the same empty shard.
        let empty = Arc::new(Shard::new());
        Self { shards: (0..SHARDS).map(|_| Arc::clone(&empty)).collect(), len: 0 }
    }
}

impl<V: Clone> ShardedMap<V> {
    /// An empty map.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many entries it has.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&V> {
        self.shards[shard_of(key)].get(key)
    }

    /// Sets `key`, and returns what it was.
    pub fn insert(&mut self, key: &str, value: V) -> Option<V> {
        let old = self.shard_mut(key).insert(key.into(), value);
        self.len += usize::from(old.is_none());
        old
    }

    /// Removes `key`, and returns what it was.
    pub fn remove(&mut self, key: &str) -> Option<V> {
        // Looked up first: an absent key copies nothing.
        self.get(key)?;
        let old = self.shard_mut(key).remove(key);
        self.len -= usize::from(old.is_some());
        old
    }

    /// Every entry, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter().map(|(key, value)| (&**key, value)))
    }

    /// The keys whose values are not the same in `before`, those that only one of the two has included. What
    /// both share is not looked at: two copies that few changes lie between are compared in little time.
    pub fn differing<'a>(&'a self, before: &'a Self, same: impl Fn(&V, &V) -> bool) -> Vec<&'a str> {
        let mut keys = Vec::new();
        for (now, then) in self.shards.iter().zip(before.shards.iter()) {
            if Arc::ptr_eq(now, then) {
                continue;
            }
            let changed =
                |(key, value): &(&'a Arc<str>, &V)| !then.get(*key).is_some_and(|old| same(old, value));
            keys.extend(now.iter().filter(changed).map(|(key, _)| &**key));
            keys.extend(then.keys().filter(|key| !now.contains_key(*key)).map(|key| &**key));
        }
        keys
    }

    fn shard_mut(&mut self, key: &str) -> &mut Shard<V> {
        Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[shard_of(key)])
    }
}

fn shard_of(key: &str) -> usize {
    usize::try_from(spread(fnv(&[key.as_bytes()])) % SHARDS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_is_a_map_and_copies_do_not_move(
            changes in proptest::collection::vec(("[a-d]{1,2}", proptest::option::of(any::<u8>())), 0..80),
        ) {
            let mut model = BTreeMap::new();
            let mut map = ShardedMap::new();
            let mut copies = Vec::new();
            for (key, value) in changes {
                copies.push((map.clone(), model.clone()));
                match value {
                    Some(value) => prop_assert_eq!(map.insert(&key, value), model.insert(key, value)),
                    None => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                }
            }
            copies.push((map, model));
            for (map, model) in copies {
                prop_assert_eq!(map.len(), model.len());
                let content: BTreeMap<String, u8> = map.iter().map(|(k, v)| (k.to_owned(), *v)).collect();
                prop_assert_eq!(content, model);
            }
        }

        #[test]
        fn what_differs_is_found(
            before in proptest::collection::btree_map("[a-d]{1,2}", any::<u8>(), 0..20),
            changes in proptest::collection::btree_map("[a-d]{1,2}", proptest::option::of(any::<u8>()), 0..8),
        ) {
            let mut old = ShardedMap::new();
            for (key, value) in &before {
                old.insert(key, *value);
            }
            let (mut new, mut after) = (old.clone(), before.clone());
            for (key, value) in changes {
                match value {
                    Some(value) => { new.insert(&key, value); after.insert(key, value); }
                    None => { new.remove(&key); after.remove(&key); }
                }
            }
            let all = before.keys().chain(after.keys());
            let expected: std::collections::BTreeSet<&str> =
                all.filter(|key| before.get(*key) != after.get(*key)).map(String::as_str).collect();
            let found = new.differing(&old, |a, b| a == b);
            prop_assert_eq!(found.len(), expected.len());
            prop_assert_eq!(found.into_iter().collect::<std::collections::BTreeSet<_>>(), expected);
        }
    }

    #[test]
    fn a_change_copies_one_shard() {
        let mut map = ShardedMap::new();
        for n in 0..5_000 {
            map.insert(&format!("d{n}.example"), n);
        }
        let before = map.clone();
        map.insert("d17.example", 0);
        let copied = before.shards.iter().zip(map.shards.iter()).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert_eq!(copied, 1);
    }
}
