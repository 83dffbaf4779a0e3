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
    /// What it says of its domains.
    #[schema(required = false)]
    hosts: Vec<HostSpec>,
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

/// What an app says of some of its domains.
#[derive(ToSchema)]
pub(super) struct HostSpec {
    /// Which: `<app>.<zone>` and the like, or domains that were added. None: all that the app has.
    #[schema(required = false)]
    domains: Vec<String>,
    /// How edges cache. The first rule that matches a path decides.
    #[schema(required = false)]
    cache: Vec<CacheRule>,
}

/// How edges cache the answers of some paths.
#[derive(ToSchema)]
pub(super) struct CacheRule {
    /// Of which paths: `/assets/**`. `*` stands for one segment, `**`, as the last one, for any number.
    path: String,
    /// Not at all; then nothing else is said.
    #[schema(required = false)]
    off: bool,
    /// How long an answer is fresh, in seconds, a year at most; nothing: as long as it says itself.
    ttl_s: Option<u64>,
    /// Also what says that it is not to be stored; its `Set-Cookie` is removed. Needs `ttl_s`.
    #[schema(required = false)]
    force: bool,
    /// How long clients are told that an answer is fresh, in seconds; nothing: what it says.
    browser_ttl_s: Option<u64>,
    /// Which query parameters make answers differ; nothing: all.
    #[schema(required = false)]
    query: QueryKey,
    /// Their order does not.
    #[schema(required = false)]
    sort_query: bool,
    /// The field that holds an answer's tags, in lower case; nothing: `cache-tag` and `surrogate-key`.
    tags: Option<String>,
    /// Clients see that field.
    #[schema(required = false)]
    show_tags: bool,
    /// How long after its life an answer is used while the instance is asked, in seconds; nothing: what it says.
    stale_while_revalidate_s: Option<u64>,
    /// How long after its life an answer is used where the instance fails, in seconds; nothing: what it says.
    stale_if_error_s: Option<u64>,
    /// Which other edges are asked before the region is; `local` by default.
    #[schema(required = false)]
    tier: Tier,
    /// A condition: requests for which it holds neither read nor write the cache.
    bypass: Option<String>,
    /// Answers may be stored and sent compressed; true by default.
    #[schema(required = false)]
    compress: bool,
}

/// Which query parameters make answers differ; `*` at the end of a name stands for any rest.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum QueryKey {
    /// Every one.
    All,
    /// These; with none, no parameter does.
    Only(Vec<String>),
    /// Every one but these.
    AllBut(Vec<String>),
}

/// Which other edges are asked for an answer before the region is.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub(super) enum Tier {
    None,
    /// Those of the same location.
    Local,
    /// Also one near the region.
    Regional,
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
        } }, "hosts": [{ "domains": ["shop.localhost"], "cache": [{
            "path": "/**", "off": true, "ttl_s": 1, "force": true, "browser_ttl_s": 1, "query": { "only": ["v"] },
            "sort_query": true, "tags": "tags", "show_tags": true, "stale_while_revalidate_s": 1, "stale_if_error_s": 1,
            "tier": "none", "bypass": "request.path == \"/\"", "compress": false,
        }] }] })
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
        // An enum: the variant that the value's only member names.
        let variant = value.as_object().and_then(|members| members.keys().next());
        let mut variants = schema["oneOf"].as_array().into_iter().flatten();
        if let Some(of_variant) =
            variant.and_then(|name| variants.find(|variant| variant["properties"][name].is_object()))
        {
            return compare(value, of_variant, document, at);
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
