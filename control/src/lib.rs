//! The control role: the API, the store, the reconciler that places instances, public certificates,
//! and the node plane.
//!
//! What is accepted is on disk before it is answered. Nothing here is on the path of a request.
//!
//! [`Control::bind`] opens the store and the sockets; [`Bound::run`] serves until it is drained.

pub mod api;
pub mod apps;
pub mod attach;
pub mod bundles;
pub mod caller;
pub mod certificates;
pub mod config;
mod control;
pub mod local;
pub mod metrics;
pub mod node_plane;
mod observer;
pub mod publisher;
pub mod reconciler;
pub mod store;
pub mod world;

pub use bundles::BundlesConfig;
pub use certificates::PUBLIC_CA_FILE;
pub use config::{Config, PublicCa, Timing};
pub use control::{BindError, Bound, Control, Handles};
pub use local::{LocalError, issue_record_locally, renew_locally};

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod testing;
