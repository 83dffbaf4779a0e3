//! Domains, their certificates, and where they lead.

use super::apps::app_name;
use super::changes::{Request, change, decode};
use super::pages::Part;
use super::{Api, Problem};
use crate::apps::Caller;
use crate::apps::domains::{self, DomainRefusal};
use crate::certificates::EXPIRING_MS;
use crate::certificates::upload::{DomainFault, check, own_domain};
use crate::reconciler::progress::EdgeStatus;
use crate::store::Page;
use crate::store::objects::{App, Domain, Revision, Service};
use atoll_model::{AppName, Role, ServiceName};
use atoll_process::clock::unix_ms;
use atoll_wire::node::CanServe;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use axum::{Extension, Json};
use http::{HeaderMap, Method, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Longest wait for one edge's answer.
const EDGE_ANSWER: Duration = Duration::from_secs(2);

/// A public domain.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct DomainView {
    domain: String,
    app: String,
    service: String,
    url: String,
    /// The organization's own, with an uploaded certificate.
    own: bool,
    /// Whether its service is there and public, so that edges serve it.
    served: bool,
    certificate_fingerprint: String,
    certificate_not_after_ms: u64,
    /// `valid`, `expiring` (soon, and nobody but its owner can renew it) or `expired`.
    certificate_state: &'static str,
}

/// A domain, and whether the edges serve it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct DomainDetail {
    #[serde(flatten)]
    domain: DomainView,
    /// What each live edge says.
    edges: BTreeMap<String, EdgeStatus>,
}

/// A domain that was taken.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct DomainTaken {
    #[serde(flatten)]
    domain: DomainView,
    /// It was there already, and has a new certificate.
    replaced: bool,
    /// The desired state that edges must have to serve it.
    version: u64,
    /// Where a CNAME record for it is to point.
    target: Option<String>,
}

/// A domain of the organization's own, with its certificate.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DomainWish {
    /// The app behind it.
    #[schema(value_type = String)]
    app: AppName,
    /// The public service behind it; the app's main one by default.
    #[schema(value_type = Option<String>)]
    #[serde(default)]
    service: Option<ServiceName>,
    /// The domain's certificate and those of its issuers, in that order: PEM.
    certificate_pem: String,
    /// The private key: PEM, without a passphrase.
    key_pem: String,
}

/// Where requests for a domain go.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct RouteView {
    domain: String,
    /// This path, and what is below it.
    path: &'static str,
    app: String,
    service: String,
    /// Regions in which instances of it may be.
    regions: Vec<String>,
    own: bool,
    /// Whether edges serve it.
    served: bool,
    /// How many rules of the cache are for the domain.
    cache_rules: usize,
}

/// What edges must have applied.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Version {
    version: u64,
}

fn view(api: &Api, domain: Domain, now_ms: u64) -> DomainView {
    let left_ms = domain.not_after_ms.saturating_sub(now_ms);
    DomainView {
        app: domain.cluster.app.to_string(),
        service: domain.cluster.service.to_string(),
        url: api.config.url(&domain.domain),
        own: domain.own,
        served: target(api, &domain).is_some_and(|revision| revision.spec.public),
        certificate_state: match left_ms {
            0 => "expired",
            left if domain.own && left < EXPIRING_MS => "expiring",
            _ => "valid",
        },
        domain: domain.domain,
        certificate_fingerprint: domain.fingerprint,
        certificate_not_after_ms: domain.not_after_ms,
    }
}

fn target(api: &Api, domain: &Domain) -> Option<Revision> {
    let service = api.store.get::<Service>(&domain.cluster.to_string())?;
    api.store.get::<Revision>(&Revision::tail(&service.cluster, service.target.as_ref()?))
}

fn cache_rules(api: &Api, domain: &Domain) -> usize {
    let app = api.store.get::<App>(&format!("{}/{}", domain.org, domain.cluster.app));
    let hosts = app.iter().flat_map(|app| &app.hosts);
    let of_domain = hosts.filter(|host| host.domains.is_empty() || host.domains.contains(&domain.domain));
    of_domain.map(|host| host.cache.len()).sum()
}

fn page(api: &Api, caller: &Caller, part: &Part) -> Result<Page<Domain>, Problem> {
    match &part.app {
        Some(app) => part.of_found(api.store.filed(&format!("{}/{app}/", caller.org)), caller),
        None => part.of(&api.store, caller),
    }
}

#[utoipa::path(get, path = "/v1/domains", params(("app" = Option<String>, Query,),
        ("limit" = Option<u64>, Query, description = "how many at most; 1000 by default, and at most"),
        ("after" = Option<String>, Query, description = "only what comes after this; see the field `Link`")),
    responses((status = 200, body = Vec<DomainView>, description =
        "where there is more, the field `Link` names the next page (`rel=\"next\"`)"),
        (status = 422, body = Problem)))]
pub(super) async fn list(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(part): Query<Part>,
) -> Result<Response, Problem> {
    let now_ms = unix_ms();
    let page = page(&api, &caller, &part)?;
    Ok(part.answer("/v1/domains", &caller, page, |domain| view(&api, domain, now_ms)))
}

#[utoipa::path(get, path = "/v1/routes", params(("app" = Option<String>, Query,),
        ("limit" = Option<u64>, Query, description = "how many at most; 1000 by default, and at most"),
        ("after" = Option<String>, Query, description = "only what comes after this; see the field `Link`")),
    responses((status = 200, body = Vec<RouteView>, description =
        "where there is more, the field `Link` names the next page (`rel=\"next\"`)"),
        (status = 422, body = Problem)))]
pub(super) async fn routes(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(part): Query<Part>,
) -> Result<Response, Problem> {
    let page = page(&api, &caller, &part)?;
    let view = |domain: Domain| {
        let revision = target(&api, &domain);
        let regions = revision.iter().flat_map(|revision| revision.spec.regions.keys());
        RouteView {
            path: "/",
            app: domain.cluster.app.to_string(),
            service: domain.cluster.service.to_string(),
            regions: regions.map(ToString::to_string).collect(),
            own: domain.own,
            served: revision.is_some_and(|revision| revision.spec.public),
            cache_rules: cache_rules(&api, &domain),
            domain: domain.domain,
        }
    };
    Ok(part.answer("/v1/routes", &caller, page, view))
}

#[utoipa::path(get, path = "/v1/domains/{domain}",
    params(("domain" = String, Path,), ("version" = Option<u64>, Query, description =
        "edges that have not applied this desired state do not count as serving")),
    responses((status = 200, body = DomainDetail), (status = 404, body = Problem)))]
pub(super) async fn show(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(domain): Path<String>,
    Query(Version { version }): Query<Version>,
) -> Result<Json<DomainDetail>, Problem> {
    let name = domain.trim_end_matches('.').to_ascii_lowercase();
    let stored = api.store.get::<Domain>(&format!("{}/{name}", caller.org));
    let stored = stored
        .filter(|stored| stored.domain == name)
        .ok_or_else(|| Problem::not_found(format!("there is no domain `{}`", name.escape_debug())))?;
    // Any name under a wildcard does: one that hardly anyone has.
    let asked =
        name.strip_prefix("*.").map_or_else(|| name.clone(), |parent| format!("atoll-check.{parent}"));
    let world = api.world();
    let edges: Vec<_> = world.alive_with(Role::Edge).map(|(name, _)| name.clone()).collect();
    let service = api.store.get::<Service>(&stored.cluster.to_string());
    let wanted = target(&api, &stored).zip(service).map(|(revision, service)| {
        let regions = revision.spec.regions.iter();
        regions.map(|(region, bounds)| u64::from(service.wanted(region, *bounds))).sum::<u64>()
    });
    let question = CanServe {
        domain: asked,
        version,
        placed_nowhere: wanted == Some(0),
        fingerprint: stored.fingerprint.clone(),
    };
    let questions = edges.into_iter().map(|edge| {
        let (api, question) = (&api, question.clone());
        async move {
            let answer = api.attached.ask_whether_it_serves(&edge, question, EDGE_ANSWER).await;
            let detail = answer.as_ref().err().map(ToString::to_string).unwrap_or_default();
            (edge.to_string(), EdgeStatus { serves: answer.is_ok(), detail })
        }
    });
    let edges = futures_util::future::join_all(questions).await.into_iter().collect();
    Ok(Json(DomainDetail { domain: view(&api, stored, unix_ms()), edges }))
}

#[utoipa::path(put, path = "/v1/domains/{domain}",
    params(("domain" = String, Path,), ("Idempotency-Key" = Option<String>, Header,)),
    request_body = DomainWish,
    responses((status = 200, body = DomainTaken, description = "its certificate was replaced"),
        (status = 201, body = DomainTaken), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn put(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(domain): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let DomainWish { app, service, certificate_pem, key_pem } = decode(&body)?;
    let app = app_name(app.as_str())?;
    let domain = own_domain(&domain, &api.config.zone)?;
    let checked = check(&domain, &certificate_pem, &key_pem, unix_ms());
    let uploaded = checked.map_err(|fault| {
        Problem::invalid(fault.place(), fault.to_string()).with_code("certificate-refused")
    })?;
    let (context, of_api) = (api.context(), api.clone());
    let request =
        Request { caller: caller.clone(), headers: &headers, method: Method::PUT, uri: &uri, body: &body };
    change(&api, request, move |change| {
        let wish = (domain.as_str(), &app, service.as_ref());
        let added = domains::add(change, &context, &caller, wish, &uploaded)?;
        caller.asked.note(&format!("app {app}, certificate {}", added.domain.fingerprint));
        let main = domains::of_app(change, &caller.org, &app).into_iter();
        let target = main.filter(|other| !other.own).find(|other| other.cluster == added.domain.cluster);
        let taken = DomainTaken {
            replaced: added.replaced,
            version: added.version,
            target: target.map(|target| target.domain),
            // Its service is public: that was checked.
            domain: DomainView { served: true, ..view(&of_api, added.domain, context.now_ms) },
        };
        Ok((if taken.replaced { StatusCode::OK } else { StatusCode::CREATED }, taken))
    })
    .await
}

#[utoipa::path(delete, path = "/v1/domains/{domain}",
    params(("domain" = String, Path,), ("Idempotency-Key" = Option<String>, Header,)),
    responses((status = 200, body = Object), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn remove(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(domain): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let context = api.context();
    let request =
        Request { caller: caller.clone(), headers: &headers, method: Method::DELETE, uri: &uri, body: &[] };
    change(&api, request, move |change| {
        let domain = domain.trim_end_matches('.').to_ascii_lowercase();
        domains::remove(change, &context, &caller, &domain)?;
        Ok((StatusCode::OK, serde_json::json!({ "domain": domain, "removed": true })))
    })
    .await
}

impl From<DomainFault> for Problem {
    fn from(fault: DomainFault) -> Self {
        let text = fault.to_string();
        match fault {
            DomainFault::Name(_) => Self::invalid("domain", text),
            DomainFault::Zone(..) | DomainFault::Internal(_) => {
                Self::new(StatusCode::CONFLICT, "domain-of-platform", "The name is the platform's", text)
            }
        }
    }
}

impl From<DomainRefusal> for Problem {
    fn from(refusal: DomainRefusal) -> Self {
        let text = refusal.to_string();
        let conflict = |code, title| Self::new(StatusCode::CONFLICT, code, title, text.clone());
        match refusal {
            DomainRefusal::NoApp(_) | DomainRefusal::Missing(_) => Self::not_found(text),
            DomainRefusal::NoService(_) => Self::invalid("service", text),
            DomainRefusal::Taken(_) => conflict("domain-taken", "The domain is taken"),
            DomainRefusal::TooMany => conflict("too-many-domains", "Too many domains"),
            DomainRefusal::OfPlatform(_) => conflict("domain-of-platform", "The name is the platform's"),
            DomainRefusal::Store(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests;
