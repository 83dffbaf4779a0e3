//! `atoll apps`, `services`, `instances`, `revisions`, `nodes`, `sites`, `routes`, `held`.

use super::api;
use crate::api::{Api, encode};
use crate::args::Global;
use crate::failure::Outcome;
use crate::out::{self, Column, Format};
use atoll_process::clock::unix_ms;
use serde_json::Value;
use std::collections::BTreeMap;

/// One kind of object.
#[derive(Debug)]
pub(super) struct List {
    path: &'static str,
    columns: &'static [Column],
    empty: &'static str,
    /// What else the table shows than the rows themselves say.
    enrich: Enrich,
}

/// What a table needs beside its rows.
#[derive(Debug, Clone, Copy)]
enum Enrich {
    Nothing,
    /// Health and URLs of apps, which their services know.
    Services,
    /// Revisions by number: nobody remembers their ids.
    Revisions,
    /// Where a node serves.
    NodeAddresses,
    /// A site's place and nodes as one text each.
    Sites,
}

pub(super) const APPS: List = List {
    path: "/v1/apps",
    columns: &[
        Column("APP", "app"),
        Column("SERVICES", "services"),
        Column("HEALTHY/WANTED", "health"),
        Column("URL", "urls"),
        Column("AGE", "created_ms"),
    ],
    empty: "no apps yet; `atoll deploy` in a folder with an atoll.toml makes one",
    enrich: Enrich::Services,
};

pub(super) const SERVICES: List = List {
    path: "/v1/services",
    columns: &[
        Column("APP", "app"),
        Column("SERVICE", "service"),
        Column("PUBLIC", "public"),
        Column("REVISION", "number"),
        Column("HEALTHY/WANTED", "regions"),
        Column("URL", "url"),
    ],
    empty: "no services yet; `atoll deploy` makes those of an app",
    enrich: Enrich::Nothing,
};

/// The columns of instances, after the app's.
pub(super) const INSTANCE_COLUMNS: [Column; 8] = [
    Column("SERVICE", "service"),
    Column("REGION", "region"),
    Column("REVISION", "number|revision"),
    Column("STATE", "state"),
    Column("RESTARTS", "restarts"),
    Column("AGE", "placed_ms"),
    Column("HOST", "host"),
    Column("DETAIL", "detail"),
];

pub(super) const INSTANCES: List = List {
    path: "/v1/instances",
    columns: &[
        Column("INSTANCE", "id"),
        Column("APP", "app"),
        INSTANCE_COLUMNS[0],
        INSTANCE_COLUMNS[1],
        INSTANCE_COLUMNS[2],
        INSTANCE_COLUMNS[3],
        INSTANCE_COLUMNS[4],
        INSTANCE_COLUMNS[5],
        INSTANCE_COLUMNS[6],
        INSTANCE_COLUMNS[7],
    ],
    empty: "no instances yet; `atoll deploy` starts those of an app",
    enrich: Enrich::Revisions,
};

pub(super) const REVISIONS: List = List {
    path: "/v1/revisions",
    columns: &[
        Column("APP", "app"),
        Column("SERVICE", "service"),
        Column("REVISION", "number"),
        Column("STATE", "state"),
        Column("CHANGED", "changed"),
        Column("BY", "by"),
        Column("AGE", "created_ms"),
        Column("ID", "id"),
    ],
    empty: "no revisions yet; each `atoll deploy` makes one of each service",
    enrich: Enrich::Nothing,
};

pub(super) const NODES: List = List {
    path: "/v1/nodes",
    columns: &[
        Column("NODE", "name"),
        Column("SITE", "site"),
        Column("REGION", "region"),
        Column("ROLES", "roles"),
        Column("STATE", "state"),
        Column("ADDRESS", "address"),
        Column("UP", "started_ms"),
        Column("CLOCK", "clock"),
        Column("CERTIFICATE FOR", "certificate_not_after_ms"),
        Column("VERSION", "software_version"),
    ],
    empty: "no nodes have joined yet; `atoll tokens create` makes a token with which one can",
    enrich: Enrich::NodeAddresses,
};

pub(super) const SITES: List = List {
    path: "/v1/sites",
    columns: &[
        Column("SITE", "site"),
        Column("REGION", "region"),
        Column("HEALTH", "health"),
        Column("ROLES", "roles"),
        Column("NODES", "nodes"),
        Column("PLACE", "place"),
    ],
    empty: "no sites yet; the nodes that join say where they are",
    enrich: Enrich::Sites,
};

pub(super) const ROUTES: List = List {
    path: "/v1/routes",
    columns: &[
        Column("DOMAIN", "domain"),
        Column("PATH", "path"),
        Column("APP", "app"),
        Column("SERVICE", "service"),
        Column("REGIONS", "regions"),
        Column("OWN", "own"),
        Column("SERVED", "served"),
        Column("RULES", "cache_rules"),
    ],
    empty: "no routes yet; each public service has one",
    enrich: Enrich::Nothing,
};

pub(super) async fn run(list: &List, app: Option<String>, global: &Global) -> Outcome {
    let api = api(global)?;
    let path = match &app {
        Some(app) => format!("{}?app={}", list.path, encode(app)),
        None => list.path.to_owned(),
    };
    let mut rows = api.list(&path).await?;
    if let Some(app) = app.filter(|_| rows.is_empty()) {
        // Nothing to show because there is no such app is an error, and the API says which.
        api.get(&format!("/v1/status/{}", encode(&app))).await?;
    }
    if global.output == Format::Json {
        out::json(&Value::Array(rows));
        return Ok(());
    }
    match list.enrich {
        Enrich::Nothing => {}
        Enrich::Services if rows.is_empty() => {}
        Enrich::Services => add_services(&mut rows, &api.list("/v1/services").await?),
        Enrich::Revisions => number_revisions(&api, &mut rows).await?,
        Enrich::NodeAddresses => rows.iter_mut().for_each(add_node_address),
        Enrich::Sites => rows.iter_mut().for_each(shorten_site),
    }
    for_people(&mut rows);
    out::table(list.columns, &rows, list.empty);
    Ok(())
}

/// Gives instances the number of their revision, and an order that people can read.
pub(super) async fn number_revisions(api: &Api, instances: &mut [Value]) -> Outcome {
    let mut apps: Vec<&str> = instances.iter().filter_map(|row| row["app"].as_str()).collect();
    apps.dedup();
    let path = match apps.as_slice() {
        [] => return Ok(()),
        [app] => format!("/v1/revisions?app={}", encode(app)),
        _ => "/v1/revisions".to_owned(),
    };
    let revisions = api.list(&path).await?;
    let numbers: BTreeMap<&str, &Value> =
        revisions.iter().filter_map(|row| Some((row["id"].as_str()?, &row["number"]))).collect();
    for row in instances.iter_mut() {
        let number = row["revision"].as_str().and_then(|id| numbers.get(id));
        row["number"] = number.map_or(Value::Null, |number| (*number).clone());
    }
    instances.sort_by_cached_key(|row| {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        (text("app"), text("service"), text("region"), row["placed_ms"].as_u64(), text("id"))
    });
    Ok(())
}

/// Gives apps the sums and URLs of their services.
fn add_services(apps: &mut [Value], services: &[Value]) {
    let mut by_app: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for service in services {
        by_app.entry(service["app"].as_str().unwrap_or_default()).or_default().push(service);
    }
    for app in apps {
        let own = by_app.remove(app["app"].as_str().unwrap_or_default()).unwrap_or_default();
        let regions =
            || own.iter().filter_map(|service| service["regions"].as_object()).flat_map(|r| r.values());
        let sum = |key: &str| regions().filter_map(|counts| counts[key].as_u64()).sum::<u64>();
        let urls: Vec<Value> =
            own.iter().map(|service| service["url"].clone()).filter(|url| !url.is_null()).collect();
        app["health"] = Value::String(format!("{}/{}", sum("healthy"), sum("wanted")));
        app["urls"] = Value::Array(urls);
    }
}

/// The address at which a node serves, and what is wrong with its clock.
fn add_node_address(node: &mut Value) {
    let address = ["edge_https_address", "gateway_address"]
        .iter()
        .find_map(|key| node[*key].as_str().filter(|text| !text.is_empty()))
        .map(str::to_owned);
    node["address"] = address.map_or(Value::Null, Value::String);
    let off = |ms: i64| out::age(ms.unsigned_abs(), 0);
    node["clock"] = match node["clock_correction_ms"].as_i64().unwrap_or(0) {
        0 => Value::Null,
        others_ahead @ 1.. => format!("{} behind", off(others_ahead)).into(),
        others_behind => format!("{} ahead", off(others_behind)).into(),
    };
}

/// Nodes with what is wrong with them, and the place, each as a text.
fn shorten_site(site: &mut Value) {
    let node = |node: &Value| match node["state"].as_str() {
        Some("alive") => out::cell(&node["name"]),
        state => format!("{} ({})", out::cell(&node["name"]), state.map_or_else(String::new, out::harmless)),
    };
    let nodes: Vec<String> = site["nodes"].as_array().into_iter().flatten().map(node).collect();
    let place = site["latitude"].as_f64().zip(site["longitude"].as_f64());
    site["nodes"] = Value::String(nodes.join(", "));
    site["place"] = place.map_or(Value::Null, |(lat, long)| Value::String(format!("{lat:.2}, {long:.2}")));
}

/// Points in time become how long ago they were, counts by region a short text.
pub(super) fn for_people(rows: &mut [Value]) {
    let now = unix_ms();
    for row in rows.iter_mut().filter_map(Value::as_object_mut) {
        if let Some(text) = row.get("regions").and_then(Value::as_object).map(counts) {
            row.insert("regions".to_owned(), Value::String(text));
        }
        for (key, value) in row.iter_mut().filter(|(key, _)| key.ends_with("_ms")) {
            // Deadlines lie ahead; they are shown as how far.
            if let Some(at) = value.as_u64().filter(|at| *at > 1_000_000_000_000) {
                *value = Value::String(if key.starts_with("expires") || key.ends_with("not_after_ms") {
                    out::age(at, now)
                } else {
                    out::age(now, at)
                });
            }
        }
    }
}

/// `fra 2/2, was 1/1`: healthy of those that are to run.
fn counts(regions: &serde_json::Map<String, Value>) -> String {
    let count = |(region, counts): (&String, &Value)| {
        format!("{region} {}/{}", out::cell(&counts["healthy"]), out::cell(&counts["wanted"]))
    };
    regions.iter().map(count).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_wrong_clock_is_shown() {
        let clock = |ms: i64| {
            let mut node = json!({ "clock_correction_ms": ms });
            add_node_address(&mut node);
            node["clock"].clone()
        };
        assert_eq!(clock(0), Value::Null);
        assert_eq!(clock(86_400_000), "1d behind");
        assert_eq!(clock(-7_200_000), "2h ahead");
    }

    #[test]
    fn a_site_names_what_is_wrong_with_its_nodes() {
        let mut site = json!({ "latitude": 50.11, "longitude": 8.682, "nodes": [
            { "name": "a", "state": "alive" }, { "name": "b", "state": "gone" },
        ]});
        shorten_site(&mut site);
        assert_eq!((&site["nodes"], &site["place"]), (&json!("a, b (gone)"), &json!("50.11, 8.68")));
    }

    #[test]
    fn an_app_sums_up_its_services() {
        let mut apps = [json!({ "app": "shop" })];
        let services = [
            json!({ "app": "shop", "url": "https://a", "regions": { "fra": { "healthy": 1, "wanted": 2 } } }),
            json!({ "app": "shop", "url": null, "regions": { "was": { "healthy": 1, "wanted": 1 } } }),
            json!({ "app": "other", "url": null, "regions": { "was": { "healthy": 9, "wanted": 9 } } }),
        ];
        add_services(&mut apps, &services);
        assert_eq!(apps[0], json!({ "app": "shop", "health": "2/3", "urls": ["https://a"] }));
    }

    #[test]
    fn rows_are_made_for_people() {
        let now = unix_ms();
        let mut rows = [json!({
            "created_ms": now - 125_000,
            "expires_ms": now + 125_000,
            "drain_ms": 5,
            "regions": { "fra": { "healthy": 1, "wanted": 2 }, "was": { "healthy": 1, "wanted": 1 } },
        })];
        for_people(&mut rows);
        assert_eq!(
            rows[0],
            json!({ "created_ms": "2m", "expires_ms": "2m", "drain_ms": 5, "regions": "fra 1/2, was 1/1" })
        );
    }
}
