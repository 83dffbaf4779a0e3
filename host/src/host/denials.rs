//! Removed nodes, which sidecars must not let in any more: sidecars hear no gossip.

use atoll_gossip::{Owner, Scope, Subscription};
use atoll_model::Kind;
use atoll_wire::record::Denial;
use atoll_wire::sidecar::Denied;
use std::collections::BTreeMap;
use tokio::sync::watch;
use tracing::warn;

/// In the global scope, too, where the node is in it by another role.
pub(super) const KINDS: [Kind; 2] = [Kind::REGION_DENIAL, Kind::DENIAL];

/// Passes on every change, until gossip ends.
pub(super) async fn follow(mut subscription: Subscription, denied: watch::Sender<Vec<Denied>>) {
    let mut known: BTreeMap<(Kind, Scope, String), Denied> = BTreeMap::new();
    while let Some(entries) = subscription.next().await {
        for entry in entries.iter().filter(|entry| entry.owner == Owner::Control) {
            let place = (entry.kind, entry.scope.clone(), entry.key.to_string());
            match entry.decode::<Denial>() {
                _ if entry.deleted => drop(known.remove(&place)),
                Ok(Denial { spiffe_id, before_epoch, .. }) => {
                    known.insert(place, Denied { spiffe_id, before_epoch });
                }
                Err(cause) => warn!(key = %entry.key, %cause, "a denial that cannot be read"),
            }
        }
        let mut list: Vec<Denied> = known.values().cloned().collect();
        list.sort_by(|a, b| (&a.spiffe_id, a.before_epoch).cmp(&(&b.spiffe_id, b.before_epoch)));
        list.dedup();
        denied.send_if_modified(|before| {
            let changed = *before != list;
            *before = list;
            changed
        });
    }
    // Gossip is gone, as at the end of the node; what was denied stays so.
    std::future::pending().await
}
