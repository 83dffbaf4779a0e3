//! The shape of what a deploy sends, for the API's description: `crates/model` has the types themselves, and a test
//! here holds the two together.
#![allow(dead_code, reason = "only described, never made")]

use std::collections::BTreeMap;
use utoipa::ToSchema;

/// What is to run: the manifest, compiled.
#[derive(ToSchema)]
pub(super) struct AppSpec {
    /// The app's name; the same as in the path.
    app: String,
    /// By name. A service that is left out is removed.
    services: BTreeMap<String, ServiceSpec>,
}

/// A service.
#[derive(ToSchema)]
pub(super) struct ServiceSpec {
    /// Program and arguments; `$NAME`, `${NAME}` and `$$` are expanded by the host.
    run: Vec<String>,
    /// Working directory, absolute; empty where there is a bundle.
    working_dir: String,
    /// Environment added to the instance's.
    env: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    protocol: Protocol,
    /// Whether the edges serve it.
    public: bool,
    /// How long an instance may finish what it has when it is replaced, ms; an hour at most.
    drain_ms: u64,
    /// Health checks; with none, the port must accept.
    checks: Vec<Check>,
    /// Where it runs, and how many instances.
    regions: BTreeMap<String, Scale>,
    /// The services that it calls: `api`, or `billing/api` of another app.
    #[schema(required = false)]
    calls: Vec<String>,
    /// Who may call it.
    #[schema(required = false)]
    allow: Vec<AllowRule>,
    /// Whether instances get `http_proxy`, by which they reach `*.internal`.
    #[schema(required = false)]
    proxy_env: bool,
    /// What the hosts unpack as the working directory.
    bundle: Option<Bundle>,
}

/// What an instance speaks.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub(super) enum Protocol {
    Http,
    Http2,
    Grpc,
    Tcp,
}

/// How a check asks.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub(super) enum CheckKind {
    Http,
    Tcp,
}

/// A health check.
#[derive(ToSchema)]
pub(super) struct Check {
    kind: CheckKind,
    /// For `http`: path and query, starting with `/`.
    path: Option<String>,
    every_ms: u64,
    timeout_ms: u64,
    grace_ms: u64,
    up: u32,
    down: u32,
}

/// How many instances a service has in a region.
#[derive(ToSchema)]
pub(super) struct Scale {
    /// Instances that always run.
    min: u32,
    /// The bound for scaling; at least `min`, at least 1.
    max: u32,
}

/// Lets callers in.
#[derive(ToSchema)]
pub(super) struct AllowRule {
    /// Services: `web` of the same app, or `org/app/service`.
    from: Vec<String>,
    /// Methods and paths, such as `GET /v1/**`; with none here and in `grpc`, everything.
    #[schema(required = false)]
    http: Vec<String>,
    /// gRPC services and methods, such as `shop.v1.Cart/*`.
    #[schema(required = false)]
    grpc: Vec<String>,
}

/// A bundle that was offered and uploaded before.
#[derive(ToSchema)]
pub(super) struct Bundle {
    /// SHA-256 of its list of contents, hex.
    digest: String,
    /// Bytes of all files together.
    size: u64,
}

#[cfg(test)]
mod tests {
    use crate::api::routes;
    use atoll_model::manifest::CompiledApp;
    use serde_json::{Value, json};

    fn full() -> Value {
        json!({ "app": "shop", "services": { "web": {
            "run": ["./web"], "working_dir": "/srv", "env": { "A": "b" }, "labels": { "a": "b" },
            "protocol": "http", "public": true, "drain_ms": 1,
            "checks": [{ "kind": "http", "path": "/", "every_ms": 1, "timeout_ms": 1, "grace_ms": 1, "up": 1, "down": 1 }],
            "regions": { "fra": { "min": 1, "max": 1 } },
            "calls": ["api"],
            "allow": [{ "from": ["api"], "http": ["GET /"], "grpc": ["a.B/C"] }],
            "proxy_env": true,
            "bundle": { "digest": "00", "size": 1 },
        } } })
    }

    /// Goes down value and schema together: each has the members that the other has.
    fn compare(value: &Value, schema: &Value, document: &Value, at: &str) {
        if let Some(reference) = schema["$ref"].as_str() {
            let name = reference.rsplit('/').next().unwrap_or_default();
            return compare(value, &document["components"]["schemas"][name], document, at);
        }
        if let Some(of_some) =
            schema["oneOf"].as_array().and_then(|all| all.iter().find(|one| one["$ref"].is_string()))
        {
            return compare(value, of_some, document, at);
        }
        match value {
            Value::Object(members) if schema["properties"].is_object() => {
                let properties = schema["properties"].as_object().expect("checked");
                let names = |map: &serde_json::Map<String, Value>| map.keys().cloned().collect::<Vec<_>>();
                assert_eq!(names(members), names(properties), "{at}");
                for (name, member) in members {
                    compare(member, &properties[name], document, &format!("{at}.{name}"));
                }
            }
            Value::Object(members) => {
                for (name, member) in members {
                    compare(member, &schema["additionalProperties"], document, &format!("{at}.{name}"));
                }
            }
            Value::Array(items) => {
                for item in items {
                    compare(item, &schema["items"], document, &format!("{at}[]"));
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                assert!(!schema.is_null(), "{at}: not described");
            }
        }
    }

    #[test]
    fn what_is_described_is_what_is_read() {
        // What the types write has every member that they have.
        let app: CompiledApp = serde_json::from_value(full()).expect("it is an app");
        let written = serde_json::to_value(&app).expect("it is JSON");
        assert_eq!(written, full());
        let document = routes::document();
        compare(&written, &json!({ "$ref": "#/components/schemas/AppSpec" }), &document, "app");
    }
}
