//! What an operator sets for a node that answers DNS.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The section `[dns]` of a node's configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to answer, over UDP and TCP. Empty: nowhere. On a machine with several addresses name each one:
    /// an answer to a query at `0.0.0.0` may leave from another address than the one that was asked.
    pub listen: Vec<SocketAddr>,
    /// The platform's zone, such as `apps.example.com`. A control node knows it without being told.
    pub zone: Option<String>,
    /// The addresses by which the world reaches this node, where those are not the ones that it listens on:
    /// behind a translation of addresses, or when it listens on `0.0.0.0`.
    pub advertise: Vec<IpAddr>,
    /// Answers over UDP to one network (IPv4 /24, IPv6 /56) in a second; twice that at once. What is over it
    /// is told to use TCP, or dropped. 0: no limit.
    pub responses_per_second: u32,
    /// Most TCP connections at a time; about 8 KiB each. One address has at most a quarter of them.
    pub tcp_connections_max: usize,
    /// How long a TCP connection may take from one query to the end of the next, ms.
    pub tcp_idle_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            zone: None,
            advertise: Vec::new(),
            responses_per_second: 500,
            tcp_connections_max: 256,
            tcp_idle_ms: 5_000,
        }
    }
}

impl Config {
    /// Whether the node answers DNS at all.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        !self.listen.is_empty()
    }

    /// What is wrong with it, and what to do.
    pub fn check(&self) -> Result<(), String> {
        if let Some(zone) = &self.zone {
            crate::zone::origin(zone).map_err(|why| format!("`dns.zone` = {zone:?}: {why}"))?;
        }
        if let Some(address) = self.advertise.iter().find(|address| address.is_unspecified()) {
            return Err(format!("`dns.advertise` holds {address}, which no client can reach"));
        }
        if self.is_on() && self.tcp_connections_max == 0 {
            return Err(
                "`dns.tcp_connections_max` must be at least 1: truncated answers are fetched over TCP"
                    .to_owned(),
            );
        }
        if self.is_on() && self.tcp_idle_ms == 0 {
            return Err("`dns.tcp_idle_ms` must be at least 1".to_owned());
        }
        Ok(())
    }

    pub(crate) const fn tcp_idle(&self) -> Duration {
        Duration::from_millis(self.tcp_idle_ms)
    }
}
