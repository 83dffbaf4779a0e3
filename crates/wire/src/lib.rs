//! The messages that nodes exchange, generated from `proto/`, and their conversions to [`atoll_model`].

#![allow(clippy::all, missing_debug_implementations, unused_qualifications, reason = "generated code")]

/// Records and their bodies.
pub mod record {
    tonic::include_proto!("atoll.record.v1");
}
/// What gossip peers exchange.
pub mod gossip {
    tonic::include_proto!("atoll.gossip.v1");
}
/// The node plane.
pub mod node {
    tonic::include_proto!("atoll.node.v1");
}
/// The control stream of a tunnel.
pub mod tunnel {
    tonic::include_proto!("atoll.tunnel.v1");
}
/// Between host and sidecar.
pub mod sidecar {
    tonic::include_proto!("atoll.sidecar.v1");
}

mod convert;

pub use convert::SpecError;
/// Re-exported so that users encode and decode with the version that generated the types.
pub use prost::{DecodeError, Message};
