//! One worker's tunnels: one to each gateway that gossip names, and what they tell of the regions.

use crate::board::{Board, Posted};
use crate::config::Config;
use crate::views::{Gateway, Snapshot, Views};
use atoll_identity::{Identity, PeerPolicy};
use atoll_model::{NodeName, RegionName, Role};
use atoll_proxy::ProxyMetrics;
use atoll_proxy::client::{H2PeerConfig, MeshConnector};
use atoll_proxy::tunnel::{Tunnel, TunnelConfig, TunnelState};
use atoll_routing::endpoint;
use atoll_routing::region::Health;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::info;

/// How often a request that waits for a tunnel looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What every tunnel of this edge shares.
#[derive(Debug, Clone)]
pub(crate) struct TunnelFacts {
    pub(crate) node: NodeName,
    pub(crate) region: RegionName,
    pub(crate) identity: Identity,
    pub(crate) config: Arc<Config>,
    pub(crate) metrics: ProxyMetrics,
}

#[derive(Debug)]
struct Open {
    gateway: Gateway,
    tunnel: Tunnel,
}

/// The tunnels. Stays on its worker.
#[derive(Debug)]
pub(crate) struct Tunnels {
    facts: TunnelFacts,
    open: RefCell<BTreeMap<NodeName, Open>>,
}

/// What the tunnels to one region's gateways tell of a cluster there.
#[derive(Debug)]
pub(crate) struct RegionView {
    pub(crate) region: RegionName,
    pub(crate) rtt: Option<Duration>,
    pub(crate) health: Health,
    pub(crate) tunnel_up: bool,
    pub(crate) draining: bool,
}

impl Tunnels {
    pub(crate) fn new(facts: TunnelFacts) -> Self {
        Self { facts, open: RefCell::default() }
    }

    /// The edge's own region.
    pub(crate) fn home(&self) -> &RegionName {
        &self.facts.region
    }

    /// Opens and closes tunnels as gateways come and go. Runs as long as the worker.
    pub(crate) async fn follow(&self, views: Views, board: Board, worker: usize) {
        let mut gateways = views.gateways();
        loop {
            let named = Arc::clone(&gateways.borrow_and_update());
            self.adopt(&named);
            board.post(worker, self.posted());
            if gateways.changed().await.is_err() {
                return;
            }
        }
    }

    fn adopt(&self, named: &[Gateway]) {
        let mut open = self.open.borrow_mut();
        open.retain(|name, _| named.iter().any(|gateway| gateway.name == *name));
        for gateway in named {
            let same = |open: &Open| {
                open.gateway.address == gateway.address && open.gateway.region == gateway.region
            };
            if let Some(known) = open.get_mut(&gateway.name).filter(|known| same(known)) {
                known.gateway = gateway.clone();
                continue;
            }
            info!(gateway = %gateway.name, region = %gateway.region, address = %gateway.address, "opening a tunnel");
            let tunnel = self.tunnel_to(gateway);
            open.insert(gateway.name.clone(), Open { gateway: gateway.clone(), tunnel });
        }
    }

    fn tunnel_to(&self, gateway: &Gateway) -> Tunnel {
        let facts = &self.facts;
        let who = PeerPolicy::Node(gateway.name.clone(), Role::Gateway);
        let connector =
            MeshConnector::new(&facts.identity, who).with_read_delay(facts.config.wan_delay(&gateway.region));
        let config = TunnelConfig {
            peer: H2PeerConfig::far(gateway.address),
            node: facts.node.to_string(),
            region: facts.region.to_string(),
        };
        Tunnel::open(config, connector, facts.metrics.clone())
    }

    fn posted(&self) -> Vec<Posted> {
        let post = |open: &Open| Posted { gateway: open.gateway.clone(), state: open.tunnel.shared_state() };
        self.open.borrow().values().map(post).collect()
    }

    /// What is known of `cluster` in each region that has a gateway and is among `regions` (all, if that
    /// is empty).
    pub(crate) fn regions(
        &self,
        snapshot: &Snapshot,
        cluster: &str,
        regions: &[RegionName],
    ) -> Vec<RegionView> {
        let open = self.open.borrow();
        let states = open.values().map(|open| (&open.gateway, open.tunnel.state()));
        let states: Vec<(&Gateway, Arc<TunnelState>)> = states.collect();
        region_views(&states, snapshot, cluster, regions)
    }

    /// Waits until a tunnel to one of the regions is up again. False at once where one is up already or
    /// none is known: then waiting would change nothing.
    pub(crate) async fn come_up(&self, regions: &[RegionName], within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let any = |up: bool| {
            let open = self.open.borrow();
            let mut wanted = open
                .values()
                .filter(|open| regions.is_empty() || regions.binary_search(&open.gateway.region).is_ok());
            wanted.any(|open| !up || open.tunnel.state().connected)
        };
        if !any(false) || any(true) {
            return false;
        }
        while Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
            if any(true) {
                return true;
            }
        }
        false
    }

    /// The tunnel of a region that has the least to do, of two taken by chance; those of `tried`
    /// gateways are left out.
    pub(crate) fn pick(
        &self,
        region: &RegionName,
        tried: &[NodeName],
        random: u64,
    ) -> Option<(NodeName, Tunnel)> {
        let open = self.open.borrow();
        let of_region: Vec<&Open> = open.values().filter(|open| open.gateway.region == *region).collect();
        let candidate = |open: &&Open| endpoint::Candidate {
            state: match (open.tunnel.state().connected, open.gateway.draining) {
                (true, false) => endpoint::State::Healthy,
                (true, true) => endpoint::State::Draining,
                (false, _) => endpoint::State::Absent,
            },
            load: u32::try_from(open.tunnel.peer().in_flight()).unwrap_or(u32::MAX),
            excluded: tried.contains(&open.gateway.name),
        };
        let pick = endpoint::pick(of_region.iter().map(candidate), random)?;
        let chosen = of_region.get(pick.index)?;
        Some((chosen.gateway.name.clone(), chosen.tunnel.clone()))
    }

    /// Whether a region has a gateway left that can be asked.
    pub(crate) fn has_untried(&self, region: &RegionName, tried: &[NodeName]) -> bool {
        self.open.borrow().values().any(|open| {
            open.gateway.region == *region
                && open.tunnel.state().connected
                && !tried.contains(&open.gateway.name)
        })
    }
}

/// What tunnels tell of `cluster` in each of `regions` (all, if that is empty) that has one.
pub(crate) fn region_views(
    tunnels: &[(&Gateway, Arc<TunnelState>)],
    snapshot: &Snapshot,
    cluster: &str,
    regions: &[RegionName],
) -> Vec<RegionView> {
    let wanted = |region: &RegionName| regions.is_empty() || regions.binary_search(region).is_ok();
    let said = snapshot.health.get(cluster).map_or(&[][..], |all| &all[..]);
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
    said: &[crate::views::RegionHealth],
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
