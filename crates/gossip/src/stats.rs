//! What gossip counts, and warnings that can't flood the log.

use crate::authority::Refusal;
use atoll_process::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RefusalLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ResultLabel {
    result: &'static str,
}

/// The metrics of one node's gossip.
#[derive(Debug)]
pub(crate) struct Stats {
    refused: Family<RefusalLabel, Counter>,
    exchanges: Family<ResultLabel, Counter>,
    pub(crate) records: Gauge,
    pub(crate) changes: Counter,
    pub(crate) published: Counter,
    pub(crate) publish_dropped: Counter,
    pub(crate) members: Gauge,
    pub(crate) connections: Gauge,
    pub(crate) dials_failed: Counter,
    pub(crate) bytes_sent: Counter,
    pub(crate) bytes_received: Counter,
    pub(crate) packets_dropped: Counter,
    pub(crate) packets_refused: Counter,
    pub(crate) disk_errors: Counter,
    quiet: Mutex<HashMap<&'static str, u64>>,
}

/// Least time between two log lines about the same thing, ms.
const WARN_EVERY_MS: u64 = 10_000;

impl Stats {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            refused: metrics
                .counters("atoll_gossip_records_refused", "Records that were not taken, by reason"),
            exchanges: metrics
                .counters("atoll_gossip_exchanges", "Exchanges of records with a peer, by result"),
            records: metrics.gauge("atoll_gossip_records", "Records held, deletions included"),
            changes: metrics.counter("atoll_gossip_changes", "Changes that readers were told of"),
            published: metrics.counter("atoll_gossip_published", "Records that this node signed"),
            publish_dropped: metrics.counter(
                "atoll_gossip_publish_dropped",
                "Own records that could not be published: too large or too many",
            ),
            members: metrics
                .gauge("atoll_gossip_members", "Members alive, over all scopes, this node not counted"),
            connections: metrics.gauge("atoll_gossip_connections", "QUIC connections to peers"),
            dials_failed: metrics.counter("atoll_gossip_dials_failed", "Connections that could not be made"),
            bytes_sent: metrics
                .counter("atoll_gossip_sent_bytes", "Bytes of UDP payload sent, all connections"),
            bytes_received: metrics
                .counter("atoll_gossip_received_bytes", "Bytes of UDP payload received, all connections"),
            packets_dropped: metrics.counter(
                "atoll_gossip_packets_dropped",
                "Membership packets dropped for want of a connection or room",
            ),
            packets_refused: metrics.counter(
                "atoll_gossip_packets_refused",
                "Membership packets refused: not from who they say, or unreadable",
            ),
            disk_errors: metrics.counter("atoll_gossip_disk_errors", "Failed writes of records to disk"),
            quiet: Mutex::default(),
        }
    }

    /// Counts a refusal. True when a log line about it is due.
    pub(crate) fn refuse(&self, refusal: Refusal) -> bool {
        self.refused.get_or_create(&RefusalLabel { reason: refusal.label() }).inc();
        // Two exchanges that overlap bring a record twice; that is no news.
        refusal != Refusal::Outdated && self.may_log(refusal.label())
    }

    pub(crate) fn exchange(&self, result: &'static str) {
        self.exchanges.get_or_create(&ResultLabel { result }).inc();
    }

    /// Whether a line about `what` may be logged now.
    pub(crate) fn may_log(&self, what: &'static str) -> bool {
        let now = atoll_process::clock::unix_ms();
        let mut quiet = self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        let until = quiet.entry(what).or_insert(0);
        let due = now >= *until || *until > now + 2 * WARN_EVERY_MS;
        if due {
            *until = now + WARN_EVERY_MS;
        }
        due
    }

    #[cfg(test)]
    pub(crate) fn refused(&self, refusal: Refusal) -> u64 {
        self.refused.get_or_create(&RefusalLabel { reason: refusal.label() }).get()
    }
}
