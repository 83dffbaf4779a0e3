//! What an operator has drained: kept in the store, told to the nodes by records.

use crate::store::objects::{DrainWish, Drained, Node};
use crate::store::{Change, Store, StoreError};
use atoll_model::{Kind, NodeName, RegionName, Role};
use atoll_wire::record;
use std::collections::BTreeMap;

/// Every node that is drained, by itself or with its region, and the wish that came first.
#[must_use]
pub fn drained_nodes(store: &Store) -> BTreeMap<NodeName, DrainWish> {
    let wishes = store.list::<DrainWish>("");
    if wishes.is_empty() {
        return BTreeMap::new();
    }
    let nodes = store.list::<Node>("");
    nodes.into_iter().filter_map(|node| wish_for(&wishes, &node).map(|wish| (node.name, wish))).collect()
}

/// The wish that drains a node: its own, else its region's. Control itself is never drained.
fn wish_for(wishes: &[DrainWish], node: &Node) -> Option<DrainWish> {
    let other_than_control = Role::ALL.into_iter().any(|role| role != Role::Control && node.roles.has(role));
    if node.removed || !other_than_control {
        return None;
    }
    let of = |what: &Drained| wishes.iter().find(|wish| wish.what == *what);
    of(&Drained::Node(node.name.clone())).or_else(|| of(&Drained::Region(node.region.clone()))).cloned()
}

/// Writes a wish, and tells the nodes. One that is there already stays as it is; returns it.
pub fn drain(change: &mut Change<'_>, wish: DrainWish, region: &RegionName) -> Result<DrainWish, StoreError> {
    if let Some(stored) = change.get::<DrainWish>(&wish.what.to_string()) {
        return Ok(stored);
    }
    change.put(&wish)?;
    let (key, body) =
        (wish.what.to_string(), record::DrainWish { by: wish.by.clone(), since_ms: wish.since_ms });
    change.desire(Kind::DRAIN, "", &key, &body);
    change.desire(Kind::REGION_DRAIN, region.as_str(), &key, &body);
    Ok(wish)
}

/// Ends a wish; true when there was one.
pub fn end(change: &mut Change<'_>, what: &Drained, region: &RegionName) -> bool {
    let key = what.to_string();
    let was_drained = change.get::<DrainWish>(&key).is_some();
    change.remove::<DrainWish>(&key);
    change.undesire(Kind::DRAIN, "", &key);
    change.undesire(Kind::REGION_DRAIN, region.as_str(), &key);
    was_drained
}
