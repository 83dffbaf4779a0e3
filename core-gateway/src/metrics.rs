//! What the gateway counts beside what every hop does.

use atoll_process::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    from: &'static str,
    served_by: &'static str,
}

/// Calls of services to services. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct CallMetrics(Family<CallLabels, Counter>);

impl CallMetrics {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        Self(metrics.counters(
            "atoll_gateway_calls",
            "Calls of services, by who brought them (sidecar, gateway) and who answered (own_region, other_region, nobody)",
        ))
    }

    pub(crate) fn count(&self, from_gateway: bool, served_by: &'static str) {
        let from = if from_gateway { "gateway" } else { "sidecar" };
        self.0.get_or_create(&CallLabels { from, served_by }).inc();
    }
}
