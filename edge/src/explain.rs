//! Why a request would go where it goes: for `explain`, by the functions that requests go by.

use crate::edge::Shared;
use crate::serving::Serving;
use crate::views::Snapshot;
use atoll_model::RegionName;
use atoll_proxy::regions::{Gateway, RegionView, decide, region_views};
use atoll_proxy::tunnel::TunnelState;
use atoll_routing::hosts::normalise_host;
use atoll_routing::path::normalise;
use atoll_routing::region::Health;
use serde_json::{Value, json};
use std::sync::Arc;

impl Serving {
    /// What would become of a request for `path` of `host` (as clients write it), and why, also why
    /// the other regions lose. It is decided afresh: what a worker chose last, and whom it has seen
    /// refuse in the last second, are that worker's own.
    #[must_use]
    pub fn explain(&self, host: &str, path: &str) -> Value {
        let shared = &self.shared;
        let snapshot = shared.views.load();
        let Some(name) = normalise_host(host) else {
            return json!({ "host": clipped(host), "answer": "bad-request", "why": "that is no host name" });
        };
        let mut explained = json!({
            "host": name,
            "path": clipped(path),
            "edge": shared.site,
            "certificate": shared.certificates.find(&name).map(|found| found.fingerprint.clone()),
            "desired_version": snapshot.desired.1,
        });
        let decided = decided(shared, &snapshot, &name, path);
        if let (Some(explained), Value::Object(decided)) = (explained.as_object_mut(), decided) {
            explained.extend(decided);
            if explained["certificate"].is_null() {
                explained.insert("tls".to_owned(), json!("refused: no certificate for this name is loaded"));
            }
        }
        explained
    }
}

fn decided(shared: &Shared, snapshot: &Snapshot, host: &str, path: &str) -> Value {
    let Some(host) = snapshot.hosts.find_normal(host) else {
        return json!({ "answer": "unknown-host", "why": "no virtual host has this name" });
    };
    let path = match normalise(path) {
        Ok(path) => path,
        Err(why) => {
            return json!({ "virtual_host": host.id, "answer": "ambiguous-path", "why": why.to_string() });
        }
    };
    let Some(route) = host.route(path.as_str()) else {
        return json!({ "virtual_host": host.id, "answer": "no-route", "why": "no route matches the path" });
    };
    let name = &route.cluster;
    let found = json!({
        "virtual_host": host.id,
        "domains": host.domains(),
        "route": { "name": route.name, "path_prefix": format!("{}/", route.path_prefix) },
        "cluster": &**name,
    });
    let with = |more: Value| match (found.clone(), more) {
        (Value::Object(mut found), Value::Object(more)) => {
            found.extend(more);
            Value::Object(found)
        }
        (found, _) => found,
    };
    let Some(cluster) = snapshot.clusters.get(name) else {
        return with(json!({ "answer": "no-region", "why": "the cluster is not known yet" }));
    };
    with(regions(shared, snapshot, name, &cluster.regions))
}

/// Each region, and the one that is chosen.
fn regions(shared: &Shared, snapshot: &Snapshot, cluster: &str, among: &[RegionName]) -> Value {
    let posted = shared.board.sample();
    let tunnels: Vec<(&Gateway, Arc<TunnelState>)> =
        posted.iter().map(|posted| (&posted.gateway, posted.state.load_full())).collect();
    let said = snapshot.summaries.of(cluster).map_or(&[][..], |all| &all[..]);
    let views = region_views(&tunnels, said, cluster, among);
    let decision = decide(&views, &shared.tunnel_facts.region, None, |_| false);
    let region = |(view, verdict): (&RegionView, _)| {
        let gateways = tunnels.iter().filter(|(gateway, _)| gateway.region == view.region);
        json!({
            "region": view.region,
            "health": text(view.health),
            "rtt_us": view.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            "tunnel_up": view.tunnel_up,
            "draining": view.draining,
            "verdict": format!("{verdict}"),
            "gateways": gateways.map(|(gateway, state)| gateway_of(gateway, state, cluster)).collect::<Vec<_>>(),
        })
    };
    let all: Vec<Value> = views.iter().zip(&decision.verdicts).map(region).collect();
    let unseen: Vec<&RegionName> =
        among.iter().filter(|region| !views.iter().any(|view| view.region == **region)).collect();
    let chosen = decision.chosen.and_then(|index| views.get(index)).map(|view| &view.region);
    let answer = if chosen.is_some() { "forwarded" } else { "no-region" };
    json!({
        "answer": answer,
        "chosen": chosen,
        "panic": decision.panic,
        "regions": all,
        "regions_without_gateway": unseen,
    })
}

fn gateway_of(gateway: &Gateway, state: &TunnelState, cluster: &str) -> Value {
    json!({
        "name": gateway.name,
        "address": gateway.address,
        "connected": state.connected,
        "draining": gateway.draining || state.draining,
        "rtt_us": state.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        "healthy_instances": state.headroom.get(cluster).map(|told| told.healthy),
    })
}

const fn text(health: Health) -> &'static str {
    match health {
        Health::None => "none",
        Health::Some => "some",
        Health::Full => "full",
    }
}

fn clipped(text: &str) -> String {
    text.chars().take(256).collect()
}
