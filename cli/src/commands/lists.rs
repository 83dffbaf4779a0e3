//! `atoll apps`, `services`, `instances`, `revisions`, `nodes`.

use super::api;
use crate::api::encode;
use crate::args::Global;
use crate::failure::Outcome;
use crate::out::{self, Column, Format};
use atoll_process::clock::unix_ms;
use serde_json::Value;

/// One kind of object.
#[derive(Debug)]
pub(super) struct List {
    path: &'static str,
    columns: &'static [Column],
    empty: &'static str,
}

pub(super) const APPS: List = List {
    path: "/v1/apps",
    columns: &[
        Column("APP", "app|name"),
        Column("SERVICES", "services"),
        Column("DEPLOY", "deploy"),
        Column("AGE", "created_ms"),
    ],
    empty: "no apps; `atoll deploy` makes one",
};

pub(super) const SERVICES: List = List {
    path: "/v1/services",
    columns: &[
        Column("APP", "app"),
        Column("SERVICE", "service|name"),
        Column("PUBLIC", "public"),
        Column("REVISION", "number"),
        Column("HEALTHY/WANTED", "regions"),
        Column("URL", "url"),
    ],
    empty: "no services",
};

pub(super) const INSTANCES: List = List {
    path: "/v1/instances",
    columns: &[
        Column("INSTANCE", "id|instance"),
        Column("APP", "app"),
        Column("SERVICE", "service"),
        Column("REGION", "region"),
        Column("HOST", "host|node"),
        Column("REVISION", "revision"),
        Column("STATE", "state"),
        Column("RESTARTS", "restarts"),
        Column("AGE", "placed_ms|created_ms"),
    ],
    empty: "no instances",
};

pub(super) const REVISIONS: List = List {
    path: "/v1/revisions",
    columns: &[
        Column("REVISION", "id|revision"),
        Column("APP", "app"),
        Column("SERVICE", "service"),
        Column("NUMBER", "number"),
        Column("STATE", "state"),
        Column("AGE", "created_ms"),
    ],
    empty: "no revisions",
};

pub(super) const NODES: List = List {
    path: "/v1/nodes",
    columns: &[
        Column("NODE", "name|node"),
        Column("SITE", "site"),
        Column("REGION", "region"),
        Column("ROLES", "roles"),
        Column("ALIVE", "alive"),
        Column("ATTACHED", "attached"),
        Column("STALE", "stale"),
        Column("GOSSIP", "gossip_address"),
        Column("VERSION", "software_version"),
        Column("UP", "started_ms"),
    ],
    empty: "no nodes have joined yet",
};

pub(super) async fn run(list: &List, app: Option<String>, global: &Global) -> Outcome {
    let path = match &app {
        Some(app) => format!("{}?app={}", list.path, encode(app)),
        None => list.path.to_owned(),
    };
    let mut rows = api(global)?.list(&path).await?;
    if global.output == Format::Json {
        out::json(&Value::Array(rows));
        return Ok(());
    }
    for_people(&mut rows);
    out::table(list.columns, &rows, list.empty);
    Ok(())
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
                *value = Value::String(if key.starts_with("expires") {
                    out::age(at, now)
                } else {
                    out::age(now, at)
                });
            }
        }
    }
}

/// `fra 2/2, was 1/1`: healthy of those that always run.
fn counts(regions: &serde_json::Map<String, Value>) -> String {
    let count = |(region, counts): (&String, &Value)| {
        format!("{region} {}/{}", out::cell(&counts["healthy"]), out::cell(&counts["min"]))
    };
    regions.iter().map(count).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_are_made_for_people() {
        let now = unix_ms();
        let mut rows = [json!({
            "created_ms": now - 125_000,
            "expires_ms": now + 125_000,
            "drain_ms": 5,
            "regions": { "fra": { "healthy": 1, "min": 2 }, "was": { "healthy": 1, "min": 1 } },
        })];
        for_people(&mut rows);
        assert_eq!(
            rows[0],
            json!({ "created_ms": "2m", "expires_ms": "2m", "drain_ms": 5, "regions": "fra 1/2, was 1/1" })
        );
    }
}
