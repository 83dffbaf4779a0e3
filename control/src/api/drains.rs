//! Draining nodes and regions, and how far that is.

use super::changes::{Request, change};
use super::{Api, Problem};
use crate::apps::{Caller, drains};
use crate::store::objects::{DrainWish, Drained, Node, Placement, PlacementState};
use crate::world::World;
use atoll_model::{NameError, NodeName, OrgName, RegionName, Role, Roles};
use atoll_process::clock::unix_ms;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::{Extension, Json};
use http::{HeaderMap, Method, StatusCode, Uri};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What an operator has drained.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct DrainView {
    /// `node` or `region`.
    kind: &'static str,
    name: String,
    by: String,
    since_ms: u64,
    nodes: Vec<DrainedNode>,
}

/// A drained node.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct DrainedNode {
    name: String,
    region: String,
    #[schema(value_type = Vec<String>)]
    roles: Roles,
    alive: bool,
    /// It says itself that it takes nothing new.
    heard: bool,
    /// Instances that still move to other hosts, or finish what they have.
    moving: usize,
    /// Instances for which its region has no other host.
    stay: Vec<Staying>,
    /// It can be stopped: what it served, others do, but for what stays.
    safe: bool,
}

/// An instance that stays.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Staying {
    instance: String,
    /// `org/app/service`.
    cluster: String,
    /// Its service has healthy instances on hosts that are not drained.
    elsewhere: bool,
}

/// A wish of an operator's that was stored.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct DrainAnswer {
    kind: &'static str,
    name: String,
    drained: bool,
    /// The region of a node that stays drained with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    with_region: Option<String>,
}

#[utoipa::path(get, path = "/v1/drains", responses((status = 200, body = Vec<DrainView>)))]
pub(super) async fn list(State(api): State<Api>) -> Json<Vec<DrainView>> {
    let wishes = api.store.list::<DrainWish>("");
    if wishes.is_empty() {
        return Json(Vec::new());
    }
    let picture = Picture::of(&api);
    let view = |wish: DrainWish| {
        let (kind, name) = named(&wish.what);
        let concerns = |node: &&Node| {
            picture.drained.contains(&node.name)
                && match &wish.what {
                    Drained::Node(name) => node.name == *name,
                    Drained::Region(region) => node.region == *region,
                }
        };
        let nodes = picture.nodes.iter().filter(concerns).map(|node| picture.node(node)).collect();
        DrainView { kind, name, by: wish.by, since_ms: wish.since_ms, nodes }
    };
    Json(wishes.into_iter().map(view).collect())
}

/// What the answer is made of, read once.
struct Picture {
    world: std::sync::Arc<World>,
    nodes: Vec<Node>,
    drained: BTreeSet<NodeName>,
    placements: BTreeMap<NodeName, Vec<Placement>>,
    /// Clusters with healthy instances on hosts that are not drained.
    elsewhere: BTreeSet<String>,
}

impl Picture {
    fn of(api: &Api) -> Self {
        let world = api.world();
        let drained: BTreeSet<NodeName> = drains::drained_nodes(&api.store).into_keys().collect();
        let mut placements = BTreeMap::<NodeName, Vec<Placement>>::new();
        let mut elsewhere = BTreeSet::new();
        for placement in api.store.list::<Placement>("") {
            if drained.contains(&placement.host) {
                placements.entry(placement.host.clone()).or_default().push(placement);
                continue;
            }
            let seen = world.instances.get(&placement.instance);
            let healthy = seen.is_some_and(|seen| seen.state.as_str() == "healthy");
            if placement.state == PlacementState::Run && healthy && world.is_alive(&placement.host) {
                elsewhere.insert(placement.cluster.to_string());
            }
        }
        Self { world, nodes: api.store.list::<Node>(""), drained, placements, elsewhere }
    }

    fn node(&self, node: &Node) -> DrainedNode {
        let seen = self.world.nodes.get(&node.name);
        let here = self.placements.get(&node.name).map_or(&[][..], Vec::as_slice);
        let takes = |name: &NodeName| !self.drained.contains(name);
        let mut hosts = self.world.nodes.iter().filter(|(_, seen)| seen.region == node.region);
        let other_host = hosts.any(|(name, seen)| seen.takes_instances() && takes(name));
        let (stay, move_): (Vec<&Placement>, Vec<&Placement>) =
            here.iter().partition(|placement| !other_host && placement.state == PlacementState::Run);
        let alive = seen.is_some_and(|seen| seen.alive);
        let heard = seen.is_some_and(|seen| seen.facts.draining);
        let staying = |placement: &Placement| Staying {
            instance: placement.instance.to_string(),
            cluster: placement.cluster.to_string(),
            elsewhere: self.elsewhere.contains(&placement.cluster.to_string()),
        };
        DrainedNode {
            name: node.name.to_string(),
            region: node.region.to_string(),
            roles: node.roles,
            alive,
            heard,
            moving: move_.len(),
            stay: stay.into_iter().map(staying).collect(),
            safe: (heard || !alive) && move_.is_empty(),
        }
    }
}

fn named(what: &Drained) -> (&'static str, String) {
    match what {
        Drained::Node(name) => ("node", name.to_string()),
        Drained::Region(name) => ("region", name.to_string()),
    }
}

#[utoipa::path(put, path = "/v1/nodes/{name}/drain",
    params(("name" = String, Path,), ("Idempotency-Key" = Option<String>, Header,)),
    responses((status = 200, body = DrainAnswer), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn node_on(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    set(&api, caller, Drained::Node(parse("name", &name)?), (Method::PUT, &uri, &headers)).await
}

#[utoipa::path(delete, path = "/v1/nodes/{name}/drain",
    params(("name" = String, Path,), ("Idempotency-Key" = Option<String>, Header,)),
    responses((status = 200, body = DrainAnswer), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn node_off(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    set(&api, caller, Drained::Node(parse("name", &name)?), (Method::DELETE, &uri, &headers)).await
}

#[utoipa::path(put, path = "/v1/regions/{region}/drain",
    params(("region" = String, Path,), ("Idempotency-Key" = Option<String>, Header,)),
    responses((status = 200, body = DrainAnswer), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn region_on(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(region): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    set(&api, caller, Drained::Region(parse("region", &region)?), (Method::PUT, &uri, &headers)).await
}

#[utoipa::path(delete, path = "/v1/regions/{region}/drain",
    params(("region" = String, Path,), ("Idempotency-Key" = Option<String>, Header,)),
    responses((status = 200, body = DrainAnswer), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn region_off(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(region): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    set(&api, caller, Drained::Region(parse("region", &region)?), (Method::DELETE, &uri, &headers)).await
}

fn parse<T: std::str::FromStr<Err = NameError>>(place: &str, text: &str) -> Result<T, Problem> {
    text.parse().map_err(|error: NameError| Problem::invalid(place, error.to_string()))
}

async fn set(
    api: &Api,
    caller: Caller,
    what: Drained,
    (method, uri, headers): (Method, &Uri, &HeaderMap),
) -> Result<Response, Problem> {
    let on = method == Method::PUT;
    let regions = api.config.regions.clone();
    let now_ms = unix_ms();
    let by = caller.name.clone();
    let request = Request { caller, headers, method, uri, body: &[] };
    change(api, request, move |change| {
        let region = region_of(change, &regions, &what)?;
        let (kind, name) = named(&what);
        let mut answer = DrainAnswer { kind, name, drained: on, with_region: None };
        if on {
            tracing::warn!(kind, name = answer.name, by, "drained");
            drains::drain(change, DrainWish { what, by, since_ms: now_ms }, &region)?;
        } else {
            let was_drained = drains::end(change, &what, &region);
            tracing::warn!(kind, name = answer.name, by, was_drained, "the drain is over");
            let whole = Drained::Region(region.clone()).to_string();
            let still = matches!(what, Drained::Node(_)) && change.get::<DrainWish>(&whole).is_some();
            answer.with_region = still.then(|| region.to_string());
            answer.drained = still;
        }
        Ok((StatusCode::OK, answer))
    })
    .await
}

/// The region that a wish is about, where there is what it names.
fn region_of(
    change: &crate::store::Change<'_>,
    regions: &[RegionName],
    what: &Drained,
) -> Result<RegionName, Problem> {
    match what {
        Drained::Region(region) if regions.contains(region) => Ok(region.clone()),
        Drained::Region(region) => {
            let known = regions.iter().map(RegionName::as_str).collect::<Vec<_>>().join(", ");
            Err(Problem::not_found(format!("there is no region `{region}`; the regions are {known}")))
        }
        Drained::Node(name) => {
            let stored = change.get::<Node>(&format!("{}/{name}", OrgName::default_org()));
            let node = stored
                .filter(|node| !node.removed)
                .ok_or_else(|| Problem::not_found(format!("there is no node `{name}`")))?;
            if node.roles == Roles::NONE.with(Role::Control) {
                let detail = "this is the control node: it serves no requests that could go elsewhere";
                return Err(Problem::new(StatusCode::CONFLICT, "control-node", "Not drainable", detail));
            }
            Ok(node.region)
        }
    }
}

#[cfg(test)]
mod tests;
