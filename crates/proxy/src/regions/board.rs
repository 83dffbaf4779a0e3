//! What other threads may know of the workers' tunnels: for readiness, for `explain` and
//! `/state`.

use super::known::Gateway;
use crate::tunnel::TunnelState;
use arc_swap::ArcSwap;
use std::sync::Arc;

/// One tunnel of one worker.
#[derive(Debug, Clone)]
pub struct Posted {
    /// Where it goes.
    pub gateway: Gateway,
    /// How it does.
    pub state: Arc<ArcSwap<TunnelState>>,
}

/// A place for each worker to post its tunnels. Clones share it.
#[derive(Debug, Clone)]
pub struct Board(Arc<[ArcSwap<Vec<Posted>>]>);

impl Board {
    /// For so many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| ArcSwap::default()).collect())
    }

    pub(crate) fn post(&self, worker: usize, tunnels: Vec<Posted>) {
        if let Some(place) = self.0.get(worker) {
            place.store(Arc::new(tunnels));
        }
    }

    /// Workers that have no tunnel that takes requests.
    #[must_use]
    pub fn workers_without(&self) -> usize {
        let lacks =
            |place: &&ArcSwap<Vec<Posted>>| !place.load().iter().any(|posted| posted.state.load().connected);
        self.0.iter().filter(lacks).count()
    }

    /// The first worker's tunnels: the others' differ only for moments.
    #[must_use]
    pub fn sample(&self) -> Arc<Vec<Posted>> {
        self.0.first().map(ArcSwap::load_full).unwrap_or_default()
    }

    /// The tunnels, for `/state`.
    #[must_use]
    pub fn state(&self) -> serde_json::Value {
        let tunnel = |posted: &Posted| {
            let state = posted.state.load();
            serde_json::json!({
                "gateway": posted.gateway.name,
                "region": posted.gateway.region,
                "connected": state.connected,
                "draining": state.draining,
                "rtt_us": state.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            })
        };
        self.sample().iter().map(tunnel).collect()
    }
}
