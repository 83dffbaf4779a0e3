//! HTTP calls of the instance: by a listener for each service, and by a forward proxy for names.

use super::mesh::{SharedMesh, cluster_of, host_of};
use atoll_model::{ClusterName, Hop, Reason};
use atoll_proxy::admission::Admissions;
use atoll_proxy::answer::{self, InternalAnswer};
use atoll_proxy::exchange::host_of as without_port;
use atoll_proxy::sample::Sample;
use atoll_proxy::{Body, Exchange, Handler, Outgoing, ProxyMetrics, headers};
use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response};
use std::rc::Rc;
use std::time::Instant;
use tracing::warn;

/// What all calls of an instance share.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) mesh: SharedMesh,
    /// The instance's service.
    pub(crate) own: ClusterName,
    /// Bounds calls at a time, and with them the memory of their bodies.
    pub(crate) admissions: Admissions,
    pub(crate) metrics: ProxyMetrics,
    /// Which failed calls are logged.
    pub(crate) failures: Sample,
}

/// The listener of one service.
#[derive(Debug)]
pub(crate) struct CallHandler {
    pub(crate) caller: Rc<Caller>,
    pub(crate) cluster: ClusterName,
}

/// The listener that takes any name of the mesh.
#[derive(Debug)]
pub(crate) struct ProxyHandler {
    pub(crate) caller: Rc<Caller>,
}

impl Handler for CallHandler {
    async fn handle(&self, exchange: Exchange) -> Response<Body> {
        self.caller.call(&self.cluster, exchange).await
    }
}

impl Handler for ProxyHandler {
    async fn handle(&self, exchange: Exchange) -> Response<Body> {
        match cluster_of(exchange.host(), &self.caller.own) {
            Some(cluster) => self.caller.call(&cluster, exchange).await,
            None => {
                self.caller.metrics.failed(Hop::Sidecar, Reason::NotInternal);
                not_internal(exchange.request.headers())
            }
        }
    }

    fn refused(&self, exchange: Exchange, _reason: Reason) -> Option<Response<Body>> {
        (*exchange.request.method() == Method::CONNECT).then(|| not_internal(exchange.request.headers()))
    }
}

fn not_internal(fields: &HeaderMap) -> Response<Body> {
    answer::error_page(Hop::Sidecar, Reason::NotInternal, fields, "")
}

impl Caller {
    async fn call(&self, cluster: &ClusterName, exchange: Exchange) -> Response<Body> {
        let (mut head, body) = exchange.request.into_parts();
        let request_id = prepare(&mut head.headers, cluster);
        let accept = head.headers.clone();
        let Some(admission) = self.admissions.take() else {
            let full = InternalAnswer { hop: Hop::Sidecar, reason: Reason::InstanceFull, sent: false };
            return self.refuse(full, cluster, &accept, &request_id);
        };
        let called = self.mesh.called(cluster);
        let outgoing = Outgoing::new(head, body, called.to.clone(), exchange.interim);
        match self.mesh.forward(&called, &outgoing).await {
            Ok(mut response) => {
                shown(response.headers_mut());
                response.map(|body| body.holding(admission))
            }
            Err(made) => self.refuse(made, cluster, &accept, &request_id),
        }
    }

    fn refuse(
        &self,
        made: InternalAnswer,
        cluster: &ClusterName,
        fields: &HeaderMap,
        request_id: &str,
    ) -> Response<Body> {
        self.failed(&made, cluster, request_id);
        answer::error_page(made.hop, made.reason, fields, request_id)
    }

    /// Counts a call that failed, and logs a few a second.
    pub(crate) fn failed(&self, made: &InternalAnswer, cluster: &ClusterName, request_id: &str) {
        let InternalAnswer { hop, reason, sent } = *made;
        self.metrics.failed(hop, reason);
        if reason == Reason::ClientGone {
            return;
        }
        if let Some(left_out) = self.failures.take(Instant::now()) {
            warn!(%hop, %reason, request_id, %cluster, own = %self.own, sent, left_out, "a call failed");
        }
    }
}

/// The head as it leaves; gives the request's id. What is said in the instance's name about clients, such as
/// `X-Forwarded-For`, is its own business.
fn prepare(fields: &mut HeaderMap, cluster: &ClusterName) -> String {
    headers::strip_hop_by_hop(fields);
    headers::strip_internal(fields);
    let request_id = headers::keep_request_id(fields, rand::random());
    headers::keep_trace_context(fields);
    if !fields.contains_key("traceparent") {
        let parent = format!("00-{:032x}-{:016x}-00", rand::random::<u128>() | 1, rand::random::<u64>() | 1);
        set(fields, HeaderName::from_static("traceparent"), &parent);
    }
    let is_loopback = fields.get(HOST).and_then(|host| host.to_str().ok()).is_none_or(|host| {
        let host = without_port(host);
        host.eq_ignore_ascii_case("localhost") || host == "[::1]" || host.starts_with("127.")
    });
    if is_loopback {
        set(fields, HOST, &host_of(cluster));
    }
    set(fields, headers::CLUSTER, &cluster.to_string());
    request_id
}

/// Of our own fields the instance sees who answered.
fn shown(fields: &mut HeaderMap) {
    let kept =
        [headers::REGION, headers::INSTANCE].map(|name| fields.remove(&name).map(|value| (name, value)));
    headers::strip_hop_by_hop(fields);
    headers::strip_internal(fields);
    fields.extend(kept.into_iter().flatten());
}

fn set(fields: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        fields.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_call_leaves_with_a_mesh_name_and_ids_and_nothing_forged() {
        let cluster: ClusterName = "o/shop/api".parse().unwrap();
        let of = |fields: &[(&'static str, &str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in fields {
                map.append(*name, value.parse().unwrap());
            }
            let id = prepare(&mut map, &cluster);
            (id, map)
        };
        let (id, made) = of(&[
            ("host", "127.0.0.1:4000"),
            ("atoll-caller", "spiffe://x"),
            ("atoll-cluster", "o/shop/db"),
            ("x-forwarded-for", "1.2.3.4"),
            ("connection", "keep-alive"),
        ]);
        assert_eq!(
            (made["host"].as_bytes(), made["atoll-cluster"].as_bytes()),
            (&b"api.shop.internal"[..], &b"o/shop/api"[..])
        );
        assert_eq!(made["x-forwarded-for"], "1.2.3.4");
        assert!(!made.contains_key("atoll-caller") && !made.contains_key("connection"));
        assert_eq!(made["x-request-id"], id.as_str());
        let mut kept = made.clone();
        headers::keep_trace_context(&mut kept);
        assert_eq!(kept["traceparent"], made["traceparent"], "what we make is valid");
        let (id, kept) = of(&[("host", "api.example"), ("x-request-id", "mine")]);
        assert_eq!((id.as_str(), kept["host"].as_bytes()), ("mine", &b"api.example"[..]));
    }
}
