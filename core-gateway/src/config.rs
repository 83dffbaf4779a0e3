//! What an operator sets for the role gateway.

use atoll_model::RegionName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

/// The role's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where tunnels come in (TCP).
    pub listen: SocketAddr,
    /// The address that others are told to reach it at, if that is not `listen`.
    pub advertise: Option<SocketAddr>,
    /// Data-path workers; 0 means one for each core, at most 4.
    pub workers: usize,
    /// Most requests at a time, over all workers. Each holds at most 64 KiB of its body for a retry. While no more
    /// than a quarter is left, a service that has a 64th of them is given no more for its calls.
    pub requests_max: usize,
    /// Most connections at a time. An edge has a few for each of its workers, and so has each gateway of
    /// another region.
    pub connections_max: usize,
    /// Most of them that may be sidecars', which have one or two each, so that tunnels find a place. They
    /// are shared among the services as requests are.
    pub sidecar_connections_max: usize,
    /// Simulated round-trip time to each region's gateways, ms (`atoll dev --wan`).
    pub wan: BTreeMap<RegionName, u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            advertise: None,
            workers: 0,
            requests_max: 20_000,
            connections_max: 10_000,
            sidecar_connections_max: 8_000,
            wan: BTreeMap::new(),
        }
    }
}
