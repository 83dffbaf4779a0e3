//! The control role: the API, the store, the reconciler that places instances, public certificates,
//! and the node plane.
//!
//! What is accepted is on disk before it is answered. Nothing here is on the path of a request.

pub mod apps;
pub mod attach;
pub mod certificates;
pub mod config;
pub mod local;
pub mod metrics;
pub mod node_plane;
pub mod reconciler;
pub mod store;
pub mod world;

pub use config::{Config, PublicCa, Timing};
