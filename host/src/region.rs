//! What a host knows of its region, for the sidecars of its instances: which instances the services have that
//! they call, who may call them, and the region's gateways.
//!
//! An instance follows only the services that it has to do with, so that a change costs what it changes.

use atoll_gossip::{Entry, Owner, Subscription};
use atoll_model::{ClusterName, Kind, Role};
use atoll_routing::endpoint::State;
use atoll_routing::placed::{self, Placed, Said};
use atoll_wire::record::{self, NodeFacts, RegionCluster};
use atoll_wire::sidecar::{Endpoint, Gateway, endpoint};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tracing::warn;

pub(crate) const KINDS: [Kind; 4] =
    [Kind::INSTANCE, Kind::PLACEMENT, Kind::REGION_CLUSTER, Kind::REGION_NODE];
/// Instances of one called service that a sidecar is told of: bounds its memory, and what a change of one
/// of very many costs. Each caller has a choice of its own.
const ENDPOINTS_MAX: usize = 64;
/// Gateways that a sidecar is told of.
const GATEWAYS_MAX: usize = 16;
/// A subscription tells at once what is known; with nothing known it may say nothing.
const KNOWN_WAIT: Duration = Duration::from_millis(500);

/// The region, as gossip tells of it. Shared by all instances of the host.
#[derive(Debug, Default)]
pub struct Region {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    placed: Placed,
    policies: BTreeMap<Arc<str>, Arc<RegionCluster>>,
    gateways: BTreeMap<Arc<str>, Gateway>,
    followers: HashMap<u64, Follower>,
    /// Service → who follows it.
    wanted: HashMap<String, BTreeSet<u64>>,
    last_follower: u64,
}

#[derive(Debug)]
struct Follower {
    services: BTreeSet<String>,
    changed: Arc<Notify>,
}

/// What one instance follows of the region; no longer when it is dropped.
#[derive(Debug)]
pub struct Neighbours {
    region: Arc<Region>,
    id: u64,
    changed: Arc<Notify>,
}

impl Region {
    /// Begins to follow; nothing yet.
    #[must_use]
    pub fn follow(self: &Arc<Self>) -> Neighbours {
        let changed = Arc::<Notify>::default();
        let mut known = self.known();
        known.last_follower += 1;
        let id = known.last_follower;
        let follower = Follower { services: BTreeSet::new(), changed: Arc::clone(&changed) };
        known.followers.insert(id, follower);
        drop(known);
        Neighbours { region: Arc::clone(self), id, changed }
    }

    /// Takes in what is known already, so that sidecars that outlived the host keep what they know.
    pub(crate) async fn begin(&self, subscription: &mut Subscription) {
        if let Ok(Some(entries)) = tokio::time::timeout(KNOWN_WAIT, subscription.next()).await {
            self.apply(&entries);
        }
    }

    /// Passes on every change, until gossip ends.
    pub(crate) async fn keep(&self, mut subscription: Subscription) {
        while let Some(entries) = subscription.next().await {
            self.apply(&entries);
        }
        // Gossip is gone, as at the end of the node; what was known stays so.
        std::future::pending().await
    }

    fn apply(&self, entries: &[Arc<Entry>]) {
        let mut known = self.known();
        let mut touched = BTreeSet::new();
        let mut gateways = false;
        for entry in entries {
            let taken = match entry.kind {
                Kind::INSTANCE => known.instance(entry, &mut touched),
                Kind::PLACEMENT => known.placement(entry, &mut touched),
                Kind::REGION_CLUSTER => known.policy(entry, &mut touched),
                Kind::REGION_NODE => known.node(entry).map(|changed| gateways |= changed),
                _ => Ok(()),
            };
            if let Err(why) = taken {
                warn!(kind = entry.kind.0, key = %entry.key, why, "a record of the region can't be applied; the last good one stays");
            }
        }
        known.tell(&touched, gateways);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Whole whenever the lock is free: no section can panic half-way.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Self::apply`], for tests of others.
    #[cfg(test)]
    pub(crate) fn set_policy(&self, name: &str, policy: RegionCluster) {
        let mut known = self.known();
        known.policies.insert(name.into(), Arc::new(policy));
        known.tell(&BTreeSet::from([name.to_owned()]), false);
    }
}

impl Known {
    fn instance(&mut self, entry: &Entry, touched: &mut BTreeSet<String>) -> Result<(), String> {
        let Owner::Node(host) = &entry.owner else { return Ok(()) };
        let fact = if entry.deleted { None } else { Some(instance(host.as_str(), entry)?) };
        self.placed.instance(&entry.key, fact, touched);
        Ok(())
    }

    fn placement(&mut self, entry: &Entry, touched: &mut BTreeSet<String>) -> Result<(), String> {
        let fact = if entry.deleted {
            None
        } else {
            let body: record::Placement = entry.decode().map_err(|error| error.to_string())?;
            let drains = body.state() == record::placement::State::Drain;
            Some(placed::Placement { cluster: body.cluster, host: body.host, drains })
        };
        self.placed.placement(&entry.key, fact, touched);
        Ok(())
    }

    fn policy(&mut self, entry: &Entry, touched: &mut BTreeSet<String>) -> Result<(), String> {
        if entry.deleted {
            self.policies.remove(&entry.key);
        } else {
            let body = entry.decode::<RegionCluster>().map_err(|error| error.to_string())?;
            self.policies.insert(Arc::clone(&entry.key), Arc::new(body));
        }
        touched.insert(entry.key.to_string());
        Ok(())
    }

    /// Whether the gateways have changed.
    fn node(&mut self, entry: &Entry) -> Result<bool, String> {
        let facts = if entry.deleted {
            None
        } else {
            Some(entry.decode::<NodeFacts>().map_err(|error| error.to_string())?)
        };
        let is_gateway = |facts: &NodeFacts| {
            !facts.gateway_address.is_empty() && facts.roles.iter().any(|role| role == Role::Gateway.as_str())
        };
        let new = facts.filter(is_gateway).map(|facts| Gateway {
            name: entry.key.to_string(),
            address: facts.gateway_address,
            draining: facts.draining,
        });
        let old = match new.clone() {
            Some(gateway) => self.gateways.insert(Arc::clone(&entry.key), gateway),
            None => self.gateways.remove(&entry.key),
        };
        Ok(old != new)
    }

    fn tell(&self, touched: &BTreeSet<String>, gateways: bool) {
        let ids: BTreeSet<u64> = if gateways {
            self.followers.keys().copied().collect()
        } else {
            touched.iter().filter_map(|service| self.wanted.get(service)).flatten().copied().collect()
        };
        for id in ids {
            if let Some(follower) = self.followers.get(&id) {
                follower.changed.notify_one();
            }
        }
    }

    fn unfollow(&mut self, id: u64, service: &str) {
        if let Some(ids) = self.wanted.get_mut(service) {
            ids.remove(&id);
            if ids.is_empty() {
                self.wanted.remove(service);
            }
        }
    }
}

impl Neighbours {
    /// Follows these services, and no others.
    pub fn want<'a>(&self, services: impl Iterator<Item = &'a ClusterName>) {
        let new: BTreeSet<String> = services.map(ToString::to_string).collect();
        let mut known = self.region.known();
        let Some(follower) = known.followers.get_mut(&self.id) else { return };
        let old = std::mem::replace(&mut follower.services, new.clone());
        for gone in old.difference(&new) {
            known.unfollow(self.id, gone);
        }
        for service in new {
            known.wanted.entry(service).or_default().insert(self.id);
        }
    }

    /// Resolves after a change of what is followed, or of the gateways. Cancel-safe.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What is to be known of a service that runs in this region.
    #[must_use]
    pub fn policy(&self, service: &ClusterName) -> Option<Arc<RegionCluster>> {
        self.region.known().policies.get(service.to_string().as_str()).cloned()
    }

    /// The instances of a service in this region that can be asked; of very many some, which for `caller` are
    /// always the same as far as they can be, and healthy ones first.
    #[must_use]
    pub fn endpoints(&self, service: &ClusterName, caller: &str) -> Vec<Endpoint> {
        let found = self.region.known().placed.endpoints(&service.to_string());
        let mut all: Vec<Endpoint> =
            found.into_iter().flat_map(|found| found.all).filter_map(endpoint_of).collect();
        if all.len() > ENDPOINTS_MAX {
            let rank = |endpoint: &Endpoint| {
                let mut hasher = DefaultHasher::new();
                (caller, &endpoint.key).hash(&mut hasher);
                (endpoint.state() != endpoint::State::Healthy, hasher.finish())
            };
            all.sort_by_cached_key(rank);
            all.truncate(ENDPOINTS_MAX);
            all.sort_by(|a, b| a.key.cmp(&b.key));
        }
        all
    }

    /// The region's gateways.
    #[must_use]
    pub fn gateways(&self) -> Vec<Gateway> {
        self.region.known().gateways.values().take(GATEWAYS_MAX).cloned().collect()
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        let mut known = self.region.known();
        if let Some(follower) = known.followers.remove(&self.id) {
            for service in follower.services {
                known.unfollow(self.id, &service);
            }
        }
    }
}

fn instance(host: &str, entry: &Entry) -> Result<placed::Instance, String> {
    use record::instance::State as Told;
    let body: record::Instance = entry.decode().map_err(|error| error.to_string())?;
    let said = match body.state() {
        Told::Starting => Said::Starting,
        Told::Healthy => Said::Healthy,
        Told::Unhealthy => Said::Unhealthy,
        Told::Draining => Said::Draining,
        Told::Exited | Told::Stopped => Said::Ended,
    };
    let address = match body.sidecar_address.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| format!("{text:?} is no address"))?),
    };
    Ok(placed::Instance { cluster: body.cluster, host: host.to_owned(), said, address })
}

/// One that can't serve is not told of at all.
fn endpoint_of(endpoint: placed::Endpoint) -> Option<Endpoint> {
    let state = match endpoint.state {
        State::Healthy => endpoint::State::Healthy,
        State::Unhealthy | State::Ejected => endpoint::State::Unhealthy,
        State::Draining => endpoint::State::Draining,
        State::Absent => return None,
    };
    let mut told = Endpoint {
        key: endpoint.key.to_string(),
        address: endpoint.address.to_string(),
        ..Endpoint::default()
    };
    told.set_state(state);
    Some(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn placed(region: &Region, key: &str, cluster: &str, said: Said) {
        let mut known = region.known();
        let mut touched = BTreeSet::new();
        let (key, address): (Arc<str>, _) = (key.into(), "127.0.0.1:9".parse().ok());
        let host = key.split('/').next().unwrap().to_owned();
        let placement = placed::Placement { cluster: cluster.to_owned(), host: host.clone(), drains: false };
        known.placed.placement(&key, Some(placement), &mut touched);
        let instance = placed::Instance { cluster: cluster.to_owned(), host, said, address };
        known.placed.instance(&key, Some(instance), &mut touched);
        known.tell(&touched, false);
    }

    #[test]
    fn only_who_follows_a_service_hears_of_it() {
        let region = Arc::<Region>::default();
        let (api, web): (ClusterName, ClusterName) = ("o/a/api".parse().unwrap(), "o/a/web".parse().unwrap());
        let (one, two) = (region.follow(), region.follow());
        one.want([&api].into_iter());
        two.want([&web].into_iter());
        placed(&region, "h/1", "o/a/api", Said::Healthy);
        assert!(one.changed().now_or_never().is_some());
        assert!(two.changed().now_or_never().is_none());
        assert_eq!(one.endpoints(&api, "me")[0].key, "h/1");
        region.set_policy("o/a/web", RegionCluster::default());
        assert!(two.changed().now_or_never().is_some() && two.policy(&web).is_some());
        one.want([&web].into_iter());
        placed(&region, "h/2", "o/a/api", Said::Healthy);
        assert!(one.changed().now_or_never().is_none());
        drop((one, two));
        let known = region.known();
        assert!(known.followers.is_empty() && known.wanted.is_empty());
    }

    #[test]
    fn of_very_many_instances_a_caller_keeps_its_own_choice() {
        let region = Arc::<Region>::default();
        let api: ClusterName = "o/a/api".parse().unwrap();
        for n in 0..200 {
            let said = if n < 20 { Said::Healthy } else { Said::Unhealthy };
            placed(&region, &format!("h/{n:03}"), "o/a/api", said);
        }
        let follower = region.follow();
        let keys = |caller: &str| -> BTreeSet<String> {
            follower.endpoints(&api, caller).into_iter().map(|endpoint| endpoint.key).collect()
        };
        let mine = keys("me");
        assert_eq!(mine.len(), ENDPOINTS_MAX);
        assert!((0..20).all(|n| mine.contains(&format!("h/{n:03}"))), "healthy ones are all there");
        placed(&region, "h/999", "o/a/api", Said::Unhealthy);
        assert!(keys("me").intersection(&mine).count() >= ENDPOINTS_MAX - 1);
        assert!(keys("you") != mine);
    }
}
