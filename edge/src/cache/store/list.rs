//! Queues of entries: lists through one array, so that an entry leaves its queue at once, wherever in it it is.

/// An entry's place in the array.
pub(super) type Id = u32;

/// No entry.
const NONE: Id = Id::MAX;

/// Which of its owner's queues an entry is in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    /// What came lately.
    Window,
    /// What was let in.
    Main,
}

/// What the policy knows of an entry.
#[derive(Clone, Copy)]
pub(super) struct Node {
    pub(super) hash: u64,
    /// Bytes, at least one.
    pub(super) weight: u64,
    pub(super) owner: u32,
    pub(super) queue: Queue,
    newer: Id,
    older: Id,
}

/// All nodes. Places of those that went are used again.
#[derive(Default)]
pub(super) struct Nodes {
    nodes: Vec<Node>,
    free: Vec<Id>,
}

/// A queue, from the newest to the oldest.
#[derive(Clone, Copy)]
pub(super) struct List {
    newest: Id,
    oldest: Id,
    /// What its entries weigh.
    pub(super) bytes: u64,
    /// How many they are.
    pub(super) count: u64,
}

impl Nodes {
    /// Takes a place, in no queue yet. None when all four thousand million are taken.
    pub(super) fn add(&mut self, hash: u64, weight: u64, owner: u32) -> Option<Id> {
        let node = Node { hash, weight, owner, queue: Queue::Window, newer: NONE, older: NONE };
        if let Some(id) = self.free.pop() {
            self.nodes[id as usize] = node;
            return Some(id);
        }
        let id = Id::try_from(self.nodes.len()).ok().filter(|id| *id != NONE)?;
        self.nodes.push(node);
        Some(id)
    }

    /// Gives a place back. It is in no queue any more.
    pub(super) fn free(&mut self, id: Id) {
        self.free.push(id);
    }

    /// Places that are taken.
    pub(super) fn count(&self) -> u64 {
        (self.nodes.len() - self.free.len()) as u64
    }

    pub(super) fn get(&self, id: Id) -> Node {
        self.nodes[id as usize]
    }

    /// Makes it the newest of a queue.
    pub(super) fn push(&mut self, list: &mut List, queue: Queue, id: Id) {
        let second = list.newest;
        let node = &mut self.nodes[id as usize];
        (node.queue, node.newer, node.older) = (queue, NONE, second);
        list.bytes += node.weight;
        list.count += 1;
        list.newest = id;
        match second {
            NONE => list.oldest = id,
            second => self.nodes[second as usize].newer = id,
        }
    }

    /// Takes it out of the queue that it is in.
    pub(super) fn unlink(&mut self, list: &mut List, id: Id) {
        let node = self.get(id);
        match node.newer {
            NONE => list.newest = node.older,
            newer => self.nodes[newer as usize].older = node.older,
        }
        match node.older {
            NONE => list.oldest = node.newer,
            older => self.nodes[older as usize].newer = node.newer,
        }
        list.bytes -= node.weight;
        list.count -= 1;
    }

    /// Makes it the newest of the queue that it is in.
    pub(super) fn renew(&mut self, list: &mut List, id: Id) {
        self.unlink(list, id);
        self.push(list, self.get(id).queue, id);
    }

    /// The one that came after it.
    pub(super) fn newer(&self, id: Id) -> Option<Id> {
        Some(self.get(id).newer).filter(|id| *id != NONE)
    }
}

impl List {
    /// The one that is in it longest.
    pub(super) fn oldest(&self) -> Option<Id> {
        Some(self.oldest).filter(|id| *id != NONE)
    }
}

impl Default for List {
    fn default() -> Self {
        Self { newest: NONE, oldest: NONE, bytes: 0, count: 0 }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn a_list_is_a_queue_that_can_be_left_anywhere(steps in prop::collection::vec((0..3u8, any::<prop::sample::Index>()), 1..200)) {
            let (mut nodes, mut list, mut model) = (Nodes::default(), List::default(), VecDeque::new());
            for (n, (step, at)) in (1..).zip(steps) {
                if model.is_empty() || step == 0 {
                    let id = nodes.add(n, n, 0).unwrap();
                    nodes.push(&mut list, Queue::Main, id);
                    model.push_back((id, n));
                } else {
                    let (id, n) = model.remove(at.index(model.len())).unwrap();
                    if step == 1 {
                        nodes.unlink(&mut list, id);
                        nodes.free(id);
                    } else {
                        nodes.renew(&mut list, id);
                        model.push_back((id, n));
                    }
                }
                let mut at = list.oldest();
                for (id, n) in &model {
                    prop_assert_eq!(at, Some(*id));
                    prop_assert_eq!(nodes.get(*id).hash, *n);
                    at = nodes.newer(*id);
                }
                prop_assert_eq!(at, None);
                prop_assert_eq!(list.count, model.len() as u64);
                prop_assert_eq!(list.bytes, model.iter().map(|(_, n)| n).sum::<u64>());
            }
        }
    }
}
