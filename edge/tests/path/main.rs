//! The path of a request through a real edge and real gateways.
#![allow(clippy::unwrap_used)]

mod attacks;
mod calls;
mod client;
mod node_plane;
mod sidecar;
mod world;

use atoll_model::Role;
use atoll_wire::record::instance::State;
use client::{connect, get, http, https};
use sidecar::Answer;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use world::{DOMAIN, RunningEdge, World, say, start_edge, until};

/// Waits until the edge serves what control wants now.
async fn served(edge: &RunningEdge, world: &World) {
    until("ready", async || edge.serving.ready()).await;
    until("served", async || edge.serving.can_serve(DOMAIN, world.heard_revision(), false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_passes_every_hop_and_its_fields_are_ours() {
    let mut world = World::new().await;
    let edge = world.edge("fra1-edge").await;
    assert!(edge.serving.can_serve(DOMAIN, 1, false).is_err());
    let _gateway = world.gateway("fra1-gateway", "fra").await;
    let host = world.join("fra1-host", "fra", Role::Host).await;
    world.deploy(&["fra"]).await;
    let sidecar = world.sidecar(Answer::Echo("i-1"));
    world.place(&host, "fra", "i-1", sidecar).await;
    until("served", async || edge.serving.can_serve(DOMAIN, 3, false)).await;

    let smuggled = "Atoll-Cluster: default/other/web\r\nAtoll-Client-Ip: 6.6.6.6\r\natoll-tries: 9\r\n\
                    atoll-anything: x\r\nx-forwarded-for: 6.6.6.6\r\nx-request-id: mine-1\r\n";
    let answer = https(&edge, DOMAIN, &get("SHOP.localhost:8443", smuggled)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    for field in [
        "atoll-region: fra",
        "atoll-edge: fra1",
        "x-request-id: mine-1",
        "cache-status: Atoll; fwd=uri-miss; fwd-status=200; detail=no-freshness",
        "x-from-the-app: yes",
    ] {
        assert!(head.contains(field), "{field} in\n{head}");
    }
    for field in ["atoll-instance", "atoll-hops", "atoll-tries-used", "atoll-revision"] {
        assert!(!head.contains(field), "{field} in\n{head}");
    }
    assert!(body.starts_with("GET /a?b=c\n"), "{body}");
    for field in [
        "atoll-cluster: default/shop/web",
        "atoll-client-ip: 127.0.0.1",
        "atoll-edge: fra1",
        "atoll-region: fra",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: https",
        "host: SHOP.localhost:8443",
        "cdn-loop: atoll",
    ] {
        assert!(body.contains(&format!("{field}\n")), "{field} in\n{body}");
    }
    assert!(!body.contains("6.6.6.6") && !body.contains("atoll-anything"), "{body}");

    let stream = connect(&edge, DOMAIN, &[b"h2", b"http/1.1"]).await.unwrap();
    let (status, answer) = client::post_http2(stream, DOMAIN, vec![7; 3_000_000]).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer.contains("3000000 bytes") && answer.contains("host: shop.localhost\n"), "{answer}");

    until("the access log", async || {
        let log = std::fs::read_to_string(&edge.log).map_err(|e| e.to_string())?;
        let line = log.lines().find(|line| line.contains("mine-1")).ok_or("no line yet")?;
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["instance"], "i-1");
        assert_eq!(line["region"], "fra");
        assert_eq!(line["status"], 200);
        assert_eq!(line["tries"], 1);
        assert_eq!(line["app_us"], 10);
        assert_eq!(line["response_bytes"], body.len());
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_are_not_served_are_refused_in_the_right_way() {
    let mut world = World::new().await;
    let edge = world.edge("fra1-edge").await;
    world.deploy(&["fra"]).await;
    world.certify("empty.localhost").await;
    for domain in [DOMAIN, "empty.localhost"] {
        until("certificate", async || connect(&edge, domain, &[]).await.map(drop).map_err(|e| e.to_string()))
            .await;
    }

    for name in ["nobody.localhost", "127.0.0.1"] {
        let refused = connect(&edge, name, &[b"h2"]).await.unwrap_err().to_string();
        assert!(refused.contains("UnrecognisedName"), "{name}: {refused}");
    }
    let refused = connect(&edge, DOMAIN, &[b"spdy/3"]).await.unwrap_err().to_string();
    assert!(refused.contains("NoApplicationProtocol"), "{refused}");

    let misdirected = https(&edge, DOMAIN, &get("empty.localhost", "")).await.unwrap();
    assert!(misdirected.starts_with("HTTP/1.1 421"), "{misdirected}");
    assert!(misdirected.contains("details=\"misdirected\""), "{misdirected}");
    let unknown =
        https(&edge, "empty.localhost", &get("empty.localhost", "accept: text/html\r\n")).await.unwrap();
    assert!(unknown.starts_with("HTTP/1.1 404") && unknown.contains("<!doctype html>"), "{unknown}");
    let nowhere = https(&edge, DOMAIN, &get(DOMAIN, "")).await.unwrap();
    assert!(nowhere.starts_with("HTTP/1.1 503") && nowhere.contains("details=\"no-region\""), "{nowhere}");

    let redirect = http(&edge, &get("shop.localhost.", "")).await;
    let to = format!("location: https://shop.localhost:{}/a?b=c\r\n", edge.https.port());
    assert!(redirect.starts_with("HTTP/1.1 308") && redirect.contains(&to), "{redirect}");
    let unknown = http(&edge, &get("nobody.localhost", "")).await;
    assert!(unknown.starts_with("HTTP/1.1 404"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_fails_is_left_and_a_lost_instance_costs_no_request() {
    let mut world = World::new().await;
    let edge = world.edge("fra1-edge").await;
    let (near, _) = world.gateway("fra1-gateway", "fra").await;
    let _far = world.gateway("was1-gateway", "was").await;
    let host = world.join("fra1-host", "fra", Role::Host).await;
    let far_host = world.join("was1-host", "was", Role::Host).await;
    world.deploy(&["fra", "was"]).await;
    // In fra one that hangs up on whatever it gets, in was a good one.
    let bad = world.sidecar(Answer::Hangup);
    world.place(&host, "fra", "i-1", bad).await;
    let good = world.sidecar(Answer::Echo("i-2"));
    world.place(&far_host, "was", "i-2", good).await;
    served(&edge, &world).await;
    until("was", async || {
        let answer = https(&edge, DOMAIN, &get(DOMAIN, "")).await.unwrap();
        answer.contains("atoll-region: was").then_some(()).ok_or(answer)
    })
    .await;
    for _ in 0..5 {
        let answer = https(&edge, DOMAIN, &get(DOMAIN, "")).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    // Said to be unwell, fra is not asked at all, and a POST, which may not run twice, goes straight to was.
    say(&host, "fra", "i-1", bad, State::Unhealthy);
    let post =
        format!("POST / HTTP/1.1\r\nhost: {DOMAIN}\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello");
    until("a POST in was", async || {
        let answer = https(&edge, DOMAIN, &post).await.unwrap();
        (answer.contains("atoll-region: was") && answer.contains("5 bytes")).then_some(()).ok_or(answer)
    })
    .await;
    // The gateway of fra is gone altogether: nobody notices.
    near.trigger.force();
    for _ in 0..20 {
        let answer = https(&edge, DOMAIN, &get(DOMAIN, "")).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_edge_finishes_and_one_that_restarts_without_control_serves() {
    let mut world = World::new().await;
    let edge = world.edge("fra1-edge").await;
    let _gateway = world.gateway("fra1-gateway", "fra").await;
    let host = world.join("fra1-host", "fra", Role::Host).await;
    world.deploy(&["fra"]).await;
    let sidecar = world.sidecar(Answer::Echo("i-1"));
    world.place(&host, "fra", "i-1", sidecar).await;
    served(&edge, &world).await;

    // A request is half sent when the drain starts.
    let mut stream = connect(&edge, DOMAIN, &[b"http/1.1"]).await.unwrap();
    let request = format!("POST / HTTP/1.1\r\nhost: {DOMAIN}\r\ncontent-length: 4\r\n\r\nab");
    stream.write_all(request.as_bytes()).await.unwrap();
    until("in flight", async || match edge.serving.state()["requests_in_flight"].as_u64() {
        Some(1) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    edge.node.trigger.start();
    until("not ready", async || edge.serving.ready().err().map(drop).ok_or_else(|| "ready".to_owned())).await;
    stream.write_all(b"cd").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("4 bytes"), "{answer}");
    tokio::time::timeout(Duration::from_secs(5), edge.ended).await.expect("the edge ends").unwrap();

    // Control's node plane is not there for the next one: it lives from what is on disk.
    let nobody = "127.0.0.1:1".parse().unwrap();
    let data_dir = world.folder.path().join("fra1-edge");
    let node = world.join("fra1-edge-b", "fra", Role::Edge).await;
    let edge = start_edge(node, data_dir, nobody, edge.root);
    served(&edge, &world).await;
    let answer = https(&edge, DOMAIN, &get(DOMAIN, "")).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_lets_edges_have_public_clusters_only() {
    let mut world = World::new().await;
    let (gateway, serving) = world.gateway("fra1-gateway", "fra").await;
    let host = world.join("fra1-host", "fra", Role::Host).await;
    let edge = world.join("fra1-edge", "fra", Role::Edge).await;
    world.deploy(&["fra"]).await;
    world.hide().await;
    let sidecar = world.sidecar(Answer::Echo("i-1"));
    world.place(&host, "fra", "i-1", sidecar).await;
    until("desired state", async || {
        let (_, version) = serving.applied();
        (version >= world.heard_revision()).then_some(()).ok_or_else(|| format!("{version}"))
    })
    .await;
    for cluster in [world::CLUSTER, "default/nobody/web", "", "%%"] {
        let answer = world::ask_gateway(&gateway, edge.identity.clone(), cluster).await.unwrap();
        assert_eq!(answer.status(), 403, "{cluster}");
        assert_eq!(answer.headers()["atoll-reason"], "gateway;not-public");
        assert_eq!(answer.headers()["atoll-sent"], "0");
    }
    // A host has no business here at all.
    let refused = world::ask_gateway(&gateway, host.identity.clone(), world::CLUSTER).await;
    assert!(refused.is_err(), "{refused:?}");
}
