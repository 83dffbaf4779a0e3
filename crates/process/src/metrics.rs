//! One registry of metrics a process, in Prometheus' text format.
//!
//! Names are `atoll_<component>_<noun>_<unit>`; the encoder appends `_total` to counters. Labels are
//! closed sets: never a host name, a path or an address.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// The registry. Clones share it. Keep the handles that `counter` and its like return: the registry
/// is locked only to register and to encode.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Metrics {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers any metric under its full name.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).register(name, help, metric);
    }

    /// A counter; `_total` is appended to `name`.
    #[must_use]
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        let metric = Counter::default();
        self.register(name, help, metric.clone());
        metric
    }

    /// A gauge.
    #[must_use]
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        let metric = Gauge::default();
        self.register(name, help, metric.clone());
        metric
    }

    /// Counters with labels; look one up once and keep it where the label is known beforehand.
    #[must_use]
    pub fn counters<L>(&self, name: &str, help: &str) -> Family<L, Counter>
    where
        L: EncodeLabelSet + Clone + Hash + Eq + Debug + Send + Sync + 'static,
    {
        let metric = Family::<L, Counter>::default();
        self.register(name, help, metric.clone());
        metric
    }

    /// Gauges with labels.
    #[must_use]
    pub fn gauges<L>(&self, name: &str, help: &str) -> Family<L, Gauge>
    where
        L: EncodeLabelSet + Clone + Hash + Eq + Debug + Send + Sync + 'static,
    {
        let metric = Family::<L, Gauge>::default();
        self.register(name, help, metric.clone());
        metric
    }

    /// A histogram of seconds, from 100 µs to 26 s in powers of two.
    #[must_use]
    pub fn seconds(&self, name: &str, help: &str) -> Histogram {
        let metric = Histogram::new(exponential_buckets(0.0001, 2.0, 19));
        self.register(name, help, metric.clone());
        metric
    }

    /// All metrics as text (OpenMetrics).
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a String fails only when a metric's own formatter does.
        if encode(&mut text, &registry).is_err() {
            text.push_str("# EOF\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_encoded() {
        let metrics = Metrics::new();
        let counter = metrics.counter("atoll_test_things", "Things");
        counter.inc();
        assert!(metrics.encode().contains("atoll_test_things_total 1"));
    }
}
