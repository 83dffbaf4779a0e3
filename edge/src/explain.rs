//! Why a request would go where it goes: for `explain`, by the functions that requests go by.

use crate::edge::Shared;
use crate::serving::Serving;
use crate::views::Snapshot;
use atoll_proxy::regions;
use atoll_routing::hosts::normalise_host;
use atoll_routing::path::normalise;
use serde_json::{Value, json};

impl Serving {
    /// What would become of a request for `path` of `host` (as clients write it), and why, also why
    /// the other regions lose. It is decided afresh: what a worker chose last, and whom it has seen
    /// refuse in the last second, are that worker's own.
    #[must_use]
    pub fn explain(&self, host: &str, path: &str) -> Value {
        let shared = &self.shared;
        let snapshot = shared.views.load();
        let Some(name) = normalise_host(host) else {
            return json!({ "host": clipped(host), "answer": "bad-request", "why": "that is no host name" });
        };
        let mut explained = json!({
            "host": name,
            "path": clipped(path),
            "edge": shared.site,
            "certificate": shared.certificates.find(&name).map(|found| found.fingerprint_hex()),
            "desired_version": snapshot.desired.1,
        });
        let decided = decided(shared, &snapshot, &name, path);
        if let (Some(explained), Value::Object(decided)) = (explained.as_object_mut(), decided) {
            explained.extend(decided);
            if explained["certificate"].is_null() {
                explained.insert("tls".to_owned(), json!("refused: no certificate for this name is loaded"));
            }
        }
        explained
    }
}

fn decided(shared: &Shared, snapshot: &Snapshot, host: &str, path: &str) -> Value {
    let Some(host) = snapshot.hosts.find_normal(host) else {
        return json!({ "answer": "unknown-host", "why": "no virtual host has this name" });
    };
    let path = match normalise(path) {
        Ok(path) => path,
        Err(why) => {
            return json!({ "virtual_host": host.id, "answer": "ambiguous-path", "why": why.to_string() });
        }
    };
    let Some(route) = host.route(path.as_str()) else {
        return json!({ "virtual_host": host.id, "answer": "no-route", "why": "no route matches the path" });
    };
    let name = &route.cluster;
    let found = json!({
        "virtual_host": host.id,
        "domains": host.domains(),
        "route": { "name": route.name, "path_prefix": format!("{}/", route.path_prefix) },
        "cluster": &**name,
    });
    let with = |more: Value| match (found.clone(), more) {
        (Value::Object(mut found), Value::Object(more)) => {
            found.extend(more);
            Value::Object(found)
        }
        (found, _) => found,
    };
    let Some(cluster) = snapshot.clusters.get(name) else {
        return with(json!({ "answer": "no-region", "why": "the cluster is not known yet" }));
    };
    let (home, said) = (&shared.tunnel_facts.region, snapshot.summaries.of(name));
    let said = said.map_or(&[][..], |all| &all[..]);
    with(regions::explain(&shared.board, home, said, &cluster.regions, name))
}

fn clipped(text: &str) -> String {
    text.chars().take(256).collect()
}
