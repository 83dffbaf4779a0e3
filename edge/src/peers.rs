//! The other edges: which there are, one worker's connections to them, and asking one for what its cache may have.

use atoll_identity::PeerPolicy;
use atoll_model::{NodeName, RegionName, Role, SiteName};
use atoll_proxy::client::{H2Peer, H2PeerConfig, MeshConnector, SendError, SendTimeouts};
use atoll_proxy::regions::TunnelFacts;
use atoll_proxy::{Body, Interim};
use atoll_routing::tier::EdgeAt;
use atoll_wire::record::NodeFacts;
use http::{Request, Response};
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// An edge that does not answer pings for so long is given up, and whoever waits for it asks the region.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Another edge that can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerEdge {
    pub(crate) name: NodeName,
    /// From its record certificate, not from what it says.
    pub(crate) site: SiteName,
    pub(crate) region: RegionName,
    /// Where it takes edges.
    pub(crate) address: SocketAddr,
    /// It is shutting down.
    pub(crate) draining: bool,
}

impl PeerEdge {
    /// The edge whose facts those are, if it takes others.
    pub(crate) fn of(
        name: &NodeName,
        site: &SiteName,
        region: &RegionName,
        facts: &NodeFacts,
    ) -> Option<Self> {
        let address = facts.edge_peer_address.parse().ok()?;
        let (name, site, region) = (name.clone(), site.clone(), region.clone());
        Some(Self { name, site, region, address, draining: facts.draining })
    }

    pub(crate) fn at(&self) -> EdgeAt<'_> {
        EdgeAt { name: &self.name, site: &self.site, region: &self.region }
    }
}

/// One worker's connections to other edges, each made when it is first needed. Stays on its worker.
#[derive(Debug)]
pub(crate) struct PeerConnections {
    site: SiteName,
    facts: TunnelFacts,
    open: RefCell<HashMap<NodeName, Open>>,
}

#[derive(Debug)]
struct Open {
    edge: PeerEdge,
    peer: H2Peer,
}

impl PeerConnections {
    pub(crate) fn new(site: SiteName, facts: TunnelFacts) -> Self {
        Self { site, facts, open: RefCell::default() }
    }

    /// Where this edge stands.
    pub(crate) fn own(&self) -> EdgeAt<'_> {
        EdgeAt { name: &self.facts.node, site: &self.site, region: &self.facts.region }
    }

    /// Whether there is hope of an answer: what this worker has seen of it outranks what is said of it.
    pub(crate) fn can_be_asked(&self, edge: &PeerEdge) -> bool {
        let failed = |open: &Open| open.peer.connected() == 0 && open.peer.last_error().is_some();
        !edge.draining && !self.open.borrow().get(&edge.name).is_some_and(failed)
    }

    /// Sends a request to an edge of `edges`.
    pub(crate) async fn ask(
        &self,
        edges: &[PeerEdge],
        edge: &PeerEdge,
        request: Request<Body>,
        (head, interim): (Duration, &Interim),
    ) -> Result<Response<Body>, SendError> {
        let peer = self.connection_to(edges, edge);
        peer.send(request, SendTimeouts { head, body_idle: None }, interim).await
    }

    fn connection_to(&self, edges: &[PeerEdge], edge: &PeerEdge) -> H2Peer {
        let mut open = self.open.borrow_mut();
        if let Some(known) = open.get(&edge.name).filter(|known| known.edge.address == edge.address) {
            return known.peer.clone();
        }
        // Those that are no more are let go of when one comes.
        open.retain(|name, _| edges.iter().any(|edge| edge.name == *name));
        let peer = self.open_to(edge);
        open.insert(edge.name.clone(), Open { edge: edge.clone(), peer: peer.clone() });
        peer
    }

    fn open_to(&self, edge: &PeerEdge) -> H2Peer {
        let facts = &self.facts;
        let connector = MeshConnector::new(&facts.identity, PeerPolicy::Node(edge.name.clone(), Role::Edge));
        let (config, delay) = if edge.site == self.site {
            (H2PeerConfig::near(edge.address), Duration::ZERO)
        } else {
            let config = H2PeerConfig { connections: 1, warm: false, ..H2PeerConfig::far(edge.address) };
            (config, facts.wan.get(&edge.region).copied().unwrap_or_default())
        };
        let config = H2PeerConfig { keep_alive: KEEP_ALIVE, ..config };
        H2Peer::open(config, connector.with_read_delay(delay), facts.metrics.clone())
    }
}

/// The edges of a snapshot with one changed: nothing where that is what it was.
pub(crate) fn with(edges: &Arc<[PeerEdge]>, name: &str, edge: Option<PeerEdge>) -> Option<Arc<[PeerEdge]>> {
    if edges.iter().find(|known| known.name.as_str() == name) == edge.as_ref() {
        return None;
    }
    let others = edges.iter().filter(|known| known.name.as_str() != name).cloned();
    let mut next: Vec<PeerEdge> = others.chain(edge).collect();
    next.sort_by(|a, b| a.name.cmp(&b.name));
    Some(next.into())
}
