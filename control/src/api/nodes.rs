//! Nodes: what they say of themselves, and removing one.

use super::changes::{Request, change};
use super::{Api, Problem};
use crate::apps::{Caller, drains, records};
use crate::store::objects::{Drained, Node};
use atoll_identity::SpiffeId;
use atoll_model::{NodeName, Role, Roles};
use atoll_wire::record::Denial;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::{Extension, Json};
use http::{HeaderMap, Method, StatusCode, Uri};
use serde::Serialize;
use std::collections::BTreeSet;

/// A node.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct NodeView {
    pub(super) name: String,
    pub(super) site: String,
    pub(super) region: String,
    #[schema(value_type = Vec<String>)]
    pub(super) roles: Roles,
    /// In one word: `alive`; `drained` (by an operator); `draining` (it is being stopped, or has not
    /// followed the operator yet); `stale` (it does not apply what control said last); `detached` (gossip
    /// hears it, but it has no line to control); `gone` (nobody hears it); `removed`.
    pub(super) state: &'static str,
    /// Membership has it alive.
    alive: bool,
    /// It holds a line to control.
    attached: bool,
    removed: bool,
    /// It says that it takes nothing new.
    draining: bool,
    /// An operator has drained it, or its region.
    drained: Option<DrainedBy>,
    /// The newest desired state it has applied.
    applied_version: u64,
    applied_ms: u64,
    /// The newest desired state that it should apply.
    desired_version: u64,
    /// It is not alive, or has not applied the newest desired state.
    stale: bool,
    /// Records that it could not apply.
    apply_errors: Vec<String>,
    gossip_address: String,
    gateway_address: String,
    edge_http_address: String,
    edge_https_address: String,
    admin_address: String,
    software_version: String,
    started_ms: u64,
    pid: u32,
    certificate_not_after_ms: u64,
    /// By how much most nodes are ahead of its clock (negative: behind), ms; 0 where it is right enough.
    clock_correction_ms: i64,
    /// When it last spoke of itself, by its clock.
    written_ms: u64,
    /// In degrees; none where it was not told.
    pub(super) latitude: Option<f64>,
    pub(super) longitude: Option<f64>,
}

/// Who drained a node.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct DrainedBy {
    by: String,
    since_ms: u64,
    /// With all of its region.
    with_region: bool,
}

#[utoipa::path(get, path = "/v1/nodes", responses((status = 200, body = Vec<NodeView>)))]
pub(super) async fn list(
    State(api): State<Api>,
    Extension(_caller): Extension<Caller>,
) -> Json<Vec<NodeView>> {
    Json(views(&api))
}

pub(super) fn views(api: &Api) -> Vec<NodeView> {
    let world = api.world();
    let desired = api.store.desired();
    let newest = |scope: &str| {
        let revisions = desired.iter().filter(|record| record.scope == scope).map(|record| record.revision);
        revisions.max().unwrap_or(0)
    };
    let stored = api.store.list::<Node>("");
    let drained = drains::drained_nodes(&api.store);
    let names: BTreeSet<&NodeName> = stored.iter().map(|node| &node.name).chain(world.nodes.keys()).collect();
    let view = |name: &NodeName| {
        let joined = stored.iter().find(|node| node.name == *name);
        let seen = world.nodes.get(name);
        let roles = seen.map(|seen| seen.roles).or_else(|| joined.map(|node| node.roles)).unwrap_or_default();
        let region = seen.map(|seen| &seen.region).or_else(|| joined.map(|node| &node.region));
        let region = region.map(ToString::to_string).unwrap_or_default();
        let facts = seen.map(|seen| seen.facts.clone()).unwrap_or_default();
        let only_host = roles == Roles::NONE.with(Role::Host);
        let desired_version = newest(if only_host { &region } else { "" });
        let alive = seen.is_some_and(|seen| seen.alive);
        let attached = api.attached.is_attached(name);
        let removed = joined.is_some_and(|node| node.removed);
        let stale = !alive || (!roles.has(Role::Control) && facts.applied_version < desired_version);
        let is =
            States { removed, alive, draining: facts.draining, drained: drained.contains_key(name), stale };
        let told = facts.latitude != 0.0 || facts.longitude != 0.0;
        NodeView {
            state: is.in_one_word(attached, roles),
            drained: drained.get(name).map(|wish| DrainedBy {
                by: wish.by.clone(),
                since_ms: wish.since_ms,
                with_region: matches!(wish.what, Drained::Region(_)),
            }),
            latitude: told.then_some(facts.latitude),
            longitude: told.then_some(facts.longitude),
            name: name.to_string(),
            site: joined.map_or_else(|| facts.site.clone(), |node| node.site.to_string()),
            region,
            roles,
            alive,
            attached,
            removed,
            draining: facts.draining,
            applied_version: facts.applied_version,
            applied_ms: facts.applied_ms,
            desired_version,
            stale,
            apply_errors: facts.apply_errors.iter().map(|e| format!("{}: {}", e.record, e.error)).collect(),
            gossip_address: facts.gossip_address,
            gateway_address: facts.gateway_address,
            edge_http_address: facts.edge_http_address,
            edge_https_address: facts.edge_https_address,
            admin_address: facts.admin_address,
            software_version: facts.software_version,
            started_ms: facts.started_ms,
            pid: facts.pid,
            certificate_not_after_ms: facts.certificate_not_after_ms,
            clock_correction_ms: facts.clock_correction_ms,
            written_ms: seen.map_or(0, |seen| seen.written_ms),
        }
    };
    names.into_iter().map(view).collect()
}

/// What a node's state is made of.
struct States {
    removed: bool,
    alive: bool,
    draining: bool,
    drained: bool,
    stale: bool,
}

impl States {
    fn in_one_word(&self, attached: bool, roles: Roles) -> &'static str {
        let needs_line = roles.has(Role::Edge) || roles.has(Role::Host);
        match () {
            () if self.removed => "removed",
            () if !self.alive => "gone",
            () if self.drained && self.draining => "drained",
            () if self.drained || self.draining => "draining",
            () if self.stale => "stale",
            () if needs_line && !attached => "detached",
            () => "alive",
        }
    }
}

#[utoipa::path(delete, path = "/v1/nodes/{name}", params(("name" = String, Path,)),
    responses((status = 200, description = "it gets no new certificate and is denied everywhere"),
        (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn remove(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let name: NodeName =
        name.parse().map_err(|error: atoll_model::NameError| Problem::invalid("name", error.to_string()))?;
    let regions = api.config.regions.clone();
    let (trust_domain, org, by) = (api.ca.trust_domain().clone(), caller.org.clone(), caller.name.clone());
    let removed = name.clone();
    let request = Request { caller, headers: &headers, method: Method::DELETE, uri: &uri, body: &[] };
    let response = change(&api, request, move |change| {
        let stored = change.get::<Node>(&format!("{org}/{name}"));
        let mut node = stored.ok_or_else(|| Problem::not_found(format!("no node `{name}` has joined")))?;
        if node.roles.has(Role::Control) {
            let detail = "this is the control node: it cannot remove itself";
            return Err(Problem::new(StatusCode::CONFLICT, "control-node", "Not removable", detail));
        }
        node.removed = true;
        change.put(&node)?;
        drains::end(change, &Drained::Node(name.clone()), &node.region);
        let spiffe_id = SpiffeId::node(&trust_domain, &node.site, &name).to_string();
        let denial = Denial { spiffe_id, why: format!("removed by {by}"), before_epoch: 0 };
        records::deny(change, &regions, &name, &denial);
        tracing::warn!(node = %name, by, "node removed");
        Ok((StatusCode::OK, serde_json::json!({ "name": name, "removed": true })))
    })
    .await?;
    api.attached.detach(&removed);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_one_state() {
        let well = || States { removed: false, alive: true, draining: false, drained: false, stale: false };
        let edge = Roles::NONE.with(Role::Edge);
        for (is, expected) in [
            (well(), "alive"),
            (States { removed: true, ..well() }, "removed"),
            (States { alive: false, draining: true, ..well() }, "gone"),
            (States { draining: true, ..well() }, "draining"),
            (States { drained: true, ..well() }, "draining"),
            (States { drained: true, draining: true, stale: true, ..well() }, "drained"),
            (States { stale: true, ..well() }, "stale"),
        ] {
            assert_eq!(is.in_one_word(true, edge), expected);
        }
        assert_eq!(well().in_one_word(false, edge), "detached");
        assert_eq!(well().in_one_word(false, Roles::NONE.with(Role::Gateway)), "alive");
    }
}
