//! The operator's wish that this node takes nothing new, as control says it in gossip. It is kept there over
//! restarts of the node, and while control is gone.

use atoll_gossip::{Entry, Gossip, Owner};
use atoll_model::{Kind, NodeName, RegionName, Role, Roles};
use atoll_process::Drain;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::watch;
use tracing::info;

/// The keys of the wishes that drain a node; none for one that is nothing but control.
fn keys(name: &NodeName, region: &RegionName, roles: Roles) -> Vec<String> {
    if Role::ALL.into_iter().all(|role| role == Role::Control || !roles.has(role)) {
        return Vec::new();
    }
    vec![format!("node/{name}"), format!("region/{region}")]
}

/// The wishes that hold for this node.
#[derive(Debug)]
struct Wishes {
    keys: Vec<String>,
    present: BTreeSet<(Kind, String)>,
}

impl Wishes {
    fn take(&mut self, entry: &Entry) {
        if entry.owner != Owner::Control || !self.keys.iter().any(|key| **key == *entry.key) {
            return;
        }
        let place = (entry.kind, entry.key.to_string());
        match entry.deleted {
            true => drop(self.present.remove(&place)),
            false => drop(self.present.insert(place)),
        }
    }
}

/// Follows the wish until the node ends. What gossip kept on disk counts from the first moment on.
pub fn follow(
    gossip: &Gossip,
    (name, region, roles): (&NodeName, &RegionName, Roles),
    drain: Drain,
) -> (watch::Receiver<bool>, impl Future<Output = ()> + Send + 'static) {
    let mut wishes = Wishes { keys: keys(name, region, roles), present: BTreeSet::new() };
    let mut subscription = gossip.subscribe(&[Kind::DRAIN, Kind::REGION_DRAIN]);
    for kind in [Kind::DRAIN, Kind::REGION_DRAIN] {
        gossip.entries(kind).iter().for_each(|entry: &Arc<Entry>| wishes.take(entry));
    }
    let (sender, receiver) = watch::channel(!wishes.present.is_empty());
    let following = async move {
        loop {
            let entries = tokio::select! {
                Some(entries) = subscription.next() => entries,
                () = drain.forced() => return,
                else => return,
            };
            entries.iter().for_each(|entry| wishes.take(entry));
            let wished = !wishes.present.is_empty();
            let changed = sender.send_if_modified(|current| std::mem::replace(current, wished) != wished);
            if changed {
                info!(
                    drained = wished,
                    "an operator's wish: {}",
                    if wished { "take nothing new" } else { "serve" }
                );
            }
        }
    };
    (receiver, following)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_node_follows_its_own_wish_and_its_regions_and_control_none() {
        let (name, region) = ("fra1-host".parse().unwrap(), "fra".parse().unwrap());
        let roles = Roles::NONE.with(Role::Host);
        assert_eq!(keys(&name, &region, roles), ["node/fra1-host", "region/fra"]);
        assert!(keys(&name, &region, Roles::NONE.with(Role::Control)).is_empty());
        assert_eq!(keys(&name, &region, roles.with(Role::Control)).len(), 2);
    }
}
