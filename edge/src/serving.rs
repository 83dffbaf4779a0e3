//! Whether the edge can serve: all that it is for (readiness), and one domain (control's question).

use crate::edge::Shared;
use atoll_model::RegionName;
use atoll_routing::region::Health;
use std::sync::Arc;

/// Answers questions about a running edge, from any thread. Clones share it.
#[derive(Debug, Clone)]
pub struct Serving {
    pub(crate) shared: Arc<Shared>,
}

impl Serving {
    /// Whether requests may come: it knows what is desired (from disk or from others), each worker has a
    /// tunnel if there is any gateway, and it isn't draining.
    ///
    /// # Errors
    /// What is missing.
    pub fn ready(&self) -> Result<(), String> {
        let shared = &self.shared;
        if shared.drain.is_draining() {
            return Err("the edge is draining".to_owned());
        }
        let snapshot = shared.views.load();
        if !snapshot.heard {
            return Err(
                "nothing is known yet of what to serve: no record on disk, none from another node".to_owned()
            );
        }
        match shared.board.workers_without() {
            lacking if lacking > 0 && shared.views.gateways().count() > 0 => {
                Err(format!("{lacking} of its workers have no tunnel to any gateway yet"))
            }
            _ => Ok(()),
        }
    }

    /// Whether a domain is served now, from desired state of at least `version` (the store's revision).
    /// `placed_nowhere`: no instance of it is to run, so that none has to be reached.
    ///
    /// # Errors
    /// What is missing, in one sentence.
    pub fn can_serve(&self, domain: &str, version: u64, placed_nowhere: bool) -> Result<(), String> {
        let shared = &self.shared;
        let snapshot = shared.views.load();
        if snapshot.desired.1 < version {
            return Err(format!("the edge has desired state {}, not yet {version}", snapshot.desired.1));
        }
        let Some(host) = snapshot.hosts.find(domain) else {
            return Err(format!("no virtual host has the domain `{domain}`"));
        };
        if shared.certificates.find(domain).is_none() {
            return Err(format!("the certificate for `{domain}` is not loaded yet"));
        }
        for route in host.routes() {
            let name = &route.cluster;
            let Some(cluster) = snapshot.clusters.get(name) else {
                return Err(format!("the cluster `{name}` is not known yet"));
            };
            if !placed_nowhere {
                self.reaches(name, &cluster.regions)?;
            }
        }
        Ok(())
    }

    /// Whether new connections for a domain get the certificate of that fingerprint (SHA-256, hex).
    ///
    /// # Errors
    /// That another one is loaded, or none.
    pub fn has_certificate(&self, domain: &str, fingerprint: &str) -> Result<(), String> {
        match self.shared.certificates.find(domain) {
            Some(loaded) if loaded.fingerprint_hex() == fingerprint => Ok(()),
            Some(_) => Err(format!("the new certificate for `{domain}` is not loaded yet")),
            None => Err(format!("the certificate for `{domain}` is not loaded yet")),
        }
    }

    fn reaches(&self, cluster: &str, regions: &[RegionName]) -> Result<(), String> {
        let snapshot = self.shared.views.load();
        let said = snapshot.summaries.of(cluster).map_or(&[][..], |all| &all[..]);
        let tunnels = self.shared.board.sample();
        let serves = |region: &RegionName| {
            let mut up =
                tunnels.iter().filter(|t| t.gateway.region == *region && t.state.load().connected).peekable();
            let healthy = || said.iter().any(|s| s.region == *region && s.health != Health::None);
            up.peek().is_some()
                && (healthy()
                    || up.any(|t| t.state.load().headroom.get(cluster).is_some_and(|h| h.healthy > 0)))
        };
        let among = |region: &RegionName| regions.is_empty() || regions.contains(region);
        if tunnels.iter().any(|t| among(&t.gateway.region) && serves(&t.gateway.region)) {
            return Ok(());
        }
        Err(format!("no region that can be reached has a healthy instance of `{cluster}`"))
    }

    /// Whether an app's purges up to that one are applied. Without a cache they are.
    ///
    /// # Errors
    /// How far it is.
    pub fn has_purged(&self, app: &str, seq: u64) -> Result<(), String> {
        let Some(cache) = &self.shared.cache else { return Ok(()) };
        match cache.purges.load().last_of(app) {
            last if last >= seq => Ok(()),
            last => Err(format!("the edge has applied purges of {app} up to {last}, not yet {seq}")),
        }
    }

    /// The newest desired state that is applied: the store's epoch and revision.
    #[must_use]
    pub fn applied(&self) -> (u64, u64) {
        self.shared.views.load().desired
    }

    /// Records that can't be applied (`kind/key`), and why; at most 16.
    #[must_use]
    pub fn apply_errors(&self) -> Vec<(String, String)> {
        self.shared.apply_errors.load().to_vec()
    }

    /// What the edge knows, for `/state`.
    #[must_use]
    pub fn state(&self) -> serde_json::Value {
        let shared = &self.shared;
        let snapshot = shared.views.load();
        serde_json::json!({
            "desired_epoch": snapshot.desired.0,
            "desired_version": snapshot.desired.1,
            "virtual_hosts": snapshot.hosts.len(),
            "clusters": snapshot.clusters.len(),
            "certificates": shared.certificates.len(),
            "requests_in_flight": shared.admissions.in_flight(),
            "connections": shared.connections.open(),
            "cache": shared.cache.as_ref().map(|cache| serde_json::json!({
                "entries": cache.index.count(),
                "bytes": cache.index.bytes(),
            })),
            "tunnels": shared.board.state(),
            "ready": self.ready().err().unwrap_or_else(|| "yes".to_owned()),
        })
    }
}
