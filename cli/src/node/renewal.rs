//! Renewal of the node's certificate: at half of its life with jitter, again and again, without
//! touching what is open.

use super::config::NodeConfig;
use super::identity;
use atoll_identity::{Identity, Material};
use atoll_mesh_ca::MeshCa;
use atoll_mesh_ca::client::{renew_at_ms, retry_after};
use atoll_process::Drain;
use prometheus_client::metrics::counter::Counter;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use tracing::{info, warn};

/// Longest sleep in one piece, so that a clock that was set is noticed.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Who renews.
pub enum Issuer {
    /// Control, over the node plane.
    Control(Channel),
    /// The CA in this process.
    Own(Arc<MeshCa>),
}

/// Counts renewals.
pub struct Counters {
    /// Certificates renewed.
    pub renewed: Counter,
    /// Tries that failed.
    pub failed: Counter,
    /// Times that a certificate could not be kept on disk.
    pub unsaved: Counter,
}

/// Renews until the node drains.
pub async fn run(config: NodeConfig, own: Identity, issuer: Issuer, counters: Counters, drain: Drain) {
    let mut random: u64 = rand::random();
    let mut failures: u32 = 0;
    let dir = config.data_dir.join("identity");
    let mut saved = true;
    let mut renewed: Option<Instant> = None;
    loop {
        let now_ms = own.clock().now_ms();
        let left = Duration::from_millis(own.not_after_ms().saturating_sub(now_ms));
        let wait = match failures {
            0 => {
                let at_ms = renew_at_ms(own.not_before_ms(), own.not_after_ms(), random);
                let life = Duration::from_millis(own.not_after_ms().saturating_sub(own.not_before_ms()));
                // By a clock that is days ahead every certificate is due as soon as it is there.
                let since = renewed.map_or(life, |at| at.elapsed());
                Duration::from_millis(at_ms.saturating_sub(now_ms)).max((life / 10).saturating_sub(since))
            }
            _ => retry_after(failures, left, random),
        };
        let pause = wait.min(LOOK_AGAIN);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = drain.draining() => return,
        }
        if !saved {
            saved = identity::keep(&dir, &own.current());
            counters.unsaved.inc_by(u64::from(!saved));
        }
        if wait > LOOK_AGAIN {
            continue;
        }
        random = rand::random();
        match renew(&config, &own, &issuer).await.and_then(|material| Ok(own.replace(material)?)) {
            Ok(()) => {
                failures = 0;
                renewed = Some(Instant::now());
                saved = identity::keep(&dir, &own.current());
                counters.unsaved.inc_by(u64::from(!saved));
                counters.renewed.inc();
                info!(not_after_ms = own.not_after_ms(), "renewed the node's certificate");
            }
            Err(cause) => {
                failures = failures.saturating_add(1);
                counters.failed.inc();
                warn!(cause = format!("{cause:#}"), "the node's certificate was not renewed; trying again");
            }
        }
    }
}

async fn renew(config: &NodeConfig, own: &Identity, issuer: &Issuer) -> anyhow::Result<Material> {
    match issuer {
        Issuer::Own(ca) => identity::issue_locally(config, ca, own.clock().now_ms()),
        Issuer::Control(_) if own.not_after_ms() <= own.clock().now_ms() => {
            let dir = config.data_dir.join("identity");
            identity::recover(config, &dir, Material::clone(&own.current())).await
        }
        Issuer::Control(channel) => identity::renew(channel.clone()).await,
    }
}
