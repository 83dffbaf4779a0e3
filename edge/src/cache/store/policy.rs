//! Who is let in, and who goes for it. It knows hashes, weights and owners, and asks [`Signals`] how often they are asked for.
//!
//! Each owner has two queues. What comes is in the *window* first, whoever asks for it. What leaves the window contests with the oldest
//! of *main*: it is let in if it is asked for more often than all those together that would have to go for its bytes (W-TinyLFU,
//! aggregated). So what is asked for once sweeps nothing out, and a large one does not sweep out many small ones.

use super::list::{Id, Node, Nodes, Queue};
use super::owners::{Owner, Owners};

/// Entries that are spared before one goes, at most.
const STEPS_MAX: usize = 256;
/// Entries that go for one that wins a contest, at most.
const VICTIMS_MAX: usize = 1_024;
/// The window is this part of an owner's room: one in so many.
const WINDOW: u64 = 32;

/// What is known of entries outside of the policy.
pub(super) trait Signals {
    /// How often it was asked for lately.
    fn frequency(&self, hash: u64) -> u8;
    /// Whether it was asked for since it was last looked at. Takes one of its visits.
    fn spare(&self, hash: u64) -> bool;
}

/// All but the entries themselves.
pub(super) struct Policy {
    /// Bytes, never exceeded.
    capacity: u64,
    /// What the capacity is to be, at most what it is.
    target: u64,
    /// No entry is larger than this part of the target: one in so many.
    largest: u64,
    bytes: u64,
    pub(super) nodes: Nodes,
    pub(super) owners: Owners,
    /// Hashes of those that were to go and are still to be taken from the map.
    gone: Vec<u64>,
}

impl Policy {
    /// Empty.
    pub(super) fn new(capacity: u64, largest: u64) -> Self {
        Self {
            capacity,
            target: capacity,
            largest: largest.max(1),
            bytes: 0,
            nodes: Nodes::default(),
            owners: Owners::default(),
            gone: Vec::new(),
        }
    }

    /// What all entries weigh.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many they are.
    pub(super) fn entries(&self) -> u64 {
        self.nodes.count()
    }

    /// What the capacity is to be.
    pub(super) fn target(&self) -> u64 {
        self.target
    }

    /// The bound that holds now.
    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Those that have gone since the last call.
    pub(super) fn take_gone(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.gone)
    }

    /// Makes room for an entry and gives it a place. None: it is refused. What is in main already is `known`, and contests with nobody.
    pub(super) fn insert(
        &mut self,
        signals: &impl Signals,
        (hash, weight): (u64, u64),
        owner: &str,
        known: bool,
    ) -> Option<Id> {
        if weight > self.target / self.largest {
            return None;
        }
        let owner = self.owners.join(owner)?;
        let before = self.gone.len();
        while self.bytes + weight > self.capacity {
            let Some(other) = self.debtor(owner, weight) else { break };
            self.evict_one(signals, other);
        }
        let owed = self.gone.len() > before || self.own(owner) + weight <= self.share() - self.margin();
        let owed = owed && self.owners.count() > 1 && self.bytes + weight <= self.capacity;
        let id = if weight <= self.room(owner) { self.nodes.add(hash, weight, owner) } else { None };
        let id = id.filter(|id| self.place(signals, *id, known, owed));
        self.owners.leave(owner);
        id
    }

    /// Takes an entry out; gives the queue that it was in.
    pub(super) fn remove(&mut self, id: Id) -> Queue {
        let queue = self.nodes.get(id).queue;
        self.unlink(id);
        self.nodes.free(id);
        queue
    }

    /// Sets what the capacity is to be. More holds at once.
    pub(super) fn aim(&mut self, target: u64) {
        self.target = target;
        self.capacity = self.capacity.max(target);
    }

    /// Lets entries go, at most so many, those with most first, and lowers the capacity by what they left. Whether it is as low as is aimed at.
    pub(super) fn shrink(&mut self, signals: &impl Signals, most: usize) -> bool {
        for _ in 0..most {
            let richest = self.owners.richest().filter(|_| self.bytes > self.target);
            let Some((richest, _)) = richest else { break };
            self.evict_one(signals, richest);
        }
        self.capacity = self.target.max(self.bytes);
        self.capacity == self.target
    }

    /// The one whose entries go for one of this owner: who has most, while this owner has less than its fair share and will have less
    /// than the other. So nobody is brought below its share by one that is above. None: its own go.
    fn debtor(&self, owner: u32, weight: u64) -> Option<u32> {
        let own = self.own(owner);
        let (richest, most) = self.owners.richest()?;
        (richest != owner && own < self.share() && most >= own + weight + self.margin()).then_some(richest)
    }

    fn own(&self, owner: u32) -> u64 {
        self.owners.get(owner).map_or(0, Owner::bytes)
    }

    /// What each owner may have, whatever the others do.
    fn share(&self) -> u64 {
        self.capacity / self.owners.count().max(1)
    }

    /// Owners whose bytes differ by less than this take nothing from each other: between equals it would go to and fro, without contest.
    fn margin(&self) -> u64 {
        self.share() / 16
    }

    /// Bytes that an owner could have without taking from others.
    fn room(&self, owner: u32) -> u64 {
        self.capacity - (self.bytes - self.own(owner))
    }

    /// Puts an entry where it belongs, within the owner's room. Whether it was let in. What is `known` goes to main; where it is `owed`,
    /// there is room for it, and nothing of the owner's contests.
    fn place(&mut self, signals: &impl Signals, id: Id, known: bool, owed: bool) -> bool {
        let node = self.nodes.get(id);
        let room = self.room(node.owner);
        let window_max = room / WINDOW;
        let main_max = if owed { u64::MAX } else { room - window_max };
        if known || node.weight > window_max {
            if !known && !self.contest(signals, id, main_max) {
                self.nodes.free(id);
                return false;
            }
            self.fit(signals, node.owner, node.weight);
            self.link(id, Queue::Main);
            return true;
        }
        self.link(id, Queue::Window);
        while let Some(oldest) = self.too_much(node.owner, window_max) {
            self.unlink(oldest);
            if self.contest(signals, oldest, main_max) {
                self.link(oldest, Queue::Main);
            } else {
                self.gone.push(self.nodes.get(oldest).hash);
                self.nodes.free(oldest);
            }
        }
        self.fit(signals, node.owner, 0);
        true
    }

    /// The one that is to leave the window.
    fn too_much(&self, owner: u32, window_max: u64) -> Option<Id> {
        let window = &self.owners.get(owner)?.window;
        window.oldest().filter(|_| window.bytes > window_max)
    }

    /// Lets entries of an owner go until there is room for so many bytes. What came last goes last.
    fn fit(&mut self, signals: &impl Signals, owner: u32, weight: u64) {
        while self.bytes + weight > self.capacity && self.evict_one(signals, owner) {}
    }

    /// Whether an entry that is in no queue is let into main, which may have so many bytes. If so, those that it won against are gone.
    fn contest(&mut self, signals: &impl Signals, id: Id, main_max: u64) -> bool {
        let node = self.nodes.get(id);
        let Some(owner) = self.owners.get_mut(node.owner) else { return false };
        let need = (owner.main.bytes + node.weight).saturating_sub(main_max);
        if need == 0 {
            return true;
        }
        let claim = f64::from(signals.frequency(node.hash));
        let (mut freed, mut price) = (0, 0.0);
        let mut victims = Vec::new();
        let mut at = owner.main.oldest();
        for step in 0.. {
            if freed >= need {
                victims.into_iter().for_each(|victim| self.evict(victim));
                return true;
            }
            let Some(victim) = at else { break };
            at = self.nodes.newer(victim);
            let Node { hash, weight, .. } = self.nodes.get(victim);
            if step < STEPS_MAX && signals.spare(hash) {
                self.nodes.renew(&mut owner.main, victim);
                // The newest comes after itself.
                at = at.or(Some(victim));
                continue;
            }
            price += f64::from(signals.frequency(hash)) * part(need - freed, weight);
            freed += weight;
            victims.push(victim);
            if price >= claim || victims.len() == VICTIMS_MAX {
                break;
            }
        }
        // Others are looked at first next time: one that is asked for often does not stand before those behind it for ever.
        victims.into_iter().for_each(|victim| self.nodes.renew(&mut owner.main, victim));
        false
    }

    /// Lets the oldest of an owner's main go that was not asked for lately, or of its window where main is empty. Whether there was one.
    fn evict_one(&mut self, signals: &impl Signals, owner: u32) -> bool {
        let Some(Owner { main, window, .. }) = self.owners.get_mut(owner) else { return false };
        for _ in 0..STEPS_MAX {
            let Some(id) = main.oldest().filter(|id| signals.spare(self.nodes.get(*id).hash)) else { break };
            self.nodes.renew(main, id);
        }
        let Some(id) = main.oldest().or_else(|| window.oldest()) else { return false };
        self.evict(id);
        true
    }

    fn evict(&mut self, id: Id) {
        self.gone.push(self.nodes.get(id).hash);
        self.remove(id);
    }

    fn link(&mut self, id: Id, queue: Queue) {
        let node = self.nodes.get(id);
        if let Some(owner) = self.owners.get_mut(node.owner) {
            self.nodes.push(owner.queue(queue), queue, id);
            self.bytes += node.weight;
            self.owners.rank(node.owner);
        }
    }

    fn unlink(&mut self, id: Id) {
        let node = self.nodes.get(id);
        if let Some(owner) = self.owners.get_mut(node.owner) {
            self.nodes.unlink(owner.queue(node.queue), id);
            self.bytes -= node.weight;
            self.owners.rank(node.owner);
        }
    }
}

/// How much of a victim's frequency counts, where it leaves more than is needed: the root of what is needed of it. The whole would keep
/// large ones that are seldom asked for in the way of many small ones, the plain part would let no large one stay.
fn part(needed: u64, weight: u64) -> f64 {
    if needed < weight { (needed as f64 / weight as f64).sqrt() } else { 1.0 }
}
