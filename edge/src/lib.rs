//! The role edge: public listeners, TLS, the choice of a region, and tunnels to the regions' gateways.
//!
//! [`Edge::bind`] takes the sockets and loads what is on disk; [`Bound::run`] serves until the drain is over.
//! Nothing on the path of a request waits for control or for gossip: workers read snapshots.

mod cache;
mod certificates;
mod config;
mod edge;
mod explain;
mod peers;
mod plain;
mod record;
mod records;
mod request;
mod serving;
mod tls;
mod views;
mod worker;

/// The engine beneath the cache. It knows nothing of HTTP, and is public to be measured (`examples/hit_ratio.rs`).
pub mod cache_store {
    pub use crate::cache::store::{Owned, Store, Usage};
}

pub use certificates::SealedError;
pub use config::Config;
pub use edge::{BindError, Bound, Edge, Handles};
pub use serving::Serving;
