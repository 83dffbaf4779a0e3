//! What an operator sets for the role edge.

use atoll_model::RegionName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The role's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Plain HTTP, which redirects.
    pub http: Vec<SocketAddr>,
    /// HTTPS over TCP.
    pub https: Vec<SocketAddr>,
    /// The port that redirects name; 0 means the port of the first `https` address.
    pub public_https_port: u16,
    /// Data-path workers; 0 means one for each core, at most 4.
    pub workers: usize,
    /// Access log: a file that is appended to, `-` for stdout, or nothing for none.
    pub access_log: Option<PathBuf>,
    /// Simulated round-trip time to each region's gateways, ms (`atoll dev --wan`).
    pub wan: BTreeMap<RegionName, u64>,
    /// Most requests at a time, over all workers. Each holds at most 64 KiB of its body for a retry, so
    /// 20,000 uploads at once hold 1.3 GiB at worst.
    pub requests_max: usize,
    /// Most client connections at a time, over all workers; about 40 KiB each with TLS.
    pub connections_max: usize,
    /// Most memory of the cache, in bytes: what is stored and what is on its way. 0: nothing is cached.
    pub cache_bytes_max: u64,
    /// The largest body that is stored, bytes.
    pub cache_object_bytes_max: u64,
    /// Memory that the process may have, in bytes: near it the cache gives back what it holds. 0: what the cgroup or the machine allows.
    pub memory_limit_bytes: u64,
    /// `Cache-Status` also says what a response is found by. For operators who look for why something is not found.
    pub cache_status_key: bool,
    /// Where other edges may ask for what this one has (TCP, mutual TLS). Nothing: they don't, and it asks none.
    pub peer_listen: Option<SocketAddr>,
    /// The address that they are told to reach it at, if that is not `peer_listen`.
    pub peer_advertise: Option<SocketAddr>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            http: Vec::new(),
            https: Vec::new(),
            public_https_port: 0,
            workers: 0,
            access_log: None,
            wan: BTreeMap::new(),
            requests_max: 20_000,
            connections_max: 50_000,
            cache_bytes_max: 256 << 20,
            cache_object_bytes_max: 32 << 20,
            memory_limit_bytes: 0,
            cache_status_key: false,
            peer_listen: None,
            peer_advertise: None,
        }
    }
}

impl Config {
    /// The simulated round-trip times.
    pub(crate) fn wan_delays(&self) -> BTreeMap<RegionName, Duration> {
        self.wan.iter().map(|(region, ms)| (region.clone(), Duration::from_millis(*ms))).collect()
    }
}
