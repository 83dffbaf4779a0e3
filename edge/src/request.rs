//! The path of a request: normalise → identify → route → admit → forward → record.

pub(crate) mod edges;
pub(crate) mod origin;

use crate::cache::answer::Asking;
use crate::cache::encoding::accepted::Accepted;
use crate::cache::fetch::{Fetched, Wish};
use crate::cache::key::Key;
use crate::cache::object::Resource;
use crate::cache::rules::invalidation::invalidated;
use crate::cache::rules::policy;
use crate::cache::serve::{Answered, quick, respond};
use crate::cache::status::{CacheStatus, Forwarded};
use crate::cache::{Cache, is_for_cache, tags};
use crate::certificates::Certificate;
use crate::edge::Shared;
use crate::record::Record;
use crate::views::Cluster;
use crate::worker::Worker;
use atoll_model::{CacheRule, Hop, Reason};
use atoll_process::clock::unix_ms;
use atoll_proxy::answer::InternalAnswer;
use atoll_proxy::exchange::Handler;
use atoll_proxy::headers::{self, ClientFacts};
use atoll_proxy::{Body, Exchange, Outgoing};
use atoll_routing::condition::{self, Facts};
use atoll_routing::hosts::{VirtualHost, normalise_host};
use atoll_routing::path::normalise;
use atoll_routing::tier::Asker;
use http::header::{ACCEPT_ENCODING, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, Uri};
use origin::Regional;
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

/// A client's connection over TLS.
#[derive(Debug)]
pub(crate) struct SecureConnection {
    pub(crate) worker: Rc<Worker>,
    /// What the connection was opened with: it says for which hosts it may be used.
    pub(crate) certificate: Arc<Certificate>,
}

/// An answer that Atoll makes in place of an instance's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) hop: Hop,
    pub(crate) reason: Reason,
}

impl Refusal {
    pub(crate) const fn edge(reason: Reason) -> Self {
        Self { hop: Hop::Edge, reason }
    }
}

impl From<InternalAnswer> for Refusal {
    fn from(made: InternalAnswer) -> Self {
        Self { hop: made.hop, reason: made.reason }
    }
}

impl Handler for SecureConnection {
    fn refused(&self, exchange: Exchange, reason: Reason) -> Option<Response<Body>> {
        Some(Record::refused_by_server(&self.worker.shared, exchange, reason))
    }

    async fn handle(&self, mut exchange: Exchange) -> Response<Body> {
        let mut record = Record::begin(&self.worker.shared, &mut exchange);
        match self.begin(&mut exchange, &mut record) {
            Ok(Begun::Answered(response)) => record.answer(response),
            // In a box, so that what most requests wait with is small: it is copied about.
            Ok(Begun::GoesOn(on)) => Box::pin(self.go_on(exchange, on, record)).await,
            Err(refusal) => record.refuse(refusal, exchange.request.headers()),
        }
    }
}

/// How far a request comes without waiting.
enum Begun {
    /// To its answer, from the cache.
    Answered(Response<Body>),
    /// To where others are asked.
    GoesOn(GoesOn),
}

/// What is known of a request that others are asked for.
struct GoesOn {
    host: String,
    routed: Routed,
    /// Where the cache has a say: what the response is found by, and the codings that it may have.
    cached: Option<(Key, Accepted)>,
}

impl SecureConnection {
    /// Normalises, identifies, routes, admits, and looks into the cache.
    fn begin(&self, exchange: &mut Exchange, record: &mut Record) -> Result<Begun, Refusal> {
        let shared = &self.worker.shared;
        normalise_path(exchange.request.uri_mut())?;
        let host = self.identify(exchange)?.into_owned();
        let routed = route(shared, &host, exchange.request.uri().path())?;
        record.note_cluster(&routed.cluster);
        record.admit(shared.admissions.take().ok_or(Refusal::edge(Reason::EdgeFull))?);
        let Some(cache) = shared.cache.as_ref().filter(|_| routed.may_cache(exchange, &host)) else {
            return Ok(Begun::GoesOn(GoesOn { host, routed, cached: None }));
        };
        let rule = routed.rule.as_deref();
        keyed(exchange.request.uri_mut(), rule)?;
        let key = routed.key(exchange);
        record.note_key(&key);
        let accepted = Accepted::of(exchange.request.headers());
        let asking = Asking {
            method: exchange.request.method(),
            headers: exchange.request.headers(),
            accepted,
            rule,
            is_edge: false,
            now_ms: unix_ms(),
        };
        Ok(match quick(cache, &key, asking) {
            Some(answered) => {
                record.note_cache(answered.status);
                if shared.access_log.is_some() {
                    headers::keep_trace_context(exchange.request.headers_mut());
                    record.note_trace(exchange.request.headers());
                }
                Begun::Answered(answered.response)
            }
            None => Begun::GoesOn(GoesOn { host, routed, cached: Some((key, accepted)) }),
        })
    }

    async fn go_on(&self, exchange: Exchange, on: GoesOn, mut record: Box<Record>) -> Response<Body> {
        // For the form of an error page; the rest of the head goes upstream.
        let accept = accept_of(exchange.request.headers());
        let answered = match (on.cached, &self.worker.shared.cache) {
            (Some(found_by), Some(cache)) => {
                self.through_cache(cache, exchange, (&on.host, on.routed), found_by, &mut record).await
            }
            _ => self.past_cache(exchange, &on.host, on.routed, &mut record).await,
        };
        match answered {
            Ok(response) => record.answer(response),
            Err(refusal) => record.refuse(refusal, &accept),
        }
    }

    /// Answers from the cache, and through it.
    async fn through_cache(
        &self,
        cache: &Arc<Cache>,
        exchange: Exchange,
        (host, routed): (&str, Routed),
        (key, accepted): (Key, Accepted),
        record: &mut Record,
    ) -> Result<Response<Body>, Refusal> {
        let shared = &self.worker.shared;
        let resource = routed.resource_of(&exchange, host);
        let mut outgoing = prepare(shared, exchange, &routed.cluster)?;
        one_form_of_codings(&mut outgoing.head.headers, accepted);
        record.note_trace(&outgoing.head.headers);
        let Routed { cluster, rule, .. } = routed;
        let tier = rule.as_ref().map_or_else(Default::default, |rule| rule.tier);
        let tries = Rc::clone(record.tries());
        let (worker, interim) = (Rc::clone(&self.worker), outgoing.interim);
        let origin = Regional { worker, cluster, tries, tier, asker: Asker::Client, interim };
        let wish = Wish { head: outgoing.head, resource, key, rule: rule.clone(), accepted, is_edge: false };
        let Answered { mut response, who, status } = respond(cache, &origin, wish, &shared.metrics).await?;
        record.note_cache(status);
        record.note_answer(&who);
        for_client(response.headers_mut(), rule.as_deref());
        Ok(response)
    }

    /// Answers with what the regions answer.
    async fn past_cache(
        &self,
        exchange: Exchange,
        host: &str,
        routed: Routed,
        record: &mut Record,
    ) -> Result<Response<Body>, Refusal> {
        let shared = &self.worker.shared;
        let resource = routed.resource_of(&exchange, host);
        let outgoing = prepare(shared, exchange, &routed.cluster)?;
        record.note_trace(&outgoing.head.headers);
        let (worker, cluster) = (Rc::clone(&self.worker), Arc::clone(&routed.cluster));
        let (tries, interim) = (Rc::clone(record.tries()), outgoing.interim.clone());
        let (tier, asker) = (atoll_model::Tier::None, Asker::Client);
        let origin = Regional { worker, cluster, tries, tier, asker, interim };
        let Fetched { mut response, who, .. } = origin.forward(&outgoing).await?;
        record.note_answer(&who);
        if let Some(cache) = &shared.cache {
            let changes = !matches!(outgoing.head.method, Method::GET | Method::HEAD);
            record.note_cache(CacheStatus::forwarded(if changes {
                Forwarded::Method
            } else {
                Forwarded::Bypass
            }));
            invalidate(cache, &routed, &resource, &outgoing.head.method, &response);
        }
        for_client(response.headers_mut(), routed.rule.as_deref());
        Ok(response)
    }

    /// The host that the request is for, if this connection may be used for it.
    fn identify<'a>(&self, exchange: &'a Exchange) -> Result<Cow<'a, str>, Refusal> {
        let host = normalise_host(exchange.authority()).ok_or(Refusal::edge(Reason::BadRequest))?;
        if !self.certificate.covers(&host) {
            return Err(Refusal::edge(Reason::Misdirected));
        }
        Ok(host)
    }
}

/// One form of the path for everything: the route, and what gateways, sidecars and the instance see.
fn normalise_path(uri: &mut Uri) -> Result<(), Refusal> {
    // `OPTIONS *` has none.
    if uri.path() == "*" {
        return Ok(());
    }
    let normal = normalise(uri.path()).map_err(|_| Refusal::edge(Reason::AmbiguousPath))?;
    if normal.is_changed() {
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        *uri = Uri::try_from(format!("{}{query}", normal.as_str()))
            .map_err(|_| Refusal::edge(Reason::AmbiguousPath))?;
    }
    Ok(())
}

/// Who serves a path of a virtual host, and what the app says of caching it.
#[derive(Debug)]
pub(crate) struct Routed {
    pub(crate) host: Arc<VirtualHost>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) rule: Option<Arc<CacheRule>>,
}

/// Finds them.
pub(crate) fn route(shared: &Shared, host: &str, path: &str) -> Result<Routed, Refusal> {
    let snapshot = shared.views.load();
    let found = snapshot.hosts.find_normal(host).ok_or(Refusal::edge(Reason::UnknownHost))?;
    let name = &found.route(path).ok_or(Refusal::edge(Reason::NoRoute))?.cluster;
    // The route's record may be here before its cluster's.
    let cluster = snapshot.clusters.get(name).cloned().ok_or(Refusal::edge(Reason::NoRegion))?;
    let rule = found.cache_rule(host, path).cloned();
    Ok(Routed { host: Arc::clone(found), cluster, rule })
}

impl Routed {
    /// Whether the cache has a say: the request is of a kind that it answers, and the app does not keep it away.
    fn may_cache(&self, exchange: &Exchange, host: &str) -> bool {
        is_for_cache(&exchange.request) && lets_cache(self.rule.as_deref(), &exchange.request, host)
    }

    /// The instance is told the authority as the client wrote it, so that is in the key.
    fn key(&self, exchange: &Exchange) -> Key {
        Key::resource(&self.host.id, exchange.authority(), target_of(exchange))
    }

    fn resource_of(&self, exchange: &Exchange, host: &str) -> Resource {
        Resource {
            app: Arc::clone(&self.cluster.app),
            host: host.into(),
            authority: exchange.authority().into(),
            target: target_of(exchange).into(),
        }
    }

    /// What a request is for, as the cache sees it.
    pub(crate) fn resource(&self, exchange: &Exchange, host: &str) -> (Key, Resource) {
        (self.key(exchange), self.resource_of(exchange, host))
    }
}

/// Whether an app's rule lets the cache have a say in a request.
pub(crate) fn lets_cache(rule: Option<&CacheRule>, request: &Request<Body>, host: &str) -> bool {
    let Some(rule) = rule else { return true };
    let said = Said { request, host };
    !rule.off && !rule.bypass.as_ref().is_some_and(|bypass| condition::holds(bypass, &said))
}

/// A request, as conditions see it.
struct Said<'a> {
    request: &'a Request<Body>,
    host: &'a str,
}

impl Facts for Said<'_> {
    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.request.headers().get_all(name).iter().map(HeaderValue::as_bytes)
    }

    fn method(&self) -> &str {
        self.request.method().as_str()
    }

    fn path(&self) -> &str {
        self.request.uri().path()
    }

    fn query(&self) -> &str {
        self.request.uri().query().unwrap_or("")
    }

    fn host(&self) -> &str {
        self.host
    }
}

fn target_of(exchange: &Exchange) -> &str {
    exchange.request.uri().path_and_query().map_or("/", |target| target.as_str())
}

/// The query as the app wants it in the key, and so on the way to the instance.
fn keyed(uri: &mut Uri, rule: Option<&CacheRule>) -> Result<(), Refusal> {
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    if let Cow::Owned(target) = policy::target(target, rule) {
        *uri = Uri::try_from(target).map_err(|_| Refusal::edge(Reason::BadRequest))?;
    }
    Ok(())
}

/// What a client says of codings in one form of few, so that few variants are kept of what depends on it: the instance is asked so, too.
fn one_form_of_codings(fields: &mut HeaderMap, accepted: Accepted) {
    if fields.contains_key(ACCEPT_ENCODING) {
        accepted.canonical().apply(fields);
    }
}

/// Takes away what an instance says to caches alone. What was answered from the store has none of it any more.
fn for_client(fields: &mut HeaderMap, rule: Option<&CacheRule>) {
    fields.remove(headers::CDN_CACHE_CONTROL);
    if !rule.is_some_and(|rule| rule.show_tags) {
        tags::strip(fields, policy::tag_field(rule).as_ref());
    }
}

/// Forgets what a change has made unusable.
fn invalidate(
    cache: &Cache,
    routed: &Routed,
    resource: &Resource,
    method: &Method,
    response: &Response<Body>,
) {
    let Resource { authority, target, .. } = resource;
    for target in invalidated(method, "https", authority, target, response.status(), response.headers()) {
        // As requests for it are.
        let (path, query) =
            target.split_once('?').map_or((&*target, None), |(path, query)| (path, Some(query)));
        let Ok(normal) = normalise(path) else { continue };
        let path = normal.as_str();
        let target = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        let rule = routed.host.cache_rule(&resource.host, path);
        let target = policy::target(&target, rule.map(|rule| &**rule));
        let key = Key::resource(&routed.host.id, authority, &target);
        // In this order: who comes between the two asks other edges for what is new.
        cache.changed.note(key.place());
        cache.index.remove(&key);
    }
}

/// The request as it leaves the edge: nothing of the client's that it must not say, all of ours.
fn prepare(shared: &Shared, exchange: Exchange, cluster: &Cluster) -> Result<Outgoing, Refusal> {
    let client = exchange.connection.peer.ip().to_canonical();
    let authority = exchange.authority().to_owned();
    let (mut head, body) = exchange.request.into_parts();
    let fields = &mut head.headers;
    headers::strip_hop_by_hop(fields);
    headers::strip_internal(fields);
    headers::strip_forwarded(fields);
    headers::keep_trace_context(fields);
    headers::add_cdn_loop(fields).map_err(|_| Refusal::edge(Reason::Loop))?;
    headers::set_forwarded(fields, ClientFacts { ip: client, scheme: "https", authority: &authority });
    set(fields, headers::EDGE, shared.site.as_str());
    set(fields, headers::CLIENT_IP, &client.to_string());
    set(fields, headers::CLUSTER, &cluster.to.text);
    Ok(Outgoing::new(head, body, Arc::clone(&cluster.to), exchange.interim))
}

fn set(fields: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        fields.insert(name, value);
    }
}

fn accept_of(fields: &HeaderMap) -> HeaderMap {
    let mut accept = HeaderMap::new();
    for value in fields.get_all(http::header::ACCEPT) {
        accept.append(http::header::ACCEPT, value.clone());
    }
    accept
}
