//! A request on its way to the next hop, over as many tries as it may take.

use crate::answer::InternalAnswer;
use crate::body::{Body, BodyFault};
use crate::interim::Interim;
use crate::replay::Replay;
use atoll_model::{ClusterName, Hop, Reason};
use atoll_routing::retry::{Failure, MethodClass, Retry, Sent, TRIES_MAX, decide};
use http::request;
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

/// A cluster, as far as who forwards to it cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Its name.
    pub name: ClusterName,
    /// The same as text: what maps and fields want.
    pub text: Arc<str>,
    /// Longest wait of the called sidecar for the instance's response head. Who is farther away waits longer.
    pub response_timeout: Duration,
}

impl Destination {
    /// A cluster and its patience.
    #[must_use]
    pub fn new(name: ClusterName, response_timeout: Duration) -> Self {
        let text = name.to_string().into();
        Self { name, text, response_timeout }
    }
}

/// A request that is ready to leave.
#[derive(Debug)]
pub struct Outgoing {
    /// As each try sends it.
    pub head: request::Parts,
    /// What each try takes anew.
    pub body: Replay,
    /// What its method promises.
    pub method: MethodClass,
    /// Where it goes.
    pub to: Arc<Destination>,
    /// The way back for what comes before the response, from whichever try.
    pub interim: Interim,
}

impl Outgoing {
    /// A request whose head is as the next hop is to get it.
    #[must_use]
    pub fn new(head: request::Parts, body: Body, to: Arc<Destination>, interim: Interim) -> Self {
        Self { method: MethodClass::of(head.method.as_str()), head, body: Replay::new(body), to, interim }
    }

    /// What to do after a try that failed for `reason`.
    #[must_use]
    pub fn after(&self, reason: Reason, sent: bool, tries: &Tries) -> Retry {
        decide(&Failure {
            reason,
            sent: if sent { Sent::Maybe } else { Sent::No },
            method: self.method,
            replayable: self.body.can_replay(),
            tries_left: tries.left(),
        })
    }

    /// The answer in place of `last` when it was our client that failed.
    #[must_use]
    pub fn or_client(&self, hop: Hop, last: InternalAnswer) -> InternalAnswer {
        let reason = match self.body.source_failed() {
            None => return last,
            Some(BodyFault::Broken) => Reason::ClientGone,
            Some(BodyFault::Malformed) => Reason::BadRequest,
            Some(BodyFault::Timeout) => Reason::RequestTimeout,
        };
        InternalAnswer { hop, reason, sent: last.sent }
    }
}

/// The tries of one request, counted over everything that forwards it.
#[derive(Debug, Clone)]
pub struct Tries {
    max: u8,
    used: Cell<u8>,
}

impl Default for Tries {
    fn default() -> Self {
        Self::new(TRIES_MAX)
    }
}

impl Tries {
    /// At least one, at most [`TRIES_MAX`].
    #[must_use]
    pub fn new(max: u8) -> Self {
        Self { max: max.clamp(1, TRIES_MAX), used: Cell::new(0) }
    }

    /// Those that are left.
    #[must_use]
    pub fn left(&self) -> u8 {
        self.max - self.used.get()
    }

    /// Those that were spent.
    #[must_use]
    pub fn used(&self) -> u8 {
        self.used.get()
    }

    /// So many more were spent.
    pub fn spend(&self, tries: u8) {
        self.used.set(self.used.get().saturating_add(tries).min(self.max));
    }
}
