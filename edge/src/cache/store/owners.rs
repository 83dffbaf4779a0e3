//! Whose entries they are, and who has most.

use super::list::{List, Queue};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// One that has entries.
pub(super) struct Owner {
    pub(super) name: Arc<str>,
    pub(super) window: List,
    pub(super) main: List,
    /// Its bytes as they are in the ranks.
    ranked: u64,
    /// It is about to get an entry.
    joining: bool,
}

/// All that have entries; who has none any more is forgotten.
#[derive(Default)]
pub(super) struct Owners {
    slots: Vec<Option<Owner>>,
    free: Vec<u32>,
    ids: HashMap<Arc<str>, u32>,
    ranks: BTreeSet<(u64, u32)>,
}

impl Owner {
    /// What its entries weigh.
    pub(super) fn bytes(&self) -> u64 {
        self.window.bytes + self.main.bytes
    }

    /// How many they are.
    pub(super) fn count(&self) -> u64 {
        self.window.count + self.main.count
    }

    pub(super) fn queue(&mut self, queue: Queue) -> &mut List {
        match queue {
            Queue::Window => &mut self.window,
            Queue::Main => &mut self.main,
        }
    }
}

impl Owners {
    /// The number of one that is about to get an entry, until [`Self::leave`].
    pub(super) fn join(&mut self, name: &str) -> Option<u32> {
        if let Some(id) = self.ids.get(name).copied() {
            self.get_mut(id)?.joining = true;
            return Some(id);
        }
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                let id = u32::try_from(self.slots.len()).ok()?;
                self.slots.push(None);
                id
            }
        };
        let (name, none) = (Arc::<str>::from(name), List::default());
        self.ids.insert(Arc::clone(&name), id);
        self.ranks.insert((0, id));
        self.slots[id as usize] = Some(Owner { name, window: none, main: none, ranked: 0, joining: true });
        Some(id)
    }

    /// It has its entry now, or got none.
    pub(super) fn leave(&mut self, id: u32) {
        if let Some(owner) = self.get_mut(id) {
            owner.joining = false;
        }
        self.rank(id);
    }

    pub(super) fn get(&self, id: u32) -> Option<&Owner> {
        self.slots.get(id as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Owner> {
        self.slots.get_mut(id as usize)?.as_mut()
    }

    pub(super) fn named(&self, name: &str) -> Option<&Owner> {
        self.get(*self.ids.get(name)?)
    }

    /// Ranks it by what it has now; forgets it where that is nothing.
    pub(super) fn rank(&mut self, id: u32) {
        let Some(owner) = self.slots.get_mut(id as usize).and_then(Option::as_mut) else { return };
        let (before, now) = (owner.ranked, owner.bytes());
        if now != before {
            owner.ranked = now;
            self.ranks.remove(&(before, id));
            self.ranks.insert((now, id));
        }
        if owner.count() == 0 && !owner.joining {
            self.ranks.remove(&(now, id));
            self.ids.remove(&owner.name);
            self.slots[id as usize] = None;
            self.free.push(id);
        }
    }

    /// The one that has most, and how many bytes.
    pub(super) fn richest(&self) -> Option<(u32, u64)> {
        self.ranks.last().map(|(bytes, id)| (*id, *bytes))
    }

    /// How many they are.
    pub(super) fn count(&self) -> u64 {
        self.ids.len() as u64
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Owner> {
        self.slots.iter().flatten()
    }
}
