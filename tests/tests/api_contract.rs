//! The API does what its description says: schemathesis, which nobody here wrote, calls every operation of the
//! document against a platform with an app on it, and refuses each answer that is not described.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::{Curl, Options, Platform, wait_until};
use atoll_tests::shop_manifest;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Generated calls of each operation, beside those at the edges of what is described.
const EXAMPLES: &str = "6";
/// It is read, and not called.
const DOCUMENT: &str = "GET /v1/openapi.json";
/// What need not go well here: the nodes are needed, and a region that is drained in between is not ready.
const NOT_WELL: [&str; 2] = ["DELETE /v1/nodes/{name}", "GET /v1/ready"];

#[test]
fn every_answer_is_described() {
    let Some(schemathesis) = schemathesis() else { return };
    let platform = Platform::start(Options::regions(&["fra"]));
    platform.deploy(&platform.manifest("shop", &shop_manifest("shop", &[("fra", 1)])));
    let folder = platform.scratch("contract");
    let (known, seen) = (folder.join("known.json"), folder.join("seen.json"));
    fs::write(&known, known_calls(&platform).to_string()).unwrap();

    let output = run(&schemathesis, &platform, &known, &seen);
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", said(&output.stdout), said(&output.stderr));
    assert_all_were_called(&platform, &seen);
    // It was not shaken by all that.
    assert_eq!(platform.answer(&platform.edges()[0], "shop").status, 200);
}

/// The program, installed if it isn't yet; nothing where PyPI can't be reached.
fn schemathesis() -> Option<PathBuf> {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemathesis");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/schemathesis");
    let installed = Command::new(scripts.join("install.sh")).arg(&folder).output().unwrap();
    if !installed.status.success() {
        println!("skipped: schemathesis can't be installed: {}", String::from_utf8_lossy(&installed.stderr));
        return None;
    }
    Some(folder.join("bin/schemathesis"))
}

fn run(schemathesis: &Path, platform: &Platform, known: &Path, seen: &Path) -> std::process::Output {
    let dev = platform.dev_json();
    let (api, token) = (dev["api"].as_str().unwrap(), dev["token"].as_str().unwrap());
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemathesis");
    Command::new(schemathesis)
        .arg("--config-file")
        .arg(scripts.join("schemathesis.toml"))
        .args(["run", &format!("{api}/v1/openapi.json"), "-H", &format!("Authorization: Bearer {token}")])
        .args(["--max-examples", EXAMPLES, "--phases", "coverage,fuzzing"])
        .args(["--seed", "1", "--generation-database", "none", "--suppress-health-check", "all"])
        .args(["--request-timeout", "20", "--continue-on-failure", "--no-color", "--warnings", "off"])
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("PYTHONPATH", &scripts)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("ATOLL_KNOWN", known)
        .env("ATOLL_SEEN", seen)
        .current_dir(known.parent().unwrap())
        .output()
        .unwrap()
}

/// Every operation of the document was called, and went well at least once.
fn assert_all_were_called(platform: &Platform, seen: &Path) {
    let seen: BTreeMap<String, BTreeMap<u16, u64>> =
        serde_json::from_slice(&fs::read(seen).unwrap()).unwrap();
    let calls: u64 = seen.values().flat_map(BTreeMap::values).sum();
    println!("{} operations, {calls} calls", seen.len());
    let document = platform.api("/v1/openapi.json");
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let label = format!("{} {path}", method.to_uppercase());
            if label == DOCUMENT {
                continue;
            }
            let statuses = seen.get(&label).unwrap_or_else(|| panic!("{label} was not called"));
            let went_well = statuses.keys().any(|status| (200..300).contains(status));
            assert!(went_well || NOT_WELL.contains(&label.as_str()), "{label}: {statuses:?}");
        }
    }
}

/// An app that places nothing.
fn resting(app: &str, value: &str) -> Value {
    json!({ "app": app, "services": { "web": {
        "run": ["/bin/true"], "working_dir": "/", "env": { "V": value }, "labels": {}, "protocol": "http",
        "public": false, "drain_ms": 0, "checks": [], "regions": { "fra": { "min": 0, "max": 1 } } } } })
}

/// Calls that make sense, by operation; those of one operation are made in turn.
fn known_calls(platform: &Platform) -> Value {
    let change = |method: &str, path: &str, body: Value| changed(platform, method, path, &body);
    let shop = json!([{ "path": { "app": "shop" } }]);
    let of_shop = json!([{ "query": { "app": "shop" } }, { "query": { "app": "nothing-has-it" } }]);
    let deploy = platform.api("/v1/status/shop")["deploy"]["id"].clone();
    let host = platform.node("fra1", "host").name;
    let mut api_tokens = Vec::new();
    let mut join_tokens = Vec::new();
    let mut orgs = Vec::new();
    for n in 0..3 {
        let token =
            change("POST", "/v1/tokens/api", json!({ "name": format!("victim-{n}"), "role": "read" }));
        api_tokens.push(json!({ "path": { "id": token["id"] } }));
        let token = change("POST", "/v1/tokens/join", json!({ "roles": ["edge"], "site": "fra1" }));
        join_tokens.push(json!({ "path": { "id": token["id"] } }));
        let org = change("POST", "/v1/orgs", json!({ "name": format!("victim-{n}") }));
        orgs.push(json!({ "path": { "org": org["name"] } }));
        change("PUT", &format!("/v1/apps/victim-{n}"), resting(&format!("victim-{n}"), "0"));
    }
    let fuzz: Vec<Value> = (0..6)
        .map(|n| {
            let query = if n % 2 == 0 { json!({}) } else { json!({ "dry_run": "true" }) };
            json!({ "path": { "app": "fuzz" }, "query": query, "json": resting("fuzz", &n.to_string()) })
        })
        .collect();
    for n in 0..2 {
        let deploy = change("PUT", "/v1/apps/known", resting("known", &n.to_string()));
        let path = format!("/v1/deploys/{}", deploy["deploy"].as_str().unwrap());
        wait_until("the deploy is done", Duration::from_secs(20), || platform.api(&path)["state"] == "done");
    }
    let domain = own_domain("www.example.com", "shop");
    change("PUT", "/v1/domains/www.example.com", domain.clone());
    let other = own_domain("api.example.com", "shop");
    change("PUT", "/v1/domains/api.example.com", other);
    let purge = json!({ "all": true, "tags": [], "urls": [], "prefixes": [], "soft": false });
    let purged = change("POST", "/v1/apps/shop/purges", purge.clone());
    let node = json!([{ "path": { "name": host } }]);
    let region = json!([{ "path": { "region": "fra" } }]);
    let content = "#!/bin/sh\n";
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content.as_bytes());
    let digest = data_encoding::HEXLOWER.encode(digest.as_ref());
    let entry = json!({ "kind": "file", "path": "run", "size": content.len(), "sha256": digest });
    json!({
        "GET /v1/apps/{app}": shop,
        "GET /v1/status/{app}": shop,
        "GET /v1/services": of_shop,
        "GET /v1/revisions": of_shop,
        "GET /v1/instances": of_shop,
        "GET /v1/domains": of_shop,
        "GET /v1/routes": of_shop,
        "GET /v1/logs": [{ "query": { "app": "shop", "tail": "5" } }],
        "GET /v1/top": [{ "query": { "app": "shop" } }],
        "GET /v1/audit": [{ "query": {} }, { "query": { "app": "shop" } }],
        "GET /v1/deploys/{id}": [{ "path": { "id": deploy } }],
        "GET /v1/deploys/{id}/events": [{ "path": { "id": deploy } }],
        "PUT /v1/apps/{app}": fuzz,
        "DELETE /v1/apps/{app}": several(|n| json!({ "path": { "app": format!("victim-{n}") } })),
        "POST /v1/apps/{app}/purges": [{ "path": { "app": "shop" }, "json": purge }],
        "GET /v1/apps/{app}/purges/{seq}": [{ "path": { "app": "shop", "seq": purged["seq"] } }],
        "GET /v1/cache/stats": of_shop,
        "GET /v1/cache/explain":
            [{ "query": { "url": "https://shop.localhost/", "header": ["accept-language: de"] } }],
        "POST /v1/bundles": [{ "json": { "entries": [entry] } }],
        "PUT /v1/blobs/{sha256}": [{ "path": { "sha256": digest }, "bytes": content }],
        "POST /v1/apps/{app}/rollback": [{ "path": { "app": "known" }, "json": { "service": "web" } }],
        "PATCH /v1/apps/{app}/services/{service}/scale":
            [{ "path": { "app": "known", "service": "web" }, "json": { "regions": { "fra": 0 } } }],
        "GET /v1/domains/{domain}": [{ "path": { "domain": "www.example.com" } }],
        "PUT /v1/domains/{domain}": [{ "path": { "domain": "www.example.com" }, "json": domain }],
        "DELETE /v1/domains/{domain}": [{ "path": { "domain": "api.example.com" } }],
        "DELETE /v1/nodes/{name}": [{ "path": { "name": "fra1-control" } }],
        "PUT /v1/nodes/{name}/drain": node,
        "DELETE /v1/nodes/{name}/drain": node,
        "PUT /v1/regions/{region}/drain": region,
        "DELETE /v1/regions/{region}/drain": region,
        "DELETE /v1/tokens/api/{id}": api_tokens,
        "DELETE /v1/tokens/join/{id}": join_tokens,
        "POST /v1/tokens/join": [{ "json": { "roles": ["gateway"], "site": "fra1" } }],
        "DELETE /v1/orgs/{org}": orgs,
        "POST /v1/orgs": several(|n| json!({ "json": { "name": format!("made-{n}") } })),
        "POST /v1/tokens/api": several(|n| json!({ "json": { "name": format!("made-{n}"), "role": "deploy" } })),
    })
}

fn several(one: impl Fn(usize) -> Value) -> Vec<Value> {
    (0..3).map(one).collect()
}

/// A self-signed certificate for a domain, with its key.
fn own_domain(domain: &str, app: &str) -> Value {
    let made = rcgen::generate_simple_self_signed(vec![domain.to_owned()]).unwrap();
    json!({ "app": app, "certificate_pem": made.cert.pem(), "key_pem": made.signing_key.serialize_pem() })
}

fn changed(platform: &Platform, method: &str, path: &str, body: &Value) -> Value {
    let dev = platform.dev_json();
    let url = format!("{}{path}", dev["api"].as_str().unwrap());
    let token = format!("Authorization: Bearer {}", dev["token"].as_str().unwrap());
    let answer =
        Curl::new(url).method(method).header(&token).arguments(["--data-binary", &body.to_string()]).run();
    assert!((200..300).contains(&answer.status), "{method} {path}: {answer:?}");
    answer.json()
}
