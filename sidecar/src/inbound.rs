//! One request: from a gateway, or from the sidecar of another instance, to the instance.

mod access;

use self::access::{Origin, Why};
use crate::bytes::{Activity, from_socket, into_socket};
use crate::state::Serving;
use atoll_identity::{PeerIdentity, SpiffeId};
use atoll_model::{Hop, Protocol, Reason};
use atoll_proxy::client::{H1Config, H1Pool, H2cConfig, H2cPool, SendError, SendFault, SendTimeouts};
use atoll_proxy::headers::{self, Hops};
use atoll_proxy::sample::Sample;
use atoll_proxy::server::{STREAM_SILENCE_MAX, TakeWithin};
use atoll_proxy::workers::spawn_task;
use atoll_proxy::{Body, Exchange, Handler, ProxyMetrics, Side, answer};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tracing::{debug, warn};

/// Of our own fields the instance sees these alone, and of public requests only.
const SHOWN: [HeaderName; 3] = [headers::EDGE, headers::REGION, headers::CLIENT_IP];
/// For a connection to the instance that carries bytes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How the instance is reached.
#[derive(Debug, Clone)]
enum Backend {
    H1(H1Pool),
    H2(H2cPool),
    Bytes(SocketAddr),
}

/// Answers what gateways and other sidecars send.
#[derive(Debug)]
pub(crate) struct Inbound {
    serving: RefCell<Serving>,
    backend: RefCell<Option<Backend>>,
    /// The time is over in which requests were still served after a drain began.
    refusing: Cell<bool>,
    pub(crate) load: Rc<Load>,
    requests_max: usize,
    metrics: ProxyMetrics,
    own_id: SpiffeId,
    /// Requests that were not let through.
    refused: Cell<u64>,
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
    /// Why it was not let through.
    why: Option<Why>,
}

impl From<Why> for Failure {
    fn from(why: Why) -> Self {
        Self { reason: why.reason(), sent: false, why: Some(why) }
    }
}

/// What a request that fails is logged with; references, so that one that doesn't costs nothing.
struct Asked {
    cluster: Option<HeaderValue>,
    caller: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
    peer: Option<Arc<PeerIdentity>>,
}

impl Asked {
    fn of(exchange: &Exchange) -> Self {
        let fields = exchange.request.headers();
        Self {
            cluster: fields.get(headers::CLUSTER).cloned(),
            caller: fields.get(headers::CALLER).cloned(),
            request_id: fields.get("x-request-id").cloned(),
            peer: exchange.connection.identity.clone(),
        }
    }
}

fn printable(value: &Option<HeaderValue>) -> String {
    let bytes = value.as_ref().map_or(&b""[..], HeaderValue::as_bytes);
    bytes.escape_ascii().take(260).map(char::from).collect()
}

const fn unsent(reason: Reason) -> Failure {
    Failure { reason, sent: false, why: None }
}

impl Inbound {
    pub(crate) fn new(
        serving: Serving,
        own_id: SpiffeId,
        requests_max: usize,
        metrics: ProxyMetrics,
    ) -> Self {
        let backend = backend(&serving, requests_max, &metrics);
        Self {
            serving: RefCell::new(serving),
            backend: RefCell::new(backend),
            refusing: Cell::new(false),
            load: Rc::default(),
            requests_max,
            metrics,
            own_id,
            refused: Cell::new(0),
            failures: Sample::default(),
        }
    }

    /// Follows the host: another port means another program, and new connections.
    pub(crate) fn update(&self, serving: Serving) {
        let before = self.serving.replace(serving);
        let serving = self.serving.borrow();
        if (before.address, before.protocol) != (serving.address, serving.protocol) {
            *self.backend.borrow_mut() = backend(&serving, self.requests_max, &self.metrics);
        }
    }

    pub(crate) fn set_refusing(&self, refusing: bool) {
        self.refusing.set(refusing);
    }

    /// Requests that were not let through, since the start.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.get()
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
    fn log(&self, Failure { reason, sent, why }: &Failure, asked: &Asked) {
        if *reason == Reason::ClientGone {
            return;
        }
        let Some(left_out) = self.failures.take(Instant::now()) else {
            return;
        };
        let peer = asked.peer.as_ref().map(|peer| peer.id.to_string());
        let (request_id, cluster) = (printable(&asked.request_id), printable(&asked.cluster));
        let own = &self.own_id;
        match why {
            Some(why) => {
                // The gateway's word, where there is one; an instance's own certificate else.
                let caller = match &asked.caller {
                    None => peer.clone().unwrap_or_default(),
                    caller => printable(caller),
                };
                warn!(%reason, caller, %own, %why, request_id, cluster, peer, left_out, "a request was not let through");
            }
            None => warn!(%reason, request_id, cluster, peer, %own, sent, left_out, "a request failed here"),
        }
    }

    async fn forward(&self, exchange: Exchange) -> Result<Response<Body>, Failure> {
        let (mut head, body) = exchange.request.into_parts();
        let peer = exchange.connection.identity.as_deref();
        let origin = access::check(&mut head, peer, &self.own_id, &self.serving.borrow())?;
        let in_flight = self.admit()?;
        let backend = self.backend.borrow().clone().ok_or(unsent(Reason::InstanceUnreachable))?;
        let request = Request::from_parts(head, body);
        let (started, is_head) = (Instant::now(), request.method() == Method::HEAD);
        let mut response = match &backend {
            Backend::Bytes(address) => return self.carry(request, *address, in_flight).await,
            Backend::H1(pool) => {
                pool.send(for_instance(request, &origin), self.timeouts(), &exchange.interim).await
            }
            Backend::H2(pool) => {
                pool.send(for_instance(request, &origin), self.timeouts(), &exchange.interim).await
            }
        }
        .map_err(|error| {
            debug!(%error, "the instance did not answer");
            failure_of(&error)
        })?;
        let hops = Hops {
            gateway_us: None,
            sidecar_us: Some(micros(exchange.started.elapsed())),
            app_us: Some(micros(started.elapsed())),
        };
        let until_close = matches!(backend, Backend::H1(_)) && !is_head && ends_by_closing(&response);
        headers::strip_hop_by_hop(response.headers_mut());
        headers::strip_internal_from_answer(response.headers_mut());
        if until_close {
            response.headers_mut().insert(headers::UNTIL_CLOSE, HeaderValue::from_static("1"));
        }
        response.headers_mut().insert(headers::HOPS, hops.to_value());
        Ok(response.map(|body| body.holding(in_flight)))
    }

    fn timeouts(&self) -> SendTimeouts {
        SendTimeouts { head: self.serving.borrow().response_timeout, body_idle: Some(STREAM_SILENCE_MAX) }
    }

    /// Connects the request's and the answer's body to the instance. The answer's head says that it is there.
    async fn carry(
        &self,
        request: Request<Body>,
        address: SocketAddr,
        in_flight: InFlight,
    ) -> Result<Response<Body>, Failure> {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let Ok(Ok(stream)) = connected else {
            self.metrics.upstream_connect_errors.inc();
            return Err(unsent(Reason::InstanceUnreachable));
        };
        self.metrics.upstream_connects.inc();
        // Fails only for a socket that is gone, which its first use will tell.
        let _gone = stream.set_nodelay(true);
        let activity = Activity::begin();
        let (read, write) = stream.into_split();
        // Either direction may end first: the request lasts until both have.
        let lasting = Rc::new(in_flight);
        let answer = from_socket(read, Side::Upstream, &activity).holding(Rc::clone(&lasting));
        spawn_task("bytes to the instance", &self.metrics, async move {
            tokio::select! {
                whole = into_socket(request.into_body(), write, &activity) => {
                    debug!(whole, "a stream of bytes to the instance ended");
                }
                // An instance that reads nothing is not waited for any longer than one that is silent.
                () = activity.silent(STREAM_SILENCE_MAX) => debug!("a stream of bytes was silent for too long"),
            }
            drop(lasting);
        });
        let mut response = Response::new(answer);
        response.extensions_mut().insert(TakeWithin(STREAM_SILENCE_MAX));
        Ok(response)
    }
}

impl Handler for Inbound {
    async fn handle(&self, exchange: Exchange) -> Response<Body> {
        let asked = Asked::of(&exchange);
        let mut response = match self.forward(exchange).await {
            Ok(response) => response,
            Err(failure) => {
                self.metrics.failed(Hop::Sidecar, failure.reason);
                if failure.why.is_some() {
                    self.refused.set(self.refused.get() + 1);
                }
                self.log(&failure, &asked);
                answer::internal(Hop::Sidecar, failure.reason, failure.sent)
            }
        };
        let serving = self.serving.borrow();
        let fields = response.headers_mut();
        fields.insert(headers::INSTANCE, serving.instance.clone());
        fields.insert(headers::REVISION, serving.revision.clone());
        if let Ok(region) = HeaderValue::from_str(serving.region.as_str()) {
            fields.insert(headers::REGION, region);
        }
        response
    }
}

/// Whether nothing but the end of the connection says where the body of an HTTP/1 response ends (RFC 9112, section 6.3). Transfer codings
/// know their own end.
fn ends_by_closing(response: &Response<Body>) -> bool {
    let has_body = !matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    has_body && ![CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|name| response.headers().contains_key(name))
}

fn backend(serving: &Serving, requests_max: usize, metrics: &ProxyMetrics) -> Option<Backend> {
    let address = serving.address?;
    Some(match serving.protocol {
        Protocol::Tcp => Backend::Bytes(address),
        Protocol::Http => {
            let config = H1Config { connections_max: requests_max, ..H1Config::local(address) };
            Backend::H1(H1Pool::new(config, metrics.clone()))
        }
        Protocol::Http2 | Protocol::Grpc => {
            Backend::H2(H2cPool::new(H2cConfig::local(address), metrics.clone()))
        }
    })
}

/// Takes away what concerns this hop, and what the instance is not to see.
fn for_instance(mut request: Request<Body>, origin: &Origin) -> Request<Body> {
    let fields = request.headers_mut();
    headers::strip_hop_by_hop(fields);
    match origin {
        Origin::Public => keep_shown(fields),
        // What a caller says of edges and clients in our name is forged.
        Origin::Service(_) => headers::strip_internal(fields),
    }
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
    Failure { reason, sent: error.sent, why: None }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
