//! Who may call what, organizations among each other, and the audit log.

use super::super::openapi;
use super::super::routes::{self, Least};
use crate::store::objects::{ApiToken, AuditEntry, TokenRole};
use crate::testing::{Platform, healthy, shop};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

const ROLES: [TokenRole; 4] = [TokenRole::Read, TokenRole::Deploy, TokenRole::Admin, TokenRole::Operator];

/// A new token of an organization.
async fn token(platform: &Platform, org: &str, role: TokenRole) -> String {
    let wish = json!({ "name": format!("{}-test", role.as_str()), "role": role, "org": org });
    let (status, made) = platform.call(Method::POST, "/v1/tokens/api", None, wish).await;
    assert_eq!(status, 201, "{made}");
    made["token"].as_str().unwrap().to_owned()
}

async fn org(platform: &Platform, name: &str) {
    let (status, made) = platform.call(Method::POST, "/v1/orgs", None, json!({ "name": name })).await;
    assert_eq!(status, 201, "{made}");
}

/// A request as somebody else.
async fn ask(platform: &Platform, token: &str, method: Method, path: &str, body: Value) -> (u16, Value) {
    let mut request = Request::builder().method(method).uri(path);
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let response = platform.send(request.body(Full::from(body)).unwrap()).await;
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

/// A path for a template: each parameter is a name that nothing has.
fn filled(template: &str) -> String {
    template
        .split('/')
        .map(|part| if part.starts_with('{') { "nothing-has-it" } else { part })
        .collect::<Vec<_>>()
        .join("/")
}

async fn audit(platform: &Platform, query: &str) -> Vec<AuditEntry> {
    let request = Request::get(format!("/v1/audit{query}"))
        .header("authorization", format!("Bearer {}", platform.token))
        .body(Full::default())
        .unwrap();
    let response = platform.send(request).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (200, &"application/x-ndjson".parse().unwrap())
    );
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec())
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn every_route_is_documented_and_asks_for_its_role() {
    let platform = Platform::start().await;
    let mut tokens = Vec::new();
    for role in ROLES {
        tokens.push((role, token(&platform, "default", role).await));
    }
    let document = routes::document();
    let operations = routes::operations();
    assert!(operations.len() > 20, "{}", operations.len());
    for operation in operations {
        let (method, path) = (&operation.method, filled(&operation.template));
        let what = format!("{method} {}", operation.template);
        let described = &document["paths"][&operation.template][method.as_str().to_lowercase()];
        assert_eq!(described["x-atoll-role"], operation.least.as_str(), "{what}");
        let Some(least) = operation.least.role() else {
            assert_eq!(ask(&platform, "", method.clone(), &path, Value::Null).await.0, 200, "{what}");
            continue;
        };
        let (status, problem) = ask(&platform, "", method.clone(), &path, Value::Null).await;
        assert_eq!((status, problem["code"].as_str()), (401, Some("unauthorized")), "{what}");
        for (role, token) in tokens.iter().filter(|(role, _)| *role < least) {
            let (status, problem) = ask(&platform, token, method.clone(), &path, json!({})).await;
            let seen = (status, problem["code"].as_str(), problem["needs"].as_str());
            assert_eq!(seen, (403, Some("role-needed"), Some(least.as_str())), "{what} as {role:?}");
        }
        // Nothing of it is called, but the parameter is refused by who stands before it.
        let own = tokens.iter().find(|(role, _)| *role == least).map(|(_, token)| token.as_str()).unwrap();
        let asked = format!("{path}?no_such_parameter=1");
        let (status, problem) = ask(&platform, own, method.clone(), &asked, Value::Null).await;
        assert_eq!((status, problem["code"].as_str()), (400, Some("unknown-parameter")), "{what}");
        for status in ["400", "401", "408"] {
            assert!(described["responses"][status].is_object(), "{what}: {status}");
        }
    }
    // Nothing is described that is not there.
    assert_eq!(openapi::operations(&document).len(), routes::operations().len());
    assert!(
        audit(&platform, "").await.iter().all(|entry| entry.path == "/v1/tokens/api"),
        "refusals are no changes"
    );
}

#[tokio::test]
async fn a_token_is_shown_once_and_ends_at_once() {
    let platform = Platform::start().await;
    let wish = json!({ "name": "ci", "role": "deploy", "ttl_ms": 3_600_000 });
    let (status, made) = platform.call(Method::POST, "/v1/tokens/api", Some("k"), wish.clone()).await;
    assert_eq!(status, 201, "{made}");
    let text = made["token"].as_str().unwrap();
    assert!(text.starts_with("atoll_default_"), "{text}");
    let (_, again) = platform.call(Method::POST, "/v1/tokens/api", Some("k"), wish.clone()).await;
    assert_eq!(again, made, "a repetition by the same token gets the same answer");
    assert_eq!(platform.call(Method::POST, "/v1/tokens/api", None, wish).await.1["code"], "name-taken");
    let (_, who) = ask(&platform, text, Method::GET, "/v1/whoami", Value::Null).await;
    assert_eq!(
        (who["org"].as_str(), who["name"].as_str(), who["role"].as_str()),
        (Some("default"), Some("ci"), Some("deploy"))
    );
    let (_, list) = platform.get("/v1/tokens/api").await;
    assert!(!list.to_string().contains(text), "{list}");
    let stored = platform.store.list::<ApiToken>("");
    assert!(!serde_json::to_string(&stored).unwrap().contains(text));
    let path = format!("/v1/tokens/api/{}", made["id"].as_str().unwrap());
    assert_eq!(platform.call(Method::DELETE, &path, None, Value::Null).await.0, 200);
    assert_eq!(ask(&platform, text, Method::GET, "/v1/whoami", Value::Null).await.0, 401);
    assert_eq!(platform.call(Method::DELETE, &path, None, Value::Null).await.0, 404);
    let in_query = format!("/v1/apps?access_token={}", platform.token);
    assert_eq!(ask(&platform, "", Method::GET, &in_query, Value::Null).await.0, 401);
}

#[tokio::test]
async fn nobody_makes_a_token_that_may_more_than_its_maker() {
    let platform = Platform::start().await;
    org(&platform, "acme").await;
    let admin = token(&platform, "acme", TokenRole::Admin).await;
    let make = |role: &str, org: Option<&str>| {
        let mut wish = json!({ "name": "x", "role": role });
        if let Some(org) = org {
            wish["org"] = org.into();
        }
        let admin = admin.clone();
        let platform = &platform;
        async move { ask(platform, &admin, Method::POST, "/v1/tokens/api", wish).await }
    };
    assert_eq!(make("operator", None).await.1["code"], "role-needed");
    // The same answer for an organization that is there and for one that is not.
    for other in ["default", "nobody"] {
        let (status, problem) = make("read", Some(other)).await;
        assert_eq!((status, problem["code"].as_str()), (403, Some("role-needed")), "{other}");
    }
    assert_eq!(make("read", Some("acme")).await.0, 201);
    let operator = json!({ "name": "y", "role": "operator", "org": "acme" });
    assert_eq!(platform.call(Method::POST, "/v1/tokens/api", None, operator).await.0, 422);
    let nowhere = json!({ "name": "y", "role": "read", "org": "nobody" });
    assert_eq!(platform.call(Method::POST, "/v1/tokens/api", None, nowhere).await.0, 404);
    // The first token is in control's folder; a lesser one can't end a greater one.
    let below = token(&platform, "default", TokenRole::Admin).await;
    let (_, list) = platform.get("/v1/tokens/api").await;
    let first = list.as_array().unwrap().iter().find(|token| token["name"] == "admin").unwrap();
    let path = format!("/v1/tokens/api/{}", first["id"].as_str().unwrap());
    assert_eq!(ask(&platform, &below, Method::DELETE, &path, Value::Null).await.0, 403);
    assert_eq!(platform.call(Method::DELETE, &path, None, Value::Null).await.1["code"], "admin-token");
}

#[tokio::test]
async fn tokens_end_by_themselves_and_old_ones_go_on() {
    let platform = Platform::start().await;
    let text = token(&platform, "default", TokenRole::Deploy).await;
    let made =
        platform.store.list::<ApiToken>("default/").into_iter().find(|token| token.name == "deploy-test");
    let mut ended = made.unwrap();
    ended.expires_ms = Some(1);
    platform.store.change(move |change| change.put(&ended)).await.unwrap();
    assert_eq!(ask(&platform, &text, Method::GET, "/v1/whoami", Value::Null).await.0, 401);
    // As it was stored before there were roles.
    let old = json!({ "org": "default", "hash": "00", "name": "admin", "created_ms": 5 });
    let old: ApiToken = serde_json::from_value(old).unwrap();
    assert_eq!((old.role, old.expires_ms, old.used_ms), (TokenRole::Operator, None, None));
    // The use of the first one was written down.
    let used =
        || platform.store.list::<ApiToken>("default/").into_iter().any(|token| token.used_ms.is_some());
    for _ in 0..500 {
        if used() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("no use was written down");
}

#[tokio::test]
async fn organizations_see_nothing_of_each_other() {
    let platform = Platform::start().await;
    platform.reconcile(healthy);
    org(&platform, "acme").await;
    let theirs = token(&platform, "acme", TokenRole::Admin).await;
    let (status, accepted) =
        platform.call(Method::PUT, "/v1/apps/shop", Some("k"), shop(&[("fra", 1)])).await;
    assert_eq!(status, 202, "{accepted}");
    let deploy = accepted["deploy"].as_str().unwrap();
    for _ in 0..1000 {
        if platform.get(&format!("/v1/deploys/{deploy}")).await.1["state"] == "done" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let (_, instances) = platform.get("/v1/instances").await;
    let instance = instances[0]["id"].as_str().unwrap();
    let see = |path: String| {
        let (platform, theirs) = (&platform, &theirs);
        async move { ask(platform, theirs, Method::GET, &path, Value::Null).await }
    };
    for list in ["apps", "services", "revisions", "instances", "domains"] {
        assert_eq!(see(format!("/v1/{list}")).await.1, json!([]), "{list}");
        assert_ne!(platform.get(&format!("/v1/{list}")).await.1, json!([]), "{list}");
    }
    let other = |path: &str| path.replace(deploy, "01ARZ3NDEKTSV4RRFFQ69G5FAV").replace("shop", "none");
    for path in [
        "/v1/apps/shop".to_owned(),
        "/v1/status/shop".to_owned(),
        format!("/v1/deploys/{deploy}"),
        format!("/v1/deploys/{deploy}/events"),
    ] {
        let (status, mut problem) = see(path.clone()).await;
        let (unknown_status, unknown) = see(other(&path)).await;
        assert_eq!((status, unknown_status), (404, 404), "{path}");
        let detail = problem["detail"]
            .as_str()
            .unwrap()
            .replace(deploy, "01ARZ3NDEKTSV4RRFFQ69G5FAV")
            .replace("shop", "none");
        problem["detail"] = detail.into();
        assert_eq!(problem, unknown, "{path}");
    }
    let _unseen = instance;
    let (status, problem) = ask(&platform, &theirs, Method::PUT, "/v1/apps/shop", shop(&[("fra", 1)])).await;
    assert_eq!((status, problem["code"].as_str()), (409, Some("name-taken")));
    assert!(!problem.to_string().contains("default"), "{problem}");
    let dry = ask(&platform, &theirs, Method::PUT, "/v1/apps/shop?dry_run=true", shop(&[("fra", 1)])).await;
    assert_eq!(dry.1["code"], "name-taken");
    assert_eq!(ask(&platform, &theirs, Method::DELETE, "/v1/apps/shop", Value::Null).await.0, 404);
    assert_eq!(ask(&platform, &theirs, Method::GET, "/v1/audit?org=default", Value::Null).await.0, 403);
    // The name is free again once its owner has let it go.
    assert_eq!(platform.call(Method::DELETE, "/v1/apps/shop", None, Value::Null).await.0, 202);
    for _ in 0..1000 {
        let (status, _) = ask(&platform, &theirs, Method::PUT, "/v1/apps/shop", shop(&[("fra", 1)])).await;
        if status == 202 {
            let busy = platform.call(Method::DELETE, "/v1/orgs/acme", None, Value::Null).await;
            assert_eq!(busy.1["code"], "not-empty", "{busy:?}");
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the name was not free");
}

#[tokio::test]
async fn names_of_nodes_that_do_not_answer_are_for_operators() {
    let platform = Platform::start().await;
    platform.reconcile(healthy);
    org(&platform, "acme").await;
    let theirs = token(&platform, "acme", TokenRole::Admin).await;
    let first = |token: String| {
        let platform = &platform;
        async move {
            let request = Request::get("/v1/top")
                .header("authorization", format!("Bearer {token}"))
                .body(Full::default());
            let mut body = platform.send(request.unwrap()).await.into_body();
            let mut text = String::new();
            while !text.contains("\n\n") {
                let frame = tokio::time::timeout(std::time::Duration::from_secs(10), body.frame()).await;
                let data = frame.unwrap().unwrap().unwrap().into_data().unwrap();
                text.push_str(std::str::from_utf8(&data).unwrap());
            }
            let data = text.lines().find_map(|line| line.strip_prefix("data:")).unwrap();
            serde_json::from_str::<Value>(data).unwrap()["missing"].clone()
        }
    };
    let (operators, others) = tokio::join!(first(platform.token.clone()), first(theirs));
    let names: Vec<_> = operators.as_array().unwrap().iter().map(|missing| missing["node"].clone()).collect();
    assert_eq!(names, ["fra1-host", "was1-host"], "{operators}");
    let regions: Vec<_> =
        others.as_array().unwrap().iter().map(|missing| missing["region"].clone()).collect();
    assert_eq!(regions, ["fra", "was"], "{others}");
    assert!(!others.to_string().contains("1-host"), "{others}");
}

#[tokio::test]
async fn streams_end_with_their_token() {
    let platform = Platform::start().await;
    org(&platform, "acme").await;
    let theirs = token(&platform, "acme", TokenRole::Read).await;
    let mut streams = Vec::new();
    for path in ["/v1/top", "/v1/logs?follow=true"] {
        let request = Request::get(path).header("authorization", format!("Bearer {theirs}"));
        let response = platform.send(request.body(Full::default()).unwrap()).await;
        assert_eq!(response.status(), 200, "{path}");
        streams.push((path, response.into_body()));
    }
    assert_eq!(platform.call(Method::DELETE, "/v1/orgs/acme", None, Value::Null).await.0, 200);
    // What has that name from now on is somebody else's.
    org(&platform, "acme").await;
    for (path, body) in streams {
        let whole = tokio::time::timeout(std::time::Duration::from_secs(10), body.collect()).await;
        let whole = whole.unwrap_or_else(|_| panic!("{path} goes on")).unwrap().to_bytes();
        assert!(!String::from_utf8_lossy(&whole).contains("event:"), "{path}");
    }
}

#[tokio::test]
async fn a_removed_organization_leaves_nothing_to_the_next_of_its_name() {
    let platform = Platform::start().await;
    org(&platform, "acme").await;
    let old = token(&platform, "acme", TokenRole::Admin).await;
    let wish = json!({ "name": "second", "role": "read" });
    assert_eq!(ask(&platform, &old, Method::POST, "/v1/tokens/api", wish).await.0, 201);
    let secret = b"secret";
    let offer = json!({ "entries": [{ "kind": "file", "path": "f", "executable": false, "size": secret.len(),
        "sha256": atoll_bundle::Digest::of(secret).to_string() }] });
    let missing = |token: String| {
        let (platform, offer) = (&platform, offer.clone());
        async move {
            let (status, answer) = ask(platform, &token, Method::POST, "/v1/bundles", offer).await;
            assert_eq!(status, 200, "{answer}");
            answer["missing"].as_array().unwrap().len()
        }
    };
    let acme: atoll_model::OrgName = "acme".parse().unwrap();
    let upload = || {
        let body = futures_util::stream::iter([Ok::<_, ()>(bytes::Bytes::from_static(secret))]);
        let (bundles, acme) = (platform.parts.bundles.clone(), acme.clone());
        async move { bundles.receive(&acme, atoll_bundle::Digest::of(secret), body).await.unwrap() }
    };
    upload().await;
    assert_eq!(missing(old.clone()).await, 0);
    let (status, removed) = platform.call(Method::DELETE, "/v1/orgs/acme", None, Value::Null).await;
    assert_eq!((status, removed["tokens"].as_u64()), (200, Some(2)));
    assert_eq!(ask(&platform, &old, Method::GET, "/v1/whoami", Value::Null).await.0, 401);
    assert_eq!(platform.call(Method::DELETE, "/v1/orgs/acme", None, Value::Null).await.0, 404);
    assert_eq!(
        platform.call(Method::DELETE, "/v1/orgs/default", None, Value::Null).await.1["code"],
        "not-removable"
    );
    let uploads = std::fs::read_dir(platform.folder.path().join("uploads")).unwrap();
    assert_eq!(uploads.count(), 0, "it took room");
    // As when control stopped before it had removed them.
    upload().await;
    org(&platform, "acme").await;
    assert_eq!(ask(&platform, &old, Method::GET, "/v1/whoami", Value::Null).await.0, 401);
    assert!(audit(&platform, "?org=acme").await.is_empty());
    let new = token(&platform, "acme", TokenRole::Admin).await;
    assert_eq!(missing(new).await, 1);
    assert_eq!(platform.get("/v1/tokens/api?org=acme").await.1.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn every_change_is_in_the_audit_log_once() {
    let platform = Platform::start().await;
    org(&platform, "acme").await;
    let deployer = token(&platform, "acme", TokenRole::Deploy).await;
    let refused = ask(&platform, &deployer, Method::PUT, "/v1/apps/shop", json!({})).await;
    assert_eq!(refused.0, 422);
    let dry = ask(&platform, &deployer, Method::PUT, "/v1/apps/shop?dry_run=true", shop(&[("fra", 1)])).await;
    assert_eq!(dry.0, 200);
    let put = Request::put("/v1/apps/shop")
        .header("authorization", format!("Bearer {deployer}"))
        .header("x-request-id", "my-deploy.1")
        .header("idempotency-key", "once");
    let put = put.body(Full::from(shop(&[("fra", 1)]).to_string())).unwrap();
    for _ in 0..2 {
        let response = platform.send(put.clone()).await;
        assert_eq!(
            (response.status().as_u16(), &response.headers()["x-request-id"]),
            (202, &"my-deploy.1".parse().unwrap())
        );
    }
    let (status, problem) = platform.call(Method::POST, "/v1/held/confirm?count=3", None, Value::Null).await;
    assert_eq!((status, problem["code"].as_str()), (409, Some("count-differs")));
    assert_eq!(platform.call(Method::POST, "/v1/held/confirm?count=0", None, Value::Null).await.0, 202);

    let of_acme = audit(&platform, "?org=acme").await;
    let seen: Vec<_> = of_acme
        .iter()
        .map(|e| {
            (
                e.seq,
                e.by_org.as_str(),
                e.role.as_str(),
                e.method.as_str(),
                e.path.as_str(),
                e.object.as_str(),
                e.status,
            )
        })
        .collect();
    let made = of_acme[0].object.as_str();
    assert_eq!(
        seen,
        [
            (1, "default", "operator", "POST", "/v1/tokens/api", made, 201),
            (2, "acme", "deploy", "PUT", "/v1/apps/{app}", "shop", 202),
        ]
    );
    assert_eq!(
        (of_acme[1].request_id.as_str(), of_acme[1].app.as_deref(), of_acme[1].by.as_str()),
        ("my-deploy.1", Some("shop"), "deploy-test")
    );
    assert!(of_acme[1].detail.contains("create service web"), "{}", of_acme[1].detail);
    assert!(of_acme[1].at_ms > 1_700_000_000_000);
    let own = audit(&platform, "").await;
    let paths: Vec<_> = own.iter().map(|entry| entry.path.as_str()).collect();
    assert_eq!(
        paths,
        ["/v1/orgs", "/v1/tokens/api", "/v1/held/confirm"],
        "what has no transaction of its own too"
    );
    assert_eq!(own[0].object, "acme");
    assert!(!serde_json::to_string(&own).unwrap().contains(&deployer));
    assert_eq!(audit(&platform, "?org=acme&app=shop").await.len(), 1);
    assert_eq!(audit(&platform, "?org=acme&after=1").await[0].seq, 2);
    assert_eq!(audit(&platform, "?org=acme&limit=1").await[0].seq, 1);
    assert_eq!(audit(&platform, "?org=acme&tail=1").await[0].seq, 2);
    assert_eq!(audit(&platform, "?since_ms=99999999999999").await, []);
}

#[test]
fn roles_go_from_reading_to_running_the_platform() {
    assert!(ROLES.is_sorted());
    assert_eq!(Least::Anyone.role(), None);
    let named: Vec<_> = ROLES.iter().map(|role| role.as_str()).collect();
    assert_eq!(named, ["read", "deploy", "admin", "operator"]);
}
