//! Which instances a request of a cluster may go to, and why: for `explain`, by the functions that
//! requests go by.

use crate::calls::{best_of, order};
use crate::gateway::Shared;
use crate::serving::Serving;
use crate::summaries::healthy;
use crate::views::{Cluster, Snapshot};
use atoll_proxy::region::seen;
use atoll_proxy::regions;
use atoll_routing::endpoint::{self, State};
use atoll_routing::placed::{Endpoint, Endpoints};
use atoll_routing::summary::Summary;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

impl Serving {
    /// What would become of an edge's request for `cluster` (`org/app/service`) in this region: each
    /// instance, what is known of it, and whether it may get the request; and under `calls`, of a call of one of this
    /// region's services: in which order regions are asked, and each other region. An instance counts
    /// as ejected when any of the workers can't reach it.
    #[must_use]
    pub fn explain(&self, cluster: &str) -> Value {
        let shared = &self.shared;
        let snapshot = shared.views.load();
        let about = json!({ "cluster": clipped(cluster), "region": shared.region, "gateway": shared.name });
        let more = match snapshot.clusters.get(cluster) {
            None => json!({ "answer": "not-public", "why": "no cluster has this name" }),
            Some(known) => {
                let mut more = instances(shared, &snapshot, cluster, known);
                if !known.public {
                    more["answer"] = json!("not-public");
                    more["why"] =
                        json!("the cluster is not public: edges don't get it, services may call it");
                }
                more["calls"] = calls(shared, &snapshot, cluster, known);
                more
            }
        };
        match (about, more) {
            (Value::Object(mut about), Value::Object(more)) => {
                about.extend(more);
                Value::Object(about)
            }
            (about, _) => about,
        }
    }
}

fn instances(shared: &Shared, snapshot: &Snapshot, name: &str, cluster: &Cluster) -> Value {
    let nothing = Endpoints::default();
    let endpoints = snapshot.endpoints.get(name).map_or(&nothing, |endpoints| &**endpoints);
    let state = |endpoint: &Endpoint| seen(endpoint.state, shared.reach.is_ejected(&endpoint.key));
    let candidate =
        |endpoint: &Endpoint| endpoint::Candidate { state: state(endpoint), load: 0, excluded: false };
    // Whichever of two it takes by chance: the best state that there is, among so many.
    let pick = endpoint::pick(endpoints.all.iter().map(candidate), 0);
    let instance = |endpoint: &Endpoint| {
        let (state, chosen) = (state(endpoint), pick.map(|pick| pick.state));
        json!({
            "instance": &*endpoint.key,
            "sidecar": endpoint.address,
            "state": text(state),
            "ejected": shared.reach.is_ejected(&endpoint.key),
            "eligible": Some(state) == chosen,
            "why": why(state, chosen),
        })
    };
    let summary = Summary::of(healthy(shared, snapshot, name), endpoints.expected);
    json!({
        "answer": if pick.is_some() { "forwarded" } else { "no-instance" },
        "among": pick.map_or(0, |pick| pick.among),
        "expected": endpoints.expected,
        "summary": { "health": format!("{:?}", summary.health).to_lowercase(), "capacity_bucket": summary.capacity_bucket },
        "in_flight": cluster.in_flight.load(Ordering::Relaxed),
        "instances": endpoints.all.iter().map(instance).collect::<Vec<_>>(),
    })
}

fn calls(shared: &Shared, snapshot: &Snapshot, name: &str, cluster: &Cluster) -> Value {
    let endpoints = snapshot.endpoints.get(name).map(|endpoints| &**endpoints);
    let best = best_of(endpoints, |key| shared.reach.is_ejected(key));
    let said = snapshot.summaries.of(name).map_or(&[][..], |all| &all[..]);
    let far = regions::explain(&shared.board, &shared.region, said, &cluster.regions, name);
    let far_healthy = far["answer"] == "forwarded" && far["panic"] == false;
    let order = order(false, best, || far_healthy);
    let served = best.is_some() || far["answer"] == "forwarded";
    json!({
        "answer": if served { "forwarded" } else { "no-region" },
        "order": format!("{order}"),
        "other_regions": far,
    })
}

const fn text(state: State) -> &'static str {
    match state {
        State::Healthy => "healthy",
        State::Ejected => "ejected",
        State::Unhealthy => "unhealthy",
        State::Draining => "draining",
        State::Absent => "absent",
    }
}

fn why(state: State, chosen: Option<State>) -> &'static str {
    match state {
        State::Absent => "it starts or has ended",
        _ if Some(state) != chosen => "another is in a better state",
        State::Healthy => "the less loaded of two such, taken by chance, gets the request",
        State::Ejected => "it can't be connected to, but no other is better",
        State::Unhealthy => "its checks fail, but no other is better",
        State::Draining => "it drains, but no other is left",
    }
}

fn clipped(text: &str) -> String {
    text.chars().take(256).collect()
}
