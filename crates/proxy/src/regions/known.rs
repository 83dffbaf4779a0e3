//! What gossip says of the regions: their gateways, and how their clusters do.

use atoll_model::{NodeName, RegionName};
use atoll_routing::ShardedMap;
use atoll_routing::region::Health;
use atoll_wire::record::{NodeFacts, RegionSummary, region_summary};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// A gateway that tunnels go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Its node.
    pub name: NodeName,
    /// From its record certificate, not from what it says.
    pub region: RegionName,
    /// Where tunnels go.
    pub address: SocketAddr,
    /// It is shutting down.
    pub draining: bool,
}

/// A gateway's facts without an address that can be connected to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address")]
pub struct BadAddress(String);

impl Gateway {
    /// The gateway whose facts those are; name and region are its signer's.
    ///
    /// # Errors
    /// When its address is none.
    pub fn of(name: &NodeName, region: &RegionName, facts: &NodeFacts) -> Result<Self, BadAddress> {
        let text = &facts.gateway_address;
        let address = text.parse().map_err(|_| BadAddress(text.escape_debug().take(80).collect()))?;
        Ok(Self { name: name.clone(), region: region.clone(), address, draining: facts.draining })
    }
}

/// The gateways that are known. Clones share them; one task writes. Apart from a role's snapshot, so that
/// workers look at their tunnels only when a gateway has changed.
#[derive(Debug, Clone)]
pub struct Gateways(watch::Sender<Arc<[Gateway]>>);

impl Default for Gateways {
    fn default() -> Self {
        Self(watch::Sender::new(Arc::new([])))
    }
}

impl Gateways {
    /// All of them, and word of changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<[Gateway]>> {
        self.0.subscribe()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.borrow().len()
    }

    /// What is known of the gateway `name` now; nothing when it is none any more.
    pub fn set(&self, name: &str, gateway: Option<Gateway>) {
        self.0.send_if_modified(|all| {
            if all.iter().find(|known| known.name.as_str() == name) == gateway.as_ref() {
                return false;
            }
            let others = all.iter().filter(|known| known.name.as_str() != name).cloned();
            let mut next: Vec<Gateway> = others.chain(gateway).collect();
            next.sort_by(|a, b| a.name.cmp(&b.name));
            *all = next.into();
            true
        });
    }
}

/// What one gateway says of a cluster in its region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionHealth {
    /// Where.
    pub region: RegionName,
    /// Which of the region's gateways.
    pub said_by: NodeName,
    /// How it does.
    pub health: Health,
}

/// What the regions' gateways say of each cluster. A clone costs a reference count.
#[derive(Debug, Clone, Default)]
pub struct Summaries(ShardedMap<Arc<[RegionHealth]>>);

impl Summaries {
    /// What is said of a cluster.
    #[must_use]
    pub fn of(&self, cluster: &str) -> Option<&Arc<[RegionHealth]>> {
        self.0.get(cluster)
    }

    /// What `said_by` says of a cluster in its region now; nothing when it has taken it back.
    pub fn say(
        &mut self,
        cluster: &str,
        region: RegionName,
        said_by: &NodeName,
        body: Option<&RegionSummary>,
    ) {
        let old = self.0.get(cluster).map_or(&[][..], |all| &all[..]);
        let mut all: Vec<RegionHealth> =
            old.iter().filter(|h| h.region != region || h.said_by != *said_by).cloned().collect();
        if let Some(body) = body {
            let health = match body.health() {
                region_summary::Health::None => Health::None,
                region_summary::Health::Some => Health::Some,
                region_summary::Health::Full => Health::Full,
            };
            all.push(RegionHealth { region, said_by: said_by.clone(), health });
        }
        if all.is_empty() {
            self.0.remove(cluster);
        } else {
            self.0.insert(cluster, all.into());
        }
    }
}
