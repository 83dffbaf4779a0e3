//! Readers of changes. What a reader has not taken yet is kept by key, the newest only, so that a slow
//! reader holds up nobody and costs at most what there is.

use crate::scope::{Entry, Owner, Scope};
use atoll_model::Kind;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::Notify;

type EntryId = (Kind, Scope, Arc<str>, Owner);

#[derive(Debug)]
struct Mailbox {
    kinds: Vec<Kind>,
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// What there was at the subscription, told before all else. A list: of the many there may be then, each is
    /// there once.
    first: Vec<Arc<Entry>>,
    entries: HashMap<EntryId, Arc<Entry>>,
    closed: bool,
}

impl Mailbox {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put<'a>(&self, entries: impl Iterator<Item = &'a Arc<Entry>>) {
        let mut waiting = self.waiting();
        let before = waiting.entries.len();
        for entry in entries.filter(|entry| self.kinds.contains(&entry.kind)) {
            let id = (entry.kind, entry.scope.clone(), Arc::clone(&entry.key), entry.owner.clone());
            waiting.entries.insert(id, Arc::clone(entry));
        }
        if waiting.entries.len() > before {
            self.wake.notify_one();
        }
    }
}

/// The changes of some kinds, as they come.
#[derive(Debug)]
pub struct Subscription(Arc<Mailbox>);

impl Subscription {
    /// What changed since the last call, each key once, as it is now; at the first call everything
    /// there is. Waits while there is nothing. Deletions come as entries with `deleted` set. Nothing
    /// after the gossip was closed. Cancel-safe.
    pub async fn next(&mut self) -> Option<Vec<Arc<Entry>>> {
        loop {
            {
                let mut waiting = self.0.waiting();
                if !waiting.first.is_empty() {
                    return Some(std::mem::take(&mut waiting.first));
                }
                if !waiting.entries.is_empty() {
                    return Some(std::mem::take(&mut waiting.entries).into_values().collect());
                }
                if waiting.closed {
                    return None;
                }
            }
            // A wake-up between the look and here is stored: there is one reader alone.
            self.0.wake.notified().await;
        }
    }
}

/// Hands changes to the readers.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    mailboxes: Vec<Weak<Mailbox>>,
    closed: bool,
}

impl Hub {
    /// A new reader, for whom `present` is waiting.
    pub(crate) fn subscribe<'a>(
        &mut self,
        kinds: &[Kind],
        present: impl Iterator<Item = &'a Arc<Entry>>,
    ) -> Subscription {
        let mailbox =
            Arc::new(Mailbox { kinds: kinds.to_vec(), waiting: Mutex::default(), wake: Notify::new() });
        {
            let mut waiting = mailbox.waiting();
            waiting.closed = self.closed;
            waiting.first = present.cloned().collect();
        }
        self.mailboxes.retain(|weak| weak.strong_count() > 0);
        self.mailboxes.push(Arc::downgrade(&mailbox));
        Subscription(mailbox)
    }

    pub(crate) fn send(&self, changes: &[Arc<Entry>]) {
        if changes.is_empty() {
            return;
        }
        for mailbox in self.mailboxes.iter().filter_map(Weak::upgrade) {
            mailbox.put(changes.iter());
        }
    }

    pub(crate) fn close(&mut self) {
        self.closed = true;
        for mailbox in self.mailboxes.iter().filter_map(Weak::upgrade) {
            mailbox.waiting().closed = true;
            mailbox.wake.notify_one();
        }
    }
}
