//! What every long-running process of Atoll needs: logs, metrics, an admin listener, tasks that are
//! tracked, draining, signals, and files that are never half written.
//!
//! Nothing here knows of requests, records or certificates.

pub mod admin;
pub mod clock;
pub mod drain;
pub mod files;
pub mod logging;
pub mod metrics;
pub mod service;
pub mod signals;
pub mod tasks;
pub mod usage;

pub use admin::Admin;
pub use drain::{Drain, DrainTrigger};
pub use metrics::Metrics;
pub use tasks::Tasks;
