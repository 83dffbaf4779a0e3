//! Calls between instances: who may, and how they get there.

use super::world::*;
use atoll_model::{Reason, Role};
use atoll_proxy::Interim;
use atoll_proxy::answer::read_internal;
use atoll_proxy::client::{H2Peer, SendTimeouts};
use atoll_wire::record::{AllowRule, RegionCluster};
use atoll_wire::sidecar::{Call, Endpoint, SidecarState, endpoint};
use http::{Method, Request};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const API: &str = "default/shop/api";
const CALLER: &str = "spiffe://atoll.test/org/default/app/shop/service/web";

fn asking(path: &str) -> Request<atoll_proxy::Body> {
    let mut request = get(path);
    request.headers_mut().insert("atoll-cluster", API.parse().unwrap());
    request
}

fn with(
    mut request: Request<atoll_proxy::Body>,
    fields: &[(&'static str, &str)],
) -> Request<atoll_proxy::Body> {
    for (name, value) in fields {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request
}

/// `None` where the instance answered.
async fn refusal(peer: &H2Peer, request: Request<atoll_proxy::Body>) -> Option<Reason> {
    read_internal(ask(peer, request).await.headers()).map(|answer| answer.reason)
}

fn own_app(state: &mut SidecarState) {
    state.policy = Some(RegionCluster::default());
}

fn rules(from: &[&str], http: &[&str]) -> RegionCluster {
    let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    let rule = AllowRule { from: texts(from), http: texts(http), grpc: Vec::new() };
    RegionCluster { allow: vec![rule], ..RegionCluster::default() }
}

#[test]
fn the_own_app_may_call_and_others_may_not() {
    run(async {
        let mesh = mesh();
        let mut world = World::of(&mesh, API, |_| {}, |_| {}).await;
        let web = world.connect(mesh.workload("default/shop/web"));
        assert_eq!(
            refusal(&web, asking("/")).await,
            Some(Reason::NotAuthorized),
            "nobody while nothing is known"
        );
        world.tell(own_app);
        while refusal(&web, asking("/")).await.is_some() {}
        let other_app = world.connect(mesh.workload("default/billing/web"));
        assert_eq!(refusal(&other_app, asking("/")).await, Some(Reason::NotAuthorized));
        // What it says of itself counts for nothing.
        let forged = with(asking("/"), &[("atoll-caller", CALLER)]);
        assert_eq!(refusal(&other_app, forged).await, Some(Reason::NotAuthorized));
        let status = Rc::clone(&world.host.status);
        until("the host hears how many were refused", || status.borrow().calls_refused >= 3).await;

        let seen = world.heads.borrow().len();
        let forged = with(
            asking("/x"),
            &[
                ("atoll-client-ip", "6.6.6.6"),
                ("atoll-edge", "e"),
                ("atoll-region", "r"),
                ("x-forwarded-for", "1.2.3.4"),
            ],
        );
        assert_eq!(refusal(&web, forged).await, None);
        let head = world.heads.borrow()[seen].to_ascii_lowercase();
        assert!(!head.contains("atoll-") && head.contains("x-forwarded-for: 1.2.3.4"), "{head}");
    });
}

#[test]
fn other_organizations_and_gateways_of_other_regions_are_refused_in_the_handshake() {
    run(async {
        let mesh = mesh();
        let world = World::of(&mesh, API, |_| {}, own_app).await;
        for identity in
            [mesh.workload("acme/shop/web"), mesh.node(Role::Gateway, "was"), mesh.node(Role::Edge, "fra")]
        {
            let refused =
                world.connect(identity).send(asking("/"), SendTimeouts::default(), &Interim::default()).await;
            assert!(refused.is_err());
        }
        assert!(world.heads.borrow().is_empty());
    });
}

#[test]
fn a_gateway_names_the_caller_and_nobody_else_does() {
    run(async {
        let mesh = mesh();
        let mut world = World::of(&mesh, API, |_| {}, own_app).await;
        let gateway = world.peer(Role::Gateway);
        let from = |caller: &str| with(asking("/"), &[("atoll-caller", caller)]);
        assert_eq!(refusal(&gateway, from(CALLER)).await, None);
        assert_eq!(
            refusal(&gateway, asking("/")).await,
            Some(Reason::NotPublic),
            "without a caller it is a public one"
        );
        for caller in [
            "",
            "web",
            "spiffe://atoll.test/org/default/app/billing/service/web",
            "spiffe://atoll.test/org/acme/app/shop/service/web",
            "spiffe://other.test/org/default/app/shop/service/web",
            "spiffe://atoll.test/node/fra1/fra1-gateway",
        ] {
            assert_eq!(refusal(&gateway, from(caller)).await, Some(Reason::NotAuthorized), "{caller}");
        }
        let two = with(from(CALLER), &[("atoll-caller", CALLER)]);
        assert_eq!(refusal(&gateway, two).await, Some(Reason::NotAuthorized));
        world.tell(|state| state.policy = Some(RegionCluster { public: true, ..RegionCluster::default() }));
        while refusal(&gateway, asking("/")).await.is_some() {}
    });
}

#[test]
fn rules_let_in_whom_they_list_for_what_they_list() {
    run(async {
        let mesh = mesh();
        let from = ["default/shop/web", "default/billing/tax"];
        let tell = |state: &mut SidecarState| state.policy = Some(rules(&from, &["GET /v1/**", "* /v2/x"]));
        let world = World::of(&mesh, API, |_| {}, tell).await;
        let connect = |cluster: &str| world.connect(mesh.workload(cluster));
        let (web, tax, own) = (connect(from[0]), connect(from[1]), connect(API));
        assert_eq!(refusal(&own, asking("/v1/a")).await, Some(Reason::NotAuthorized), "no rule names it");
        for peer in [&web, &tax] {
            let mut post = asking("/v1/a");
            *post.method_mut() = Method::POST;
            assert_eq!(refusal(peer, post).await, Some(Reason::NotAuthorized));
            assert_eq!(refusal(peer, asking("/v1/../secret")).await, Some(Reason::NotAuthorized));
            assert_eq!(refusal(peer, asking("/v1/%2e%2e/secret")).await, Some(Reason::NotAuthorized));
            assert_eq!(refusal(peer, asking("/v1/..%2fsecret")).await, Some(Reason::AmbiguousPath));
            assert_eq!(refusal(peer, asking("/secret")).await, Some(Reason::NotAuthorized));
            assert!(world.heads.borrow().is_empty());
        }
        assert_eq!(refusal(&tax, asking("/v0/../v1/%61?q=%2e")).await, None);
        let head = world.heads.borrow()[0].clone();
        assert!(head.starts_with("GET /v1/a?q=%2e HTTP/1.1"), "it goes on as it was read: {head}");
    });
}

/// Free ports; nobody else takes them in the time that a test takes, or the sidecar says so.
async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

fn call(cluster: &str, protocol: &str, port: u16, called: &World) -> Call {
    let mut endpoint = Endpoint {
        key: format!("fra1-host/{}", called.state.instance),
        address: called.address.to_string(),
        ..Endpoint::default()
    };
    endpoint.set_state(endpoint::State::Healthy);
    Call {
        cluster: cluster.to_owned(),
        protocol: protocol.to_owned(),
        port: u32::from(port),
        endpoints: vec![endpoint],
        response_timeout_ms: 3000,
    }
}

/// Sends a head and reads all that comes back.
async fn raw(port: u16, text: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[test]
fn a_call_goes_from_listener_to_the_other_instance() {
    run(async {
        let mesh = mesh();
        let api = World::of(&mesh, API, |_| {}, own_app).await;
        let (port, proxy) = (free_port().await, free_port().await);
        let tell = |state: &mut SidecarState| {
            state.calls = vec![call(API, "http", port, &api)];
            state.proxy_port = u32::from(proxy);
        };
        let web = World::of(&mesh, CLUSTER, |_| {}, tell).await;
        let status = Rc::clone(&web.host.status);
        until("it listens", || status.borrow().ports_open.len() == 2).await;

        let answer = raw(port, &format!("GET /a?b HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\natoll-cluster: default/shop/db\r\natoll-caller: x\r\nx-forwarded-for: 1.2.3.4\r\nconnection: close\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
        assert!(answer.contains("atoll-region: fra") && !answer.contains("atoll-hops"), "{answer}");
        let head = api.heads.borrow()[0].to_ascii_lowercase();
        assert!(
            head.starts_with("get /a?b http/1.1") && head.contains("host: api.shop.internal\r\n"),
            "{head}"
        );
        assert!(head.contains("x-forwarded-for: 1.2.3.4") && head.contains("traceparent: 00-"), "{head}");
        assert!(!head.contains("atoll-"), "{head}");

        // By name, through the forward proxy, in the absolute form.
        let named = "GET http://api.shop.internal/named HTTP/1.1\r\nhost: api.shop.internal\r\nconnection: close\r\n\r\n";
        let answer = raw(proxy, named).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        for outside in [
            "GET http://example.com/ HTTP/1.1\r\nhost: example.com\r\nconnection: close\r\n\r\n",
            "CONNECT api.shop.internal:443 HTTP/1.1\r\nhost: api.shop.internal:443\r\nconnection: close\r\n\r\n",
        ] {
            let answer = raw(proxy, outside).await;
            assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("not-internal"), "{answer}");
        }
        until("the host hears of it", || status.borrow().calls_near == 2).await;
        assert_eq!(status.borrow().calls_by_gateway, 0);
        let unknown =
            "GET http://db.shop.internal/ HTTP/1.1\r\nhost: db.shop.internal\r\nconnection: close\r\n\r\n";
        let answer = raw(proxy, unknown).await;
        assert!(
            answer.starts_with("HTTP/1.1 503")
                && answer.contains("atoll-sidecar; error=destination_unavailable; details=\"no-instance\""),
            "{answer}"
        );
        until("the host is asked for it", || status.borrow().wants == ["default/shop/db"]).await;
        drop(api.running);
    });
}

#[test]
fn http2_is_taken_and_given() {
    run(async {
        let mesh = mesh();
        // Another sidecar's forward proxy speaks HTTP/2 in plain text: it stands for an instance that does.
        let (behind, port) = (free_port().await, free_port().await);
        let last = World::of(&mesh, "default/shop/db", |_| {}, own_app).await;
        let tell =
            |state: &mut SidecarState| state.calls = vec![call("default/shop/db", "http", behind, &last)];
        let middle = World::of(&mesh, "default/shop/web", |_| {}, tell).await;
        let status = Rc::clone(&middle.host.status);
        until("it listens", || status.borrow().ports_open.len() == 1).await;
        let tell = |state: &mut SidecarState| {
            own_app(state);
            state.protocol = "http2".to_owned();
            state.instance_port = u32::from(behind);
        };
        let api = World::of(&mesh, API, |_| {}, tell).await;
        let tell = |state: &mut SidecarState| state.calls = vec![call(API, "http2", port, &api)];
        let web = World::of(&mesh, CLUSTER, |_| {}, tell).await;
        let status = Rc::clone(&web.host.status);
        until("it listens", || status.borrow().ports_open.len() == 1).await;
        let pool = atoll_proxy::client::H2cPool::new(
            atoll_proxy::client::H2cConfig::local(([127, 0, 0, 1], port).into()),
            atoll_proxy::ProxyMetrics::unregistered(),
        );
        for _ in 0..3 {
            let response =
                pool.send(asking("/trailers"), SendTimeouts::default(), &Interim::default()).await.unwrap();
            assert_eq!(response.status(), 200);
            let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
            assert_eq!(body.trailers().unwrap()["grpc-status"], "7");
        }
        assert_eq!((last.heads.borrow().len(), pool.open()), (3, 1));
    });
}

/// Says what it has heard once the other side has ended its half, twice.
async fn echo_at_the_end() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::task::spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::task::spawn_local(async move {
                stream.write_all(b"hello ").await.ok()?;
                let mut heard = Vec::new();
                stream.read_to_end(&mut heard).await.ok()?;
                stream.write_all(&heard).await.ok()?;
                stream.write_all(&heard).await.ok()
            });
        }
    });
    port
}

#[test]
fn bytes_pass_both_ways_and_each_direction_ends_by_itself() {
    run(async {
        let mesh = mesh();
        let (echo, port) = (echo_at_the_end().await, free_port().await);
        let tell = |state: &mut SidecarState| {
            own_app(state);
            state.protocol = "tcp".to_owned();
            state.instance_port = u32::from(echo);
        };
        let mut db = World::of(&mesh, "default/shop/db", |_| {}, tell).await;
        let tell = |state: &mut SidecarState| state.calls = vec![call("default/shop/db", "tcp", port, &db)];
        let web = World::of(&mesh, CLUSTER, |_| {}, tell).await;
        let status = Rc::clone(&web.host.status);
        until("it listens", || status.borrow().ports_open.len() == 1).await;

        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut hello = [0; 6];
        stream.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello ", "the called side may speak first");
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.unwrap();
        assert!(heard == [&sent[..], &sent[..]].concat(), "{} bytes", heard.len());

        // HTTP to it is refused, and so are bytes from who may not.
        let http = with(get("/"), &[]);
        let peer = db.connect(mesh.workload(CLUSTER));
        let mut http = http;
        http.headers_mut().insert("atoll-cluster", "default/shop/db".parse().unwrap());
        assert_eq!(refusal(&peer, http).await, Some(Reason::NotAuthorized));
        db.tell(|state| state.policy = Some(rules(&["default/shop/api"], &[])));
        let reset = async {
            loop {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                if let Err(error) = stream.read_u8().await {
                    return error.kind();
                }
            }
        };
        let kind = tokio::time::timeout(Duration::from_secs(10), reset).await.unwrap();
        assert_eq!(kind, std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_port_that_somebody_has_is_told_and_tried_again() {
    run(async {
        let mesh = mesh();
        let api = World::of(&mesh, API, |_| {}, own_app).await;
        let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = holder.local_addr().unwrap().port();
        let tell = |state: &mut SidecarState| state.calls = vec![call(API, "http", port, &api)];
        let web = World::of(&mesh, CLUSTER, |_| {}, tell).await;
        let status = Rc::clone(&web.host.status);
        until("it is told", || status.borrow().ports_taken == [u32::from(port)]).await;
        drop(holder);
        until("it is tried again", || status.borrow().ports_open == [u32::from(port)]).await;
        assert!(status.borrow().ports_taken.is_empty());
    });
}
