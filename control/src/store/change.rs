//! One change: reads what is committed and what its group wrote before it, and gathers its own writes.

use super::image::Image;
use super::{StoreError, Stored, Value, decode};
use atoll_model::Kind;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Where desired records are: `desired/<kind, hex>/<scope>/<key>`; value: revision (u64, big-endian), body.
pub(crate) const DESIRED: &str = "desired/";

pub(super) type Writes = BTreeMap<String, Option<Value>>;

/// One fact of desired state, as gossip spreads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredRecord {
    /// Its kind.
    pub kind: Kind,
    /// `""` for the global scope, else the region's name.
    pub scope: String,
    /// Its key.
    pub key: String,
    /// Its place in the order of all changes; unique.
    pub revision: u64,
    /// Nothing: it was deleted.
    pub body: Option<Vec<u8>>,
}

impl DesiredRecord {
    pub(super) fn from_stored(key: &str, value: &[u8]) -> Option<Self> {
        let mut parts = key.strip_prefix(DESIRED)?.splitn(3, '/');
        let kind = Kind(u32::from_str_radix(parts.next()?, 16).ok()?);
        let scope = parts.next()?.to_owned();
        let key = parts.next()?.to_owned();
        let (revision, body) = value.split_first_chunk::<8>()?;
        Some(Self { kind, scope, key, revision: u64::from_be_bytes(*revision), body: Some(body.to_vec()) })
    }
}

/// A change in the making; see [`super::Store::change`].
#[derive(Debug)]
pub struct Change<'a> {
    image: &'a Image,
    group: &'a Writes,
    pub(super) own: Writes,
    pub(super) desired: Vec<DesiredRecord>,
    pub(super) revision: u64,
    pub(super) skipped: bool,
}

impl<'a> Change<'a> {
    pub(super) fn new(image: &'a Image, group: &'a Writes, revision: u64) -> Self {
        Self { image, group, own: Writes::new(), desired: Vec::new(), revision, skipped: false }
    }

    /// The newest revision that this change has used; the commit's, in the end.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// One object by its key's tail.
    #[must_use]
    pub fn get<T: Stored>(&self, tail: &str) -> Option<T> {
        self.raw(&format!("{}/{tail}", T::KIND)).and_then(|bytes| decode(&bytes))
    }

    /// Objects whose key's tail starts with `prefix`, in the order of keys.
    #[must_use]
    pub fn list<T: Stored>(&self, prefix: &str) -> Vec<T> {
        let start = format!("{}/{prefix}", T::KIND);
        self.keys(&start).iter().filter_map(|key| self.raw(key)).filter_map(|bytes| decode(&bytes)).collect()
    }

    /// The objects that are filed under something that starts with `prefix`, see [`super::Store::filed`].
    #[must_use]
    pub fn filed<T: Stored>(&self, prefix: &str) -> Vec<T> {
        let kind = format!("{}/", T::KIND);
        let mut keys: BTreeSet<&String> = self.image.filed::<T>(prefix).collect();
        for writes in [self.group, &self.own] {
            let written = writes.range(kind.clone()..).take_while(|(key, _)| key.starts_with(&kind));
            keys.extend(written.map(|(key, _)| key));
        }
        let here = |object: &T| object.filed_under().is_some_and(|under| under.starts_with(prefix));
        keys.into_iter().filter_map(|key| decode(&self.raw(key)?)).filter(here).collect()
    }

    /// How many objects there are of a kind.
    #[must_use]
    pub fn count<T: Stored>(&self) -> usize {
        let start = format!("{}/", T::KIND);
        let mut count = self.image.range(&start, None).count();
        let written: BTreeSet<&String> = [self.group, &self.own]
            .into_iter()
            .flat_map(|writes| writes.range(start.clone()..).take_while(|(key, _)| key.starts_with(&start)))
            .map(|(key, _)| key)
            .collect();
        for key in written {
            count += usize::from(self.raw(key).is_some());
            count -= usize::from(self.image.get(key).is_some());
        }
        count
    }

    /// Writes an object.
    pub fn put<T: Stored>(&mut self, object: &T) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(object).map_err(|error| StoreError::Damaged(error.to_string()))?;
        self.own.insert(object.key(), Some(bytes.into()));
        Ok(())
    }

    /// Removes an object by its key's tail.
    pub fn remove<T: Stored>(&mut self, tail: &str) {
        self.own.insert(format!("{}/{tail}", T::KIND), None);
    }

    /// Makes `body` the desired record under that key; returns its revision. The same body again is no change.
    pub fn desire(&mut self, kind: Kind, scope: &str, key: &str, body: &impl prost::Message) -> u64 {
        let stored_key = desired_key(kind, scope, key);
        let body = body.encode_to_vec();
        if let Some(old) = self.raw(&stored_key)
            && let Some((revision, same)) = old.split_first_chunk::<8>()
            && *same == *body
        {
            return u64::from_be_bytes(*revision);
        }
        self.revision += 1;
        let mut value = self.revision.to_be_bytes().to_vec();
        value.extend_from_slice(&body);
        self.own.insert(stored_key, Some(value.into()));
        self.desired.push(DesiredRecord {
            kind,
            scope: scope.to_owned(),
            key: key.to_owned(),
            revision: self.revision,
            body: Some(body),
        });
        self.revision
    }

    /// Removes the desired record under that key, if there is one.
    pub fn undesire(&mut self, kind: Kind, scope: &str, key: &str) {
        let stored_key = desired_key(kind, scope, key);
        if self.raw(&stored_key).is_none() {
            return;
        }
        self.own.insert(stored_key, None);
        self.bury(kind, scope, key);
    }

    /// Goes on with revisions after `revision`: gossip has seen that one, from a store that is lost.
    pub fn skip_to(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
        self.skipped = true;
    }

    /// Says that a record which the store does not have is deleted: for what gossip holds beyond it. One that
    /// the store has (by now) stays.
    pub fn bury(&mut self, kind: Kind, scope: &str, key: &str) {
        if self.raw(&desired_key(kind, scope, key)).is_some() {
            return;
        }
        self.revision += 1;
        self.desired.push(DesiredRecord {
            kind,
            scope: scope.to_owned(),
            key: key.to_owned(),
            revision: self.revision,
            body: None,
        });
    }

    fn raw(&self, key: &str) -> Option<Value> {
        match self.own.get(key).or_else(|| self.group.get(key)) {
            Some(written) => written.clone(),
            None => self.image.get(key).cloned(),
        }
    }

    fn keys(&self, start: &str) -> BTreeSet<String> {
        let from = start.to_owned()..;
        let mut keys: BTreeSet<String> = self.image.range(start, None).map(|(key, _)| key.clone()).collect();
        for writes in [self.group, &self.own] {
            for (key, value) in writes.range(from.clone()).take_while(|(key, _)| key.starts_with(start)) {
                match value {
                    Some(_) => keys.insert(key.clone()),
                    None => keys.remove(key),
                };
            }
        }
        keys
    }
}

fn desired_key(kind: Kind, scope: &str, key: &str) -> String {
    format!("{DESIRED}{:08x}/{scope}/{key}", kind.0)
}

/// Values are shared between the image and changes.
pub(super) fn value(bytes: &[u8]) -> Value {
    Arc::from(bytes)
}
