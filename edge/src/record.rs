//! What becomes of a request: fields for the client, a line for the access log.

use crate::cache::counts::AppCounts;
use crate::cache::key::Key;
use crate::cache::status::{CacheStatus, Forwarded, made_here};
use crate::edge::Shared;
use crate::request::Refusal;
use crate::views::Cluster;
use atoll_model::{Hop, Reason};
use atoll_process::clock::unix_ms;
use atoll_proxy::access_log::Line;
use atoll_proxy::admission::Admission;
use atoll_proxy::headers::{self, Hops};
use atoll_proxy::{Body, ByteCount, Exchange, Side, Tries, answer};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, Version};
use http_body::Body as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// The longest text that a line takes from a client's field or path.
const LOGGED_BYTES_MAX: usize = 1024;

/// A request's record. Writes the line when it is dropped, which is when the answer's body has gone or
/// the client has given up.
#[derive(Debug)]
pub(crate) struct Record {
    line: Line,
    /// The line's, as it is in the request.
    request_id: HeaderValue,
    shared: Arc<Shared>,
    started: Instant,
    head_only: bool,
    tries: Rc<Tries>,
    cache: Option<CacheStatus>,
    /// What the response is found by, where the operator wants it told.
    cache_key: Option<Key>,
    /// What another edge's cache did.
    cache_of_edge: Option<HeaderValue>,
    counts: Option<Arc<AppCounts>>,
    /// Counted for the access log alone.
    uploaded: Option<ByteCount>,
    downloaded: Option<ByteCount>,
    /// Its place among the requests of the edge, until all of its answer has gone.
    admission: Option<Admission>,
}

impl Record {
    /// The internal fields that say how an answer came about: for [`Self::note_answer`], and for the cache.
    pub(crate) const TOLD: [HeaderName; 6] = [
        headers::REGION,
        headers::INSTANCE,
        headers::REVISION,
        headers::HOPS,
        headers::CACHE,
        headers::UNTIL_CLOSE,
    ];

    /// Begins with what the request says, and gives it its id.
    pub(crate) fn begin(shared: &Arc<Shared>, exchange: &mut Exchange) -> Box<Self> {
        let uploaded = shared.access_log.as_ref().map(|_| exchange.request.body_mut().counted());
        let request_id = headers::keep_request_id(exchange.request.headers_mut(), rand::random());
        let request = &exchange.request;
        let id_value = exchange.request.headers().get(REQUEST_ID).cloned();
        let known = Line { request_id, ..Line::default() };
        let line = if shared.access_log.is_none() {
            known
        } else {
            Line {
                time_ms: unix_ms(),
                client_ip: exchange.connection.peer.ip().to_canonical().to_string(),
                protocol: protocol(request.version()),
                method: clipped(request.method().as_str()),
                host: clipped(exchange.host()),
                path: clipped(request.uri().path()),
                edge: shared.site.to_string(),
                user_agent: text(request.headers(), &header::USER_AGENT),
                ..known
            }
        };
        Box::new(Self {
            line,
            request_id: id_value.unwrap_or(HeaderValue::from_static("-")),
            shared: Arc::clone(shared),
            started: exchange.started,
            head_only: request.method() == Method::HEAD,
            tries: Rc::default(),
            cache: None,
            cache_key: None,
            cache_of_edge: None,
            counts: None,
            uploaded,
            downloaded: None,
            admission: None,
        })
    }

    /// It is let in.
    pub(crate) fn admit(&mut self, admission: Admission) {
        self.admission = Some(admission);
    }

    /// The request's trace, once its fields were checked.
    pub(crate) fn note_trace(&mut self, headers: &HeaderMap) {
        let parent = headers.get("traceparent").and_then(|value| value.to_str().ok());
        self.line.trace_id = parent.and_then(|parent| parent.split('-').nth(1)).map(str::to_owned);
    }

    pub(crate) fn note_cluster(&mut self, cluster: &Cluster) {
        if self.shared.access_log.is_some() {
            self.line.cluster = Some(cluster.to.text.to_string());
        }
        self.counts = Some(Arc::clone(&cluster.counts));
    }

    /// To be spent on the request.
    pub(crate) fn tries(&self) -> &Rc<Tries> {
        &self.tries
    }

    /// What the cache did.
    pub(crate) fn note_cache(&mut self, status: CacheStatus) {
        self.cache = Some(status);
    }

    /// What the response is found by.
    pub(crate) fn note_key(&mut self, key: &Key) {
        if self.shared.tells_cache_keys {
            self.cache_key = Some(key.clone());
        }
    }

    /// Reads who answered, and how long each hop took, from the internal fields of an answer.
    pub(crate) fn note_answer(&mut self, headers: &HeaderMap) {
        self.cache_of_edge = headers.get(headers::CACHE).cloned();
        self.line.region = text(headers, &headers::REGION);
        self.line.instance = text(headers, &headers::INSTANCE);
        self.line.revision = text(headers, &headers::REVISION);
        let hops = headers.get(headers::HOPS).and_then(|value| value.to_str().ok());
        let hops = hops.map(Hops::parse).unwrap_or_default();
        self.line.gateway_us = hops.gateway_us;
        self.line.sidecar_us = hops.sidecar_us;
        self.line.app_us = hops.app_us;
    }

    /// Atoll answers by itself, in a form that `accept` names.
    pub(crate) fn refuse(mut self: Box<Self>, refusal: Refusal, accept: &HeaderMap) -> Response<Body> {
        let Refusal { hop, reason } = refusal;
        self.shared.metrics.failed(hop, reason);
        self.line.reason = Some(reason.code());
        self.line.hop = Some(hop.as_str());
        let page = answer::error_page(hop, reason, accept, &self.line.request_id);
        self.answer(page)
    }

    /// The server has refused the request, and counted it, before it came to a handler.
    pub(crate) fn refused_by_server(
        shared: &Arc<Shared>,
        mut exchange: Exchange,
        reason: Reason,
    ) -> Response<Body> {
        let mut record = Self::begin(shared, &mut exchange);
        let page = answer::error_page(Hop::Edge, reason, exchange.request.headers(), &record.line.request_id);
        record.line.reason = Some(reason.code());
        record.line.hop = Some(Hop::Edge.as_str());
        record.answer(page)
    }

    /// Sets what every answer carries, and follows its body to the end.
    pub(crate) fn answer(mut self: Box<Self>, mut response: Response<Body>) -> Response<Body> {
        self.line.status = response.status().as_u16();
        self.line.head_us = Some(micros(self.started));
        if self.head_only {
            response = without_content(response);
        }
        let fields = response.headers_mut();
        fields.insert(REQUEST_ID, self.request_id.clone());
        fields.insert(headers::EDGE, self.shared.site_value.clone());
        if let Some(Ok(region)) = self.line.region.as_deref().map(HeaderValue::try_from) {
            fields.insert(headers::REGION, region);
        }
        // Behind what an origin's own cache says (RFC 9211, section 2).
        if let Some(of_edge) = self.cache_of_edge.take() {
            fields.append(CACHE_STATUS, of_edge);
        }
        let status = match self.line.reason {
            Some(reason) => made_here(reason),
            None => {
                let status = self.cache.unwrap_or(CacheStatus::forwarded(Forwarded::Bypass));
                self.line.cache = status.word();
                status.to_value(self.cache_key.as_ref())
            }
        };
        fields.append(CACHE_STATUS, status);
        if let (Some(status), Some(counts)) = (&self.cache, &self.counts) {
            counts.count(status);
            self.shared.cache_metrics.count(status);
        }
        self.downloaded = self.shared.access_log.as_ref().map(|_| response.body_mut().counted());
        response.map(|body| body.holding_box(self))
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.shared.access_log.is_none() {
            return;
        }
        self.line.duration_us = micros(self.started);
        self.line.tries = self.tries.used().into();
        self.line.request_bytes = self.uploaded.as_ref().map_or(0, ByteCount::bytes);
        match &self.downloaded {
            // Dropped before there was an answer.
            None => self.note_gone(StatusCode::from_u16(Reason::ClientGone.status()).ok()),
            Some(count) => {
                self.line.response_bytes = count.bytes();
                match count.failed() {
                    Some(Side::Upstream) if self.line.reason.is_none() => {
                        self.line.reason = Some(Reason::TunnelLost.code());
                        self.line.hop = Some(Hop::Edge.as_str());
                    }
                    Some(Side::Client) => self.note_gone(None),
                    None if !count.ended() => self.note_gone(None),
                    _ => {}
                }
            }
        }
        if let Some(log) = &self.shared.access_log {
            log.write(std::mem::take(&mut self.line));
        }
    }
}

impl Record {
    fn note_gone(&mut self, status: Option<StatusCode>) {
        if let Some(status) = status {
            self.line.status = status.as_u16();
        }
        self.line.reason = Some(Reason::ClientGone.code());
        self.line.hop = Some(Hop::Edge.as_str());
    }
}

/// An answer to HEAD: what GET would have had, but for the content.
fn without_content(mut response: Response<Body>) -> Response<Body> {
    if let Some(length) = response.body().size_hint().exact()
        && length > 0
        && !response.headers().contains_key(header::CONTENT_LENGTH)
    {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    response.map(|_| Body::empty())
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(clipped)
}

fn clipped(text: &str) -> String {
    let mut end = text.len().min(LOGGED_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
