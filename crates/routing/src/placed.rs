//! Which instances of a cluster a region has: what hosts say of them, joined with where control has placed them.
//!
//! An instance is used when its host says that it runs *and* control says that it is to: both facts
//! have the same key, host and cluster.

use crate::endpoint::State;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

/// An instance that is placed here and has a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `host/instance`.
    pub key: Arc<str>,
    /// Of the sidecar.
    pub address: SocketAddr,
    /// What its host says, and whether control wants it to drain.
    pub state: State,
}

/// The instances of a cluster in one region.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// In the order of their keys.
    pub all: Vec<Endpoint>,
    /// How many should serve: placed to run, and past their start.
    pub expected: u32,
}

/// What a host says of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It has not passed its checks yet.
    Starting,
    /// Its checks pass.
    Healthy,
    /// They fail.
    Unhealthy,
    /// It finishes what it has.
    Draining,
    /// It has exited, or was stopped.
    Ended,
}

/// A host's fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// `org/app/service`.
    pub cluster: String,
    /// Who says it.
    pub host: String,
    /// What.
    pub said: Said,
    /// Of its sidecar; none while it has none.
    pub address: Option<SocketAddr>,
}

/// Control's fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// `org/app/service`.
    pub cluster: String,
    /// Where it is to run.
    pub host: String,
    /// It is to finish what it has.
    pub drains: bool,
}

/// The facts of a region, by key. A change costs what the cluster has that it concerns.
#[derive(Debug, Default)]
pub struct Placed {
    instances: BTreeMap<Arc<str>, Instance>,
    placements: BTreeMap<Arc<str>, Placement>,
    /// Cluster → keys of instances and placements.
    keys: BTreeMap<String, BTreeSet<Arc<str>>>,
}

impl Placed {
    /// What the host of `key` says now; nothing when it has taken it back. Adds to `touched` each cluster
    /// whose [`Self::endpoints`] may be others.
    pub fn instance(&mut self, key: &Arc<str>, fact: Option<Instance>, touched: &mut BTreeSet<String>) {
        let new = fact.as_ref().map(|fact| fact.cluster.clone());
        let old = match fact {
            Some(fact) => self.instances.insert(Arc::clone(key), fact),
            None => self.instances.remove(key),
        };
        self.index(key, old.map(|old| old.cluster), new, touched);
    }

    /// What control says of `key` now; otherwise as [`Self::instance`].
    pub fn placement(&mut self, key: &Arc<str>, fact: Option<Placement>, touched: &mut BTreeSet<String>) {
        let new = fact.as_ref().map(|fact| fact.cluster.clone());
        let old = match fact {
            Some(fact) => self.placements.insert(Arc::clone(key), fact),
            None => self.placements.remove(key),
        };
        self.index(key, old.map(|old| old.cluster), new, touched);
    }

    /// The instances of a cluster; `None` when nobody speaks of any.
    #[must_use]
    pub fn endpoints(&self, cluster: &str) -> Option<Endpoints> {
        let mut endpoints = Endpoints::default();
        for key in self.keys.get(cluster)? {
            let (Some(instance), Some(placement)) = (self.instances.get(key), self.placements.get(key))
            else {
                continue;
            };
            if instance.cluster != placement.cluster || instance.host != placement.host {
                continue;
            }
            let state = state_of(instance.said, placement.drains);
            let started = instance.said != Said::Starting;
            endpoints.expected += u32::from(started && !placement.drains);
            if let Some(address) = instance.address {
                endpoints.all.push(Endpoint { key: Arc::clone(key), address, state });
            }
        }
        Some(endpoints)
    }

    fn index(
        &mut self,
        key: &Arc<str>,
        old: Option<String>,
        new: Option<String>,
        touched: &mut BTreeSet<String>,
    ) {
        for cluster in [old, new].into_iter().flatten() {
            let named = self.instances.get(key).is_some_and(|i| i.cluster == cluster)
                || self.placements.get(key).is_some_and(|p| p.cluster == cluster);
            let keys = self.keys.entry(cluster.clone()).or_default();
            if named {
                keys.insert(Arc::clone(key));
            } else {
                keys.remove(key);
            }
            if keys.is_empty() {
                self.keys.remove(&cluster);
            }
            touched.insert(cluster);
        }
    }
}

const fn state_of(said: Said, drains: bool) -> State {
    match (said, drains) {
        (Said::Healthy, false) => State::Healthy,
        (Said::Unhealthy, false) => State::Unhealthy,
        (Said::Healthy | Said::Unhealthy, true) | (Said::Draining, _) => State::Draining,
        (Said::Starting | Said::Ended, _) => State::Absent,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn only_what_both_say_is_used_and_every_change_is_told(
            facts in proptest::collection::vec((0_u8..2, 0_u8..4, proptest::option::of((0_u8..3, 0_u8..2, 0_u8..5))), 0..60),
        ) {
            let mut placed = Placed::default();
            let (mut instances, mut placements) = (BTreeMap::new(), BTreeMap::new());
            let mut seen: BTreeMap<String, Option<Endpoints>> = BTreeMap::new();
            for (kind, key, fact) in facts {
                let key: Arc<str> = format!("h/{key}").into();
                let mut touched = BTreeSet::new();
                let names = fact.map(|(cluster, host, state)| (format!("c{cluster}"), format!("h{host}"), state));
                if kind == 0 {
                    let said = |n| [Said::Starting, Said::Healthy, Said::Unhealthy, Said::Draining, Said::Ended][usize::from(n)];
                    let address = Some("127.0.0.1:9".parse().unwrap());
                    let fact = names.map(|(cluster, host, n)| Instance { cluster, host, said: said(n), address });
                    instances.insert(Arc::clone(&key), fact.clone());
                    placed.instance(&key, fact, &mut touched);
                } else {
                    let fact = names.map(|(cluster, host, n)| Placement { cluster, host, drains: n == 0 });
                    placements.insert(Arc::clone(&key), fact.clone());
                    placed.placement(&key, fact, &mut touched);
                }
                for cluster in ["c0", "c1", "c2"] {
                    let now = placed.endpoints(cluster);
                    let before = seen.insert(cluster.to_owned(), now.clone()).flatten();
                    prop_assert!(touched.contains(cluster) || before == now);
                    for endpoint in now.iter().flat_map(|now| &now.all) {
                        let (i, p) = (instances[&endpoint.key].clone().unwrap(), placements[&endpoint.key].clone().unwrap());
                        prop_assert!(i.cluster == cluster && p.cluster == cluster && i.host == p.host);
                        prop_assert_eq!(endpoint.state == State::Healthy, i.said == Said::Healthy && !p.drains);
                    }
                }
            }
        }
    }
}
