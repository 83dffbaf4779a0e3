//! Sending a request to a region, and again where that is allowed.

use super::Regions;
use super::board::Board;
use super::choice::{Memory, Target, Tried};
use super::known::{Gateways, RegionHealth};
use super::tunnels::{TunnelFacts, Tunnels};
use crate::answer::{self, InternalAnswer};
use crate::body::Body;
use crate::client::{SendError, SendFault, SendTimeouts};
use crate::headers;
use crate::outgoing::{Outgoing, Tries};
use atoll_model::{Hop, Reason, RegionName};
use atoll_routing::region::Health;
use atoll_routing::retry::Retry;
use http::header::{HeaderMap, HeaderValue};
use http::{Request, Response};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::debug;

/// Gateways asked for one request, also those that refuse without a try.
const ROUNDS_MAX: usize = 8;
/// How much longer than the called sidecar we wait, so that its better reason wins, and its gateway's.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(2);
/// How long a request waits for a tunnel when there is none at all to a region of its cluster.
const HOLD: Duration = Duration::from_secs(1);

/// An instance's answer.
#[derive(Debug)]
pub struct Answered {
    /// The answer.
    pub response: Response<Body>,
    /// Where it comes from.
    pub region: RegionName,
}

/// A round that brought no answer of an instance.
#[derive(Debug)]
struct Lost {
    made: InternalAnswer,
    /// Tries that it cost.
    tries: u8,
}

impl Regions {
    /// No tunnel is open yet: [`Self::follow`] opens them.
    #[must_use]
    pub fn new(facts: TunnelFacts) -> Self {
        Self { tunnels: Tunnels::new(facts), memory: Memory::default() }
    }

    /// Opens and closes tunnels as gateways come and go, and posts them. Runs as long as the worker.
    pub async fn follow(&self, gateways: &Gateways, board: &Board, worker: usize) {
        self.tunnels.follow(gateways, board, worker).await;
    }

    /// Whether some region that can be reached is known to have a healthy instance of `cluster`.
    #[must_use]
    pub fn any_healthy(&self, said: &[RegionHealth], among: &[RegionName], cluster: &str) -> bool {
        let views = self.tunnels.regions(said, cluster, among);
        views.iter().any(|view| view.tunnel_up && view.health != Health::None)
    }

    /// Forwards until an instance has answered, or no further try is allowed. `among` are the regions
    /// where the cluster runs, sorted (none: any); `said` gives what their gateways say of it at each try.
    ///
    /// # Errors
    /// What is to be answered instead, and whether any try may have reached an instance. That one
    /// region has no instance is not the point once all were asked: that is `no-region`.
    pub async fn forward(
        &self,
        said: impl Fn() -> Option<Arc<[RegionHealth]>>,
        among: &[RegionName],
        outgoing: &Outgoing,
        tries: &Tries,
    ) -> Result<Answered, InternalAnswer> {
        let (hop, cluster) = (self.tunnels.facts().hop, &*outgoing.to.text);
        let mut tried = Tried::default();
        let mut last: Option<InternalAnswer> = None;
        let mut sent_any = false;
        let mut held = false;
        for _ in 0..ROUNDS_MAX {
            if tries.left() == 0 {
                break;
            }
            let said = said();
            let said = said.as_deref().unwrap_or_default();
            let target =
                match self.memory.choose(&self.tunnels, said, (cluster, among), &tried, Instant::now()) {
                    Some(target) => target,
                    // Every tunnel broke a moment ago, which passes; nothing has been sent yet.
                    None if last.is_none() && !held => {
                        held = true;
                        if self.tunnels.come_up(among, HOLD).await {
                            continue;
                        }
                        break;
                    }
                    None => break,
                };
            let Some(body) = outgoing.body.body() else { break };
            let lost = match ask(hop, &target, outgoing, body, tries.left()).await {
                Ok(response) => {
                    outgoing.body.release();
                    self.memory.note_answer(cluster, &target.region);
                    tries.spend(tries_of(response.headers(), tries.left()));
                    return Ok(Answered { response, region: target.region });
                }
                Err(lost) => lost,
            };
            tries.spend(lost.tries);
            let made = lost.made;
            sent_any |= made.sent;
            debug!(cluster, region = %target.region, gateway = %target.gateway,
                   hop = %made.hop, reason = %made.reason, sent = made.sent, "a try failed");
            let verdict = outgoing.after(made.reason, made.sent, tries);
            self.note(hop, cluster, &target, made, verdict, &mut tried);
            last = Some(made);
            if let Retry::Stop(why) = verdict {
                debug!(cluster, %why, "not tried again");
                break;
            }
        }
        Err(outgoing.or_client(hop, conclusion(hop, last, sent_any)))
    }

    /// Leaves out of the next rounds what this one has shown.
    fn note(
        &self,
        own: Hop,
        cluster: &str,
        target: &Target,
        made: InternalAnswer,
        verdict: Retry,
        tried: &mut Tried,
    ) {
        tried.gateways.push(target.gateway.clone());
        let InternalAnswer { hop, reason, .. } = made;
        self.memory.note_failure(cluster, Instant::now());
        if reason == Reason::NoInstance {
            self.memory.note_refusal(cluster, &target.region, Instant::now());
        }
        // The gateway itself failed or is full: another one of the region may do. Otherwise it has asked the
        // region's instances; and where the same instance must not get the request twice, another gateway of
        // the region can't know which one that is.
        let lost_on_the_way = matches!(reason, Reason::TunnelLost | Reason::GatewayTimeout);
        let gateway_failed = (hop == own && lost_on_the_way)
            || reason == Reason::GatewayFull
            || (hop == Hop::Gateway && reason == Reason::Draining);
        if !gateway_failed || !matches!(verdict, Retry::Again { same_too: true }) {
            tried.regions.push(target.region.clone());
        }
    }
}

fn conclusion(hop: Hop, last: Option<InternalAnswer>, sent: bool) -> InternalAnswer {
    match last {
        None | Some(InternalAnswer { reason: Reason::NoInstance, .. }) => {
            InternalAnswer { hop, reason: Reason::NoRegion, sent }
        }
        Some(made) => InternalAnswer { sent, ..made },
    }
}

/// One round: a request to one gateway.
async fn ask(
    hop: Hop,
    target: &Target,
    outgoing: &Outgoing,
    body: Body,
    tries_left: u8,
) -> Result<Response<Body>, Lost> {
    let mut head = outgoing.head.clone();
    head.headers.insert(headers::TRIES, HeaderValue::from(u16::from(tries_left)));
    let timeouts = SendTimeouts { head: outgoing.to.response_timeout + TIMEOUT_MARGIN, body_idle: None };
    match target.tunnel.send(Request::from_parts(head, body), timeouts, &outgoing.interim).await {
        Err(error) => Err(lost_on_the_way(hop, &error)),
        Ok(response) => match answer::read_internal(response.headers()) {
            None => Ok(response),
            Some(made) => Err(Lost { made, tries: tries_of(response.headers(), tries_left) }),
        },
    }
}

fn lost_on_the_way(hop: Hop, error: &SendError) -> Lost {
    let reason = match error.fault {
        SendFault::Connect | SendFault::Refused | SendFault::Reset | SendFault::Protocol => {
            Reason::TunnelLost
        }
        SendFault::Full => Reason::GatewayFull,
        SendFault::Timeout => Reason::GatewayTimeout,
        SendFault::Client => Reason::ClientGone,
    };
    // The gateway may have spent more, but it is not there to tell.
    Lost { made: InternalAnswer { hop, reason, sent: error.sent }, tries: u8::from(error.sent) }
}

/// The tries that an answer says it cost.
fn tries_of(fields: &HeaderMap, tries_left: u8) -> u8 {
    let told = fields.get(headers::TRIES_USED).and_then(|value| value.to_str().ok());
    told.and_then(|told| told.parse().ok()).unwrap_or(1).min(tries_left)
}
