//! Whether the gateway can serve, and what it knows.

use crate::gateway::Shared;
use crate::summaries::healthy;
use crate::views::Cluster;
use atoll_routing::endpoint::State;
use atoll_wire::node::ClusterStats;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Answers questions about a running gateway, from any thread. Clones share it.
#[derive(Debug, Clone)]
pub struct Serving {
    pub(crate) shared: Arc<Shared>,
}

impl Serving {
    /// Whether edges may come: something is known (from disk or from others), and it isn't draining.
    ///
    /// # Errors
    /// What is missing.
    pub fn ready(&self) -> Result<(), String> {
        if self.shared.drain.is_draining() {
            return Err("the gateway is draining".to_owned());
        }
        if !self.shared.views.load().heard {
            return Err("nothing is known yet: no record on disk, none from another node".to_owned());
        }
        Ok(())
    }

    /// The newest desired state that is applied: the store's epoch and revision.
    #[must_use]
    pub fn applied(&self) -> (u64, u64) {
        self.shared.views.load().desired
    }

    /// Records that can't be applied (`kind/key`), and why; at most 16.
    #[must_use]
    pub fn apply_errors(&self) -> Vec<(String, String)> {
        self.shared.apply_errors.load().to_vec()
    }

    /// What was counted of each cluster that was asked for.
    #[must_use]
    pub fn counts(&self) -> Vec<ClusterStats> {
        let snapshot = self.shared.views.load();
        let of_cluster = |(name, cluster): (&str, &Arc<Cluster>)| {
            let latency = cluster.counts.latency();
            let requests = latency.iter().sum();
            let in_flight = cluster.in_flight.load(Ordering::Relaxed);
            (requests > 0 || in_flight > 0).then(|| ClusterStats {
                cluster: name.to_owned(),
                requests,
                failures: cluster.counts.failures(),
                in_flight,
                latency,
            })
        };
        snapshot.clusters.iter().filter_map(of_cluster).collect()
    }

    /// What the gateway knows, for `/state`.
    #[must_use]
    pub fn state(&self) -> serde_json::Value {
        let shared = &self.shared;
        let snapshot = shared.views.load();
        let clusters: serde_json::Map<String, serde_json::Value> = snapshot
            .endpoints
            .iter()
            .map(|(name, endpoints)| {
                let placed = endpoints.all.iter().map(|endpoint| {
                    serde_json::json!({
                        "instance": &*endpoint.key,
                        "sidecar": endpoint.address,
                        "healthy": endpoint.state == State::Healthy,
                        "left_out": shared.reach.is_ejected(&endpoint.key),
                    })
                });
                let cluster = serde_json::json!({
                    "healthy": healthy(shared, &snapshot, name),
                    "expected": endpoints.expected,
                    "instances": placed.collect::<Vec<_>>(),
                });
                (name.to_owned(), cluster)
            })
            .collect();
        serde_json::json!({
            "desired_epoch": snapshot.desired.0,
            "desired_version": snapshot.desired.1,
            "requests_in_flight": shared.admissions.in_flight(),
            "connections": shared.connections.open(),
            "clusters": clusters,
        })
    }
}
