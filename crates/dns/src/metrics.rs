//! What is counted.

use crate::respond::Transport;
use atoll_process::Metrics;
use hickory_proto::op::ResponseCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    transport: &'static str,
    outcome: &'static str,
}

/// How a query ended; a closed set of labels.
const fn outcome(code: ResponseCode, nodata: bool) -> &'static str {
    match code {
        ResponseCode::NoError if nodata => "nodata",
        ResponseCode::NoError => "found",
        ResponseCode::NXDomain => "nxdomain",
        ResponseCode::Refused => "refused",
        ResponseCode::NotImp => "notimp",
        ResponseCode::FormErr => "formerr",
        ResponseCode::BADVERS => "badvers",
        _ => "servfail",
    }
}

/// Why a query got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// No query, or none that can be told apart from noise.
    Malformed,
    /// Its network has had its share.
    Limited,
    /// The socket took no more.
    Unsent,
    /// Answering panicked.
    Panicked,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UnansweredLabels {
    reason: &'static str,
}

/// The metrics of a node's DNS.
#[derive(Debug, Clone)]
pub(crate) struct DnsMetrics {
    queries: Family<Labels, Counter>,
    unanswered: Family<UnansweredLabels, Counter>,
    /// Answers that did not fit, or that were held back by the limit: the client comes again over TCP.
    pub(crate) truncated: Counter,
    /// Open TCP connections.
    pub(crate) connections: Gauge,
    /// TCP connections that found no place.
    pub(crate) connections_refused: Counter,
    /// Names in the zone.
    pub(crate) names: Gauge,
    /// Addresses that a virtual host is answered with.
    pub(crate) addresses: Gauge,
    /// 1 while no edge is known to be healthy, so that all are given.
    pub(crate) failed_open: Gauge,
}

impl DnsMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            queries: metrics.counters("atoll_dns_queries", "Queries that were answered"),
            unanswered: metrics.counters("atoll_dns_unanswered", "Packets that got no answer"),
            truncated: metrics.counter(
                "atoll_dns_truncated",
                "Answers over UDP that say that the whole is to be had over TCP",
            ),
            connections: metrics.gauge("atoll_dns_tcp_connections", "Open TCP connections"),
            connections_refused: metrics
                .counter("atoll_dns_tcp_connections_refused", "TCP connections closed for want of a place"),
            names: metrics.gauge("atoll_dns_names", "Names in the zone"),
            addresses: metrics.gauge("atoll_dns_addresses", "Addresses that apps are answered with"),
            failed_open: metrics
                .gauge("atoll_dns_failed_open", "1 while no edge is known to be healthy and all are given"),
        }
    }

    pub(crate) fn answered(&self, transport: Transport, code: ResponseCode, nodata: bool) {
        let transport = match transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        self.queries.get_or_create(&Labels { transport, outcome: outcome(code, nodata) }).inc();
    }

    pub(crate) fn unanswered(&self, reason: Unanswered) {
        let reason = match reason {
            Unanswered::Malformed => "malformed",
            Unanswered::Limited => "limited",
            Unanswered::Unsent => "unsent",
            Unanswered::Panicked => "panicked",
        };
        self.unanswered.get_or_create(&UnansweredLabels { reason }).inc();
    }
}
