//! What the store wants, as the plan needs it. Read once; after that a change costs what it changes.

use super::plan::{Load, Placed, Target, Wanted};
use crate::apps::drains;
use crate::store::objects::{App, Deploy, DrainWish, Node, Placement, PlacementState, Revision, Service};
use crate::store::{Store, Stored};
use atoll_model::{ClusterName, InstanceId, NodeName, ObjectId, OrgName, RevisionId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

/// The store's wishes.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// The store's revision that they are of; nothing before they were read.
    pub(super) revision: Option<u64>,
    /// Every service.
    pub(super) services: BTreeMap<ClusterName, Wanted>,
    /// Deploys that have not ended, the newest of each app.
    pub(super) deploys: BTreeMap<ObjectId, Deploy>,
    /// Nodes that were removed.
    pub(super) removed_nodes: BTreeSet<NodeName>,
    /// Nodes that an operator has drained.
    pub(super) drained_nodes: BTreeSet<NodeName>,
    /// What each host has.
    pub(super) load: Load,
    /// Whose instance it is.
    pub(super) instances: HashMap<InstanceId, ClusterName>,
    /// Services that were read anew and not planned since.
    pub(super) dirty: BTreeSet<ClusterName>,
    /// Instances whose placement is gone since [`Self::take_gone`].
    gone: Vec<InstanceId>,
    draining: usize,
    /// Where [`Self::sweep`] goes on.
    swept: Option<ClusterName>,
}

impl Wishes {
    /// Reads what changed in the store.
    pub(super) fn refresh(&mut self, store: &Store) {
        let (revision, changed) = store.changed_since(self.revision.unwrap_or(u64::MAX));
        match changed {
            Some(keys) => self.read_changed(store, &keys),
            None => self.read_all(store),
        }
        self.revision = Some(revision);
    }

    /// Reads some more services again, whether they changed or not: what was overlooked is not lost for ever.
    pub(super) fn sweep(&mut self, store: &Store, count: usize) {
        let from = self.swept.take().map_or(Bound::Unbounded, Bound::Excluded);
        let next: Vec<ClusterName> =
            self.services.range((from, Bound::Unbounded)).take(count).map(|(name, _)| name.clone()).collect();
        for cluster in &next {
            self.read_service(store, cluster);
        }
        // At the end it starts again.
        self.swept = if next.len() < count { None } else { next.into_iter().last() };
    }

    /// Instances whose placement is gone since the last call.
    pub(super) fn take_gone(&mut self) -> Vec<InstanceId> {
        let gone = std::mem::take(&mut self.gone);
        gone.into_iter().filter(|id| !self.instances.contains_key(id)).collect()
    }

    /// Services that a host has instances of.
    pub(super) fn on_host(&self, host: &NodeName) -> impl Iterator<Item = &ClusterName> {
        self.load.services_on(host)
    }

    /// The services that a deploy changes.
    pub(super) fn services_of(&self, deploy: &Deploy) -> Vec<&Wanted> {
        let of = |service| {
            let cluster = ClusterName {
                org: deploy.org.clone(),
                app: deploy.app.clone(),
                service: Clone::clone(service),
            };
            self.services.get(&cluster)
        };
        deploy.services.keys().filter_map(of).collect()
    }

    /// Whether something is under way that is not to wait long for the next look.
    pub(super) fn is_busy(&self) -> bool {
        !self.deploys.is_empty() || self.draining > 0
    }

    fn read_all(&mut self, store: &Store) {
        for cluster in std::mem::take(&mut self.services).into_values() {
            self.forget_placed(&cluster.placed);
            self.dirty.insert(cluster.cluster);
        }
        self.deploys.clear();
        for tail in store.tails::<Service>("") {
            if let Ok(cluster) = tail.parse() {
                self.read_service(store, &cluster);
            }
        }
        for app in store.list::<App>("") {
            self.read_deploy(store, &app.org, &app.deploy);
        }
        self.read_nodes(store);
    }

    fn read_changed(&mut self, store: &Store, keys: &BTreeSet<String>) {
        let mut clusters = BTreeSet::new();
        let mut nodes = false;
        for (kind, tail) in keys.iter().filter_map(|key| key.split_once('/')) {
            match kind {
                Service::KIND => clusters.extend(tail.parse::<ClusterName>().ok()),
                Revision::KIND | Placement::KIND => {
                    clusters.extend(tail.rsplit_once('/').and_then(|(name, _)| name.parse().ok()));
                }
                App::KIND => self.read_app(store, tail),
                Deploy::KIND => {
                    let Some((org, id)) = tail.split_once('/') else { continue };
                    if let (Ok(org), Ok(id)) = (org.parse(), id.parse()) {
                        self.read_deploy(store, &org, &id);
                    }
                }
                Node::KIND | DrainWish::KIND => nodes = true,
                _ => {}
            }
        }
        for cluster in &clusters {
            self.read_service(store, cluster);
        }
        if nodes {
            self.read_nodes(store);
        }
    }

    fn read_service(&mut self, store: &Store, cluster: &ClusterName) {
        if let Some(before) = self.services.remove(cluster) {
            self.forget_placed(&before.placed);
        }
        self.dirty.insert(cluster.clone());
        let Some(service) = store.get::<Service>(&cluster.to_string()) else { return };
        let prefix = format!("{cluster}/");
        let revisions = store.list::<Revision>(&prefix);
        let find = |id: &RevisionId| revisions.iter().find(|revision| revision.id == *id);
        let placed: Vec<Placed> = store
            .list::<Placement>(&prefix)
            .into_iter()
            .map(|placement| {
                let drain_ms = find(&placement.revision).map_or(0, |revision| revision.spec.drain_ms);
                Placed { placement, drain_ms }
            })
            .collect();
        for Placed { placement, .. } in &placed {
            self.load.add(cluster, &placement.revision, &placement.host);
            self.instances.insert(placement.instance.clone(), cluster.clone());
            self.draining += usize::from(placement.state == PlacementState::Drain);
        }
        let target = service.target.as_ref().and_then(find).map(|revision| Target {
            revision: revision.id.clone(),
            regions: revision
                .spec
                .regions
                .iter()
                .map(|(name, scale)| (name.clone(), service.wanted(name, *scale)))
                .collect(),
        });
        let failed = revisions.iter().filter(|revision| revision.failed);
        let condemned = failed.map(|revision| revision.id.clone()).collect();
        let wanted = Wanted { cluster: cluster.clone(), target, condemned, placed };
        self.services.insert(cluster.clone(), wanted);
    }

    fn forget_placed(&mut self, placed: &[Placed]) {
        for Placed { placement, .. } in placed {
            self.load.remove(&placement.cluster, &placement.revision, &placement.host);
            self.instances.remove(&placement.instance);
            self.gone.push(placement.instance.clone());
            self.draining -= usize::from(placement.state == PlacementState::Drain);
        }
    }

    fn read_app(&mut self, store: &Store, tail: &str) {
        let Some((org, name)) = tail.split_once('/') else { return };
        let app = store.get::<App>(tail);
        let latest = app.as_ref().map(|app| &app.deploy);
        self.deploys.retain(|id, deploy| {
            deploy.org.as_str() != org || deploy.app.as_str() != name || Some(id) == latest
        });
        if let Some(app) = app {
            self.read_deploy(store, &app.org, &app.deploy);
        }
    }

    fn read_deploy(&mut self, store: &Store, org: &OrgName, id: &ObjectId) {
        let is_latest = |deploy: &Deploy| {
            let app = store.get::<App>(&format!("{org}/{}", deploy.app));
            app.is_some_and(|app| app.deploy == *id)
        };
        let stored = store.get::<Deploy>(&format!("{org}/{id}"));
        match stored.filter(|deploy| !deploy.state.is_final() && is_latest(deploy)) {
            Some(deploy) => drop(self.deploys.insert(id.clone(), deploy)),
            None => drop(self.deploys.remove(id)),
        }
    }

    fn read_nodes(&mut self, store: &Store) {
        let nodes = store.list::<Node>("").into_iter().filter(|node| node.removed);
        let removed: BTreeSet<NodeName> = nodes.map(|node| node.name).collect();
        let drained: BTreeSet<NodeName> = drains::drained_nodes(store).into_keys().collect();
        let moved = removed.symmetric_difference(&self.removed_nodes);
        let moved = moved.chain(drained.symmetric_difference(&self.drained_nodes));
        let touched: Vec<ClusterName> = moved.flat_map(|node| self.load.services_on(node)).cloned().collect();
        self.dirty.extend(touched);
        self.removed_nodes = removed;
        self.drained_nodes = drained;
    }
}
