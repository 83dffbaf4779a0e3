//! What a sidecar is told on its command line.

use atoll_model::InstanceId;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

/// A sidecar's settings; the rest comes from its host.
#[derive(Debug, Clone)]
pub struct Config {
    /// The host's unix socket.
    pub socket: PathBuf,
    /// The instance that we are beside.
    pub instance: InstanceId,
    /// Where to take mutual TLS; the port is picked.
    pub listen: IpAddr,
    /// Requests at once; more are refused before their bodies are read. Bounds the memory of bodies:
    /// at most a window of 128 KiB each that the instance does not read.
    pub requests_max: usize,
    /// Connections of gateways and other sidecars at once.
    pub connections_max: usize,
    /// Connections of the instance at once, for its calls.
    pub calls_max: usize,
    /// How long new requests are still served after a drain began, until the gateways know of it.
    pub lame_duck: Duration,
    /// How long requests may go on after SIGTERM.
    pub drain_timeout: Duration,
}

impl Config {
    /// The defaults.
    #[must_use]
    pub fn new(socket: PathBuf, instance: InstanceId) -> Self {
        Self {
            socket,
            instance,
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            requests_max: 1024,
            connections_max: 1024,
            calls_max: 1024,
            lame_duck: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(30),
        }
    }
}
