//! What comes before a response: 103 through two hops, 100 where the client waits for it.

use super::support::*;
use atoll_model::Role;
use atoll_process::drain::channel;
use atoll_proxy::client::{H1Config, H1Pool, H2Peer, H2PeerConfig, MeshConnector, SendTimeouts};
use atoll_proxy::server::{HttpVersion, ServerLimits, serve_connection};
use atoll_proxy::{Body, ConnectionInfo, Handler, ProxyMetrics};
use http::{Request, Response};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpListener;
use tokio::sync::Notify;

const HINTS: &[u8] = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nAtoll-Cluster: x\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// An instance that gives hints, and answers when it is let; behind two hops, the last of which is for clients.
struct World {
    go_on: Rc<Notify>,
    edge: Rc<dyn Fn(HttpVersion) -> DuplexStream>,
    _gateway: Served,
}

async fn world(hints: usize) -> World {
    let go_on = Rc::<Notify>::default();
    let lets = Rc::clone(&go_on);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let instance = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let lets = Rc::clone(&lets);
            tokio::task::spawn_local(async move {
                let mut head = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    head.push(byte);
                    if head.ends_with(b"\r\n\r\n") {
                        stream.write_all(&HINTS.repeat(hints)).await.unwrap();
                        if !head.starts_with(b"GET /at-once") {
                            lets.notified().await;
                        }
                        stream.write_all(OK).await.unwrap();
                        head.clear();
                    }
                }
            });
        }
    });
    let ca = Ca::new();
    let pool = H1Pool::new(H1Config::local(instance), ProxyMetrics::unregistered());
    let inner = handler(move |exchange| {
        let pool = pool.clone();
        async move { pool.send(exchange.request, SendTimeouts::default(), &exchange.interim).await.unwrap() }
    });
    let server = mesh_server(&ca.node("fra1-gateway", Role::Gateway), ServerLimits::tunnel(), inner).await;
    let connector = MeshConnector::new(&ca.node("fra1-edge", Role::Edge), policy(Role::Gateway));
    let peer = H2Peer::open(H2PeerConfig::near(server.address), connector, ProxyMetrics::unregistered());
    let outer = handler(move |exchange| {
        let peer = peer.clone();
        async move {
            if exchange.request.uri().path() == "/large" {
                return Response::new(Body::full(vec![b'x'; 300_000]));
            }
            peer.send(exchange.request, SendTimeouts::default(), &exchange.interim).await.unwrap()
        }
    });
    let edge = Rc::new(move |version| serve(version, Rc::clone(&outer)));
    World { go_on, edge, _gateway: server }
}

fn serve<H: Handler>(version: HttpVersion, handler: Rc<H>) -> DuplexStream {
    let (near, far) = tokio::io::duplex(4096);
    let address = "127.0.0.1:1".parse().unwrap();
    let info = Arc::new(ConnectionInfo { peer: address, local: address, tls: None, identity: None });
    tokio::task::spawn_local(async move {
        let (_trigger, drain) = channel();
        let metrics = ProxyMetrics::unregistered();
        serve_connection(far, version, info, &ServerLimits::public(), handler, &metrics, drain).await
    });
    near
}

async fn read_until(client: &mut DuplexStream, end: &str) -> String {
    let mut read = Vec::new();
    let reading = async {
        while !read.ends_with(end.as_bytes()) {
            read.push(client.read_u8().await.unwrap());
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(5), reading).await.is_ok();
    assert!(in_time, "{}", String::from_utf8_lossy(&read));
    String::from_utf8(read).unwrap()
}

#[test]
fn hints_reach_a_client_over_http1_before_the_response_does() {
    run(async {
        let world = world(1).await;
        let mut client = (world.edge)(HttpVersion::H1);
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let early = read_until(&mut client, "\r\n\r\n").await;
        assert!(early.starts_with("HTTP/1.1 103 Early Hints\r\n"), "{early}");
        assert!(early.contains("link: </a.css>; rel=preload\r\n"), "{early}");
        assert!(!early.to_lowercase().contains("atoll"), "{early}");
        world.go_on.notify_one();
        let answer = read_until(&mut client, "ok").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    });
}

#[test]
fn hints_that_come_with_the_response_are_not_lost_and_lie_between_responses() {
    run(async {
        let world = world(2).await;
        let mut client = (world.edge)(HttpVersion::H1);
        let large = "GET /large HTTP/1.1\r\nHost: a\r\n\r\n";
        let hinted = "GET /at-once HTTP/1.1\r\nHost: a\r\n\r\n";
        client.write_all(format!("{large}{hinted}{large}{hinted}").as_bytes()).await.unwrap();
        for _ in 0..2 {
            let first = read_until(&mut client, "\r\n\r\n").await;
            assert!(first.starts_with("HTTP/1.1 200 OK\r\n"), "{first}");
            let mut body = vec![0; 300_000];
            client.read_exact(&mut body).await.unwrap();
            assert!(body.iter().all(|byte| *byte == b'x'), "nothing is put into a body");
            for _ in 0..2 {
                let early = read_until(&mut client, "\r\n\r\n").await;
                assert!(early.starts_with("HTTP/1.1 103 Early Hints\r\n"), "{early}");
            }
            let answer = read_until(&mut client, "ok").await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        }
    });
}

#[test]
fn http_1_0_gets_no_hints_and_nobody_gets_many() {
    run(async {
        let world = world(50).await;
        let mut client = (world.edge)(HttpVersion::H1);
        client.write_all(b"GET /at-once HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let answer = read_until(&mut client, "ok").await;
        assert_eq!(answer.matches("HTTP/1.1 103").count(), 8, "{answer}");
        let mut client = (world.edge)(HttpVersion::H1);
        client.write_all(b"GET /at-once HTTP/1.0\r\nHost: a\r\n\r\n").await.unwrap();
        let answer = read_until(&mut client, "ok").await;
        assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && !answer.contains("103"), "{answer}");
    });
}

async fn http2(io: DuplexStream) -> h2::client::SendRequest<bytes::Bytes> {
    let (client, connection) = h2::client::handshake(io).await.unwrap();
    tokio::task::spawn_local(connection);
    client.ready().await.unwrap()
}

#[test]
fn hints_reach_a_client_over_http2_before_the_response_does() {
    run(async {
        let world = world(1).await;
        let mut client = http2((world.edge)(HttpVersion::H2)).await;
        let request = Request::get("https://a/").body(()).unwrap();
        let (mut response, _) = client.send_request(request, true).unwrap();
        let early = poll_fn(|context| response.poll_informational(context)).await.unwrap().unwrap();
        assert_eq!(early.status(), 103);
        assert_eq!(early.headers()["link"], "</a.css>; rel=preload");
        assert_eq!(early.headers().len(), 1, "{early:?}");
        world.go_on.notify_one();
        assert_eq!(response.await.unwrap().status(), 200);
    });
}

#[test]
fn who_waits_with_its_body_is_told_to_go_on_when_it_is_wanted() {
    run(async {
        let echo = handler(|exchange| async move {
            match exchange.request.uri().path() {
                "/refused" => Response::builder().status(403).body(Body::empty()).unwrap(),
                _ => Response::new(Body::full(read_all(exchange.request.into_body()).await.unwrap())),
            }
        });
        let mut client = http2(serve(HttpVersion::H2, echo)).await;
        let asking = |path: &str| {
            let request = Request::post(format!("https://a{path}")).header("expect", "100-continue");
            request.body(()).unwrap()
        };
        let (mut response, mut body) = client.send_request(asking("/"), false).unwrap();
        let early = poll_fn(|context| response.poll_informational(context)).await.unwrap().unwrap();
        assert_eq!(early.status(), 100);
        body.send_data("content".into(), true).unwrap();
        let mut content = response.await.unwrap().into_body();
        assert_eq!(content.data().await.unwrap().unwrap(), "content");
        // Who isn't let in needn't send it.
        let (mut response, _body) = client.send_request(asking("/refused"), false).unwrap();
        let mut early = false;
        let answer = poll_fn(|context| {
            early |= matches!(response.poll_informational(context), std::task::Poll::Ready(Some(_)));
            Pin::new(&mut response).poll(context)
        });
        assert_eq!(answer.await.unwrap().status(), 403);
        assert!(!early);
    });
}
