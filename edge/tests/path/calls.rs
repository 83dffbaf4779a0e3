//! Calls of services to services through real gateways: who may, who is believed, and where they go.

use super::client::Mesh;
use super::sidecar::Answer;
use super::world::{CLUSTER, Node, World, say, until};
use atoll_core_gateway::Serving;
use atoll_identity::Identity;
use atoll_model::Role;
use atoll_wire::record::instance::State;
use http_body_util::BodyExt as _;
use std::sync::atomic::{AtomicU64, Ordering};

const CALLER: &str = "default/shop/front";
const CALLER_ID: &str = "spiffe://atoll.test/org/default/app/shop/service/front";

/// Waits until a gateway has heard of everything, and reaches the other regions' gateways.
async fn knows(serving: &Serving, world: &World, instances: usize, tunnels: usize) {
    until("the gateway knows", async || {
        let state = serving.state();
        let known = state["clusters"][CLUSTER]["instances"].as_array().map_or(0, Vec::len);
        let up = state["tunnels"].as_array().unwrap().iter().filter(|t| t["connected"] == true).count();
        let (_, version) = serving.applied();
        (version >= world.heard_revision() && known == instances && up == tunnels)
            .then_some(())
            .ok_or_else(|| state.to_string())
    })
    .await;
}

async fn mesh(gateway: &Node, identity: Identity) -> Mesh {
    Mesh::connect(gateway, identity).await.unwrap()
}

fn reason(answer: &http::Response<String>) -> &str {
    answer.headers().get("atoll-reason").map_or("", |reason| reason.to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_is_who_its_certificate_says_and_nobody_else() {
    let mut world = World::new().await;
    let (gateway, serving) = world.gateway("fra1-gateway", "fra").await;
    let host = world.join("fra1-host", "fra", Role::Host).await;
    let edge = world.join("fra1-edge", "fra", Role::Edge).await;
    let far = world.join("was1-gateway", "was", Role::Gateway).await;
    world.deploy(&["fra"]).await;
    let sidecar = world.sidecar(Answer::Echo("i-1"));
    world.place(&host, "fra", "i-1", sidecar).await;
    knows(&serving, &world, 1, 0).await;
    let admin = "spiffe://atoll.test/org/default/app/shop/service/admin";
    let forged = [("atoll-caller", admin), ("atoll-client-ip", "6.6.6.6"), ("atoll-edge", "evil")];

    // An edge brings clients, whatever it says of callers.
    let answer = mesh(&gateway, edge.identity.clone()).await.get(CLUSTER, &forged[..1]).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(!answer.body().contains("atoll-caller"), "{}", answer.body());

    // A private service too is for its organization's services, and the gateway says who calls.
    world.hide().await;
    knows(&serving, &world, 1, 0).await;
    let mut front = mesh(&gateway, world.workload_of(CALLER)).await;
    let twice = [("atoll-caller", admin), ("atoll-caller", CALLER_ID)];
    for fields in [&[][..], &forged, &twice] {
        let answer = front.get(CLUSTER, fields).await.unwrap();
        assert_eq!((answer.status().as_u16(), reason(&answer)), (200, ""), "{fields:?}");
        let body = answer.body();
        assert_eq!(body.matches("atoll-caller").count(), 1, "{body}");
        assert!(body.contains(&format!("atoll-caller: {CALLER_ID}\n")), "{body}");
        assert!(!body.contains("6.6.6.6") && !body.contains("evil"), "{body}");
        assert_eq!(answer.headers()["atoll-region"], "fra");
    }
    let answer = mesh(&gateway, edge.identity.clone()).await.get(CLUSTER, &forged).await.unwrap();
    assert_eq!((answer.status().as_u16(), reason(&answer)), (403, "gateway;not-public"));

    // Another organization, a cluster that nobody has, and a tunnel's control stream.
    let mut foreign = mesh(&gateway, world.workload_of("acme/shop/front")).await;
    for fields in [&[][..], &[("atoll-caller", CALLER_ID)]] {
        let answer = foreign.get(CLUSTER, fields).await.unwrap();
        assert_eq!((answer.status().as_u16(), reason(&answer)), (403, "gateway;not-authorized"));
    }
    let answer = front.get("default/none/such", &[]).await.unwrap();
    assert_eq!((answer.status().as_u16(), reason(&answer)), (503, "gateway;no-region"));
    let answer = front.get("acme/shop/web", &[]).await.unwrap();
    assert_eq!(reason(&answer), "gateway;not-authorized");

    // An instance may write what authority and path it likes: passed on by a gateway it opens nothing there.
    let mut tunnel = mesh(&gateway, far.identity.clone()).await;
    assert!(tunnel.opens_control_stream(None, CALLER_ID).await.unwrap(), "the gateway's own");
    assert!(!tunnel.opens_control_stream(Some(CLUSTER), CALLER_ID).await.unwrap(), "an instance's");
    assert!(!front.opens_control_stream(None, CALLER_ID).await.unwrap());

    // A gateway is believed when it names one caller of ours, and not heard otherwise.
    let mut far = mesh(&gateway, far.identity.clone()).await;
    let answer = far.get(CLUSTER, &[("atoll-caller", CALLER_ID)]).await.unwrap();
    assert!(answer.body().contains(&format!("atoll-caller: {CALLER_ID}\n")), "{}", answer.body());
    for fields in [
        &[][..],
        &twice,
        &[("atoll-caller", "spiffe://other.test/org/default/app/shop/service/front")],
        &[("atoll-caller", "spiffe://atoll.test/node/fra1/fra1-edge")],
        &[("atoll-caller", "spiffe://atoll.test/org/acme/app/shop/service/front")],
    ] {
        let answer = far.get(CLUSTER, fields).await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), reason(&answer)),
            (403, "gateway;not-authorized"),
            "{fields:?}"
        );
        assert_eq!(answer.headers()["atoll-sent"], "0");
    }

    // Whoever has no identity of this mesh does not even get in.
    let other = World::new().await;
    let stranger = Mesh::connect(&gateway, other.workload_of(CALLER)).await;
    let refused = match stranger {
        Ok(mut stranger) => stranger.get(CLUSTER, &[]).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "another trust domain's CA");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_stays_in_its_region_while_that_can_serve_and_never_loops() {
    let mut world = World::new().await;
    let (near, serving) = world.gateway("fra1-gateway", "fra").await;
    let (_far, far_serving) = world.gateway("was1-gateway", "was").await;
    let host = world.join("fra1-host", "fra", Role::Host).await;
    let far_host = world.join("was1-host", "was", Role::Host).await;
    let rogue = world.join("sin1-gateway", "sin", Role::Gateway).await;
    world.cluster(&["fra", "was"], false).await;
    let far = world.sidecar(Answer::Echo("i-2"));
    world.place(&far_host, "was", "i-2", far).await;
    knows(&far_serving, &world, 1, 1).await;
    knows(&serving, &world, 0, 1).await;

    // Nothing in the region: the other one serves, and gets to know who calls.
    let mut front = mesh(&near, world.workload_of(CALLER)).await;
    until("the other region", async || {
        let answer = front.get(CLUSTER, &[]).await?;
        let body = answer.body();
        (answer.status() == 200).then_some(()).ok_or_else(|| reason(&answer).to_owned())?;
        assert!(body.contains(&format!("atoll-caller: {CALLER_ID}\n")), "{body}");
        assert_eq!(answer.headers()["atoll-region"], "was");
        assert_eq!(answer.headers()["atoll-instance"], "i-2");
        assert_eq!(answer.headers()["atoll-tries-used"], "1");
        Ok(())
    })
    .await;
    let explained = serving.explain(CLUSTER);
    assert_eq!(explained["answer"], "not-public", "{explained}");
    assert_eq!(explained["calls"]["answer"], "forwarded", "{explained}");
    assert_eq!(explained["calls"]["other_regions"]["chosen"], "was", "{explained}");
    let counted = "atoll_gateway_calls_total{from=\"sidecar\",served_by=\"other_region\"}";
    assert!(near.metrics.encode().contains(counted), "{}", near.metrics.encode());

    // What a gateway has brought goes on to no third one, however healthy that is.
    let mut gateway = mesh(&near, rogue.identity.clone()).await;
    let answer = gateway.get(CLUSTER, &[("atoll-caller", CALLER_ID)]).await.unwrap();
    assert_eq!((answer.status().as_u16(), reason(&answer)), (503, "gateway;no-instance"));

    // An instance of the own region comes first.
    let own = world.sidecar(Answer::Echo("i-1"));
    world.place(&host, "fra", "i-1", own).await;
    knows(&serving, &world, 1, 1).await;
    for _ in 0..5 {
        let answer = front.post(CLUSTER, "hello").await.unwrap();
        assert_eq!(answer.headers()["atoll-region"], "fra", "{}", answer.body());
        assert!(answer.body().contains("5 bytes"));
    }
    // One that hangs up costs a GET a try, and a POST is not sent twice.
    for (instance, method) in [("i-3", "GET"), ("i-4", "POST")] {
        for known in ["i-1", "i-3"] {
            say(&host, "fra", known, own, State::Unhealthy);
        }
        let bad = world.sidecar(Answer::Hangup);
        world.place(&host, "fra", instance, bad).await;
        until("that one alone is healthy", async || {
            let state = serving.state();
            let all = state["clusters"][CLUSTER]["instances"].as_array().unwrap();
            let healthy: Vec<_> = all.iter().filter(|i| i["healthy"] == true).collect();
            let alone = healthy.len() == 1 && healthy[0]["instance"] == format!("fra1-host/{instance}");
            alone.then_some(()).ok_or_else(|| state.to_string())
        })
        .await;
        if method == "GET" {
            let answer = front.get(CLUSTER, &[]).await.unwrap();
            assert_eq!(answer.status(), 200, "{}", reason(&answer));
            // Once, once more over a new connection, and then the other region rather than an unwell instance.
            assert_eq!(answer.headers()["atoll-region"], "was");
            assert_eq!(answer.headers()["atoll-tries-used"], "3");
        } else {
            let answer = front.post(CLUSTER, "hello").await.unwrap();
            assert_eq!(reason(&answer), "gateway;sidecar-reset", "{}", answer.body());
            assert_eq!(answer.headers()["atoll-sent"], "1");
        }
    }
    // Where all are unwell the other region comes first, also for a POST.
    say(&host, "fra", "i-4", own, State::Unhealthy);
    until("the other region's", async || {
        let answer = front.post(CLUSTER, "hello").await?;
        let is_far = answer.status() == 200 && answer.headers()["atoll-region"] == "was";
        is_far.then_some(()).ok_or_else(|| format!("{} {}", reason(&answer), answer.body()))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_stream_both_ways_through_two_gateways_and_either_side_may_end_first() {
    static COUNTED: AtomicU64 = AtomicU64::new(0);
    let mut world = World::new().await;
    let (near, serving) = world.gateway("fra1-gateway", "fra").await;
    let (_far, far_serving) = world.gateway("was1-gateway", "was").await;
    let host = world.join("was1-host", "was", Role::Host).await;
    world.cluster(&["was"], false).await;
    let shout = world.sidecar(Answer::Shout);
    world.place(&host, "was", "i-1", shout).await;
    knows(&far_serving, &world, 1, 1).await;
    knows(&serving, &world, 0, 1).await;
    let mut front = mesh(&near, world.workload_of(CALLER)).await;
    until("the other region", async || {
        let healthy = serving.explain(CLUSTER)["calls"]["other_regions"]["panic"] == false;
        healthy.then_some(()).ok_or_else(|| serving.explain(CLUSTER).to_string())
    })
    .await;

    // The head comes before any byte; then each piece on its own, and the end after ours.
    let (out, answer) = front.stream(CLUSTER).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["atoll-region"], "was");
    let mut input = answer.into_body();
    for piece in ["hello", "again"] {
        out.send(piece).await.unwrap();
        let got = input.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(got, piece.to_uppercase());
    }
    drop(out);
    let rest = input.collect().await.unwrap().to_bytes();
    assert_eq!(rest, "the end");

    // A stream that is cut there is cut here.
    let (out, answer) = front.stream(CLUSTER).await.unwrap();
    let mut input = answer.into_body();
    out.send("reset").await.unwrap();
    assert!(input.frame().await.unwrap().is_err());
    assert!(!near.metrics.encode().contains("atoll_gateway_panics_total 1"));

    // An instance that ends first goes on reading.
    let counting = world.sidecar(Answer::Count(&COUNTED));
    world.place(&host, "was", "i-1", counting).await;
    until("the other instance", async || {
        let placed = far_serving.state()["clusters"][CLUSTER]["instances"][0]["sidecar"].clone();
        (placed == counting.to_string()).then_some(()).ok_or_else(|| placed.to_string())
    })
    .await;
    let (out, answer) = front.stream(CLUSTER).await.unwrap();
    let early = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(early, "early");
    for _ in 0..3 {
        out.send("12345").await.unwrap();
    }
    until("what still comes", async || {
        let counted = COUNTED.load(Ordering::Relaxed);
        (counted == 15).then_some(()).ok_or_else(|| counted.to_string())
    })
    .await;
    drop(out);
    until("the end", async || {
        let counted = COUNTED.load(Ordering::Relaxed);
        (counted == 1_000_015).then_some(()).ok_or_else(|| counted.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sidecars_leave_room_for_tunnels() {
    let mut world = World::new().await;
    let config = atoll_core_gateway::Config {
        connections_max: 4,
        sidecar_connections_max: 1,
        ..atoll_core_gateway::Config::default()
    };
    let (gateway, serving) = world.gateway_with("fra1-gateway", "fra", config).await;
    let host = world.join("fra1-host", "fra", Role::Host).await;
    let edge = world.join("fra1-edge", "fra", Role::Edge).await;
    world.deploy(&["fra"]).await;
    let sidecar = world.sidecar(Answer::Echo("i-1"));
    world.place(&host, "fra", "i-1", sidecar).await;
    knows(&serving, &world, 1, 0).await;
    let mut first = mesh(&gateway, world.workload_of(CALLER)).await;
    assert_eq!(first.get(CLUSTER, &[]).await.unwrap().status(), 200);
    let refused = match Mesh::connect(&gateway, world.workload_of(CALLER)).await {
        Ok(mut second) => second.get(CLUSTER, &[]).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "a second sidecar");
    let answer = mesh(&gateway, edge.identity.clone()).await.get(CLUSTER, &[]).await.unwrap();
    assert_eq!(answer.status(), 200, "an edge");
    // Its place is free again once it has gone.
    drop(first);
    until("a place", async || {
        let mut third = Mesh::connect(&gateway, world.workload_of(CALLER)).await?;
        third.get(CLUSTER, &[]).await.map(drop)
    })
    .await;
}
