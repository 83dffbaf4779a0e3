//! Tunnels between an edge and a gateway: HTTP/2 connections with a control stream beside the
//! requests, which measures the round trip, notices a dead peer, and carries headroom and drain.

mod edge;
mod frames;
mod gateway;
mod rtt;

pub use edge::{Tunnel, TunnelConfig, TunnelState};
pub use gateway::{ControlStream, is_control_stream, serve_control_stream};

/// The control stream's path.
pub const CONTROL_PATH: &str = "/atoll/tunnel";
/// The control stream's authority.
pub const CONTROL_AUTHORITY: &str = "mesh.atoll";
/// The version of the control stream's frames.
pub const WIRE_VERSION: u32 = 1;
