//! A body of 64 MiB through server and client, with a reader that stalls.

use super::support::*;
use atoll_model::Role;
use atoll_proxy::client::{H1Config, H1Pool, H2Peer, H2PeerConfig, MeshConnector, SendTimeouts};
use atoll_proxy::server::ServerLimits;
use atoll_proxy::{Body, Interim, ProxyMetrics};
use http_body_util::BodyExt as _;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const LENGTH: usize = 64 << 20;

#[test]
fn a_reader_that_stalls_stops_the_origin() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = listener.local_addr().unwrap();
        let written = Rc::<Cell<usize>>::default();
        let counted = Rc::clone(&written);
        tokio::task::spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            assert!(stream.read(&mut head).await.unwrap() > 0);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let piece = vec![7; 64 << 10];
            while counted.get() < LENGTH {
                let length = stream.write(&piece[..piece.len().min(LENGTH - counted.get())]).await.unwrap();
                counted.set(counted.get() + length);
            }
            // The other side closes.
            let _end = stream.read(&mut [0]).await;
        });

        let ca = Ca::new();
        let pool = H1Pool::new(H1Config::local(origin), ProxyMetrics::unregistered());
        let proxy = handler(move |exchange| {
            let pool = pool.clone();
            async move { pool.send(exchange.request, SendTimeouts::default(), &Interim::default()).await.unwrap() }
        });
        let gateway = ca.node("fra1-gateway", Role::Gateway);
        let server = mesh_server(&gateway, ServerLimits::tunnel(), proxy).await;
        let connector = MeshConnector::new(&ca.node("fra1-edge", Role::Edge), policy(Role::Gateway));
        let peer = H2Peer::open(H2PeerConfig::near(server.address), connector, ProxyMetrics::unregistered());

        let response = peer.send(get("/"), SendTimeouts::default(), &Interim::default()).await.unwrap();
        let mut body = response.into_body();
        // Stalled: the origin writes until every buffer on the way is full, and no further.
        let mut before = usize::MAX;
        while before != written.get() {
            before = written.get();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // Two sockets' buffers (the kernel's, up to 6 MiB each way on loopback) and our windows.
        assert!(before < 16 << 20, "{before} bytes were taken from the origin");

        let mut got = 0;
        while let Some(frame) = body.frame().await {
            got += frame.unwrap().into_data().map_or(0, |data| data.len());
        }
        assert_eq!(got, LENGTH);
    });
}

#[test]
fn readers_that_stall_hold_up_nobody_else() {
    run(async {
        let ca = Ca::new();
        let large = handler(|exchange| async move {
            let body = match exchange.request.uri().path() {
                "/large" => Body::full(vec![7; 2 << 20]),
                _ => Body::full("small"),
            };
            http::Response::new(body)
        });
        let gateway = ca.node("fra1-gateway", Role::Gateway);
        let server = mesh_server(&gateway, ServerLimits::tunnel(), large).await;
        for config in [H2PeerConfig::near(server.address), H2PeerConfig::far(server.address)] {
            let connector = MeshConnector::new(&ca.node("fra1-edge", Role::Edge), policy(Role::Gateway));
            let peer = H2Peer::open(config, connector, ProxyMetrics::unregistered());
            let mut unread = Vec::new();
            for _ in 0..100 {
                unread.push(
                    peer.send(get("/large"), SendTimeouts::default(), &Interim::default()).await.unwrap(),
                );
            }
            let response = peer.send(get("/"), SendTimeouts::default(), &Interim::default()).await.unwrap();
            let read = tokio::time::timeout(Duration::from_secs(5), read_all(response.into_body())).await;
            assert_eq!(read.expect("the small one waits for the large ones").unwrap(), "small");
        }
    });
}

#[test]
fn uploads_that_are_not_read_hold_up_nobody_else() {
    run(async {
        let ca = Ca::new();
        let lazy = handler(|exchange| async move {
            if exchange.request.uri().path() == "/unread" {
                std::future::pending::<()>().await;
            }
            let read = read_all(exchange.request.into_body()).await.unwrap();
            http::Response::new(Body::full(read))
        });
        let gateway = ca.node("fra1-gateway", Role::Gateway);
        let server = mesh_server(&gateway, ServerLimits::tunnel(), lazy).await;
        let connector = MeshConnector::new(&ca.node("fra1-edge", Role::Edge), policy(Role::Gateway));
        let peer = H2Peer::open(H2PeerConfig::near(server.address), connector, ProxyMetrics::unregistered());
        for _ in 0..100 {
            let (peer, request) = (peer.clone(), post("/unread", &*vec![7; 2 << 20].leak()));
            tokio::task::spawn_local(async move {
                peer.send(request, SendTimeouts::default(), &Interim::default()).await.map(drop)
            });
        }
        until("all are under way", || peer.in_flight() == 100).await;
        let echoed = async {
            let response =
                peer.send(post("/", b"small"), SendTimeouts::default(), &Interim::default()).await.unwrap();
            read_all(response.into_body()).await.unwrap()
        };
        let echoed = tokio::time::timeout(Duration::from_secs(5), echoed).await;
        assert_eq!(echoed.expect("the small one waits for the large ones"), "small");
    });
}
