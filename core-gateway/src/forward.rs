//! Sending a request to an instance's sidecar, and to another where that is allowed.

use crate::sidecars::Sidecar;
use crate::views::Cluster;
use crate::worker::Worker;
use atoll_model::{ClusterName, Hop, Reason};
use atoll_proxy::answer::{self, InternalAnswer};
use atoll_proxy::client::{SendError, SendFault, SendTimeouts};
use atoll_proxy::{Body, Replay};
use atoll_routing::retry::{self, Failure, MethodClass, Retry, Sent};
use http::{Request, Response, request};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tracing::debug;

/// How much longer than the sidecar the gateway waits, so that the sidecar's better reason wins.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(1);

/// A request that was let in.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) head: request::Parts,
    pub(crate) body: Replay,
    pub(crate) method: MethodClass,
    pub(crate) name: ClusterName,
    pub(crate) cluster: Arc<Cluster>,
    /// Tries that the edge allows, the first one counted.
    pub(crate) tries: u8,
}

/// An instance's answer.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) response: Response<Body>,
    /// `host/instance`.
    pub(crate) key: Arc<str>,
    pub(crate) tries_used: u8,
}

/// No instance answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unanswered {
    pub(crate) made: InternalAnswer,
    pub(crate) tries_used: u8,
}

/// Forwards until an instance has answered, or no further try is allowed.
pub(crate) async fn forward(worker: &Worker, outgoing: Outgoing) -> Result<Answered, Unanswered> {
    let mut tried: Vec<Arc<str>> = Vec::new();
    let mut last = InternalAnswer { hop: Hop::Gateway, reason: Reason::NoInstance, sent: false };
    // Whether any try may have reached an instance: what the edge must know.
    let mut sent_any = false;
    let mut tries_used = 0;
    while tries_used < outgoing.tries {
        let Some(sidecar) = choose(worker, &outgoing.name, &tried) else { break };
        let Some(body) = outgoing.body.body() else { break };
        tries_used += 1;
        let made = match ask(&sidecar, &outgoing, body).await {
            Ok(response) => {
                outgoing.body.release();
                sidecar.answered();
                return Ok(Answered { response, key: Arc::clone(&sidecar.key), tries_used });
            }
            Err(made) => made,
        };
        debug!(cluster = %outgoing.name, instance = %sidecar.key, hop = %made.hop, reason = %made.reason,
               sent = made.sent, "a try failed");
        if made.reason == Reason::SidecarUnreachable && made.hop == Hop::Gateway {
            worker.sidecars.connect_failed(&sidecar);
        }
        sent_any |= made.sent;
        last = made;
        tried.push(Arc::clone(&sidecar.key));
        let verdict = retry::decide(&Failure {
            reason: made.reason,
            sent: if sent_any { Sent::Maybe } else { Sent::No },
            method: outgoing.method,
            replayable: outgoing.body.can_replay(),
            tries_left: outgoing.tries - tries_used,
        });
        match verdict {
            Retry::Stop(why) => {
                debug!(cluster = %outgoing.name, %why, "not tried again");
                break;
            }
            // A connection that had gone stale says nothing of the instance: with no other left it is
            // asked once more.
            Retry::Again { same_too: true } if is_stale(&made) && tries_used == 1 => {
                if choose(worker, &outgoing.name, &tried).is_none() {
                    tried.clear();
                }
            }
            Retry::Again { .. } => {}
        }
    }
    if outgoing.body.source_failed().is_some() {
        last = InternalAnswer { hop: Hop::Gateway, reason: Reason::ClientGone, sent: sent_any };
    }
    Err(Unanswered { made: InternalAnswer { sent: sent_any, ..last }, tries_used })
}

fn is_stale(made: &InternalAnswer) -> bool {
    made.hop == Hop::Gateway && made.reason == Reason::SidecarReset
}

fn choose(worker: &Worker, cluster: &ClusterName, tried: &[Arc<str>]) -> Option<Rc<Sidecar>> {
    let snapshot = worker.shared.views.load();
    let endpoints = snapshot.endpoints.get(&cluster.to_string())?;
    worker.sidecars.pick(cluster, endpoints, tried, rand::random())
}

async fn ask(sidecar: &Sidecar, outgoing: &Outgoing, body: Body) -> Result<Response<Body>, InternalAnswer> {
    let request = Request::from_parts(outgoing.head.clone(), body);
    let timeouts = SendTimeouts { head: outgoing.cluster.response_timeout + TIMEOUT_MARGIN, body_idle: None };
    match sidecar.peer.send(request, timeouts).await {
        Err(error) => Err(lost_on_the_way(&error)),
        Ok(response) => match answer::read_internal(response.headers()) {
            None => Ok(response),
            Some(made) => Err(made),
        },
    }
}

fn lost_on_the_way(error: &SendError) -> InternalAnswer {
    let reason = match error.fault {
        SendFault::Connect => Reason::SidecarUnreachable,
        SendFault::Refused | SendFault::Reset | SendFault::Protocol => Reason::SidecarReset,
        SendFault::Full => Reason::InstanceFull,
        SendFault::Timeout => Reason::InstanceTimeout,
        SendFault::Client => Reason::ClientGone,
    };
    InternalAnswer { hop: Hop::Gateway, reason, sent: error.sent }
}
