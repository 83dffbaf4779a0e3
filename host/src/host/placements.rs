//! From PLACEMENT records to orders.

use super::HostView;
use crate::fleet::{Assignment, Order};
use crate::state::SavedCall;
use crate::supervisor::Want;
use atoll_gossip::{Entry, Gossip, Subscription};
use atoll_model::{InstanceId, Kind, NodeName, Protocol, ServiceSpec};
use atoll_wire::record::{self, Placement, placement};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::warn;

/// A subscription tells at once what is known; with nothing known it may say nothing.
const KNOWN_WAIT: Duration = Duration::from_millis(500);

/// What is known of this host's placements when it begins.
pub(super) async fn known(subscription: &mut Subscription, name: &NodeName) -> Vec<Order> {
    let first = tokio::time::timeout(KNOWN_WAIT, subscription.next()).await;
    first.ok().flatten().unwrap_or_default().iter().filter_map(|entry| order(entry, name)).collect()
}

/// Passes on every change, until gossip or the fleet ends.
pub(super) async fn follow(mut subscription: Subscription, name: NodeName, orders: mpsc::Sender<Order>) {
    while let Some(entries) = subscription.next().await {
        for order in entries.iter().filter_map(|entry| order(entry, &name)) {
            if orders.send(order).await.is_err() {
                return;
            }
        }
    }
    // Gossip is gone, as at the end of the node; instances are supervised until the fleet ends.
    std::future::pending().await
}

/// Takes back what an earlier run said of instances that are not here any more.
pub(super) fn withdraw_stale(gossip: &Gossip, name: &NodeName, view: &HostView) {
    for entry in gossip.entries(Kind::INSTANCE) {
        let Some(instance) = entry.key.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix('/'))
        else {
            continue;
        };
        let placed =
            gossip.get(Kind::PLACEMENT, &entry.scope, &entry.key).is_some_and(|found| !found.deleted);
        if !entry.deleted && !placed && !view.knows(instance) {
            gossip.withdraw(Kind::INSTANCE, &entry.scope, &entry.key);
        }
    }
}

fn order(entry: &Arc<Entry>, name: &NodeName) -> Option<Order> {
    let (host, instance) = entry.key.split_once('/')?;
    if host != name.as_str() {
        return None;
    }
    let instance: InstanceId = match instance.parse() {
        Ok(instance) => instance,
        Err(_) => {
            warn!(key = %entry.key, "a placement whose key is no instance is not followed");
            return None;
        }
    };
    if entry.deleted {
        return Some(Order::Remove(instance));
    }
    let placed = entry.decode::<Placement>().map_err(|cause| cause.to_string());
    match placed.and_then(|placement| assignment(instance, placement)) {
        Ok(assignment) => Some(Order::Place(Box::new(assignment))),
        Err(why) => {
            warn!(key = %entry.key, %why, "a placement that cannot be read is not followed");
            None
        }
    }
}

fn assignment(instance: InstanceId, placement: Placement) -> Result<Assignment, String> {
    let want = match placement.state() {
        placement::State::Run => Want::Run,
        placement::State::Drain => Want::Drain,
    };
    if placement.instance != instance.as_str() {
        return Err(format!("it speaks of {:?}", placement.instance));
    }
    let cluster = placement.cluster.parse().map_err(|cause| format!("{:?}: {cause}", placement.cluster))?;
    let older = |cause: String| {
        format!("this host does not understand the specification ({cause}); it may be older than control")
    };
    let mut spec = placement.spec;
    let calls = spec.as_mut().map(|spec| std::mem::take(&mut spec.calls)).unwrap_or_default();
    let calls: Result<Vec<SavedCall>, String> = calls.into_iter().map(call).collect();
    let spec = match spec {
        Some(spec) => ServiceSpec::try_from(spec).map_err(|cause| older(cause.to_string())),
        None => Err("the placement has no specification".to_owned()),
    };
    let (spec, calls) = match calls {
        Ok(calls) => (spec, calls),
        Err(why) => (Err(older(why)), Vec::new()),
    };
    Ok(Assignment { instance, cluster, revision: placement.revision, want, spec, calls })
}

fn call(call: record::Call) -> Result<SavedCall, String> {
    let protocol =
        Protocol::from_name(&call.protocol).ok_or_else(|| format!("unknown protocol `{}`", call.protocol))?;
    let cluster = call.cluster.parse().map_err(|cause| format!("`{}`: {cause}", call.cluster))?;
    Ok(SavedCall { variable: call.variable, cluster, protocol, port: 0 })
}
