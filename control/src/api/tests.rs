#![allow(clippy::unwrap_used, reason = "tests")]

mod bundles;
mod hosts;
mod pages;
mod roles;

use crate::testing::{Platform, healthy, shop};
use atoll_wire::record::{Exit, instance::State};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use std::time::Duration;

async fn deploy(platform: &Platform, key: Option<&str>, body: Value) -> (u16, Value) {
    platform.call(Method::PUT, "/v1/apps/shop", key, body).await
}

/// Reads a deploy's events to the end; gives the last one's name and data.
async fn last_event(platform: &Platform, id: &str) -> (String, Value) {
    let request = Request::get(format!("/v1/deploys/{id}/events"))
        .header("authorization", format!("Bearer {}", platform.token))
        .body(Full::default())
        .unwrap();
    let body = platform.send(request).await.into_body().collect();
    let bytes = tokio::time::timeout(Duration::from_secs(10), body).await.unwrap().unwrap().to_bytes();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let event = text.trim_end().rsplit("\n\n").find(|event| event.contains("event:")).unwrap();
    let field =
        |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    (field("event:"), serde_json::from_str(&field("data:")).unwrap())
}

#[tokio::test]
async fn nothing_without_a_token_but_the_description() {
    let platform = Platform::start().await;
    for header in [None, Some("Bearer wrong"), Some("Basic x"), Some("Bearer ")] {
        let mut request = Request::get("/v1/apps");
        if let Some(header) = header {
            request = request.header("authorization", header);
        }
        let response = platform.send(request.body(Full::default()).unwrap()).await;
        assert_eq!(response.status(), 401);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let problem: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((problem["code"].as_str(), problem["status"].as_u64()), (Some("unauthorized"), Some(401)));
    }
    let response = platform.send(Request::get("/v1/openapi.json").body(Full::default()).unwrap()).await;
    let document: Value =
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert!(document["paths"]["/v1/apps/{app}"]["put"].is_object());
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(platform.folder.path().join("admin-token")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn paths_methods_and_bodies_that_are_not_there() {
    let platform = Platform::start().await;
    assert_eq!(platform.get("/v1/nope").await.1["code"], "not-found");
    assert_eq!(
        platform.call(Method::POST, "/v1/apps", None, Value::Null).await.1["code"],
        "method-not-allowed"
    );
    assert_eq!(platform.get("/v1/apps/shop").await.0, 404);
    assert_eq!(deploy(&platform, None, json!("text")).await.0, 422);
    let huge = json!({ "app": "x".repeat(3 << 20) });
    let (status, problem) = deploy(&platform, None, huge).await;
    assert_eq!((status, problem["code"].as_str()), (413, Some("too-large")));
}

#[tokio::test]
async fn an_app_that_makes_no_sense_is_refused_before_anything_changes() {
    let platform = Platform::start().await;
    let mut bad = shop(&[("fra", 1), ("mars", 1)]);
    bad["services"]["web"]["regions"]["fra"]["max"] = 0.into();
    let (status, problem) = deploy(&platform, None, bad).await;
    assert_eq!((status, problem["code"].as_str()), (422, Some("invalid-app")));
    let text = problem.to_string();
    assert!(
        text.contains("unknown region `mars`") && text.contains("min (1) is greater than max (0)"),
        "{text}"
    );
    let mut other = shop(&[("fra", 1)]);
    other["app"] = "other".into();
    assert_eq!(deploy(&platform, None, other).await.0, 422);
    assert_eq!(platform.get("/v1/apps").await.1, json!([]));
}

#[tokio::test]
async fn what_no_node_could_take_is_refused() {
    let platform = Platform::start().await;
    let check = |every_ms: u64, path: &str| {
        json!([{ "kind": "http", "path": path, "every_ms": every_ms, "timeout_ms": 1_000, "grace_ms": 0,
            "up": 1, "down": 1 }])
    };
    let names = |count: usize| (0..count).map(|n| format!("{}{n}", "s".repeat(30))).collect::<Vec<_>>();
    let rule = json!({ "from": ["api"], "http": [format!("GET /{}", "x".repeat(500))] });
    for (field, value, why) in [
        ("checks", check(0, "/"), "0 is not between 50 and 3600000"),
        ("checks", check(1_000, "/a b"), "a path starts with"),
        ("checks", json!(vec![check(1_000, "/")[0].clone(); 9]), "at most 8 checks"),
        ("calls", json!(names(65)), "at most 64 others"),
        ("allow", json!(vec![rule; 200]), "at most 62 KiB fit"),
    ] {
        let mut app = shop(&[("fra", 1)]);
        app["services"]["web"][field] = value;
        let (status, problem) = deploy(&platform, None, app).await;
        assert_eq!((status, problem["code"].as_str()), (422, Some("invalid-app")), "{field}: {problem}");
        let place = problem["where"].as_str().unwrap();
        assert!(place.starts_with(&format!("services.web.{field}")), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(why), "{problem}");
    }
    // What is as long as it may be fits with what it calls, or is refused.
    let mut app = shop(&[("fra", 1)]);
    app["services"]["web"]["env"] = json!({ "A": "x".repeat(47 << 10) });
    app["services"]["web"]["checks"] =
        json!(vec![check(1_000, &format!("/{}", "x".repeat(1_000)))[0].clone(); 8]);
    app["services"]["web"]["calls"] = json!(names(64));
    let (status, problem) = deploy(&platform, None, app.clone()).await;
    assert_eq!((status, problem["where"].as_str()), (422, Some("services.web.calls")), "{problem}");
    app["services"]["web"]["calls"] = json!(names(20));
    assert_eq!(deploy(&platform, None, app).await.0, 202);
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let platform = Platform::start().await;
    let path = "/v1/apps/shop?dry_run=true";
    let (status, plan) = platform.call(Method::PUT, path, None, shop(&[("fra", 1)])).await;
    assert_eq!(status, 200);
    let named: Vec<_> =
        plan["changes"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(named, ["shop", "web", "shop.localhost"]);
    assert_eq!(platform.get("/v1/apps").await.1, json!([]));
}

#[tokio::test]
async fn a_repeated_request_gets_its_first_answer_and_a_second_deploy_is_refused() {
    let platform = Platform::start().await;
    let (status, first) = deploy(&platform, Some("k1"), shop(&[("fra", 1)])).await;
    assert_eq!(status, 202, "{first}");
    let (status, again) = deploy(&platform, Some("k1"), shop(&[("fra", 1)])).await;
    assert_eq!((status, &again), (202, &first));
    let (status, problem) = deploy(&platform, Some("k1"), shop(&[("fra", 2)])).await;
    assert_eq!((status, problem["code"].as_str()), (422, Some("idempotency-key-reused")));
    let (status, problem) = deploy(&platform, Some("k2"), shop(&[("fra", 1)])).await;
    assert_eq!((status, problem["code"].as_str()), (409, Some("deploy-running")));
    assert_eq!(problem["deploy"], first["deploy"]);
    assert!(problem["detail"].as_str().unwrap().contains(first["deploy"].as_str().unwrap()));
}

#[tokio::test]
async fn a_deploy_runs_to_its_end_and_a_delete_leaves_nothing() {
    let platform = Platform::start().await;
    platform.reconcile(healthy);
    for number in 1..=2 {
        let (_, accepted) = deploy(&platform, None, shop(&[("fra", 2), ("was", 1)])).await;
        let (name, last) = last_event(&platform, accepted["deploy"].as_str().unwrap()).await;
        assert_eq!((name.as_str(), last["state"].as_str()), ("done", Some("done")), "{last}");
        assert_eq!(last["regions"]["fra"]["web"]["healthy"], 2);
        assert_eq!(last["urls"], json!(["https://shop.localhost:8443"]));
        let (_, status) = platform.get("/v1/status/shop").await;
        assert_eq!(status["services"][0]["number"], number);
        assert_eq!(status["deploy"]["state"], "done");
    }
    let (_, instances) = platform.get("/v1/instances?app=shop").await;
    let running = instances.as_array().unwrap().iter().filter(|i| i["draining"] == false).count();
    assert_eq!(running, 3, "{instances}");
    let (status, removal) = platform.call(Method::DELETE, "/v1/apps/shop", None, Value::Null).await;
    assert_eq!(status, 202);
    assert_eq!(last_event(&platform, removal["deploy"].as_str().unwrap()).await.0, "done");
    for list in ["apps", "services", "revisions", "instances", "domains"] {
        assert_eq!(platform.get(&format!("/v1/{list}")).await.1, json!([]), "{list}");
    }
    assert!(platform.store.desired().is_empty());
}

#[tokio::test]
async fn a_deploy_that_fails_says_why_and_the_old_revision_stays() {
    let platform = Platform::start().await;
    platform.reconcile(|placement| {
        let mut facts = healthy(placement);
        if placement.placed_ms > FIRST_DONE.load(std::sync::atomic::Ordering::SeqCst) {
            facts.set_state(State::Exited);
            facts.restarts = 1;
            let output_tail = "cannot open the database\n".into();
            facts.last_exit = Some(Exit { status: 3, output_tail, at_ms: 9, ..Exit::default() });
        }
        facts
    });
    let (_, accepted) = deploy(&platform, None, shop(&[("fra", 1)])).await;
    assert_eq!(last_event(&platform, accepted["deploy"].as_str().unwrap()).await.0, "done");
    let good = accepted["revisions"]["web"].clone();
    let now_ms = atoll_process::clock::unix_ms();
    FIRST_DONE.store(now_ms, std::sync::atomic::Ordering::SeqCst);
    while atoll_process::clock::unix_ms() == now_ms {
        tokio::task::yield_now().await;
    }
    let (_, accepted) = deploy(&platform, None, shop(&[("fra", 1)])).await;
    let (name, last) = last_event(&platform, accepted["deploy"].as_str().unwrap()).await;
    assert_eq!(name, "rolled-back");
    let cause = &last["cause"];
    assert_eq!((cause["exit_status"].as_i64(), cause["region"].as_str()), (Some(3), Some("fra")));
    assert_eq!(cause["output"], json!(["cannot open the database"]));
    let (_, services) = platform.get("/v1/services").await;
    assert_eq!(services[0]["revision"], good);
}

/// Placements after this moment fail (in the test above).
static FIRST_DONE: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(u64::MAX);

#[tokio::test]
async fn a_join_token_is_shown_once() {
    let platform = Platform::start().await;
    let wish = json!({ "roles": ["edge"], "site": "fra1", "ttl_ms": 60_000 });
    let (status, made) = platform.call(Method::POST, "/v1/tokens/join", Some("t1"), wish.clone()).await;
    assert_eq!(status, 201, "{made}");
    assert!(made["token"].as_str().unwrap().starts_with("atl1."));
    let (_, again) = platform.call(Method::POST, "/v1/tokens/join", Some("t1"), wish).await;
    assert_eq!(again, made);
    let (_, list) = platform.get("/v1/tokens/join").await;
    assert_eq!((list[0]["state"].as_str(), list[0]["region"].as_str()), (Some("valid"), Some("fra")));
    assert!(!list.to_string().contains(made["token"].as_str().unwrap().split('.').nth(2).unwrap()));
    let path = format!("/v1/tokens/join/{}", made["id"].as_str().unwrap());
    assert_eq!(platform.call(Method::DELETE, &path, None, Value::Null).await.0, 200);
    assert_eq!(platform.call(Method::DELETE, &path, None, Value::Null).await.0, 404);
    let unknown = json!({ "roles": ["edge"], "site": "lon1" });
    assert_eq!(platform.call(Method::POST, "/v1/tokens/join", None, unknown).await.0, 422);
}

#[tokio::test]
async fn logs_come_from_the_hosts_in_order_and_one_that_is_away_is_named() {
    use atoll_wire::node::{LogLine, LogLines, NodeMessage, control_message::Ask, node_message::Answer};
    let platform = Platform::start().await;
    platform.reconcile(healthy);
    let (_, accepted) = deploy(&platform, None, shop(&[("fra", 2), ("was", 1)])).await;
    last_event(&platform, accepted["deploy"].as_str().unwrap()).await;
    for (query, status) in [
        ("app=none", 404),
        ("app=shop&service=none", 404),
        ("region=none", 404),
        ("instance=i-none", 404),
        ("tail=10001", 422),
        ("tail=x", 400),
    ] {
        assert_eq!(platform.get(&format!("/v1/logs?{query}")).await.0, status, "{query}");
    }
    let (line, mut asked) = platform.parts.attached.attach("fra1-host".parse().unwrap());
    tokio::spawn(async move {
        // The first instance has the odd times, the second the even ones, an answer for each line.
        let mut first = 1;
        while let Some(Ok(message)) = asked.recv().await {
            let Some(Ask::ReadLogs(question)) = message.ask else { continue };
            assert_eq!((question.tail_lines, question.contains.as_str()), (5, "x y"));
            for at_ms in (first..=5).step_by(2) {
                let one = LogLine { text: format!("at {at_ms}"), at_ms, ..LogLine::default() };
                let answer = Some(Answer::LogLines(LogLines { lines: vec![one], ..LogLines::default() }));
                line.deliver(NodeMessage { id: message.id, answer, last: false });
            }
            let answer = Some(Answer::LogLines(LogLines { lost: 7, ..LogLines::default() }));
            line.deliver(NodeMessage { id: message.id, answer, last: true });
            first += 1;
        }
    });
    let path = "/v1/logs?app=shop&tail=5&grep=x%20y";
    let request = Request::get(path).header("authorization", format!("Bearer {}", platform.token));
    let response = platform.send(request.body(Full::default()).unwrap()).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.into_body().collect().await.unwrap().to_bytes();
    let text = std::str::from_utf8(&text).unwrap();
    let lines: Vec<&str> = text.split("\"line\":\"").skip(1).map(|rest| &rest[..4]).collect();
    assert_eq!(lines, ["at 1", "at 2", "at 3", "at 4", "at 5"], "{text}");
    assert_eq!(text.matches("event: dropped").count(), 2, "{text}");
    let away = text.split("event: error").nth(1).unwrap().lines().nth(1).unwrap();
    assert!(away.contains("was1-host") && away.contains("\"region\":\"was\""), "{text}");
    assert!(text.trim_end().ends_with("event: end\ndata: {\"instances\":3}"), "{text}");
}

#[tokio::test]
async fn outside_loopback_the_api_speaks_tls_under_the_mesh_root() {
    use std::sync::Arc;
    let platform = Platform::start().await;
    let names = vec![rustls::pki_types::ServerName::try_from("control.example").unwrap()];
    let tls =
        super::ServerTls::new(platform.parts.ca.clone(), names, atoll_process::clock::unix_ms()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(super::serve(listener, Some(tls), platform.parts.router(), platform.drain.clone()));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(platform.parts.ca.roots()[0].clone()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(atoll_identity::crypto_provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    for (name, trusted) in [("control.example", true), ("other.example", false)] {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from(name).unwrap();
        let connected = connector.connect(name, stream).await;
        assert_eq!(connected.is_ok(), trusted);
        let Ok(stream) = connected else { continue };
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request =
            Request::get("/v1/openapi.json").header("host", "x").body(Full::<bytes::Bytes>::default());
        assert_eq!(sender.send_request(request.unwrap()).await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn a_removed_node_is_denied_and_a_control_node_stays() {
    let platform = Platform::start().await;
    let node = |name: &str, role| crate::store::objects::Node {
        org: atoll_model::OrgName::default_org(),
        name: name.parse().unwrap(),
        site: "fra1".parse().unwrap(),
        region: "fra".parse().unwrap(),
        roles: atoll_model::Roles::NONE.with(role),
        epoch: 1,
        joined_ms: 0,
        removed: false,
    };
    let (edge, control) =
        (node("fra1-edge", atoll_model::Role::Edge), node("ctl", atoll_model::Role::Control));
    let stored = platform.store.change(move |change| {
        change.put(&edge)?;
        change.put(&control)
    });
    stored.await.unwrap();
    assert_eq!(platform.call(Method::DELETE, "/v1/nodes/fra1-edge", None, Value::Null).await.0, 200);
    assert_eq!(platform.call(Method::DELETE, "/v1/nodes/ctl", None, Value::Null).await.0, 409);
    assert_eq!(platform.call(Method::DELETE, "/v1/nodes/nobody", None, Value::Null).await.0, 404);
    let desired = platform.store.desired();
    let denials: Vec<_> = desired.iter().map(|d| (d.kind, d.scope.as_str(), d.key.as_str())).collect();
    let (all, hosts) = (atoll_model::Kind::DENIAL, atoll_model::Kind::REGION_DENIAL);
    let wanted = [(all, "", "fra1-edge"), (hosts, "fra", "fra1-edge"), (hosts, "was", "fra1-edge")];
    assert_eq!(denials, wanted);
    let (_, nodes) = platform.get("/v1/nodes").await;
    let seen: Vec<_> =
        nodes.as_array().unwrap().iter().map(|n| (n["name"].clone(), n["removed"].clone())).collect();
    assert_eq!(seen, [(json!("ctl"), json!(false)), (json!("fra1-edge"), json!(true))]);
    assert_eq!(platform.get("/v1/ready").await.0, 503);
}
