//! Summaries: an app as it runs, the CA, whether the platform is ready, what is held back.

use super::apps::app_name;
use super::deploys::status as deploy_status;
use super::lists::{InstanceView, ServiceView, instances_of, services_of};
use super::{Api, Problem};
use crate::apps::{Caller, Refusal};
use crate::reconciler::progress::DeployStatus;
use crate::store::objects::App;
use atoll_model::Role;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An app as it runs.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct AppStatus {
    id: String,
    app: String,
    created_ms: u64,
    /// Where its public services answer.
    urls: Vec<String>,
    /// The running or last deploy.
    deploy: Option<DeployStatus>,
    services: Vec<ServiceView>,
    instances: Vec<InstanceView>,
    /// The live edges.
    edges: Vec<EdgeView>,
}

/// An edge.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct EdgeView {
    node: String,
    site: String,
    http_address: String,
    https_address: String,
}

/// Whether the platform can serve.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Ready {
    /// In every region.
    ready: bool,
    regions: BTreeMap<String, RegionReady>,
    /// Live edges that hold a line to control, in any region.
    edges: usize,
    /// Removals that wait for a confirmation.
    held: usize,
}

/// A region's chain, as far as control sees it: nodes that are alive and not draining.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
pub(super) struct RegionReady {
    warm: bool,
    edge: bool,
    gateway: bool,
    host: bool,
}

#[utoipa::path(get, path = "/v1/status/{app}", params(("app" = String, Path,)),
    responses((status = 200, body = AppStatus), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn app(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(app): Path<String>,
) -> Result<Json<AppStatus>, Problem> {
    let app = app_name(&app)?;
    let found = api.store.get::<App>(&format!("{}/{app}", caller.org));
    let stored = found.ok_or_else(|| Problem::from(Refusal::NoApp(app.clone())))?;
    let prefix = format!("{}/{app}/", caller.org);
    let services = services_of(&api, &prefix);
    let world = api.world();
    let edges = world.alive_with(Role::Edge).map(|(name, seen)| EdgeView {
        node: name.to_string(),
        site: seen.facts.site.clone(),
        http_address: seen.facts.edge_http_address.clone(),
        https_address: seen.facts.edge_https_address.clone(),
    });
    Ok(Json(AppStatus {
        id: stored.id.to_string(),
        app: app.to_string(),
        created_ms: stored.created_ms,
        urls: services.iter().filter_map(|service| service.url.clone()).collect(),
        deploy: deploy_status(&api, &caller, stored.deploy.as_str()).ok(),
        instances: instances_of(&api, &prefix),
        edges: edges.collect(),
        services,
    }))
}

#[utoipa::path(get, path = "/v1/ca", responses((status = 200, description = "the mesh CA's state", body = Object)))]
pub(super) async fn ca(State(api): State<Api>) -> Json<serde_json::Value> {
    let mut status = serde_json::to_value(api.ca.status()).unwrap_or_default();
    let lifetimes = api.ca.lifetimes();
    status["node_lifetime_s"] = lifetimes.node.as_secs().into();
    status["workload_lifetime_s"] = lifetimes.workload.as_secs().into();
    status["roots_pem"] = atoll_identity::material::pem_certificates(&api.ca.roots()).into();
    Json(status)
}

#[utoipa::path(get, path = "/v1/ready",
    responses((status = 200, body = Ready), (status = 503, body = Ready)))]
pub(super) async fn ready(State(api): State<Api>) -> Response {
    let world = api.world();
    let mut regions: BTreeMap<String, RegionReady> =
        api.config.regions.iter().map(|region| (region.to_string(), RegionReady::default())).collect();
    for (name, seen) in world.nodes.iter().filter(|(_, seen)| seen.alive && !seen.facts.draining) {
        let Some(region) = regions.get_mut(seen.region.as_str()) else { continue };
        region.edge |= seen.roles.has(Role::Edge) && api.attached.is_attached(name);
        region.gateway |= seen.roles.has(Role::Gateway) && !seen.facts.gateway_address.is_empty();
        region.host |= seen.roles.has(Role::Host) && api.attached.is_attached(name);
    }
    let edges = world.alive_with(Role::Edge).filter(|(name, _)| api.attached.is_attached(name)).count();
    for region in regions.values_mut() {
        // An edge elsewhere can serve a region without one.
        region.warm = region.gateway && region.host && edges > 0;
    }
    let ready = !regions.is_empty() && regions.values().all(|region| region.warm);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready, regions, edges, held: api.held.count() })).into_response()
}

#[utoipa::path(get, path = "/v1/held", responses((status = 200, description =
    "records that gossip holds and the store does not, whose removal waits", body = Vec<String>)))]
pub(super) async fn held(State(api): State<Api>) -> Json<Vec<String>> {
    Json(api.held.names())
}

/// How many records somebody has looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Confirmed {
    count: Option<usize>,
}

#[utoipa::path(post, path = "/v1/held/confirm",
    params(("count" = Option<u64>, Query, description = "only if so many are held back now")),
    responses((status = 202, description = "they are removed now"), (status = 409, body = Problem)))]
pub(super) async fn confirm_held(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(Confirmed { count: wanted }): Query<Confirmed>,
) -> Result<(StatusCode, Json<serde_json::Value>), Problem> {
    let count = api.held.count();
    if wanted.is_some_and(|wanted| wanted != count) {
        let detail = format!("{count} records are held back now: look at them again");
        return Err(Problem::conflict("count-differs", "It has changed", detail));
    }
    tracing::warn!(count, by = caller.name, "held removals confirmed");
    api.held.confirm();
    Ok((StatusCode::ACCEPTED, Json(serde_json::json!({ "confirmed": count }))))
}
