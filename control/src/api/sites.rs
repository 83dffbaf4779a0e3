//! Sites: where the nodes are.

use super::Api;
use super::nodes::{NodeView, views};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A site.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct SiteView {
    site: String,
    region: String,
    /// In degrees, as its nodes say; none where they were not told.
    latitude: Option<f64>,
    longitude: Option<f64>,
    /// The roles that its nodes have.
    roles: BTreeSet<String>,
    nodes: Vec<SiteNode>,
    /// `healthy` (every node is), `degraded`, `gone` (no node is heard), `drained` (all of them are), or
    /// `empty` (no node has joined).
    health: &'static str,
}

/// A node at a site.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct SiteNode {
    name: String,
    /// As in `/v1/nodes`.
    state: &'static str,
}

#[utoipa::path(get, path = "/v1/sites", responses((status = 200, body = Vec<SiteView>)))]
pub(super) async fn list(State(api): State<Api>) -> Json<Vec<SiteView>> {
    let mut sites = BTreeMap::<String, SiteView>::new();
    for (site, region) in &api.config.sites {
        sites.insert(site.to_string(), empty(site.to_string(), region.to_string()));
    }
    for node in views(&api).into_iter().filter(|node| node.state != "removed") {
        let site =
            sites.entry(node.site.clone()).or_insert_with(|| empty(node.site.clone(), node.region.clone()));
        take(site, node);
    }
    let rate = |mut site: SiteView| {
        site.health = health(site.nodes.iter().map(|node| node.state));
        site
    };
    Json(sites.into_values().map(rate).collect())
}

fn empty(site: String, region: String) -> SiteView {
    SiteView {
        site,
        region,
        latitude: None,
        longitude: None,
        roles: BTreeSet::new(),
        nodes: Vec::new(),
        health: "empty",
    }
}

fn take(site: &mut SiteView, node: NodeView) {
    site.latitude = site.latitude.or(node.latitude);
    site.longitude = site.longitude.or(node.longitude);
    site.roles.extend(node.roles.iter().map(|role| role.to_string()));
    site.nodes.push(SiteNode { name: node.name, state: node.state });
}

fn health<'a>(states: impl Iterator<Item = &'a str> + Clone) -> &'static str {
    let all = |wanted: &[&str]| states.clone().all(|state| wanted.contains(&state));
    match () {
        () if states.clone().next().is_none() => "empty",
        () if all(&["alive"]) => "healthy",
        () if all(&["gone"]) => "gone",
        () if all(&["drained"]) => "drained",
        () => "degraded",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_as_well_as_its_nodes() {
        for (states, expected) in [
            (&[][..], "empty"),
            (&["alive", "alive"], "healthy"),
            (&["alive", "stale"], "degraded"),
            (&["gone"], "gone"),
            (&["drained", "drained"], "drained"),
            (&["drained", "alive"], "degraded"),
        ] {
            assert_eq!(health(states.iter().copied()), expected, "{states:?}");
        }
    }
}
