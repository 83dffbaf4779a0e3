//! SIGHUP: the configuration is read again. What can change while the node runs does; an error keeps
//! the last good one.

use super::config::NodeConfig;
use arc_swap::ArcSwap;
use atoll_process::Drain;
use atoll_process::metrics::Metrics;
use atoll_process::signals::Hangups;
use std::path::PathBuf;
use std::sync::Arc;
use tracing::{error, info, warn};

/// The configuration in use. Clones share it.
#[derive(Debug, Clone)]
pub struct Live(Arc<ArcSwap<NodeConfig>>);

impl Live {
    /// Begins with what was loaded at the start.
    pub fn new(config: NodeConfig) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(config)))
    }

    /// The last good one.
    pub fn load(&self) -> Arc<NodeConfig> {
        self.0.load_full()
    }
}

/// Reads the file at each SIGHUP until the node drains.
pub async fn run(path: PathBuf, live: Live, mut hangups: Hangups, metrics: Metrics, drain: Drain) {
    let done = metrics.counter("atoll_node_config_reloads", "Configurations read again and taken");
    let refused = metrics.counter("atoll_node_config_reload_errors", "Configurations read again and refused");
    loop {
        tokio::select! {
            () = hangups.next() => {}
            () = drain.draining() => return,
        }
        match NodeConfig::load(&path) {
            Ok(newer) => {
                let older = live.load();
                if older.needs_restart(&newer) {
                    warn!(path = %path.display(), "some of what changed takes effect only when the node is restarted");
                }
                live.0.store(Arc::new(newer));
                done.inc();
                info!(path = %path.display(), "the configuration was read again");
            }
            Err(cause) => {
                refused.inc();
                error!(
                    cause = format!("{:#}", anyhow::Error::from(cause)),
                    "the configuration is not usable; keeping the last good one"
                );
            }
        }
    }
}
