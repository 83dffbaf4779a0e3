//! Runs the instances that control places on this node, and a sidecar beside each.
//!
//! What is to be done about an instance is decided in [`supervisor`], without I/O; [`fleet`] and the
//! modules below it do it. Instances and sidecars outlive the host: each leads its own process group,
//! writes to a file, and is found again by pid and start time.
//!
//! Nothing here isolates processes from each other.

pub mod bundles;
pub mod check;
pub mod config;
pub mod expand;
pub mod fleet;
mod host;
pub mod instance;
pub mod logs;
pub mod metrics;
pub mod ports;
pub mod process;
pub mod procfs;
pub mod program;
pub mod region;
pub mod sidecars;
pub mod state;
pub mod supervisor;
pub mod workload;

pub use config::Config;
pub use fleet::kill_leftovers;
pub use host::{BindError, Bound, Handles, Host, HostView};
