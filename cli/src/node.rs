//! `atoll node`: one node, from a configuration file.

mod attach;
pub mod config;
mod denials;
mod dns;
mod drains;
mod facts;
mod identity;
mod node_plane;
mod ports;
mod reload;
mod renewal;
mod roles;
mod run;

use std::path::PathBuf;

pub use run::run;

/// What `atoll node` is told.
#[derive(Debug, Clone)]
pub struct NodeArgs {
    /// The configuration file.
    pub config: PathBuf,
}
