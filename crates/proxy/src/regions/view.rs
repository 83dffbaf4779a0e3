//! What is known of a cluster in each region, from tunnels and from gossip.

use super::known::{Gateway, RegionHealth};
use crate::tunnel::TunnelState;
use atoll_model::{NodeName, RegionName};
use atoll_routing::region::Health;
use std::sync::Arc;
use std::time::Duration;

/// What the tunnels to one region's gateways tell of a cluster there.
#[derive(Debug)]
pub(super) struct RegionView {
    /// Which.
    pub(super) region: RegionName,
    /// The least of its tunnels' round trips.
    pub(super) rtt: Option<Duration>,
    /// How the cluster does there.
    pub(super) health: Health,
    /// Whether one of its gateways can be reached.
    pub(super) tunnel_up: bool,
    /// Whether all that can be reached are shutting down.
    pub(super) draining: bool,
}

/// What tunnels tell of `cluster` in each of `regions` (all, if that is empty) that has one.
pub(super) fn region_views(
    tunnels: &[(&Gateway, Arc<TunnelState>)],
    said: &[RegionHealth],
    cluster: &str,
    regions: &[RegionName],
) -> Vec<RegionView> {
    let wanted = |region: &RegionName| regions.is_empty() || regions.binary_search(region).is_ok();
    let mut views: Vec<RegionView> = Vec::new();
    for (gateway, _) in tunnels.iter().filter(|(gateway, _)| wanted(&gateway.region)) {
        if views.iter().any(|view| view.region == gateway.region) {
            continue;
        }
        let of_region = tunnels.iter().filter(|(other, _)| other.region == gateway.region);
        let of_region: Vec<_> = of_region.map(|(gateway, state)| (*gateway, &**state)).collect();
        views.push(region_view(&gateway.region, &of_region, cluster, said));
    }
    views
}

fn region_view(
    region: &RegionName,
    gateways: &[(&Gateway, &TunnelState)],
    cluster: &str,
    said: &[RegionHealth],
) -> RegionView {
    let up = || gateways.iter().filter(|(_, state)| state.connected);
    // A tunnel's headroom is 100 ms old at most and first hand: it outranks the region's summary.
    let told = up().filter_map(|(_, state)| state.headroom.get(cluster)).map(|told| told.healthy).max();
    let is_up = |name: &NodeName| up().any(|(gateway, _)| gateway.name == *name);
    let summaries = || said.iter().filter(|said| said.region == *region);
    // One that a dead gateway left behind counts only where no living one speaks.
    let summary = summaries()
        .filter(|said| is_up(&said.said_by))
        .map(|said| said.health)
        .max()
        .or_else(|| summaries().map(|said| said.health).max())
        .unwrap_or(Health::None);
    let health = match told {
        None => summary,
        Some(0) => Health::None,
        Some(_) => summary.max(Health::Some),
    };
    let rtts = up().filter_map(|(_, state)| state.rtt).min();
    let draining = up().next().is_some() && up().all(|(gateway, _)| gateway.draining);
    RegionView { region: region.clone(), rtt: rtts, health, tunnel_up: up().next().is_some(), draining }
}

#[cfg(test)]
mod tests;
