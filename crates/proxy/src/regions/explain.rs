//! Why a request goes to which region.

use super::board::Board;
use super::choice::decide;
use super::known::{Gateway, RegionHealth};
use super::view::{RegionView, region_views};
use crate::tunnel::TunnelState;
use atoll_model::RegionName;
use atoll_routing::region::Health;
use serde_json::{Value, json};
use std::sync::Arc;

/// Each region for a request of `cluster`, and the one that would be chosen: by the functions that requests go
/// by. It is decided afresh: what a worker chose last, and whom it has seen refuse, are that worker's own.
#[must_use]
pub fn explain(
    board: &Board,
    home: &RegionName,
    said: &[RegionHealth],
    among: &[RegionName],
    cluster: &str,
) -> Value {
    let posted = board.sample();
    let tunnels: Vec<(&Gateway, Arc<TunnelState>)> =
        posted.iter().map(|posted| (&posted.gateway, posted.state.load_full())).collect();
    let views = region_views(&tunnels, said, cluster, among);
    let decision = decide(&views, home, None, |_| false);
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
