//! What an operator may set about a host.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};

/// The section `[host]` of a node's configuration. Every value has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where sidecars take connections from the region's gateways. An address that gateways on other
    /// machines reach, where there are any. Default 127.0.0.1.
    pub sidecar_listen: IpAddr,
    /// Instances end with the host (as `atoll dev` wants it) instead of outliving it. Default false.
    pub stop_instances_on_exit: bool,
    /// How long a program may take to end after SIGTERM before SIGKILL, ms. Default 5000.
    pub stop_grace_ms: u64,
    /// The same when `stop_instances_on_exit` ends them, ms. Default 2000.
    pub exit_grace_ms: u64,
    /// The least time between announcing that an instance drains and stopping it, ms, so that gateways
    /// have heard of it. Default 500.
    pub drain_min_ms: u64,
    /// How long what an earlier run left is kept while no placement for it is known, ms. A host that
    /// lost its records must not stop what still serves before it has heard of others. Default 10000.
    pub orphan_grace_ms: u64,
    /// Most instances at a time; further placements are reported as not startable. Default 1024.
    pub instances_max: usize,
    /// How much of an instance's output is kept, bytes: the last. On disk it is up to an eighth more. Default
    /// 8 MiB.
    pub log_bytes_max: u64,
    /// How long what no instance uses of bundles is kept, ms, so that going back to an older revision fetches
    /// nothing. Default an hour.
    pub bundles_unused_kept_ms: u64,
    /// No bundle is fetched or unpacked where that would leave less than this of the disk, bytes. Default
    /// 256 MiB.
    pub bundles_keep_free_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sidecar_listen: Ipv4Addr::LOCALHOST.into(),
            stop_instances_on_exit: false,
            stop_grace_ms: 5_000,
            exit_grace_ms: 2_000,
            drain_min_ms: 500,
            orphan_grace_ms: 10_000,
            instances_max: 1_024,
            log_bytes_max: 8 << 20,
            bundles_unused_kept_ms: 3_600_000,
            bundles_keep_free_bytes: 256 << 20,
        }
    }
}
