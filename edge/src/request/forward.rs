//! Sending a request to a region, and again where that is allowed.

use super::{Refusal, set};
use crate::choice::{Target, Tried};
use crate::record::Record;
use crate::views::Cluster;
use crate::worker::Worker;
use atoll_model::{Hop, Reason};
use atoll_proxy::client::{SendError, SendFault, SendTimeouts};
use atoll_proxy::{Body, BodyFault, Replay, answer, headers};
use atoll_routing::retry::{self, Failure, MethodClass, Retry, Sent, TRIES_MAX};
use http::header::HeaderMap;
use http::{Request, Response, request};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::debug;

/// Gateways asked for one request, also those that refuse without a try.
const ROUNDS_MAX: usize = 8;
/// How much longer than the sidecar the edge waits, so that the sidecar's better reason wins.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(2);

/// How long a request waits for a tunnel when there is none at all to a region of its cluster.
const HOLD: Duration = Duration::from_secs(1);

/// A request that is ready to leave.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) head: request::Parts,
    pub(crate) body: Replay,
    pub(crate) method: MethodClass,
    pub(crate) name: String,
    pub(crate) cluster: Arc<Cluster>,
}

/// A round that brought no answer of an instance.
#[derive(Debug)]
struct Lost {
    refusal: Refusal,
    sent: Sent,
    /// Tries that it cost.
    tries: u8,
}

/// Forwards until an instance has answered, or no further try is allowed.
pub(crate) async fn forward(
    worker: &Worker,
    outgoing: Outgoing,
    record: &mut Record,
) -> Result<Response<Body>, Refusal> {
    let mut tried = Tried::default();
    let mut tries_used = 0_u8;
    let mut last = None;
    let mut held = false;
    for _ in 0..ROUNDS_MAX {
        let target = {
            let snapshot = worker.shared.views.load();
            let cluster = (outgoing.name.as_str(), &*outgoing.cluster);
            worker.memory.choose(&worker.tunnels, &snapshot, cluster, &tried, Instant::now())
        };
        let target = match target {
            Some(target) => target,
            // Every tunnel broke a moment ago, which passes; nothing has been sent yet.
            None if last.is_none() && !held => {
                held = true;
                if worker.tunnels.come_up(&outgoing.cluster.regions, HOLD).await {
                    continue;
                }
                break;
            }
            None => break,
        };
        let tries_left = TRIES_MAX - tries_used;
        let Some(body) = outgoing.body.body() else { break };
        let lost = match ask(&target, &outgoing, body, tries_left).await {
            Ok(response) => {
                outgoing.body.release();
                worker.memory.note_answer(&outgoing.name, &target.region);
                record.note_tries(u32::from(tries_used + tries_of(response.headers(), tries_left)));
                return Ok(response);
            }
            Err(lost) => lost,
        };
        tries_used = tries_used.saturating_add(lost.tries).min(TRIES_MAX);
        record.note_tries(u32::from(tries_used));
        debug!(cluster = %outgoing.name, region = %target.region, gateway = %target.gateway,
               hop = %lost.refusal.hop, reason = %lost.refusal.reason, sent = ?lost.sent, "a try failed");
        let verdict = retry::decide(&Failure {
            reason: lost.refusal.reason,
            sent: lost.sent,
            method: outgoing.method,
            replayable: outgoing.body.can_replay(),
            tries_left: TRIES_MAX - tries_used,
        });
        note(worker, &outgoing.name, &target, &lost, verdict, &mut tried);
        if let Some(fault) = outgoing.body.source_failed() {
            return Err(Refusal::edge(reason_of(fault)));
        }
        last = Some(lost.refusal);
        if let Retry::Stop(why) = verdict {
            debug!(cluster = %outgoing.name, %why, "not tried again");
            break;
        }
    }
    Err(final_refusal(last))
}

/// What is to be said of a client whose body failed.
const fn reason_of(fault: BodyFault) -> Reason {
    match fault {
        BodyFault::Broken => Reason::ClientGone,
        BodyFault::Malformed => Reason::BadRequest,
        BodyFault::Timeout => Reason::RequestTimeout,
    }
}

/// What the client is told. That one region has no instance is not the point once all were asked.
fn final_refusal(last: Option<Refusal>) -> Refusal {
    match last {
        None | Some(Refusal { reason: Reason::NoInstance, .. }) => Refusal::edge(Reason::NoRegion),
        Some(refusal) => refusal,
    }
}

/// Leaves out of the next rounds what this one has shown.
fn note(worker: &Worker, cluster: &str, target: &Target, lost: &Lost, verdict: Retry, tried: &mut Tried) {
    tried.gateways.push(target.gateway.clone());
    let reason = lost.refusal.reason;
    if reason == Reason::NoInstance {
        worker.memory.note_refusal(cluster, &target.region, Instant::now());
    }
    // The gateway itself failed or is full: another one of the region may do. Otherwise it has asked the
    // region's instances; and where the same instance must not get the request twice, another gateway of
    // the region can't know which one that is.
    let gateway_failed = matches!(lost.refusal.hop, Hop::Edge)
        || matches!(reason, Reason::GatewayFull)
        || (lost.refusal.hop == Hop::Gateway && reason == Reason::Draining);
    if !gateway_failed || !matches!(verdict, Retry::Again { same_too: true }) {
        tried.regions.push(target.region.clone());
    }
}

/// One round: a request to one gateway.
async fn ask(
    target: &Target,
    outgoing: &Outgoing,
    body: Body,
    tries_left: u8,
) -> Result<Response<Body>, Lost> {
    let mut head = outgoing.head.clone();
    set(&mut head.headers, headers::TRIES, &tries_left.to_string());
    let timeouts = SendTimeouts { head: outgoing.cluster.response_timeout + TIMEOUT_MARGIN, body_idle: None };
    match target.tunnel.send(Request::from_parts(head, body), timeouts).await {
        Err(error) => Err(lost_on_the_way(&error)),
        Ok(response) => match answer::read_internal(response.headers()) {
            None => Ok(response),
            Some(made) => Err(Lost {
                refusal: Refusal { hop: made.hop, reason: made.reason },
                sent: if made.sent { Sent::Maybe } else { Sent::No },
                tries: tries_of(response.headers(), tries_left),
            }),
        },
    }
}

fn lost_on_the_way(error: &SendError) -> Lost {
    let reason = match error.fault {
        SendFault::Connect | SendFault::Refused | SendFault::Reset | SendFault::Protocol => {
            Reason::TunnelLost
        }
        SendFault::Full => Reason::GatewayFull,
        SendFault::Timeout => Reason::GatewayTimeout,
        SendFault::Client => Reason::ClientGone,
    };
    let sent = if error.sent { Sent::Maybe } else { Sent::No };
    // The gateway may have spent more, but it is not there to tell.
    Lost { refusal: Refusal::edge(reason), sent, tries: u8::from(error.sent) }
}

/// The tries that an answer says it cost.
fn tries_of(fields: &HeaderMap, tries_left: u8) -> u8 {
    let told = fields.get(headers::TRIES_USED).and_then(|value| value.to_str().ok());
    told.and_then(|told| told.parse().ok()).unwrap_or(1).min(tries_left)
}
