//! A body of 64 MiB through server and client, with a reader that stalls.

use super::support::*;
use atoll_model::Role;
use atoll_proxy::client::{H1Config, H1Pool, H2Peer, H2PeerConfig, MeshConnector, SendTimeouts};
use atoll_proxy::server::ServerLimits;
use atoll_proxy::{Body, BodyError, Interim, ProxyMetrics};
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

/// A body of single bytes, and how many were taken of all such.
struct Bits(usize, Rc<Cell<usize>>);

impl http_body::Body for Bits {
    type Data = bytes::Bytes;
    type Error = BodyError;
    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, BodyError>>> {
        self.0 = self.0.saturating_sub(1);
        self.1.set(self.1.get() + 1);
        let frame = http_body::Frame::data(bytes::Bytes::from_static(b"."));
        std::task::Poll::Ready((self.0 > 0).then_some(Ok(frame)))
    }
}

/// h2 ends a connection on which too many small frames wait.
#[test]
fn tiny_pieces_that_nobody_reads_do_not_end_what_others_use() {
    run_within(Duration::from_secs(120), async {
        let ca = Ca::new();
        let taken = Rc::<Cell<usize>>::default();
        let counted = Rc::clone(&taken);
        let tiny = handler(move |exchange| {
            let counted = Rc::clone(&counted);
            async move {
                http::Response::new(match exchange.request.uri().path() {
                    "/tiny" => Body::boxed(Bits(140_000, counted)),
                    _ => Body::full("small"),
                })
            }
        });
        let gateway = ca.node("fra1-gateway", Role::Gateway);
        let server = mesh_server(&gateway, ServerLimits::tunnel(), tiny).await;
        let connector = MeshConnector::new(&ca.node("fra1-edge", Role::Edge), policy(Role::Gateway));
        let peer = H2Peer::open(H2PeerConfig::near(server.address), connector, ProxyMetrics::unregistered());
        let proxy = {
            let peer = peer.clone();
            handler(move |exchange| {
                let peer = peer.clone();
                async move {
                    let sent =
                        peer.send(exchange.request, SendTimeouts::default(), &Interim::default()).await;
                    sent.unwrap_or_else(|error| {
                        http::Response::builder().status(502).body(Body::full(error.to_string())).unwrap()
                    })
                }
            })
        };
        let (mut client, _end, _trigger) = super::server::h2_client(proxy, ServerLimits::public(), 1).await;
        let ask = |client: &mut h2::client::SendRequest<bytes::Bytes>, path: &str| {
            let request = http::Request::get(format!("https://shop.example{path}")).body(()).unwrap();
            client.send_request(request, true).unwrap().0
        };
        let mut unread = Vec::new();
        for _ in 0..2 {
            unread.push(ask(&mut client, "/tiny").await.unwrap());
        }
        // All that fits into both windows has left; what is asked for now comes behind it.
        let fits = 2 * H2PeerConfig::near(server.address).stream_window as usize;
        while taken.get() < fits {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let response = ask(&mut client, "/").await.unwrap();
        assert_eq!(response.status(), 200, "the connection is used by others too");
        assert_eq!((peer.connected(), server.metrics.in_flight.get()), (1, 2));
        // And what is read at last is whole.
        let mut body = unread.remove(0).into_body();
        let mut got = 0;
        while let Some(piece) = body.data().await {
            let length = piece.unwrap().len();
            got += length;
            body.flow_control().release_capacity(length).unwrap();
            if got == 100 {
                break;
            }
        }
        assert_eq!(got, 100);
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
