//! What a host counts.

use crate::supervisor::State;
use atoll_process::Metrics;
use atoll_wire::sidecar::SidecarStatus;
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use std::fmt;

/// The handles, registered once.
#[derive(Debug, Clone)]
pub struct HostMetrics {
    /// Instances in each state.
    pub instances: Family<StateLabel, Gauge>,
    /// Programs started.
    pub starts: Counter,
    /// Programs that could not be started.
    pub start_failures: Counter,
    /// Programs that ended without being asked to.
    pub exits: Counter,
    /// Programs that had to be killed.
    pub kills: Counter,
    /// Processes taken over from an earlier run.
    pub adoptions: Counter,
    /// Checks that failed.
    pub check_failures: Counter,
    /// Sidecars started.
    pub sidecar_starts: Counter,
    /// Sidecars that ended without being asked to.
    pub sidecar_exits: Counter,
    /// Connections to the sidecars' socket that were refused.
    pub sidecar_refusals: Counter,
    /// Times that the oldest part of an output file was let go.
    pub log_trims: Counter,
    /// Output that could not be kept.
    pub log_errors: Counter,
    /// State files that could not be written.
    pub state_errors: Counter,
    /// Workload certificates received.
    pub certificates: Counter,
    /// Requests for a workload certificate that failed.
    pub certificate_failures: Counter,
    /// Calls of instances, by how they went.
    pub calls: Family<CallLabel, Counter>,
    /// Requests of the mesh that sidecars did not let through to their instances.
    pub calls_refused: Counter,
    /// Placements that could not be followed.
    pub bad_placements: Counter,
}

impl HostMetrics {
    /// Registers all of them.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        let counter = |name, help| metrics.counter(name, help);
        Self {
            instances: metrics.gauges("atoll_host_instances", "Instances by state"),
            starts: counter("atoll_host_program_starts", "Programs started"),
            start_failures: counter(
                "atoll_host_program_start_failures",
                "Programs that could not be started",
            ),
            exits: counter("atoll_host_program_exits", "Programs that ended without being asked to"),
            kills: counter("atoll_host_program_kills", "Processes that had to be killed"),
            adoptions: counter(
                "atoll_host_adoptions",
                "Processes taken over from an earlier run of the host",
            ),
            check_failures: counter("atoll_host_check_failures", "Checks that failed"),
            sidecar_starts: counter("atoll_host_sidecar_starts", "Sidecars started"),
            sidecar_exits: counter("atoll_host_sidecar_exits", "Sidecars that ended without being asked to"),
            sidecar_refusals: counter(
                "atoll_host_sidecar_refusals",
                "Connections to the sidecars' socket refused",
            ),
            log_trims: counter(
                "atoll_host_log_trims",
                "Times that the oldest part of an output file was let go",
            ),
            log_errors: counter("atoll_host_log_errors", "Output that could not be kept"),
            state_errors: counter("atoll_host_state_errors", "State files that could not be written"),
            certificates: counter("atoll_host_workload_certificates", "Workload certificates received"),
            certificate_failures: counter(
                "atoll_host_workload_certificate_failures",
                "Requests for a workload certificate that failed",
            ),
            calls: metrics.counters(
                "atoll_host_calls",
                "Calls of instances: answered near (in the region, sidecar to sidecar), by way of a gateway, or failed",
            ),
            calls_refused: counter(
                "atoll_host_calls_refused",
                "Requests of the mesh that sidecars did not let through to their instances",
            ),
            bad_placements: counter("atoll_host_bad_placements", "Placements that could not be followed"),
        }
    }

    /// Moves one instance from a state to another.
    pub fn moved(&self, from: Option<State>, to: Option<State>) {
        if let Some(state) = from {
            self.instances.get_or_create(&StateLabel(state)).dec();
        }
        if let Some(state) = to {
            self.instances.get_or_create(&StateLabel(state)).inc();
        }
    }
}

impl HostMetrics {
    /// Counts what a sidecar has counted since it said `before`.
    pub fn called(&self, before: &SidecarStatus, now: &SidecarStatus) {
        let of = |how| self.calls.get_or_create(&CallLabel { how });
        of("near").inc_by(now.calls_near.saturating_sub(before.calls_near));
        of("gateway").inc_by(now.calls_by_gateway.saturating_sub(before.calls_by_gateway));
        of("failed").inc_by(now.calls_failed.saturating_sub(before.calls_failed));
        self.calls_refused.inc_by(now.calls_refused.saturating_sub(before.calls_refused));
    }
}

/// The label `how` of a call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CallLabel {
    how: &'static str,
}

/// The label `state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StateLabel(pub State);

impl EncodeLabelSet for StateLabel {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        ("state", self.0.as_str()).encode(encoder.encode_label())
    }
}
