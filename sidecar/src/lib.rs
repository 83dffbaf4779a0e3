//! The proxy beside an instance. Inbound, it takes mutual TLS from the region's gateways and from sidecars of its
//! organization, checks who calls and whether it may, and hands plain HTTP or bytes to the instance on
//! loopback. Outbound, it listens on loopback for each service that the instance calls, and takes the call to
//! an instance of that service: in this region itself, else by way of a gateway.
//!
//! One thread. It learns everything from its host over a unix socket, and goes on serving with what
//! it knows while the host is away.

mod bytes;
mod config;
mod host_link;
mod inbound;
mod outbound;
mod sidecar;
mod state;

pub use config::Config;
pub use sidecar::{Bound, Sidecar, SidecarError, run_process};
