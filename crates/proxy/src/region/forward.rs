//! Sending a request to an instance's sidecar, and to another where that is allowed.

use super::sidecars::{Sidecar, Sidecars};
use crate::answer::{self, InternalAnswer};
use crate::body::Body;
use crate::client::{SendError, SendFault, SendTimeouts};
use crate::outgoing::{Outgoing, Tries};
use atoll_model::{Hop, Reason};
use atoll_routing::placed::Endpoints;
use atoll_routing::retry::Retry;
use http::{Request, Response};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tracing::debug;

/// How much longer than the called sidecar we wait, so that its better reason wins.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(1);

/// An instance's answer.
#[derive(Debug)]
pub struct Answered {
    /// The answer.
    pub response: Response<Body>,
    /// `host/instance`.
    pub key: Arc<str>,
}

/// Forwards until an instance has answered, or no further try is allowed. `endpoints` gives the instances
/// as they are known at each try.
///
/// # Errors
/// What is to be answered instead, and whether any try may have reached an instance. Without any
/// instance to ask, that is `no-instance`.
pub async fn forward(
    sidecars: &Sidecars,
    endpoints: impl Fn() -> Option<Arc<Endpoints>>,
    outgoing: &Outgoing,
    tries: &Tries,
) -> Result<Answered, InternalAnswer> {
    let hop = sidecars.hop();
    let choose = |tried: &[Arc<str>]| {
        let endpoints = endpoints()?;
        sidecars.pick(&outgoing.to.name, &endpoints.all, tried, rand::random())
    };
    let mut tried: Vec<Arc<str>> = Vec::new();
    let mut last = InternalAnswer { hop, reason: Reason::NoInstance, sent: false };
    // Whether any try may have reached an instance: what the hop before must know.
    let mut sent_any = false;
    let mut first = true;
    while tries.left() > 0 {
        let Some(sidecar) = choose(&tried) else { break };
        let Some(body) = outgoing.body.body() else { break };
        tries.spend(1);
        let made = match ask(hop, &sidecar, outgoing, body).await {
            Ok(response) => {
                outgoing.body.release();
                sidecar.answered();
                return Ok(Answered { response, key: Arc::clone(sidecar.key()) });
            }
            Err(made) => made,
        };
        debug!(cluster = %outgoing.to.text, instance = %sidecar.key(), hop = %made.hop, reason = %made.reason,
               sent = made.sent, "a try failed");
        if made.reason == Reason::SidecarUnreachable && made.hop == hop {
            sidecars.connect_failed(&sidecar);
        }
        sent_any |= made.sent;
        last = made;
        tried.push(Arc::clone(sidecar.key()));
        match outgoing.after(made.reason, sent_any, tries) {
            Retry::Stop(why) => {
                debug!(cluster = %outgoing.to.text, %why, "not tried again");
                break;
            }
            // A connection that had gone stale says nothing of the instance: with no other left it is
            // asked once more.
            Retry::Again { same_too: true } if first && is_stale(hop, &made) => {
                if choose(&tried).is_none() {
                    tried.clear();
                }
            }
            Retry::Again { .. } => {}
        }
        first = false;
    }
    Err(outgoing.or_client(hop, InternalAnswer { sent: sent_any, ..last }))
}

fn is_stale(hop: Hop, made: &InternalAnswer) -> bool {
    made.hop == hop && made.reason == Reason::SidecarReset
}

async fn ask(
    hop: Hop,
    sidecar: &Rc<Sidecar>,
    outgoing: &Outgoing,
    body: Body,
) -> Result<Response<Body>, InternalAnswer> {
    let request = Request::from_parts(outgoing.head.clone(), body);
    let timeouts = SendTimeouts { head: outgoing.to.response_timeout + TIMEOUT_MARGIN, body_idle: None };
    match sidecar.peer().send(request, timeouts, &outgoing.interim).await {
        Err(error) => Err(lost_on_the_way(hop, &error)),
        Ok(response) => match answer::read_internal(response.headers()) {
            None => Ok(response),
            Some(made) => Err(made),
        },
    }
}

fn lost_on_the_way(hop: Hop, error: &SendError) -> InternalAnswer {
    let reason = match error.fault {
        SendFault::Connect => Reason::SidecarUnreachable,
        SendFault::Refused | SendFault::Reset | SendFault::Protocol => Reason::SidecarReset,
        SendFault::Full => Reason::InstanceFull,
        SendFault::Timeout => Reason::InstanceTimeout,
        SendFault::Client => Reason::ClientGone,
    };
    InternalAnswer { hop, reason, sent: error.sent }
}
