//! Turns gossip's records and membership into the [`World`] that everything here looks at.

use crate::world::{NodeSeen, Observed, World};
use atoll_gossip::{Entry, Gossip, Members, Owner};
use atoll_model::{InstanceId, Kind, NodeName};
use atoll_process::Drain;
use atoll_wire::record::{self, NodeFacts};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Changes come in bursts: this long they are gathered.
const GATHER: Duration = Duration::from_millis(10);

/// Follows gossip until the drain starts or gossip ends.
pub async fn run(gossip: Gossip, own: NodeName, sender: watch::Sender<Arc<World>>, drain: Drain) {
    let mut records = gossip.subscribe(&[Kind::NODE, Kind::REGION_NODE, Kind::INSTANCE]);
    let mut members = gossip.members();
    let mut world = World::default();
    loop {
        tokio::select! {
            () = drain.draining() => return,
            entries = records.next() => match entries {
                None => return,
                Some(entries) => entries.iter().for_each(|entry| apply(&mut world, entry)),
            },
            changed = members.changed() => if changed.is_err() { return },
        }
        set_alive(&mut world, &members.borrow_and_update(), &own);
        sender.send_replace(Arc::new(world.clone()));
        tokio::time::sleep(GATHER).await;
    }
}

fn set_alive(world: &mut World, members: &Members, own: &NodeName) {
    for (name, seen) in &mut world.nodes {
        seen.alive = name == own || members.find(name).is_some();
    }
}

fn apply(world: &mut World, entry: &Arc<Entry>) {
    let Owner::Node(owner) = &entry.owner else { return };
    if entry.kind == Kind::INSTANCE {
        apply_instance(world, owner, entry);
    } else {
        apply_node(world, owner, entry);
    }
}

fn apply_instance(world: &mut World, host: &NodeName, entry: &Arc<Entry>) {
    let id = entry.key.split_once('/').and_then(|(_, id)| id.parse::<InstanceId>().ok());
    let Some(id) = id else { return };
    if entry.deleted {
        // Only its host's own word counts: it may have been placed elsewhere since.
        if world.instances.get(&id).is_some_and(|seen| seen.host == *host) {
            world.instances.remove(&id);
        }
        return;
    }
    match entry.decode::<record::Instance>() {
        Ok(facts) => {
            world.instances.insert(&id, Observed::from_record(host.clone(), entry.scope.as_str(), facts));
        }
        Err(error) => tracing::warn!(key = %entry.key, %error, "an instance's record cannot be read"),
    }
}

/// A gateway speaks in both scopes; what it says in the global one counts, where desired state of the
/// same scope can be held against it.
fn apply_node(world: &mut World, owner: &NodeName, entry: &Arc<Entry>) {
    if entry.deleted {
        if world.nodes.get(owner).is_some_and(|seen| seen.kind == entry.kind) {
            world.nodes.remove(owner);
        }
        return;
    }
    let Ok(facts) = entry.decode::<NodeFacts>() else {
        tracing::warn!(node = %owner, "a node's record cannot be read");
        return;
    };
    // Within a kind gossip hands on newer records alone; the writer's clock, which may be set back, has no say.
    let outranked = |seen: &NodeSeen| seen.kind != entry.kind && seen.kind == Kind::NODE;
    if world.nodes.get(owner).is_some_and(outranked) {
        return;
    }
    let alive = world.nodes.get(owner).is_some_and(|seen| seen.alive);
    // Roles and region as certified, not as said.
    let seen = NodeSeen {
        roles: entry.signer.roles,
        region: entry.signer.region.clone(),
        alive,
        facts,
        written_ms: entry.written_ms,
        kind: entry.kind,
    };
    world.nodes.insert(owner.clone(), seen);
}
