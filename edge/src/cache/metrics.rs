//! What operators see of the cache. Labels are closed sets.

use super::Cache;
use super::counts::WORDS;
use super::status::CacheStatus;
use atoll_process::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use std::time::Duration;

/// How often gauges are set.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the cache did for a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ResultLabels {
    /// A word of [`CacheStatus::word`].
    result: &'static str,
}

/// The cache's metrics.
#[derive(Debug)]
pub(crate) struct CacheMetrics {
    results: [Counter; WORDS.len()],
    /// Requests that another edge has answered.
    pub(crate) tier_answered: Counter,
    /// Requests that another edge was asked for in vain.
    pub(crate) tier_failed: Counter,
    /// What it takes now, bytes.
    pub(crate) bytes: Gauge,
    /// What it may take now, bytes.
    pub(crate) bytes_max: Gauge,
    /// Responses that are stored.
    pub(crate) entries: Gauge,
    /// Responses that had to go for others.
    pub(crate) evicted: Gauge,
    /// Changed resources that other edges are yet to be asked to validate.
    pub(crate) changed: Gauge,
    /// Times that a worker found a lock of the index taken.
    pub(crate) lock_waits: Gauge,
}

impl CacheMetrics {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let gauge = |name: &str, help: &str| metrics.gauge(&format!("atoll_edge_cache_{name}"), help);
        let counter = |name: &str, help: &str| metrics.counter(&format!("atoll_edge_cache_{name}"), help);
        let results: Family<ResultLabels, Counter> =
            metrics.counters("atoll_edge_cache_requests", "Requests by what the cache did");
        Self {
            results: WORDS.map(|result| results.get_or_create(&ResultLabels { result }).clone()),
            tier_answered: counter("tier_answered", "Requests that another edge has answered"),
            tier_failed: counter("tier_failed", "Requests that another edge was asked for in vain"),
            bytes: gauge("bytes", "Memory of stored responses and of those on their way"),
            bytes_max: gauge("bytes_max", "What the cache may take now"),
            entries: gauge("entries", "Stored responses"),
            evicted: gauge("evicted", "Responses that had to go for others"),
            changed: gauge("changed", "Changed resources that other edges are yet to be asked to validate"),
            lock_waits: gauge("lock_waits", "Times that a lock of the index was found taken"),
        }
    }

    /// Keeps the gauges true, for ever.
    pub(crate) async fn follow(&self, cache: &Cache) {
        let index = &cache.index;
        let gauge = |gauge: &Gauge, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        loop {
            gauge(&self.bytes, index.bytes());
            gauge(&self.bytes_max, index.capacity());
            gauge(&self.entries, index.count());
            gauge(&self.evicted, index.evicted());
            gauge(&self.changed, cache.changed.count() as u64);
            gauge(&self.lock_waits, index.contended());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    pub(crate) fn count(&self, status: &CacheStatus) {
        let word = status.word();
        if let Some(place) = WORDS.iter().position(|known| *known == word) {
            self.results[place].inc();
        }
    }
}
