//! Services, revisions, instances.

use super::pages::Part;
use super::{Api, Problem};
use crate::apps::Caller;
use crate::apps::plan::changed_fields;
use crate::store::objects::{Domain, Placement, PlacementState, Revision, Service};
use crate::world::Observed;
use axum::Extension;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::Serialize;

/// A service.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ServiceView {
    pub(super) id: String,
    pub(super) app: String,
    pub(super) service: String,
    /// `org/app/service`.
    pub(super) cluster: String,
    /// What it should run now.
    pub(super) revision: Option<String>,
    /// Counts up with each deploy.
    pub(super) number: Option<u64>,
    /// What the last successful deploy gave it.
    pub(super) last_good: Option<String>,
    pub(super) public: bool,
    pub(super) url: Option<String>,
    /// Wanted instances by region.
    pub(super) regions: std::collections::BTreeMap<String, RegionView>,
}

/// A service in a region.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
pub(super) struct RegionView {
    pub(super) min: u32,
    pub(super) max: u32,
    /// How many are to run: `min`, or what `atoll scale` asked for.
    pub(super) wanted: u32,
    pub(super) placed: usize,
    pub(super) healthy: usize,
}

/// A revision.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct RevisionView {
    id: String,
    app: String,
    service: String,
    number: u64,
    created_ms: u64,
    /// Whose token deployed it.
    by: String,
    /// `running` (it is what the service is to run), `previous` (it can run again) or `failed`.
    state: &'static str,
    /// What differs from the revision before it that is kept; none for the oldest of those.
    changed: Vec<&'static str>,
    #[schema(value_type = Object)]
    spec: atoll_model::ServiceSpec,
}

/// An instance: where it was placed, and what its host says of it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct InstanceView {
    pub(super) id: String,
    pub(super) app: String,
    pub(super) service: String,
    pub(super) revision: String,
    pub(super) region: String,
    pub(super) host: String,
    /// `placed` (its host has not reported it), `starting`, `healthy`, `unhealthy`, `draining`, `exited`,
    /// `stopped`, or `unknown` (its host is not alive).
    pub(super) state: &'static str,
    /// Whether it is being drained.
    pub(super) draining: bool,
    pub(super) placed_ms: u64,
    pub(super) started_ms: Option<u64>,
    pub(super) restarts: Option<u32>,
    pub(super) pid: Option<u32>,
    pub(super) sidecar_pid: Option<u32>,
    pub(super) port: Option<u32>,
    pub(super) sidecar_address: Option<String>,
    /// Why it is not healthy.
    pub(super) detail: String,
    pub(super) last_exit: Option<ExitView>,
}

/// How a process ended.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ExitView {
    status: i32,
    signal: i32,
    at_ms: u64,
    start_error: String,
    output_tail: String,
}

pub(super) fn services_of(api: &Api, prefix: &str) -> Vec<ServiceView> {
    api.store.list::<Service>(prefix).into_iter().map(service_view(api)).collect()
}

fn service_view(api: &Api) -> impl FnMut(Service) -> ServiceView {
    let world = api.world();
    move |service: Service| {
        let id = service.target.as_ref();
        let revision = id.and_then(|id| api.store.get::<Revision>(&Revision::tail(&service.cluster, id)));
        let mut regions = std::collections::BTreeMap::<String, RegionView>::new();
        for (region, scale) in revision.iter().flat_map(|revision| &revision.spec.regions) {
            let wanted = service.wanted(region, *scale);
            let view = RegionView { min: scale.min, max: scale.max, wanted, ..RegionView::default() };
            regions.insert(region.to_string(), view);
        }
        for placement in api.store.list::<Placement>(&format!("{}/", service.cluster)) {
            let region = regions.entry(placement.region.to_string()).or_default();
            let seen = world.instances.get(&placement.instance);
            region.placed += 1;
            region.healthy += usize::from(
                seen.is_some_and(|seen| seen.state.as_str() == "healthy") && world.is_alive(&placement.host),
            );
        }
        let domains = api.store.filed_tails::<Domain>(&format!("{}/", service.cluster));
        // The platform's own name: it is there for as long as the service is.
        let zone = format!(".{}", api.config.zone);
        let mut names = domains.iter().filter_map(|tail| Some(tail.split_once('/')?.1));
        let domain = names.find(|name| name.ends_with(&zone));
        ServiceView {
            id: service.id.to_string(),
            app: service.cluster.app.to_string(),
            service: service.cluster.service.to_string(),
            cluster: service.cluster.to_string(),
            revision: service.target.map(String::from),
            number: revision.as_ref().map(|revision| revision.number),
            last_good: service.current.map(String::from),
            public: revision.is_some_and(|revision| revision.spec.public),
            url: domain.map(|domain| api.config.url(domain)),
            regions,
        }
    }
}

pub(super) fn instances_of(api: &Api, prefix: &str) -> Vec<InstanceView> {
    api.store.list::<Placement>(prefix).into_iter().map(placement_view(api)).collect()
}

fn placement_view(api: &Api) -> impl FnMut(Placement) -> InstanceView {
    let world = api.world();
    move |placement: Placement| {
        let seen = world.instances.get(&placement.instance).filter(|seen| seen.host == placement.host);
        let state = match seen {
            _ if !world.is_alive(&placement.host) => "unknown",
            None => "placed",
            Some(seen) => seen.state.as_str(),
        };
        instance_view(placement, seen, state)
    }
}

fn instance_view(placement: Placement, seen: Option<&Observed>, state: &'static str) -> InstanceView {
    let facts = seen.map(|seen| &seen.facts);
    let exit = facts.and_then(|facts| facts.last_exit.as_ref());
    InstanceView {
        id: placement.instance.to_string(),
        app: placement.cluster.app.to_string(),
        service: placement.cluster.service.to_string(),
        revision: placement.revision.to_string(),
        region: placement.region.to_string(),
        host: placement.host.to_string(),
        state,
        draining: placement.state == PlacementState::Drain,
        placed_ms: placement.placed_ms,
        started_ms: facts.map(|facts| facts.started_ms),
        restarts: facts.map(|facts| facts.restarts),
        pid: facts.map(|facts| facts.pid),
        sidecar_pid: facts.map(|facts| facts.sidecar_pid),
        port: facts.map(|facts| facts.port),
        sidecar_address: facts.map(|facts| facts.sidecar_address.clone()),
        detail: facts.map_or_else(String::new, |facts| facts.detail.clone()),
        last_exit: exit.map(|exit| ExitView {
            status: exit.status,
            signal: exit.signal,
            at_ms: exit.at_ms,
            start_error: exit.start_error.clone(),
            output_tail: exit.output_tail.clone(),
        }),
    }
}

#[utoipa::path(get, path = "/v1/services", params(("app" = Option<String>, Query,),
        ("limit" = Option<u64>, Query, description = "how many at most; 1000 by default, and at most"),
        ("after" = Option<String>, Query, description = "only what comes after this; see the field `Link`")),
    responses((status = 200, body = Vec<ServiceView>, description =
        "where there is more, the field `Link` names the next page (`rel=\"next\"`)"),
        (status = 422, body = Problem)))]
pub(super) async fn services(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(part): Query<Part>,
) -> Result<Response, Problem> {
    let page = part.of(&api.store, &caller)?;
    Ok(part.answer("/v1/services", &caller, page, service_view(&api)))
}

#[utoipa::path(get, path = "/v1/revisions", params(("app" = Option<String>, Query,),
        ("limit" = Option<u64>, Query, description = "how many at most; 1000 by default, and at most"),
        ("after" = Option<String>, Query, description = "only what comes after this; see the field `Link`")),
    responses((status = 200, body = Vec<RevisionView>, description =
        "where there is more, the field `Link` names the next page (`rel=\"next\"`)"),
        (status = 422, body = Problem)))]
pub(super) async fn revisions(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(part): Query<Part>,
) -> Result<Response, Problem> {
    let page = part.of(&api.store, &caller)?;
    // What the first is compared with was on the page before.
    let mut before = part.after(&caller).and_then(|tail| api.store.get::<Revision>(&tail));
    let view = |revision: Revision| {
        let service = api.store.get::<Service>(&revision.cluster.to_string());
        let is_target = service.is_some_and(|service| service.target.as_ref() == Some(&revision.id));
        let same_service = before.replace(revision.clone()).filter(|old| old.cluster == revision.cluster);
        RevisionView {
            id: revision.id.to_string(),
            app: revision.cluster.app.to_string(),
            service: revision.cluster.service.to_string(),
            number: revision.number,
            created_ms: revision.created_ms,
            by: revision.by,
            changed: same_service.map(|old| changed_fields(&old.spec, &revision.spec)).unwrap_or_default(),
            state: match (revision.failed, is_target) {
                (_, true) => "running",
                (true, false) => "failed",
                (false, false) => "previous",
            },
            spec: revision.spec,
        }
    };
    Ok(part.answer("/v1/revisions", &caller, page, view))
}

#[utoipa::path(get, path = "/v1/instances", params(("app" = Option<String>, Query,),
        ("limit" = Option<u64>, Query, description = "how many at most; 1000 by default, and at most"),
        ("after" = Option<String>, Query, description = "only what comes after this; see the field `Link`")),
    responses((status = 200, body = Vec<InstanceView>, description =
        "where there is more, the field `Link` names the next page (`rel=\"next\"`)"),
        (status = 422, body = Problem)))]
pub(super) async fn instances(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(part): Query<Part>,
) -> Result<Response, Problem> {
    let page = part.of(&api.store, &caller)?;
    Ok(part.answer("/v1/instances", &caller, page, placement_view(&api)))
}
