//! The store in memory: the objects as they are on disk, what finds them by something else than their key,
//! and which keys changed lately.

use super::Value;
use super::objects::Domain;
use super::{Stored, decode};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Changed keys that are remembered: about 100 bytes each. Who is further behind reads everything.
const LATELY_MAX: usize = 20_000;

/// All objects.
#[derive(Debug, Default)]
pub(super) struct Image {
    objects: BTreeMap<String, Value>,
    /// `<kind>/<what [`Stored::filed_under`] says>` and the object's key.
    files: BTreeSet<(String, String)>,
    /// The newest revision that is in.
    revision: u64,
    /// With the revision that changed them, oldest first; desired records are left out.
    lately: VecDeque<(u64, String)>,
    /// Changes up to here are not remembered.
    forgotten: u64,
}

impl Image {
    /// Of what is on disk.
    pub(super) fn new(objects: impl Iterator<Item = (String, Value)>, revision: u64) -> Self {
        let mut image = Self { revision, forgotten: revision, ..Self::default() };
        for (key, value) in objects {
            image.files.extend(file(&key, &value));
            image.objects.insert(key, value);
        }
        image
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.objects.get(key)
    }

    /// Objects whose key starts with `start`, from the one after `after`.
    pub(super) fn range<'a>(
        &'a self,
        start: &'a str,
        after: Option<&str>,
    ) -> impl Iterator<Item = (&'a String, &'a Value)> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let from = match after.filter(|after| *after >= start) {
            Some(after) => Excluded(after.to_owned()),
            None => Included(start.to_owned()),
        };
        self.objects.range((from, Unbounded)).take_while(move |(key, _)| key.starts_with(start))
    }

    /// Keys of a kind's objects that are filed under something that starts with `prefix`.
    pub(super) fn filed<T: Stored>(&self, prefix: &str) -> impl Iterator<Item = &String> {
        let start = format!("{}/{prefix}", T::KIND);
        let from = (start.clone(), String::new());
        self.files.range(from..).take_while(move |(under, _)| under.starts_with(&start)).map(|(_, key)| key)
    }

    /// Takes in what was committed.
    pub(super) fn apply(&mut self, writes: super::change::Writes, revision: u64) {
        self.revision = revision;
        for (key, value) in writes {
            let old = match &value {
                Some(value) => self.objects.insert(key.clone(), value.clone()),
                None => self.objects.remove(&key),
            };
            if let Some(filed) = old.and_then(|old| file(&key, &old)) {
                self.files.remove(&filed);
            }
            self.files.extend(value.and_then(|value| file(&key, &value)));
            if !key.starts_with(super::change::DESIRED) {
                self.lately.push_back((revision, key));
            }
        }
        while self.lately.len() > LATELY_MAX {
            self.forgotten = self.lately.pop_front().map_or(revision, |(at, _)| at);
        }
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// The keys that changed after `revision`; nothing when that is too long ago.
    pub(super) fn changed_since(&self, revision: u64) -> Option<BTreeSet<String>> {
        if revision < self.forgotten || revision > self.revision {
            return None;
        }
        let from = self.lately.partition_point(|(at, _)| *at <= revision);
        Some(self.lately.range(from..).map(|(_, key)| key.clone()).collect())
    }
}

/// The kinds whose objects are found by more than their key.
fn file(key: &str, value: &[u8]) -> Option<(String, String)> {
    let kind = key.split_once('/')?.0;
    if kind != Domain::KIND {
        return None;
    }
    let under = decode::<Domain>(value)?.filed_under()?;
    Some((format!("{kind}/{under}"), key.to_owned()))
}
