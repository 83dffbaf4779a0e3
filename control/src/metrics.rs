//! Metrics `atoll_control_*`.

use atoll_process::Metrics;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

/// Of the node plane.
#[derive(Debug, Clone)]
pub struct NodePlaneMetrics {
    /// Nodes that joined.
    pub joined: Counter,
    /// Node certificates renewed.
    pub renewed: Counter,
    /// Expired certificates exchanged.
    pub recovered: Counter,
    /// Workload certificates issued.
    pub workloads: Counter,
    /// Calls refused.
    pub refused: Counter,
}

impl NodePlaneMetrics {
    /// Registers them.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            joined: metrics.counter("atoll_control_nodes_joined", "Nodes that joined"),
            renewed: metrics.counter("atoll_control_nodes_renewed", "Node certificates renewed"),
            recovered: metrics
                .counter("atoll_control_nodes_recovered", "Expired node certificates exchanged"),
            workloads: metrics.counter("atoll_control_workloads_issued", "Workload certificates issued"),
            refused: metrics.counter("atoll_control_node_plane_refused", "Calls of the node plane refused"),
        }
    }
}

/// Of the API, the store and the reconciler.
#[derive(Debug, Clone)]
pub struct ControlMetrics {
    /// API requests answered.
    pub requests: Counter,
    /// API requests refused for want of a valid token.
    pub unauthorized: Counter,
    /// API requests refused because the token's role may not do it.
    pub forbidden: Counter,
    /// Deploys accepted.
    pub deploys: Counter,
    /// Deploys that failed.
    pub deploys_failed: Counter,
    /// Changes that could not be stored.
    pub store_errors: Counter,
    /// The store's newest revision.
    pub revision: Gauge,
    /// Instances placed.
    pub placements: Gauge,
    /// Desired records held back until an operator confirms their removal.
    pub held: Gauge,
    /// Nodes with an open line.
    pub attached: Gauge,
    /// Services that the reconciler looked at. Grows with what changes, not with what there is.
    pub services_looked_at: Counter,
}

impl ControlMetrics {
    /// Registers them.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            requests: metrics.counter("atoll_control_api_requests", "API requests answered"),
            unauthorized: metrics
                .counter("atoll_control_api_unauthorized", "API requests without a valid token"),
            forbidden: metrics
                .counter("atoll_control_api_forbidden", "API requests that the token's role may not make"),
            deploys: metrics.counter("atoll_control_deploys_accepted", "Deploys accepted"),
            deploys_failed: metrics.counter("atoll_control_deploys_failed", "Deploys that failed"),
            store_errors: metrics.counter("atoll_control_store_errors", "Changes that could not be stored"),
            revision: metrics.gauge("atoll_control_store_revision", "Newest revision of the store"),
            placements: metrics.gauge("atoll_control_placements", "Instances placed"),
            held: metrics.gauge("atoll_control_removals_held", "Removals held back until confirmed"),
            attached: metrics.gauge("atoll_control_nodes_attached", "Nodes with an open line to control"),
            services_looked_at: metrics
                .counter("atoll_control_services_looked_at", "Services that the reconciler looked at"),
        }
    }
}
