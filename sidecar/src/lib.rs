//! The proxy beside an instance: takes mutual TLS from the region's gateways, checks who calls and
//! for which service, and hands plain HTTP/1.1 to the instance on loopback.
//!
//! One thread. It learns everything from its host over a unix socket, and goes on serving with what
//! it knows while the host is away. It never decides where a request goes: it has one instance.

mod config;
mod host_link;
mod inbound;
mod sidecar;
mod state;

pub use config::Config;
pub use sidecar::{Bound, Sidecar, SidecarError, run_process};
