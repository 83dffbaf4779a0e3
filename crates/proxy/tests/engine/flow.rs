//! A body of 64 MiB through server and client, with a reader that stalls.

use super::support::*;
use atoll_model::Role;
use atoll_proxy::ProxyMetrics;
use atoll_proxy::client::{H1Config, H1Pool, H2Peer, H2PeerConfig, MeshConnector, SendTimeouts};
use atoll_proxy::server::ServerLimits;
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
            async move { pool.send(exchange.request, SendTimeouts::default()).await.unwrap() }
        });
        let gateway = ca.node("fra1-gateway", Role::Gateway);
        let server = mesh_server(&gateway, ServerLimits::tunnel(), proxy).await;
        let connector = MeshConnector::new(&ca.node("fra1-edge", Role::Edge), policy(Role::Gateway));
        let peer = H2Peer::open(H2PeerConfig::near(server.address), connector, ProxyMetrics::unregistered());

        let response = peer.send(get("/"), SendTimeouts::default()).await.unwrap();
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
