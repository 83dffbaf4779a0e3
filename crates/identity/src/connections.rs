//! Every live mesh connection, so that those of a denied peer can be cut.

use crate::certificate::PeerIdentity;
use crate::spiffe::SpiffeId;
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// How many connections are admitted by default: about 200 bytes each, so 20 MB.
pub const CONNECTIONS_MAX: usize = 100_000;

/// Why a connection is not admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The peer's id is on the deny-list.
    #[error("{0} is on the deny-list")]
    Listed(SpiffeId),
    /// The bound on live connections is reached.
    #[error("there are already {0} mesh connections, which is the limit")]
    Full(usize),
}

/// The live connections of one [`Identity`](crate::Identity). Cheap to clone; clones share.
#[derive(Debug, Clone)]
pub struct LiveConnections {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit: usize,
    next: AtomicU64,
    // Read at each handshake, written seldom.
    denied: ArcSwap<HashMap<SpiffeId, u64>>,
    // Held for one insertion or removal; for a pass over all only when the deny-list changes.
    live: Mutex<HashMap<u64, Live>>,
}

#[derive(Debug)]
struct Live {
    id: SpiffeId,
    epoch: u64,
    cut: Arc<Cut>,
}

#[derive(Debug, Default)]
struct Cut {
    done: AtomicBool,
    wake: Notify,
}

impl Default for LiveConnections {
    fn default() -> Self {
        Self::with_limit(CONNECTIONS_MAX)
    }
}

impl LiveConnections {
    /// With another bound than [`CONNECTIONS_MAX`].
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        let shared =
            Shared { limit, next: AtomicU64::new(0), denied: ArcSwap::default(), live: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Takes a connection in, after its handshake. It must end when [`ConnectionGuard::cut`] says so.
    pub fn admit(&self, peer: &PeerIdentity) -> Result<ConnectionGuard, Denied> {
        let key = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let cut = Arc::new(Cut::default());
        let guard = {
            let mut live = self.live();
            if live.len() >= self.shared.limit {
                return Err(Denied::Full(self.shared.limit));
            }
            let epoch = peer.epoch.unwrap_or(0);
            live.insert(key, Live { id: peer.id.clone(), epoch, cut: Arc::clone(&cut) });
            ConnectionGuard { connections: self.clone(), key, cut }
        };
        // Looked up after the insertion: a list that is set meanwhile is either seen here or cuts it.
        if self.denies(peer) {
            return Err(Denied::Listed(peer.id.clone()));
        }
        Ok(guard)
    }

    /// Replaces the deny-list, and cuts the live connections of those on it.
    pub fn set_denied(&self, ids: impl IntoIterator<Item = SpiffeId>) {
        self.set_denied_before(ids.into_iter().map(|id| (id, u64::MAX)));
    }

    /// [`set_denied`](Self::set_denied), each for certificates of an epoch below the one with it: those
    /// from before a node that was removed joined again. A certificate without an epoch has 0.
    pub fn set_denied_before(&self, ids: impl IntoIterator<Item = (SpiffeId, u64)>) {
        let denied: Arc<HashMap<SpiffeId, u64>> = Arc::new(ids.into_iter().collect());
        self.shared.denied.store(Arc::clone(&denied));
        for live in self.live().values() {
            if denied.get(&live.id).is_some_and(|before| live.epoch < *before) {
                live.cut.done.store(true, Ordering::Release);
                live.cut.wake.notify_waiters();
            }
        }
    }

    /// Whether the deny-list holds the peer.
    #[must_use]
    pub fn denies(&self, peer: &PeerIdentity) -> bool {
        self.denies_epoch(&peer.id, peer.epoch.unwrap_or(0))
    }

    /// The same of an id in an epoch.
    pub(crate) fn denies_epoch(&self, id: &SpiffeId, epoch: u64) -> bool {
        self.shared.denied.load().get(id).is_some_and(|before| epoch < *before)
    }

    /// How many connections are live.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live().len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn live(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Live>> {
        // The map is whole whenever the lock is free: no section can panic half-way.
        self.shared.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held by a connection as long as it lives.
#[derive(Debug)]
#[must_use = "the connection counts as closed once this is dropped"]
pub struct ConnectionGuard {
    connections: LiveConnections,
    key: u64,
    cut: Arc<Cut>,
}

impl ConnectionGuard {
    /// Resolves when the connection must end now, whatever is open on it. Cancel-safe; any number of
    /// tasks may wait, on any runtime.
    pub async fn cut(&self) {
        let woken = self.cut.wake.notified();
        let mut woken = std::pin::pin!(woken);
        // Registered before the look at the flag: a cut between the two wakes it.
        woken.as_mut().enable();
        if !self.is_cut() {
            woken.await;
        }
    }

    /// Whether the connection must end now.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut.done.load(Ordering::Acquire)
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.connections.live().remove(&self.key);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use atoll_model::Roles;
    use std::time::Duration;

    fn peer(path: &str) -> PeerIdentity {
        let id = SpiffeId::parse(&format!("spiffe://td/{path}")).unwrap();
        PeerIdentity {
            id,
            roles: Roles::NONE,
            region: None,
            epoch: None,
            serial: vec![1],
            not_before_ms: 0,
            not_after_ms: 0,
        }
    }

    #[test]
    fn a_denied_peer_is_cut_on_another_threads_runtime() {
        let connections = LiveConnections::default();
        let bad = connections.admit(&peer("bad")).unwrap();
        let good = connections.admit(&peer("good")).unwrap();
        let waiter = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime
                .block_on(async { tokio::time::timeout(Duration::from_secs(10), bad.cut()).await.unwrap() });
            drop(bad);
        });
        connections.set_denied([peer("bad").id]);
        waiter.join().unwrap();
        assert!(!good.is_cut());
        assert_eq!(connections.len(), 1);
        assert_eq!(connections.admit(&peer("bad")).unwrap_err(), Denied::Listed(peer("bad").id));
        assert_eq!(connections.len(), 1);
        connections.set_denied([]);
        assert!(connections.admit(&peer("bad")).is_ok());
    }

    #[test]
    fn a_certificate_from_before_a_rejoin_stays_denied() {
        let connections = LiveConnections::default();
        let of_epoch = |epoch| PeerIdentity { epoch: Some(epoch), ..peer("node") };
        let stolen = connections.admit(&of_epoch(7)).unwrap();
        let joined_again = connections.admit(&of_epoch(8)).unwrap();
        connections.set_denied_before([(peer("node").id, 8)]);
        assert!(stolen.is_cut() && !joined_again.is_cut());
        assert!(connections.admit(&of_epoch(7)).is_err());
        assert!(connections.admit(&peer("node")).is_err(), "no epoch is older than any");
        assert!(connections.admit(&of_epoch(8)).is_ok());
    }

    #[test]
    fn no_connection_slips_in_while_the_list_changes() {
        for _ in 0..200 {
            let connections = LiveConnections::default();
            let start = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                let admitting = scope.spawn(|| {
                    start.wait();
                    (0..8).filter_map(|_| connections.admit(&peer("bad")).ok()).collect::<Vec<_>>()
                });
                start.wait();
                connections.set_denied([peer("bad").id]);
                assert!(admitting.join().unwrap().iter().all(ConnectionGuard::is_cut));
            });
        }
    }

    #[test]
    fn the_bound_holds_and_room_comes_back() {
        let connections = LiveConnections::with_limit(1);
        let first = connections.admit(&peer("a")).unwrap();
        assert_eq!(connections.admit(&peer("b")).unwrap_err(), Denied::Full(1));
        drop(first);
        assert!(connections.admit(&peer("b")).is_ok());
    }
}
