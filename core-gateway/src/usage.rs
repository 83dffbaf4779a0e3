//! Which clusters each edge has used lately: those whose headroom it is told.

use atoll_model::NodeName;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a cluster counts as used.
const USED_FOR: Duration = Duration::from_secs(60);
/// Clusters kept for one edge: what a headroom frame takes.
const CLUSTERS_MAX: usize = 480;

type Clusters = HashMap<Arc<str>, Instant>;

/// By edge, because an edge's connections end on different workers, and each must tell the same. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Usage(Arc<Mutex<HashMap<NodeName, Clusters>>>);

impl Usage {
    /// Notes that an edge uses a cluster. Callers do so at most every few seconds for the same cluster.
    pub(crate) fn note(&self, edge: &NodeName, cluster: &str, now: Instant) {
        let mut all = self.all();
        let clusters = all.entry(edge.clone()).or_default();
        if clusters.len() >= CLUSTERS_MAX && !clusters.contains_key(cluster) {
            let Some(oldest) = clusters.iter().min_by_key(|(_, at)| **at).map(|(name, _)| Arc::clone(name))
            else {
                return;
            };
            clusters.remove(&oldest);
        }
        clusters.insert(cluster.into(), now);
    }

    /// What an edge has used lately, in the order of names.
    pub(crate) fn of(&self, edge: &NodeName, now: Instant) -> Vec<Arc<str>> {
        let mut all = self.all();
        let Some(clusters) = all.get_mut(edge) else { return Vec::new() };
        clusters.retain(|_, at| now.saturating_duration_since(*at) < USED_FOR);
        let mut names: Vec<Arc<str>> = clusters.keys().cloned().collect();
        if names.is_empty() {
            all.remove(edge);
        }
        names.sort_unstable();
        names
    }

    fn all(&self) -> MutexGuard<'_, HashMap<NodeName, Clusters>> {
        // Whole whenever the lock is free: no section can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_was_used_lately_is_told_and_never_too_much() {
        let usage = Usage::default();
        let edge = NodeName::new("fra1-edge").unwrap();
        let start = Instant::now();
        usage.note(&edge, "default/shop/web", start);
        assert_eq!(usage.of(&edge, start).len(), 1);
        assert_eq!(usage.of(&edge, start + USED_FOR).len(), 0);
        for n in 0..u32::try_from(CLUSTERS_MAX).unwrap() + 20 {
            usage.note(&edge, &format!("default/a{n}/web"), start + Duration::from_millis(n.into()));
        }
        let used = usage.of(&edge, start + Duration::from_secs(1));
        assert_eq!(used.len(), CLUSTERS_MAX);
        assert!(!used.iter().any(|name| &**name == "default/a0/web"));
    }
}
