//! What an operator sets for the role gateway.

use serde::{Deserialize, Serialize};
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
    /// Most requests at a time, over all workers. Each holds at most 64 KiB of its body for a retry.
    pub requests_max: usize,
    /// Most tunnel connections at a time. An edge has a few for each of its workers.
    pub connections_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            advertise: None,
            workers: 0,
            requests_max: 20_000,
            connections_max: 10_000,
        }
    }
}
