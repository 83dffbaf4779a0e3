//! What other threads may know of the workers' tunnels: for readiness, for control's question, for `/state`.

use crate::views::Gateway;
use arc_swap::ArcSwap;
use atoll_proxy::tunnel::TunnelState;
use std::sync::Arc;

/// One tunnel of one worker.
#[derive(Debug, Clone)]
pub(crate) struct Posted {
    pub(crate) gateway: Gateway,
    pub(crate) state: Arc<ArcSwap<TunnelState>>,
}

/// A place for each worker to post its tunnels. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Board(Arc<[ArcSwap<Vec<Posted>>]>);

impl Board {
    pub(crate) fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| ArcSwap::default()).collect())
    }

    pub(crate) fn post(&self, worker: usize, tunnels: Vec<Posted>) {
        if let Some(place) = self.0.get(worker) {
            place.store(Arc::new(tunnels));
        }
    }

    /// Workers that have no tunnel that takes requests.
    pub(crate) fn workers_without(&self) -> usize {
        let lacks =
            |place: &&ArcSwap<Vec<Posted>>| !place.load().iter().any(|posted| posted.state.load().connected);
        self.0.iter().filter(lacks).count()
    }

    /// The first worker's tunnels: the others' differ only for moments.
    pub(crate) fn sample(&self) -> Arc<Vec<Posted>> {
        self.0.first().map(ArcSwap::load_full).unwrap_or_default()
    }
}
