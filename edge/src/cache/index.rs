//! What is stored, and what is on its way. The engine beneath is [`Store`]: what is asked for once does not sweep out what is asked for
//! often, however large it is, nor do one organization's entries sweep out another's.

use super::fill::{Budget, Fill};
use super::key::Key;
use super::object::{Object, Resource};
use super::rules::vary;
use super::store::{Owned, Store};
use http::header::{HeaderMap, HeaderName};
use std::collections::VecDeque;
use std::collections::hash_map::{Entry as Slot, HashMap, RandomState};
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Variants that are kept of one resource; the oldest goes for one more.
const VARIANTS_MAX: usize = 64;
/// How long a resource whose answers are not shared is remembered as such, ms: those who ask do not wait for each other.
const PASS_MS: u64 = 10_000;
const SHARDS: usize = 64;
/// What an entry without a body costs, bytes.
const SMALL_ENTRY_BYTES: usize = 256;
/// What an entry is taken to weigh when the store is made.
const ENTRY_BYTES: u64 = 32 * 1024;
/// More entries than this the store is not made for at first; it grows.
const ENTRIES_MAX: u64 = 1 << 16;
/// No entry takes more of the store than one in so many parts.
const LARGEST: u64 = 4;

/// What is known of a resource, or of a variant.
#[derive(Debug, Clone)]
enum Entry {
    Object(Arc<Object>),
    Varies(Arc<Varies>),
    /// Until then its answers are taken to be for one client each, ms since 1970.
    Pass(u64),
}

/// That a resource has variants, and by what.
#[derive(Debug)]
struct Varies {
    names: Arc<[HeaderName]>,
    /// In the variants' keys: those of an earlier life of the resource are not found again.
    life: u64,
    keys: Mutex<VecDeque<Key>>,
}

/// What was found for a request.
#[derive(Debug, Clone)]
pub enum Found {
    /// A stored response, fresh or not.
    Object(Arc<Object>),
    /// Nothing, and it is not worth to wait for others who ask.
    Pass,
    /// What it has in the fields of `Vary` is too long for a key.
    TooLong,
    /// Nothing. The key is the one that requests that could share an answer have in common, as far as is known.
    Absent(Key),
}

/// The store. Shared by all workers.
#[derive(Debug)]
pub struct Index {
    entries: Store<Key, Entry>,
    random: RandomState,
    /// What is on its way, by resource.
    fills: Vec<Mutex<HashMap<Key, Fills>>>,
    budget: Arc<Budget>,
    object_max: u64,
}

/// What is on its way of one resource, by what its requests have in common.
type Fills = HashMap<Key, Arc<Fill>>;

/// A place among those who ask for the same.
#[derive(Debug)]
pub enum Place {
    /// The first: asks the origin.
    Lead(Lead),
    /// Another one asks.
    Follow(Arc<Fill>),
}

/// The one who asks. Dropped, it leaves the place to the next; those who follow see the fill fail if nothing was told.
#[derive(Debug)]
pub struct Lead {
    index: Arc<Index>,
    resource: Key,
    key: Key,
    fill: Arc<Fill>,
}

impl Index {
    /// At most so many bytes, all counted: seven eighths for what is stored, the rest for what is on its way. No body larger than
    /// `object_max` is stored, and none that would take more than a quarter of what is for them.
    #[must_use]
    pub fn new(bytes_max: u64, object_max: u64) -> Self {
        let (stored, fills) = split(bytes_max);
        let entries = usize::try_from((stored / ENTRY_BYTES).min(ENTRIES_MAX)).unwrap_or(0);
        Self {
            entries: Store::new(stored, entries, LARGEST),
            random: RandomState::new(),
            fills: (0..SHARDS).map(|_| Mutex::default()).collect(),
            budget: Arc::new(Budget::new(fills)),
            object_max: object_max.min(u64::from(u32::MAX)),
        }
    }

    /// Looks for what a request could be answered with, after [`Self::find_plain`], which has counted that the resource was asked for.
    #[must_use]
    pub fn find(&self, resource: &Key, request: &HeaderMap, now_ms: u64) -> Found {
        match self.entries.peek(resource) {
            Some(Entry::Object(object)) => Found::Object(object),
            Some(Entry::Pass(until_ms)) if now_ms < until_ms => Found::Pass,
            Some(Entry::Pass(_)) | None => Found::Absent(resource.clone()),
            Some(Entry::Varies(varies)) => {
                let Some(key) = varies.key(resource, request) else { return Found::TooLong };
                match self.entries.get(&key) {
                    Some(Entry::Object(object)) => Found::Object(object),
                    Some(Entry::Pass(until_ms)) if now_ms < until_ms => Found::Pass,
                    _ => Found::Absent(key),
                }
            }
        }
    }

    /// The stored response of a resource that has no variants, fresh or not.
    #[must_use]
    pub fn find_plain(&self, resource: &Key) -> Option<Arc<Object>> {
        match self.entries.get(resource) {
            Some(Entry::Object(object)) => Some(object),
            _ => None,
        }
    }

    /// Puts what `with` makes of it in the place of a stored response, if it is still there, or its successor with the same body.
    pub fn replace(
        &self,
        resource: &Key,
        request: &HeaderMap,
        old: &Object,
        with: impl FnOnce(&Object) -> Arc<Object>,
    ) {
        let Some(key) = self.key_of(resource, request) else { return };
        let bytes = key.bytes();
        self.entries.insert_with(key, old.head.resource.organization(), |now| match now {
            Some(Entry::Object(now)) if Arc::ptr_eq(&now.body.bytes, &old.body.bytes) => {
                let new = with(now);
                let weight = new.weight(bytes);
                Some((Entry::Object(new), weight))
            }
            _ => None,
        });
    }

    /// The key that requests that could share an answer with this one have in common. Nothing where that is none.
    #[must_use]
    pub fn key_of(&self, resource: &Key, request: &HeaderMap) -> Option<Key> {
        match self.entries.peek(resource) {
            Some(Entry::Varies(varies)) => varies.key(resource, request),
            _ => Some(resource.clone()),
        }
    }

    /// Keeps a response for requests like this one. What was kept of the resource under another `Vary` goes. False: there is no room for it.
    pub fn insert(&self, resource: &Key, request: &HeaderMap, object: Arc<Object>) -> bool {
        let names = Arc::clone(&object.head.vary);
        let of = object.head.resource.clone();
        if names.is_empty() {
            return self.keep(resource.clone(), Entry::Object(object), &of);
        }
        let varies = match self.entries.peek(resource) {
            Some(Entry::Varies(varies)) if varies.names == names => varies,
            _ => {
                let life = self.random.hash_one((
                    resource,
                    object.head.freshness.answered_ms,
                    Arc::as_ptr(&object) as usize,
                ));
                let varies = Arc::new(Varies { names, life, keys: Mutex::default() });
                self.keep(resource.clone(), Entry::Varies(Arc::clone(&varies)), &of);
                varies
            }
        };
        let Some(key) = varies.key(resource, request) else { return false };
        if let Some(oldest) = varies.note(&key) {
            self.entries.remove(&oldest);
        }
        self.keep(key, Entry::Object(object), &of)
    }

    /// Remembers for a while that the answer was for one client alone, unless something is kept there.
    pub fn pass(&self, key: &Key, of: &Resource, now_ms: u64) {
        if !matches!(self.entries.peek(key), Some(Entry::Object(_) | Entry::Varies(_))) {
            self.keep(key.clone(), Entry::Pass(now_ms + PASS_MS), of);
        }
    }

    /// Whether answers to requests with a key like this are taken to be for one client each.
    #[must_use]
    pub fn passes(&self, key: &Key, now_ms: u64) -> bool {
        matches!(self.entries.peek(key), Some(Entry::Pass(until_ms)) if now_ms < until_ms)
    }

    /// Stores an entry, on the account of the organization whose it is. There may be no room for it.
    fn keep(&self, key: Key, entry: Entry, of: &Resource) -> bool {
        let weight = entry.weight(&key);
        self.entries.insert(key, entry, weight, of.organization())
    }

    /// Forgets a resource with all its variants. What is on its way goes to those who wait for it already, and to nobody else.
    pub fn remove(&self, resource: &Key) {
        // First what is on its way: what is stored of it before this is removed below, and after this it is not stored.
        let coming = self.shard(resource).remove(resource);
        coming.into_iter().flat_map(Fills::into_values).for_each(|fill| fill.outdate());
        self.remove_stored(resource);
    }

    fn remove_stored(&self, resource: &Key) {
        if let Some(Entry::Varies(varies)) = self.entries.peek(resource) {
            for key in varies.keys.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                self.entries.remove(&key);
            }
        }
        self.entries.remove(resource);
    }

    /// Takes a place among those who ask for this; `key` is of [`Self::key_of`].
    #[must_use]
    pub fn join(self: &Arc<Self>, resource: &Key, key: &Key) -> Place {
        let mut shard = self.shard(resource);
        match shard.entry(resource.clone()).or_default().entry(key.clone()) {
            Slot::Occupied(slot) => Place::Follow(Arc::clone(slot.get())),
            Slot::Vacant(slot) => {
                let fill = Fill::new(Arc::clone(&self.budget), self.object_max);
                slot.insert(Arc::clone(&fill));
                let (index, resource, key) = (Arc::clone(self), resource.clone(), key.clone());
                Place::Lead(Lead { index, resource, key, fill })
            }
        }
    }

    fn shard(&self, resource: &Key) -> MutexGuard<'_, HashMap<Key, Fills>> {
        let shard = usize::try_from(self.random.hash_one(resource) % SHARDS as u64).unwrap_or(0);
        self.fills[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The largest body that is stored, bytes.
    #[must_use]
    pub fn object_max(&self) -> u64 {
        self.object_max
    }

    /// Bytes that entries and fills take.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.entries.bytes() + self.budget.used()
    }

    /// Entries.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.entries.len()
    }
}

impl Index {
    /// Sets how many bytes there may be, split as at first. Where that is less than what is stored, entries have gone when this returns;
    /// what is on its way stays.
    pub fn set_capacity(&self, bytes_max: u64) {
        let (stored, fills) = split(bytes_max);
        self.budget.set_max(fills);
        self.entries.set_capacity(stored);
    }

    /// Bytes that entries and fills may take now.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.entries.capacity() + self.budget.max()
    }

    /// The least capacity with which all that is stored stays. More than [`Self::bytes`]: a part of any capacity is for what is on its way.
    #[must_use]
    pub fn capacity_in_use(&self) -> u64 {
        self.entries.bytes().saturating_mul(8).div_ceil(7)
    }

    /// What each organization has stored.
    #[must_use]
    pub fn organizations(&self) -> Vec<Owned> {
        self.entries.owners()
    }

    /// Entries that went to make room.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.entries.evicted()
    }

    /// How often a hit or a change did not have its part of the store at once.
    #[must_use]
    pub fn contended(&self) -> u64 {
        self.entries.contended()
    }
}

/// For what is stored, and for what is on its way.
fn split(bytes_max: u64) -> (u64, u64) {
    let fills = bytes_max / 8;
    (bytes_max - fills, fills)
}

impl Lead {
    /// What is being fetched.
    #[must_use]
    pub fn fill(&self) -> &Arc<Fill> {
        &self.fill
    }

    /// Keeps what was fetched for requests like this one, unless the resource has changed since this place was taken.
    pub fn keep(&self, request: &HeaderMap, object: Arc<Object>) {
        if self.fill.is_outdated() {
            return;
        }
        if self.index.insert(&self.resource, request, object) {
            self.fill.note_stored();
        }
        // Changed in between: whoever said so may have been done with what is stored before this was.
        if self.fill.is_outdated() {
            self.index.remove_stored(&self.resource);
        }
    }

    /// Leaves the place to the next who asks. Those who follow go on to read what comes.
    pub fn leave(&self) {
        let mut shard = self.index.shard(&self.resource);
        if let Slot::Occupied(mut fills) = shard.entry(self.resource.clone()) {
            // The place may be another's by now.
            if fills.get().get(&self.key).is_some_and(|fill| Arc::ptr_eq(fill, &self.fill)) {
                fills.get_mut().remove(&self.key);
            }
            if fills.get().is_empty() {
                fills.remove();
            }
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.leave();
        // Where it has come to its end already this says nothing new.
        self.fill.break_off();
    }
}

impl Varies {
    fn key(&self, resource: &Key, request: &HeaderMap) -> Option<Key> {
        let variant = vary::variant(&self.names, request)?;
        Some(resource.variant(&[&self.life.to_be_bytes()[..], &variant].concat()))
    }

    /// Notes a variant; gives the one that is to go for it.
    fn note(&self, key: &Key) -> Option<Key> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.contains(key) {
            return None;
        }
        keys.push_back(key.clone());
        if keys.len() > VARIANTS_MAX { keys.pop_front() } else { None }
    }
}

impl Entry {
    fn weight(&self, key: &Key) -> u64 {
        match self {
            Self::Object(object) => object.weight(key.bytes()),
            Self::Varies(varies) => {
                let names: usize = varies.names.iter().map(|name| name.as_str().len() + 32).sum();
                (SMALL_ENTRY_BYTES + VARIANTS_MAX * 64 + names + key.bytes()) as u64
            }
            Self::Pass(_) => (SMALL_ENTRY_BYTES + key.bytes()) as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::object::{Head, compact};
    use super::super::rules::freshness::Freshness;
    use super::*;
    use bytes::Bytes;
    use http::StatusCode;

    fn resource() -> Resource {
        Resource { app: "o/a".into(), host: "h".into(), authority: "h".into(), target: "/".into() }
    }

    fn object(vary: &[&'static str], body: &[u8]) -> Arc<Object> {
        let freshness = Freshness {
            lifetime_s: 60,
            heuristic: false,
            initial_age_s: 0,
            answered_ms: 1,
            always_validate: false,
            while_revalidate_s: 0,
            if_error_s: 0,
        };
        let head = Head {
            resource: resource(),
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            freshness,
            vary: vary.iter().map(|name| HeaderName::from_static(name)).collect(),
            tags: Box::default(),
            asked_at: 0,
            compressible: false,
        };
        Arc::new(Object::new(head, compact([Bytes::copy_from_slice(body)], body.len())))
    }

    fn request(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn body(index: &Index, key: &Key, request: &HeaderMap) -> Option<Vec<u8>> {
        match index.find(key, request, 0) {
            Found::Object(object) => Some(object.body.bytes.concat()),
            _ => None,
        }
    }

    #[test]
    fn each_variant_is_found_by_its_requests() {
        let index = Index::new(1 << 20, 1 << 16);
        let key = Key::resource("host", "h", "/a");
        let (gzip, plain) = (request(&[("accept-encoding", "gzip")]), request(&[]));
        index.insert(&key, &gzip, object(&["accept-encoding"], b"zipped"));
        index.insert(&key, &plain, object(&["accept-encoding"], b"plain"));
        assert_eq!(body(&index, &key, &gzip).unwrap(), b"zipped");
        assert_eq!(body(&index, &key, &plain).unwrap(), b"plain");
        assert_eq!(body(&index, &key, &request(&[("accept-encoding", "br")])), None);
        assert_eq!(body(&index, &Key::resource("other", "h", "/a"), &plain), None);
        index.remove(&key);
        assert_eq!(body(&index, &key, &gzip), None);
        index.insert(&key, &plain, object(&["accept-encoding"], b"new"));
        assert_eq!(body(&index, &key, &gzip), None, "variants of its earlier life stay away");
        index.insert(&key, &plain, object(&[], b"same for all"));
        assert_eq!(body(&index, &key, &gzip).unwrap(), b"same for all");
    }

    #[test]
    fn variants_are_capped() {
        let index = Index::new(1 << 20, 1 << 16);
        let key = Key::resource("host", "h", "/a");
        for n in 0..=VARIANTS_MAX {
            index.insert(&key, &request(&[("x", &n.to_string())]), object(&["x"], b"-"));
        }
        let kept =
            (0..=VARIANTS_MAX).filter(|n| body(&index, &key, &request(&[("x", &n.to_string())])).is_some());
        assert_eq!(kept.count(), VARIANTS_MAX);
        assert!(body(&index, &key, &request(&[("x", "0")])).is_none(), "the oldest went");
    }

    #[test]
    fn memory_stays_within_its_bound() {
        let most = 1 << 20;
        let index = Index::new(most, 1 << 16);
        for n in 0..2_000 {
            index.insert(
                &Key::resource("host", "h", &format!("/{n}")),
                &request(&[]),
                object(&[], &[7; 10_000]),
            );
            assert!(index.bytes() <= most, "{}", index.bytes());
        }
        assert!(index.bytes() > most / 2);
        assert_eq!(&*index.organizations()[0].owner, "o");
        let (stored, in_use) = (index.count(), index.capacity_in_use());
        assert!(in_use <= most, "{in_use}");
        index.set_capacity(in_use);
        assert_eq!(index.count(), stored, "what is in use is enough");
        index.set_capacity(most / 4);
        assert!(index.bytes() <= most / 4 && index.count() > 0 && index.evicted() > 0, "{}", index.bytes());
        index.insert(&Key::resource("host", "h", "/0"), &request(&[]), object(&[], &[7; 100]));
        assert!(index.bytes() <= most / 4, "{}", index.bytes());
    }

    #[tokio::test]
    async fn one_leads_and_the_rest_follow() {
        let index = Arc::new(Index::new(1 << 20, 1 << 16));
        let key = Key::resource("host", "h", "/a");
        let Place::Lead(lead) = index.join(&key, &key) else { panic!("the first leads") };
        let Place::Follow(fill) = index.join(&key, &key) else { panic!("the second follows") };
        assert!(Arc::ptr_eq(&fill, lead.fill()));
        drop(lead);
        assert!(matches!(fill.head().await, super::super::fill::Progress::Failed(_)));
        assert!(matches!(index.join(&key, &key), Place::Lead(_)), "the next one leads");
        assert!(index.fills.iter().all(|shard| shard.lock().unwrap().is_empty()), "and leaves nothing");
    }

    #[test]
    fn what_began_before_a_change_is_not_kept_after_it() {
        let index = Arc::new(Index::new(1 << 20, 1 << 16));
        let key = Key::resource("host", "h", "/a");
        let (of_a, of_b) = (request(&[("x", "a")]), request(&[("x", "b")]));
        index.insert(&key, &of_a, object(&["x"], b"a"));
        // Of a variant that nothing is stored of.
        let shared = index.key_of(&key, &of_b).unwrap();
        let Place::Lead(before) = index.join(&key, &shared) else { panic!("nobody else asks") };
        index.remove(&key);
        let Place::Lead(after) = index.join(&key, &key) else { panic!("who comes after it asks anew") };
        before.keep(&of_b, object(&["x"], b"old"));
        assert_eq!(body(&index, &key, &of_b), None);
        drop(before);
        assert!(matches!(index.join(&key, &key), Place::Follow(_)), "the place is the other's");
        after.keep(&of_b, object(&["x"], b"new"));
        assert_eq!(body(&index, &key, &of_b).unwrap(), b"new");
    }

    #[test]
    fn what_is_not_shared_is_remembered_for_a_while() {
        let index = Index::new(1 << 20, 1 << 16);
        let key = Key::resource("host", "h", "/a");
        index.pass(&key, &resource(), 1_000);
        assert!(matches!(index.find(&key, &request(&[]), 1_001), Found::Pass));
        assert!(matches!(index.find(&key, &request(&[]), 1_000 + PASS_MS), Found::Absent(_)));
        index.insert(&key, &request(&[]), object(&[], b"x"));
        index.pass(&key, &resource(), 1_000);
        assert!(body(&index, &key, &request(&[])).is_some());
    }
}
