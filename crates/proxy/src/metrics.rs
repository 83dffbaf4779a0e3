//! What the engine counts. Labels are closed sets.

use atoll_model::{Hop, Reason};
use atoll_process::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// Where and why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FailureLabels {
    /// The hop's name.
    hop: &'static str,
    /// The reason's code.
    reason: &'static str,
}

/// The first digit of an answer's status.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StatusLabels {
    /// `2xx` and its like.
    class: &'static str,
}

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The metrics of one role in one process. Clones share them.
#[derive(Debug, Clone)]
pub struct ProxyMetrics {
    /// Connections taken. Minus `connections_closed`: those open.
    pub connections_opened: Counter,
    /// Connections that have ended.
    pub connections_closed: Counter,
    /// Connections refused at the cap.
    pub connections_refused: Counter,
    /// Handshakes that failed.
    pub handshake_errors: Counter,
    /// Errors of `accept`.
    pub accept_errors: Counter,
    /// Requests in flight.
    pub in_flight: Gauge,
    /// Panics that were contained.
    pub panics: Counter,
    /// Connections that a drain's deadline, or a denial, cut.
    pub connections_cut: Counter,
    /// Connections closed because their peer took nothing of its responses.
    pub connections_stalled: Counter,
    /// Connections made to the next hop.
    pub upstream_connects: Counter,
    /// Connections to the next hop that could not be made.
    pub upstream_connect_errors: Counter,
    /// Requests sent again because a kept connection had gone stale.
    pub stale_retries: Counter,
    /// Lines of the access log that were dropped.
    pub access_log_dropped: Counter,
    /// From a request's head to its answer's head.
    pub head_seconds: Histogram,
    /// By the first digit, from 1 to 5.
    statuses: [Counter; CLASSES.len()],
    failures: Family<FailureLabels, Counter>,
}

impl ProxyMetrics {
    /// Registers the metrics as `atoll_<role>_…`. Once for each role in a process.
    #[must_use]
    pub fn register(metrics: &Metrics, role: &str) -> Self {
        let counter = |name: &str, help: &str| metrics.counter(&format!("atoll_{role}_{name}"), help);
        let statuses: Family<StatusLabels, Counter> =
            metrics.counters(&format!("atoll_{role}_responses"), "Answers by status class");
        Self {
            connections_opened: counter("connections_opened", "Connections taken"),
            connections_closed: counter("connections_closed", "Connections that have ended"),
            connections_refused: counter("connections_refused", "Connections refused at the cap"),
            handshake_errors: counter("handshake_errors", "TLS handshakes that failed"),
            accept_errors: counter("accept_errors", "Errors of accept"),
            in_flight: metrics.gauge(&format!("atoll_{role}_requests_in_flight"), "Requests in flight"),
            panics: counter("panics", "Panics that were contained"),
            connections_cut: counter("connections_cut", "Connections cut by deadline or denial"),
            connections_stalled: counter(
                "connections_stalled",
                "Connections whose peer took nothing for too long",
            ),
            upstream_connects: counter("upstream_connects", "Connections made to the next hop"),
            upstream_connect_errors: counter(
                "upstream_connect_errors",
                "Connections to the next hop that could not be made",
            ),
            stale_retries: counter("stale_retries", "Requests sent again on a fresh connection"),
            access_log_dropped: counter("access_log_dropped", "Access log lines dropped"),
            head_seconds: metrics.seconds(
                &format!("atoll_{role}_response_head_seconds"),
                "From a request's head to its answer's head",
            ),
            statuses: CLASSES.map(|class| statuses.get_or_create(&StatusLabels { class }).clone()),
            failures: metrics
                .counters(&format!("atoll_{role}_failures"), "Answers that Atoll made, by reason"),
        }
    }

    /// Metrics that nobody reads.
    #[must_use]
    pub fn unregistered() -> Self {
        Self::register(&Metrics::new(), "unregistered")
    }

    /// Counts an answer.
    pub fn answered(&self, status: u16) {
        let class = usize::from(status / 100).clamp(1, CLASSES.len());
        self.statuses[class - 1].inc();
    }

    /// Counts a failure.
    pub fn failed(&self, hop: Hop, reason: Reason) {
        self.failures.get_or_create(&FailureLabels { hop: hop.as_str(), reason: reason.code() }).inc();
    }
}
