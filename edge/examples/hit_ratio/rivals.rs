//! The caches that are measured.

use super::workload::Sizes;
use atoll_edge::cache_store::Store;
use std::collections::HashMap;

/// What is measured of a cache: it has it, or is given it.
pub trait Cache {
    fn get(&mut self, object: u32) -> bool;
    fn insert(&mut self, object: u32, bytes: u64);
}

/// What was asked for last stays.
pub struct Lru {
    places: HashMap<u32, usize>,
    /// The first is the end of the list: after it comes the newest, before it is the oldest.
    nodes: Vec<Node>,
    free: Vec<usize>,
    bytes: u64,
    capacity: u64,
}

#[derive(Clone, Copy, Default)]
struct Node {
    object: u32,
    bytes: u64,
    newer: usize,
    older: usize,
}

/// moka as it is where nothing is set but the bound; tasks are run each 64 requests.
pub struct Moka {
    cache: moka::sync::Cache<u32, ()>,
    asked: u64,
}

/// The edge's.
pub struct Ours(Store<u32, ()>);

impl Lru {
    pub fn new(capacity: u64) -> Self {
        Self { places: HashMap::new(), nodes: vec![Node::default()], free: Vec::new(), bytes: 0, capacity }
    }

    fn unlink(&mut self, at: usize) {
        let Node { newer, older, .. } = self.nodes[at];
        self.nodes[newer].older = older;
        self.nodes[older].newer = newer;
    }

    fn push(&mut self, at: usize) {
        let second = self.nodes[0].older;
        (self.nodes[at].newer, self.nodes[at].older) = (0, second);
        self.nodes[second].newer = at;
        self.nodes[0].older = at;
    }

    fn evict(&mut self) {
        let oldest = self.nodes[0].newer;
        self.unlink(oldest);
        self.places.remove(&self.nodes[oldest].object);
        self.bytes -= self.nodes[oldest].bytes;
        self.free.push(oldest);
    }
}

impl Cache for Lru {
    fn get(&mut self, object: u32) -> bool {
        let Some(at) = self.places.get(&object).copied() else { return false };
        self.unlink(at);
        self.push(at);
        true
    }

    fn insert(&mut self, object: u32, bytes: u64) {
        if bytes > self.capacity / 8 {
            return;
        }
        while self.bytes + bytes > self.capacity {
            self.evict();
        }
        let at = self.free.pop().unwrap_or(self.nodes.len());
        if at == self.nodes.len() {
            self.nodes.push(Node::default());
        }
        self.nodes[at] = Node { object, bytes, newer: 0, older: 0 };
        self.push(at);
        self.places.insert(object, at);
        self.bytes += bytes;
    }
}

impl Moka {
    pub fn new(capacity: u64, sizes: &Sizes) -> Self {
        let sizes = sizes.each();
        let weigher = move |object: &u32, _: &()| sizes[*object as usize];
        Self { cache: moka::sync::Cache::builder().max_capacity(capacity).weigher(weigher).build(), asked: 0 }
    }
}

impl Cache for Moka {
    fn get(&mut self, object: u32) -> bool {
        self.asked += 1;
        if self.asked.is_multiple_of(64) {
            self.cache.run_pending_tasks();
        }
        self.cache.get(&object).is_some()
    }

    fn insert(&mut self, object: u32, _: u64) {
        self.cache.insert(object, ());
    }
}

impl Ours {
    pub fn new(capacity: u64) -> Self {
        Self(Store::new(capacity, 1_024, 8))
    }
}

impl Cache for Ours {
    fn get(&mut self, object: u32) -> bool {
        self.0.get(&object).is_some()
    }

    fn insert(&mut self, object: u32, bytes: u64) {
        self.0.insert(object, (), bytes, "one");
        assert!(self.0.bytes() <= self.0.capacity());
    }
}
