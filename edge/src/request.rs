//! The path of a request: normalise → identify → route → admit → forward → record.

use crate::cache::fetch::{Fetched, Origin, Wish};
use crate::cache::key::Key;
use crate::cache::object::Resource;
use crate::cache::rules::invalidation::invalidated;
use crate::cache::serve::respond;
use crate::cache::status::{CacheStatus, Forwarded};
use crate::cache::{Cache, is_for_cache};
use crate::certificates::Certificate;
use crate::edge::Shared;
use crate::record::Record;
use crate::views::Cluster;
use crate::worker::Worker;
use atoll_model::{Hop, Reason};
use atoll_proxy::answer::InternalAnswer;
use atoll_proxy::exchange::Handler;
use atoll_proxy::headers::{self, ClientFacts};
use atoll_proxy::{Body, Exchange, Outgoing, Tries, answer};
use atoll_routing::hosts::normalise_host;
use atoll_routing::path::normalise;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, Uri, request};
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
        // For the form of an error page; the rest of the head goes upstream.
        let accept = accept_of(exchange.request.headers());
        match self.serve(exchange, &mut record).await {
            Ok(response) => record.answer(response),
            Err(Refusal { hop, reason }) => {
                let page = answer::error_page(hop, reason, &accept, record.request_id());
                record.refused(hop, reason).answer(page)
            }
        }
    }
}

impl SecureConnection {
    async fn serve(&self, mut exchange: Exchange, record: &mut Record) -> Result<Response<Body>, Refusal> {
        let shared = &self.worker.shared;
        normalise_path(exchange.request.uri_mut())?;
        let host = self.identify(&exchange)?;
        let (id, cluster) = route(shared, &host, exchange.request.uri().path())?;
        record.note_cluster(&cluster.to.text);
        let admission = shared.admissions.take().ok_or(Refusal::edge(Reason::EdgeFull))?;
        let cached = shared.cache.as_ref().map(|cache| (cache, resource(&exchange, &host, &id, &cluster)));
        let for_cache = is_for_cache(&exchange.request);
        let outgoing = prepare(shared, exchange, &cluster)?;
        record.note_trace(&outgoing.head.headers);
        let origin = Regional { worker: Rc::clone(&self.worker), cluster, tries: Rc::clone(record.tries()) };
        let response = match cached {
            Some((cache, (key, resource))) if for_cache => {
                let wish = Wish { head: outgoing.head, resource, key };
                let answered = respond(cache, &origin, wish, &shared.metrics).await?;
                record.note_cache(answered.status);
                record.note_answer(&answered.who);
                answered.response
            }
            cached => {
                let method = outgoing.head.method.clone();
                let Fetched { response, who } = origin.forward(&outgoing).await?;
                record.note_answer(&who);
                if let Some((cache, (_, resource))) = cached {
                    record.note_cache(CacheStatus::forwarded(Forwarded::Method));
                    invalidate(cache, &id, &resource, &method, &response);
                }
                response
            }
        };
        Ok(response.map(|body| body.holding(admission)))
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

/// The virtual host's id, and who serves the path.
fn route(shared: &Shared, host: &str, path: &str) -> Result<(String, Arc<Cluster>), Refusal> {
    let snapshot = shared.views.load();
    let host = snapshot.hosts.find_normal(host).ok_or(Refusal::edge(Reason::UnknownHost))?;
    let name = &host.route(path).ok_or(Refusal::edge(Reason::NoRoute))?.cluster;
    // The route's record may be here before its cluster's.
    let cluster = snapshot.clusters.get(name).cloned().ok_or(Refusal::edge(Reason::NoRegion))?;
    Ok((host.id.clone(), cluster))
}

/// What a request is for, as the cache sees it. The instance is told the authority as the client wrote it, so that is in the key.
fn resource(exchange: &Exchange, host: &str, id: &str, cluster: &Cluster) -> (Key, Resource) {
    let target = exchange.request.uri().path_and_query().map_or("/", |target| target.as_str());
    let name = &cluster.to.name;
    let resource = Resource {
        app: format!("{}/{}", name.org, name.app).into(),
        host: host.into(),
        authority: exchange.authority().into(),
        target: target.into(),
    };
    (Key::resource(id, exchange.authority(), target), resource)
}

/// Forgets what a change has made unusable.
fn invalidate(cache: &Cache, id: &str, resource: &Resource, method: &Method, response: &Response<Body>) {
    let Resource { authority, target, .. } = resource;
    for target in invalidated(method, "https", authority, target, response.status(), response.headers()) {
        cache.index.remove(&Key::resource(id, authority, &target));
    }
}

/// The service's instances, in whichever region.
#[derive(Debug, Clone)]
struct Regional {
    worker: Rc<Worker>,
    cluster: Arc<Cluster>,
    /// Of the request on whose behalf it is asked.
    tries: Rc<Tries>,
}

impl Regional {
    async fn forward(&self, outgoing: &Outgoing) -> Result<Fetched, InternalAnswer> {
        let Cluster { to, regions } = &*self.cluster;
        let said = || self.worker.shared.views.load().summaries.of(&to.text).cloned();
        let answered = self.worker.regions.forward(said, regions, outgoing, &self.tries).await?;
        Ok(finish(answered.response))
    }
}

impl Origin for Regional {
    async fn fetch(&self, head: request::Parts) -> Result<Fetched, InternalAnswer> {
        self.forward(&Outgoing::new(head, Body::empty(), Arc::clone(&self.cluster.to))).await
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
    Ok(Outgoing::new(head, body, Arc::clone(&cluster.to)))
}

/// The instance's answer as the client gets it, and apart from it what the hops say.
fn finish(mut response: Response<Body>) -> Fetched {
    let fields = response.headers_mut();
    let mut who = HeaderMap::new();
    for name in Record::TOLD {
        if let Some(value) = fields.remove(&name) {
            who.insert(name, value);
        }
    }
    headers::strip_hop_by_hop(fields);
    headers::strip_internal(fields);
    Fetched { response, who }
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
