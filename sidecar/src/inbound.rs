//! One request: from a gateway to the instance.

use crate::state::Serving;
use atoll_identity::{PeerIdentity, SpiffeId};
use atoll_model::{Hop, Reason, Role};
use atoll_proxy::client::{H1Pool, SendError, SendFault, SendTimeouts};
use atoll_proxy::headers::{self, Hops};
use atoll_proxy::sample::Sample;
use atoll_proxy::{Body, Exchange, Handler, ProxyMetrics, answer};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tracing::{debug, warn};

/// Of our own fields the instance sees these alone.
const SHOWN: [HeaderName; 3] = [headers::EDGE, headers::REGION, headers::CLIENT_IP];

/// How long an instance may say nothing within a response. Streams of events are silent for long; one
/// that is so for ever would hold its places at every hop.
const SILENCE_MAX: Duration = Duration::from_secs(3600);

/// Answers what gateways send.
#[derive(Debug)]
pub(crate) struct Inbound {
    serving: RefCell<Serving>,
    pool: RefCell<Option<H1Pool>>,
    /// The time is over in which requests were still served after a drain began.
    refusing: Cell<bool>,
    pub(crate) load: Rc<Load>,
    requests_max: usize,
    metrics: ProxyMetrics,
    own_id: SpiffeId,
    /// Which failed requests are logged.
    failures: Sample,
}

/// Requests in flight.
#[derive(Debug, Default)]
pub(crate) struct Load {
    in_flight: Cell<usize>,
    changed: Notify,
}

impl Load {
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Resolves at the next time that nothing is in flight. Cancel-safe.
    pub(crate) async fn idle(&self) {
        loop {
            let changed = self.changed.notified();
            if self.in_flight.get() == 0 {
                return;
            }
            changed.await;
        }
    }
}

/// One request in flight, until its answer has left.
struct InFlight(Rc<Load>);

impl InFlight {
    fn new(load: &Rc<Load>) -> Self {
        load.in_flight.set(load.in_flight.get() + 1);
        Self(Rc::clone(load))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get().saturating_sub(1));
        if self.0.in_flight.get() == 0 {
            self.0.changed.notify_waiters();
        }
    }
}

/// An answer of our own.
struct Failure {
    reason: Reason,
    /// The request may have reached the instance.
    sent: bool,
}

/// What a request that fails is logged with; references, so that one that doesn't costs nothing.
struct Asked {
    cluster: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
    peer: Option<Arc<PeerIdentity>>,
}

impl Asked {
    fn of(exchange: &Exchange) -> Self {
        let fields = exchange.request.headers();
        Self {
            cluster: fields.get(headers::CLUSTER).cloned(),
            request_id: fields.get("x-request-id").cloned(),
            peer: exchange.connection.identity.clone(),
        }
    }
}

fn printable(value: &Option<HeaderValue>) -> String {
    let bytes = value.as_ref().map_or(&b""[..], HeaderValue::as_bytes);
    bytes.escape_ascii().take(130).map(char::from).collect()
}

const fn unsent(reason: Reason) -> Failure {
    Failure { reason, sent: false }
}

impl Inbound {
    pub(crate) fn new(
        serving: Serving,
        own_id: SpiffeId,
        requests_max: usize,
        metrics: ProxyMetrics,
    ) -> Self {
        let pool = pool_for(&serving, requests_max, &metrics);
        Self {
            serving: RefCell::new(serving),
            pool: RefCell::new(pool),
            refusing: Cell::new(false),
            load: Rc::default(),
            requests_max,
            metrics,
            own_id,
            failures: Sample::default(),
        }
    }

    /// Follows the host: another port means another program, and new connections.
    pub(crate) fn update(&self, serving: Serving) {
        let moved = self.serving.borrow().address != serving.address;
        if moved {
            *self.pool.borrow_mut() = pool_for(&serving, self.requests_max, &self.metrics);
        }
        *self.serving.borrow_mut() = serving;
    }

    pub(crate) fn set_refusing(&self, refusing: bool) {
        self.refusing.set(refusing);
    }

    fn authorize(&self, exchange: &Exchange) -> Result<(), Failure> {
        // The TLS verifier lets nobody else in; this holds also should its policy ever be widened.
        let from_gateway =
            exchange.connection.identity.as_ref().is_some_and(|peer| peer.roles.has(Role::Gateway));
        let mut clusters = exchange.request.headers().get_all(headers::CLUSTER).iter();
        let ours = match (clusters.next(), clusters.next()) {
            (Some(cluster), None) => cluster.as_bytes() == self.serving.borrow().cluster.as_bytes(),
            _ => false,
        };
        if from_gateway && ours { Ok(()) } else { Err(unsent(Reason::NotAuthorized)) }
    }

    fn admit(&self) -> Result<InFlight, Failure> {
        if self.refusing.get() {
            return Err(unsent(Reason::Draining));
        }
        if self.load.in_flight() >= self.requests_max {
            return Err(unsent(Reason::InstanceFull));
        }
        Ok(InFlight::new(&self.load))
    }

    /// Says what failed here, for which request, and who asked; a few a second.
    fn log(&self, Failure { reason, sent }: &Failure, asked: &Asked) {
        if *reason == Reason::ClientGone {
            return;
        }
        let Some(left_out) = self.failures.take(Instant::now()) else {
            return;
        };
        let peer = asked.peer.as_ref().map(|peer| peer.id.to_string());
        let (request_id, cluster) = (printable(&asked.request_id), printable(&asked.cluster));
        warn!(%reason, request_id, cluster, peer, own = %self.own_id, sent, left_out, "a request failed here");
    }

    async fn forward(&self, exchange: Exchange) -> Result<Response<Body>, Failure> {
        self.authorize(&exchange)?;
        let in_flight = self.admit()?;
        let pool = self.pool.borrow().clone().ok_or(unsent(Reason::InstanceUnreachable))?;
        let head = self.serving.borrow().response_timeout;
        let timeouts = SendTimeouts { head, body_idle: Some(SILENCE_MAX) };
        let started = Instant::now();
        let mut response = pool.send(for_instance(exchange.request), timeouts).await.map_err(|error| {
            debug!(%error, "the instance did not answer");
            failure_of(&error)
        })?;
        let hops = Hops {
            gateway_us: None,
            sidecar_us: Some(micros(exchange.started.elapsed())),
            app_us: Some(micros(started.elapsed())),
        };
        headers::strip_hop_by_hop(response.headers_mut());
        headers::strip_internal(response.headers_mut());
        response.headers_mut().insert(headers::HOPS, hops.to_value());
        Ok(response.map(|body| body.holding(in_flight)))
    }
}

impl Handler for Inbound {
    async fn handle(&self, exchange: Exchange) -> Response<Body> {
        let asked = Asked::of(&exchange);
        let mut response = match self.forward(exchange).await {
            Ok(response) => response,
            Err(failure) => {
                self.metrics.failed(Hop::Sidecar, failure.reason);
                self.log(&failure, &asked);
                answer::internal(Hop::Sidecar, failure.reason, failure.sent)
            }
        };
        let serving = self.serving.borrow();
        response.headers_mut().insert(headers::INSTANCE, serving.instance.clone());
        response.headers_mut().insert(headers::REVISION, serving.revision.clone());
        response
    }
}

fn pool_for(serving: &Serving, requests_max: usize, metrics: &ProxyMetrics) -> Option<H1Pool> {
    let mut config = atoll_proxy::client::H1Config::local(serving.address?);
    config.connections_max = requests_max;
    Some(H1Pool::new(config, metrics.clone()))
}

/// Takes away what concerns this hop, and what the instance is not to see.
fn for_instance(mut request: Request<Body>) -> Request<Body> {
    headers::strip_hop_by_hop(request.headers_mut());
    keep_shown(request.headers_mut());
    request
}

fn keep_shown(fields: &mut HeaderMap) {
    let shown = SHOWN.map(|name| fields.remove(name));
    headers::strip_internal(fields);
    for (name, value) in SHOWN.into_iter().zip(shown) {
        if let Some(value) = value {
            fields.insert(name, value);
        }
    }
}

fn failure_of(error: &SendError) -> Failure {
    let reason = match error.fault {
        SendFault::Connect => Reason::InstanceUnreachable,
        SendFault::Full => Reason::InstanceFull,
        SendFault::Refused | SendFault::Reset => Reason::InstanceReset,
        SendFault::Protocol => Reason::InstanceProtocol,
        SendFault::Timeout => Reason::InstanceTimeout,
        SendFault::Client => Reason::ClientGone,
    };
    Failure { reason, sent: error.sent }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
