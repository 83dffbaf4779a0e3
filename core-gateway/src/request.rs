//! The path of a request through the gateway: who asks → may it → admit → forward → record.

use crate::asking::{Asking, Peer};
use crate::calls::{Answered, forward_call};
use crate::summaries::healthy;
use crate::views::Cluster;
use crate::worker::Worker;
use atoll_identity::PeerIdentity;
use atoll_model::{Hop, NodeName, Reason};
use atoll_proxy::answer::{self, InternalAnswer};
use atoll_proxy::exchange::Handler;
use atoll_proxy::headers::{self, Hops};
use atoll_proxy::region::{self, forward};
use atoll_proxy::server::{STREAM_SILENCE_MAX, TakeWithin};
use atoll_proxy::tunnel::{ControlStream, is_control_stream, serve_control_stream};
use atoll_proxy::{Body, Exchange, Outgoing, Tries, regions};
use atoll_wire::tunnel::ClusterHeadroom;
use http::Response;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// How often a connection notes that it uses a cluster.
const NOTE_EVERY: Duration = Duration::from_secs(5);
/// Clusters that a connection remembers to have noted.
const NOTED_MAX: usize = 1024;

/// One connection of an edge, a gateway or a sidecar.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) worker: Rc<Worker>,
    pub(crate) peer: Arc<PeerIdentity>,
    pub(crate) who: Peer,
    pub(crate) noted: RefCell<HashMap<String, Instant>>,
}

/// Counts a request to a cluster; given back when dropped.
#[derive(Debug)]
struct InFlight(Arc<AtomicU32>);

impl InFlight {
    fn new(cluster: &Cluster) -> Self {
        cluster.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(&cluster.in_flight))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a request that fails is logged with. References, so that one that doesn't costs nothing.
#[derive(Debug)]
struct Asked {
    cluster: Option<HeaderValue>,
    /// As it was said, whether or not it is believed.
    caller: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
}

impl Asked {
    fn of(fields: &HeaderMap) -> Self {
        Self {
            cluster: fields.get(headers::CLUSTER).cloned(),
            caller: fields.get(headers::CALLER).cloned(),
            request_id: fields.get("x-request-id").cloned(),
        }
    }
}

fn printable(value: Option<&HeaderValue>) -> String {
    let bytes = value.map_or(&b""[..], HeaderValue::as_bytes);
    bytes.escape_ascii().take(130).map(char::from).collect()
}

const fn unsent(reason: Reason) -> InternalAnswer {
    InternalAnswer { hop: Hop::Gateway, reason, sent: false }
}

impl Handler for Connection {
    async fn handle(&self, exchange: Exchange) -> Response<Body> {
        if let Some(node) = self.who.node().filter(|_| is_control_stream(&exchange)) {
            return serve_control_stream(exchange, self.control_stream(node));
        }
        let started = exchange.started;
        let asked = Asked::of(exchange.request.headers());
        let tries = tries_of(exchange.request.headers());
        match self.serve(exchange, &tries).await {
            Ok(response) => response,
            Err(made) => self.refuse(made, &tries, &asked, started),
        }
    }
}

impl Connection {
    async fn serve(&self, exchange: Exchange, tries: &Tries) -> Result<Response<Body>, InternalAnswer> {
        let started = exchange.started;
        let (asking, cluster) = self.authorize(exchange.request.headers()).map_err(unsent)?;
        let answered = self.pass_on(exchange, &asking, &cluster, tries).await;
        let status = match &answered {
            Ok(response) => response.status().as_u16(),
            Err(made) => made.reason.status(),
        };
        cluster.counts.answered(started.elapsed(), status >= 500);
        answered
    }

    async fn pass_on(
        &self,
        exchange: Exchange,
        asking: &Asking,
        cluster: &Arc<Cluster>,
        tries: &Tries,
    ) -> Result<Response<Body>, InternalAnswer> {
        let (started, shared) = (exchange.started, &self.worker.shared);
        let admission = match asking {
            Asking::Client => shared.admissions.take(),
            Asking::Call { caller, .. } => shared.admissions.take_for(&caller.to_string()),
        };
        let admission = admission.ok_or(unsent(Reason::GatewayFull))?;
        let in_flight = InFlight::new(cluster);
        if let Some(node) = self.who.node() {
            self.note_use(node, &cluster.to.text);
        }
        let is_stream = exchange.request.headers().get(headers::PROTOCOL).is_some_and(|name| name == "tcp");
        let outgoing = self.prepare(exchange, asking, cluster);
        let answered = match asking {
            Asking::Client => {
                let endpoints = || shared.views.load().endpoints.get(&cluster.to.text).cloned();
                Answered::Near(forward(&self.worker.sidecars, endpoints, &outgoing, tries).await?)
            }
            Asking::Call { from_gateway, .. } => self.call(cluster, &outgoing, *from_gateway, tries).await?,
        };
        let mut response = self.finish(answered, tries, started);
        if is_stream && *asking != Asking::Client {
            // Who reads a stream of bytes may pause for as long as the stream may be silent.
            response.extensions_mut().insert(TakeWithin(STREAM_SILENCE_MAX));
        }
        Ok(response.map(|body| body.holding((admission, in_flight))))
    }

    fn authorize(&self, fields: &HeaderMap) -> Result<(Asking, Arc<Cluster>), Reason> {
        let shared = &self.worker.shared;
        let asking = self.who.asks(shared.identity.trust().trust_domain(), fields)?;
        let asked = fields.get(headers::CLUSTER).and_then(|value| value.to_str().ok()).unwrap_or("");
        let cluster = asking.may(asked, shared.views.load().clusters.get(asked))?;
        Ok((asking, cluster))
    }

    async fn call(
        &self,
        cluster: &Cluster,
        outgoing: &Outgoing,
        from_gateway: bool,
        tries: &Tries,
    ) -> Result<Answered, InternalAnswer> {
        let answered = forward_call(&self.worker, cluster, outgoing, from_gateway, tries).await;
        let served_by = match &answered {
            Ok(Answered::Near(_)) => "own_region",
            Ok(Answered::Far(_)) => "other_region",
            Err(_) => "nobody",
        };
        self.worker.shared.calls.count(from_gateway, served_by);
        answered
    }

    fn note_use(&self, node: &NodeName, cluster: &str) {
        let now = Instant::now();
        let mut noted = self.noted.borrow_mut();
        if noted.get(cluster).is_some_and(|at| now.duration_since(*at) < NOTE_EVERY) {
            return;
        }
        if noted.len() >= NOTED_MAX {
            noted.clear();
        }
        noted.insert(cluster.to_owned(), now);
        self.worker.shared.usage.note(node, cluster, now);
    }

    /// The request as it leaves: of the internal fields, those that are known and no other. Who calls is said
    /// by us.
    fn prepare(&self, exchange: Exchange, asking: &Asking, cluster: &Cluster) -> Outgoing {
        let (mut head, body) = exchange.request.into_parts();
        let fields = &mut head.headers;
        let kept: &[HeaderName] = match asking {
            Asking::Client => &[headers::EDGE, headers::CLIENT_IP],
            Asking::Call { .. } => &[headers::PROTOCOL],
        };
        let kept: Vec<_> =
            kept.iter().filter_map(|field| Some((field, fields.get(field).cloned()?))).collect();
        headers::strip_internal(fields);
        for (field, value) in kept {
            fields.insert(field, value);
        }
        if let Asking::Call { id, .. } = asking {
            fields.insert(headers::CALLER, id.clone());
        }
        set(fields, headers::CLUSTER, &cluster.to.text);
        set(fields, headers::REGION, self.worker.shared.region.as_str());
        Outgoing::new(head, body, Arc::clone(&cluster.to), exchange.interim)
    }

    fn finish(&self, answered: Answered, tries: &Tries, started: Instant) -> Response<Body> {
        match answered {
            Answered::Near(region::Answered { mut response, key }) => {
                let fields = response.headers_mut();
                self.set_facts(fields, self.worker.shared.region.as_str(), tries, started);
                if !fields.contains_key(headers::INSTANCE) {
                    let instance = key.split_once('/').map_or(&*key, |(_host, instance)| instance);
                    set(fields, headers::INSTANCE, instance);
                }
                response
            }
            Answered::Far(regions::Answered { mut response, region }) => {
                self.set_facts(response.headers_mut(), region.as_str(), tries, started);
                response
            }
        }
    }

    fn refuse(&self, made: InternalAnswer, tries: &Tries, asked: &Asked, started: Instant) -> Response<Body> {
        let InternalAnswer { hop, reason, sent } = made;
        self.worker.shared.metrics.failed(hop, reason);
        self.log(made, tries, asked);
        let mut response = answer::internal(hop, reason, sent);
        self.set_facts(response.headers_mut(), self.worker.shared.region.as_str(), tries, started);
        response
    }

    /// A failure of this hop is its operator's business; a sidecar's is logged there, a client's at the edge.
    fn log(&self, InternalAnswer { hop, reason, sent }: InternalAnswer, tries: &Tries, asked: &Asked) {
        let tries = tries.used();
        let quiet = hop != Hop::Gateway || reason == Reason::ClientGone;
        let sampled = if quiet { None } else { self.worker.failures.take(Instant::now()) };
        let (cluster, request_id) = (printable(asked.cluster.as_ref()), printable(asked.request_id.as_ref()));
        let caller = asked.caller.as_ref().map(|caller| printable(Some(caller)));
        match sampled {
            Some(left_out) => {
                warn!(%reason, request_id, cluster, caller, peer = %self.peer.id, own = %self.worker.own_id,
                                    sent, tries, left_out, "a request failed here")
            }
            None => {
                debug!(%hop, %reason, request_id, cluster, peer = %self.peer.id, sent, tries, "no answer")
            }
        }
    }

    fn set_facts(&self, fields: &mut HeaderMap, region: &str, tries: &Tries, started: Instant) {
        let hops = fields.get(headers::HOPS).and_then(|value| value.to_str().ok());
        let hops = hops.map(Hops::parse).unwrap_or_default();
        let gateway_us = u64::try_from(started.elapsed().as_micros()).ok();
        fields.insert(headers::HOPS, Hops { gateway_us, ..hops }.to_value());
        fields.insert(headers::TRIES_USED, HeaderValue::from(u16::from(tries.used())));
        set(fields, headers::REGION, region);
    }

    fn control_stream(&self, node: &NodeName) -> ControlStream {
        let (shared, node) = (Arc::clone(&self.worker.shared), node.clone());
        let headroom = move || {
            let snapshot = shared.views.load();
            let used = shared.usage.of(&node, Instant::now());
            let of_cluster = |name: &Arc<str>| {
                let in_flight = snapshot.clusters.get(name).map(|c| c.in_flight.load(Ordering::Relaxed));
                ClusterHeadroom {
                    cluster: name.to_string(),
                    healthy: healthy(&shared, &snapshot, name),
                    in_flight: in_flight.unwrap_or(0),
                }
            };
            used.iter().map(of_cluster).collect()
        };
        let shared = &self.worker.shared;
        ControlStream {
            node: shared.name.to_string(),
            region: shared.region.to_string(),
            headroom: Rc::new(headroom),
            drain: shared.drain.clone(),
            metrics: shared.metrics.clone(),
        }
    }
}

/// What the hop before allows; one try when it doesn't say.
fn tries_of(fields: &HeaderMap) -> Tries {
    let tries = fields.get(headers::TRIES).and_then(|value| value.to_str().ok());
    Tries::new(tries.and_then(|tries| tries.parse().ok()).unwrap_or(1))
}

fn set(fields: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        fields.insert(name, value);
    }
}
