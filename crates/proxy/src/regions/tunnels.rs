//! One worker's tunnels: one to each gateway that gossip names, and what they tell of the regions.

use super::board::{Board, Posted};
use super::known::{Gateway, Gateways, RegionHealth};
use super::view::{RegionView, region_views};
use crate::client::{H2PeerConfig, MeshConnector};
use crate::metrics::ProxyMetrics;
use crate::tunnel::{Tunnel, TunnelConfig, TunnelState};
use atoll_identity::{Identity, PeerPolicy};
use atoll_model::{Hop, NodeName, RegionName, Role};
use atoll_routing::endpoint;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::info;

/// How often a request that waits for a tunnel looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What every tunnel of a role shares.
#[derive(Debug, Clone)]
pub struct TunnelFacts {
    /// Who we are in the answers that we make.
    pub hop: Hop,
    /// Our node.
    pub node: NodeName,
    /// Its region.
    pub region: RegionName,
    /// What gateways are shown.
    pub identity: Identity,
    /// Simulated round-trip times to the regions' gateways.
    pub wan: Arc<BTreeMap<RegionName, Duration>>,
    /// The role's.
    pub metrics: ProxyMetrics,
}

#[derive(Debug)]
struct Open {
    gateway: Gateway,
    tunnel: Tunnel,
}

/// The tunnels. Stays on its worker.
#[derive(Debug)]
pub(super) struct Tunnels {
    facts: TunnelFacts,
    open: RefCell<BTreeMap<NodeName, Open>>,
}

impl Tunnels {
    pub(super) fn new(facts: TunnelFacts) -> Self {
        Self { facts, open: RefCell::default() }
    }

    pub(super) fn facts(&self) -> &TunnelFacts {
        &self.facts
    }

    /// Opens and closes tunnels as gateways come and go. Runs as long as the worker.
    pub(super) async fn follow(&self, gateways: &Gateways, board: &Board, worker: usize) {
        let mut gateways = gateways.changes();
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
        let delay = facts.wan.get(&gateway.region).copied().unwrap_or_default();
        let connector = MeshConnector::new(&facts.identity, who).with_read_delay(delay);
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
    pub(super) fn regions(
        &self,
        said: &[RegionHealth],
        cluster: &str,
        regions: &[RegionName],
    ) -> Vec<RegionView> {
        let open = self.open.borrow();
        let states = open.values().map(|open| (&open.gateway, open.tunnel.state()));
        let states: Vec<(&Gateway, Arc<TunnelState>)> = states.collect();
        region_views(&states, said, cluster, regions)
    }

    /// Waits until a tunnel to one of the regions is up again. False at once where one is up already or
    /// none is known: then waiting would change nothing.
    pub(super) async fn come_up(&self, regions: &[RegionName], within: Duration) -> bool {
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
    /// gateways are left out. With the state that it was chosen from: draining where nothing better is left.
    pub(super) fn pick(
        &self,
        region: &RegionName,
        tried: &[NodeName],
        random: u64,
    ) -> Option<(NodeName, Tunnel, endpoint::State)> {
        let open = self.open.borrow();
        let of_region = || open.values().filter(|open| open.gateway.region == *region);
        let candidate = |open: &Open| endpoint::Candidate {
            state: match (open.tunnel.state().connected, open.gateway.draining) {
                (true, false) => endpoint::State::Healthy,
                (true, true) => endpoint::State::Draining,
                (false, _) => endpoint::State::Absent,
            },
            load: u32::try_from(open.tunnel.peer().in_flight()).unwrap_or(u32::MAX),
            excluded: tried.contains(&open.gateway.name),
        };
        let pick = endpoint::pick(of_region().map(candidate), random)?;
        let chosen = of_region().nth(pick.index)?;
        Some((chosen.gateway.name.clone(), chosen.tunnel.clone(), pick.state))
    }

    /// Whether a region has a gateway left that can be asked.
    pub(super) fn has_untried(&self, region: &RegionName, tried: &[NodeName]) -> bool {
        self.open.borrow().values().any(|open| {
            open.gateway.region == *region
                && open.tunnel.state().connected
                && !tried.contains(&open.gateway.name)
        })
    }
}
