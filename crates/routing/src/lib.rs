//! The decisions that edges, gateways, sidecars, `explain` and the simulators share.
//!
//! Everything here is pure: no I/O, no clock, no randomness of its own. Time comes in as a
//! [`std::time::Duration`] since a start of the caller's choosing, randomness as a `u64`. Each decision can say
//! why, and why the others lost.

pub mod authorize;
pub mod backoff;
pub mod condition;
pub mod endpoint;
pub mod hosts;
mod mix;
pub mod outlier;
pub mod path;
pub mod placed;
pub mod region;
pub mod retry;
pub mod shards;
pub mod summary;
pub mod tier;

pub use backoff::Backoff;
pub use hosts::HostTable;
pub use shards::ShardedMap;
