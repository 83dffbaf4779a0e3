//! The region's gateways: they reach the instances of other regions.

use atoll_identity::{Identity, PeerPolicy};
use atoll_model::{Hop, NodeName, Reason, Role};
use atoll_proxy::answer::{self, InternalAnswer};
use atoll_proxy::client::{H2Peer, H2PeerConfig, MeshConnector, SendError, SendFault, SendTimeouts};
use atoll_proxy::{Body, Outgoing, ProxyMetrics, Tries, headers};
use atoll_routing::endpoint::{self, State};
use atoll_routing::retry::Retry;
use atoll_wire::sidecar;
use http::header::{HeaderMap, HeaderValue};
use http::{Request, Response};
use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::Duration;
use tracing::{debug, warn};

/// How much longer than the called sidecar we wait, so that its better reason wins, and its gateway's, and ours'.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(3);

#[derive(Debug, Clone)]
struct Gateway {
    name: NodeName,
    peer: H2Peer,
    draining: bool,
}

/// Connections to them, made when they are needed.
#[derive(Debug)]
pub(crate) struct Gateways {
    identity: Identity,
    metrics: ProxyMetrics,
    known: RefCell<Vec<Gateway>>,
}

impl Gateways {
    pub(crate) fn new(identity: Identity, metrics: ProxyMetrics) -> Self {
        Self { identity, metrics, known: RefCell::default() }
    }

    /// Follows the host; connections to those that stay stay.
    pub(crate) fn update(&self, told: &[sidecar::Gateway]) {
        let mut known = self.known.borrow_mut();
        let before = std::mem::take(&mut *known);
        for gateway in told {
            let named = (gateway.name.parse::<NodeName>(), gateway.address.parse::<SocketAddr>());
            let (Ok(name), Ok(address)) = named else {
                warn!(gateway = gateway.name, address = gateway.address, "a gateway that can't be named");
                continue;
            };
            let same = before.iter().find(|old| old.name == name && old.peer.address() == address);
            let peer = same.map_or_else(|| self.open(&name, address), |old| old.peer.clone());
            known.push(Gateway { name, peer, draining: gateway.draining });
        }
    }

    fn open(&self, name: &NodeName, address: SocketAddr) -> H2Peer {
        // Whoever answers there must prove that it is that gateway.
        let who = PeerPolicy::Node(name.clone(), Role::Gateway);
        let connector = MeshConnector::new(&self.identity, who);
        H2Peer::open(H2PeerConfig::near(address), connector, self.metrics.clone())
    }

    fn pick(&self, tried: &[NodeName]) -> Option<Gateway> {
        let known = self.known.borrow();
        let candidate = |gateway: &Gateway| endpoint::Candidate {
            state: match (gateway.draining, gateway.peer.last_error()) {
                (true, _) => State::Draining,
                (false, Some(_)) => State::Ejected,
                (false, None) => State::Healthy,
            },
            load: u32::try_from(gateway.peer.in_flight()).unwrap_or(u32::MAX),
            excluded: tried.contains(&gateway.name),
        };
        let pick = endpoint::pick(known.iter().map(candidate), rand::random())?;
        known.get(pick.index).cloned()
    }

    /// Hands the request to a gateway, and to another where that is allowed.
    ///
    /// # Errors
    /// What is to be answered instead; without any gateway, `last`.
    pub(crate) async fn forward(
        &self,
        outgoing: &Outgoing,
        tries: &Tries,
        mut last: InternalAnswer,
    ) -> Result<Response<Body>, InternalAnswer> {
        let mut tried = Vec::new();
        let mut sent_any = last.sent;
        while tries.left() > 0 {
            let Some(gateway) = self.pick(&tried) else { break };
            let Some(body) = outgoing.body.body() else { break };
            let (made, spent) = match ask(&gateway.peer, outgoing, body, tries.left()).await {
                Ok(response) => {
                    outgoing.body.release();
                    return Ok(response);
                }
                Err(lost) => lost,
            };
            tries.spend(spent);
            debug!(cluster = %outgoing.to.text, gateway = %gateway.name, hop = %made.hop, reason = %made.reason,
                   sent = made.sent, "a try through a gateway failed");
            sent_any |= made.sent;
            last = made;
            tried.push(gateway.name);
            // Another gateway asks the same instances: only where this one was the trouble may it do better.
            let gateway_failed = made.hop == Hop::Sidecar && made.reason == Reason::TunnelLost
                || (made.hop == Hop::Gateway
                    && matches!(made.reason, Reason::GatewayFull | Reason::Draining));
            let again = outgoing.after(made.reason, sent_any, tries);
            if !gateway_failed || !matches!(again, Retry::Again { same_too: true }) {
                break;
            }
        }
        Err(outgoing.or_client(Hop::Sidecar, InternalAnswer { sent: sent_any, ..last }))
    }
}

async fn ask(
    peer: &H2Peer,
    outgoing: &Outgoing,
    body: Body,
    tries_left: u8,
) -> Result<Response<Body>, (InternalAnswer, u8)> {
    let mut head = outgoing.head.clone();
    head.headers.insert(headers::TRIES, HeaderValue::from(u16::from(tries_left)));
    let timeouts = SendTimeouts { head: outgoing.to.response_timeout + TIMEOUT_MARGIN, body_idle: None };
    match peer.send(Request::from_parts(head, body), timeouts, &outgoing.interim).await {
        Err(error) => Err((lost_on_the_way(&error), u8::from(error.sent))),
        Ok(response) => match answer::read_internal(response.headers()) {
            None => Ok(response),
            Some(made) => {
                let spent = tries_of(response.headers(), tries_left);
                Err((made, spent))
            }
        },
    }
}

fn lost_on_the_way(error: &SendError) -> InternalAnswer {
    let reason = match error.fault {
        SendFault::Connect | SendFault::Refused | SendFault::Reset | SendFault::Protocol => {
            Reason::TunnelLost
        }
        SendFault::Full => Reason::GatewayFull,
        SendFault::Timeout => Reason::GatewayTimeout,
        SendFault::Client => Reason::ClientGone,
    };
    InternalAnswer { hop: Hop::Sidecar, reason, sent: error.sent }
}

/// The tries that an answer says it cost.
fn tries_of(fields: &HeaderMap, tries_left: u8) -> u8 {
    let told = fields.get(headers::TRIES_USED).and_then(|value| value.to_str().ok());
    told.and_then(|told| told.parse().ok()).unwrap_or(1).min(tries_left)
}
