//! What the region tells the others of its clusters: published on a change of health or bucket only, and
//! only by the gateway that rendezvous hashing names.

use crate::gateway::Shared;
use crate::views::Snapshot;
use atoll_gossip::{Gossip, Scope};
use atoll_model::{Kind, NodeName, RegionName, Role};
use atoll_routing::endpoint::State;
use atoll_routing::region::Health;
use atoll_routing::summary::{Summary, writer};
use atoll_wire::record::{RegionSummary, region_summary};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Changes are gathered this long, so that a deploy's many are one.
const GATHER: Duration = Duration::from_millis(10);

/// Clusters whose summary may have changed. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Touched(Arc<(Mutex<BTreeSet<String>>, Notify)>);

impl Touched {
    pub(crate) fn add(&self, clusters: BTreeSet<String>) {
        if !clusters.is_empty() {
            self.0.0.lock().unwrap_or_else(PoisonError::into_inner).extend(clusters);
            self.0.1.notify_one();
        }
    }

    fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.0.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn changed(&self) {
        self.0.1.notified().await;
    }
}

/// What is to be said, or unsaid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Publish(Summary),
    Withdraw,
}

/// What this gateway has said, and what it should say. Pure.
#[derive(Debug)]
pub(crate) struct Book {
    own: NodeName,
    /// Gateways of the region that are alive, this one too.
    gateways: BTreeSet<NodeName>,
    said: BTreeMap<String, Option<Summary>>,
}

impl Book {
    /// `said` are the clusters that an earlier run of this gateway has spoken of.
    pub(crate) fn new(own: NodeName, said: impl IntoIterator<Item = String>) -> Self {
        let gateways = BTreeSet::from([own.clone()]);
        Self { own, gateways, said: said.into_iter().map(|cluster| (cluster, None)).collect() }
    }

    /// Who is alive. True when that is news: then every cluster is to be looked at again.
    pub(crate) fn alive(&mut self, others: impl IntoIterator<Item = NodeName>) -> bool {
        let mut gateways: BTreeSet<NodeName> = others.into_iter().collect();
        gateways.insert(self.own.clone());
        let news = gateways != self.gateways;
        self.gateways = gateways;
        news
    }

    /// Clusters that were spoken of.
    pub(crate) fn spoken_of(&self) -> impl Iterator<Item = &String> {
        self.said.keys()
    }

    /// The summary of `cluster` is now this (`None`: it has nothing here). What to do about it?
    pub(crate) fn update(&mut self, cluster: &str, summary: Option<Summary>) -> Option<Action> {
        let mine = writer(cluster, &self.gateways) == Some(&self.own);
        match summary.filter(|_| mine) {
            None => self.said.remove(cluster).map(|_| Action::Withdraw),
            Some(summary) => {
                let before = self.said.insert(cluster.to_owned(), Some(summary));
                (before != Some(Some(summary))).then_some(Action::Publish(summary))
            }
        }
    }
}

/// Publishes until the drain is forced.
pub(crate) async fn publish(gossip: Gossip, region: RegionName, shared: Arc<Shared>, touched: Touched) {
    let prefix = format!("{region}/");
    let own = gossip.entries(Kind::SUMMARY).into_iter().filter(|entry| entry.signer.node == shared.name);
    let said = own.filter_map(|entry| entry.key.strip_prefix(&prefix).map(str::to_owned));
    let mut book = Book::new(shared.name.clone(), said.collect::<Vec<_>>());
    let mut members = gossip.members();
    let scope = Scope::Region(region.clone());
    loop {
        let news = {
            let members = members.borrow_and_update();
            let alive = members.alive(&scope).iter().filter(|member| member.roles.has(Role::Gateway));
            book.alive(alive.map(|member| member.name.clone()))
        };
        let mut clusters = touched.take();
        if news {
            clusters.extend(shared.views.load().endpoints.iter().map(|(name, _)| name.to_owned()));
            clusters.extend(book.spoken_of().cloned());
        }
        for cluster in clusters {
            let summary = summary_of(&shared, &cluster);
            let key = format!("{prefix}{cluster}");
            match book.update(&cluster, summary) {
                None => {}
                Some(Action::Withdraw) => gossip.withdraw(Kind::SUMMARY, &Scope::Global, &key),
                Some(Action::Publish(summary)) => {
                    let body = body_of(&region, &cluster, summary);
                    gossip.publish(Kind::SUMMARY, &Scope::Global, &key, &body);
                }
            }
        }
        tokio::select! {
            () = touched.changed() => {}
            () = shared.reach.changed() => touched.add(all_with_endpoints(&shared)),
            changed = members.changed() => if changed.is_err() { return },
        }
        tokio::time::sleep(GATHER).await;
    }
}

/// Rare, so all are looked at: an ejection doesn't say whose instance it is.
fn all_with_endpoints(shared: &Shared) -> BTreeSet<String> {
    shared.views.load().endpoints.iter().map(|(name, _)| name.to_owned()).collect()
}

fn summary_of(shared: &Shared, cluster: &str) -> Option<Summary> {
    let snapshot = shared.views.load();
    // A cluster that is gone, or has nothing here, is not spoken of.
    snapshot.clusters.get(cluster)?;
    let endpoints = snapshot.endpoints.get(cluster)?;
    Some(Summary::of(healthy(shared, &snapshot, cluster), endpoints.expected))
}

/// Instances of a cluster that are healthy, and that this gateway can connect to as far as it knows.
pub(crate) fn healthy(shared: &Shared, snapshot: &Snapshot, cluster: &str) -> u32 {
    let Some(endpoints) = snapshot.endpoints.get(cluster) else { return 0 };
    let healthy =
        endpoints.all.iter().filter(|e| e.state == State::Healthy && !shared.reach.is_ejected(&e.key));
    u32::try_from(healthy.count()).unwrap_or(u32::MAX)
}

fn body_of(region: &RegionName, cluster: &str, summary: Summary) -> RegionSummary {
    let health = match summary.health {
        Health::None => region_summary::Health::None,
        Health::Some => region_summary::Health::Some,
        Health::Full => region_summary::Health::Full,
    };
    RegionSummary {
        region: region.to_string(),
        cluster: cluster.to_owned(),
        health: health.into(),
        capacity_bucket: summary.capacity_bucket,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn name(text: &str) -> NodeName {
        NodeName::new(text).unwrap()
    }

    #[test]
    fn only_a_change_of_health_or_bucket_is_said() {
        let mut book = Book::new(name("gw1"), []);
        let three = Summary::of(3, 4);
        assert_eq!(book.update("c", Some(three)), Some(Action::Publish(three)));
        assert_eq!(book.update("c", Some(Summary::of(4, 5))), None, "the same bucket");
        let five = Summary::of(5, 6);
        assert_eq!(book.update("c", Some(five)), Some(Action::Publish(five)));
        assert_eq!(book.update("c", Some(Summary::NONE)), Some(Action::Publish(Summary::NONE)));
        assert_eq!(book.update("c", None), Some(Action::Withdraw));
        assert_eq!(book.update("c", None), None);
    }

    #[test]
    fn one_gateway_speaks_and_the_next_takes_over() {
        let mut books = [Book::new(name("gw1"), []), Book::new(name("gw2"), [])];
        assert!(books[0].alive([name("gw2")]));
        assert!(books[1].alive([name("gw1")]));
        assert!(!books[1].alive([name("gw1")]));
        let full = Summary::of(1, 1);
        for n in 0..20 {
            let cluster = format!("default/app{n}/web");
            let said = books.iter_mut().filter_map(|book| book.update(&cluster, Some(full))).count();
            assert_eq!(said, 1);
        }
        assert!(books[0].alive([]));
        let taken =
            (0..20).filter(|n| books[0].update(&format!("default/app{n}/web"), Some(full)).is_some()).count();
        assert_eq!(taken, books[1].said.len(), "what the other had said");
        assert!(taken > 0);
    }

    #[test]
    fn what_an_earlier_run_said_is_said_anew_or_withdrawn() {
        let mut book = Book::new(name("gw1"), ["gone".to_owned(), "here".to_owned()]);
        assert_eq!(book.update("gone", None), Some(Action::Withdraw));
        assert_eq!(book.update("here", Some(Summary::NONE)), Some(Action::Publish(Summary::NONE)));
    }
}
