//! Whether the gateway can serve, and what it knows.

use crate::gateway::Shared;
use crate::summaries::healthy;
use crate::views::Cluster;
use atoll_routing::endpoint::State;
use atoll_wire::node::ClusterStats;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Clusters in one answer; some 500 KiB, where a message of the line to control may have 4 MiB.
const COUNTS_MAX: usize = 4096;

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

    /// What was counted of the clusters whose names begin so and that were asked for; at most 4096, those
    /// with the most requests.
    #[must_use]
    pub fn counts(&self, prefix: &str) -> Vec<ClusterStats> {
        let snapshot = self.shared.views.load();
        let of_cluster = |(name, cluster): (&str, &Arc<Cluster>)| {
            let latency = cluster.counts.latency();
            let requests = latency.iter().sum();
            let in_flight = cluster.in_flight.load(Ordering::Relaxed);
            (name.starts_with(prefix) && (requests > 0 || in_flight > 0)).then(|| ClusterStats {
                cluster: name.to_owned(),
                requests,
                failures: cluster.counts.failures(),
                in_flight,
                latency,
            })
        };
        let mut counts: Vec<ClusterStats> = snapshot.clusters.iter().filter_map(of_cluster).collect();
        if counts.len() > COUNTS_MAX {
            counts.sort_by_key(|stats| std::cmp::Reverse(stats.requests));
            counts.truncate(COUNTS_MAX);
        }
        counts
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
            "sidecar_connections": shared.sidecar_connections.in_flight(),
            "tunnels": shared.board.state(),
            "clusters": clusters,
        })
    }
}
