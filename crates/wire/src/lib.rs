//! The messages that nodes exchange, generated from `proto/`, and their conversions to [`atoll_model`].

#![allow(clippy::all, missing_debug_implementations, unused_qualifications, reason = "generated code")]

// Nested as the .proto packages are, because the generated code refers to its neighbours by path.
mod atoll {
    pub mod record {
        pub mod v1 {
            tonic::include_proto!("atoll.record.v1");
        }
    }
    pub mod gossip {
        pub mod v1 {
            tonic::include_proto!("atoll.gossip.v1");
        }
    }
    pub mod node {
        pub mod v1 {
            tonic::include_proto!("atoll.node.v1");
        }
    }
    pub mod tunnel {
        pub mod v1 {
            tonic::include_proto!("atoll.tunnel.v1");
        }
    }
    pub mod sidecar {
        pub mod v1 {
            tonic::include_proto!("atoll.sidecar.v1");
        }
    }
}

/// What gossip peers exchange.
pub use atoll::gossip::v1 as gossip;
/// The node plane.
pub use atoll::node::v1 as node;
/// Records and their bodies.
pub use atoll::record::v1 as record;
/// Between host and sidecar.
pub use atoll::sidecar::v1 as sidecar;
/// The control stream of a tunnel.
pub use atoll::tunnel::v1 as tunnel;

mod convert;

pub use convert::{CacheRuleError, SpecError};
/// Re-exported so that users encode and decode with the version that generated the types.
pub use prost::{DecodeError, Message};
