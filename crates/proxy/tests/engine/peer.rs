//! Mesh peers: what passes, and what is known of a request that failed.

use super::support::*;
use atoll_identity::{ClientAuth, Identity, PeerPolicy};
use atoll_model::Role;
use atoll_proxy::client::{H2Peer, H2PeerConfig, MeshConnector, SendFault, SendTimeouts};
use atoll_proxy::server::ServerLimits;
use atoll_proxy::{Body, BodyError, Interim, ProxyMetrics, Replay};
use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body_util::BodyExt as _;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

fn edge_peer(ca: &Ca, address: SocketAddr) -> H2Peer {
    let connector = MeshConnector::new(&ca.node("fra1-edge", Role::Edge), policy(Role::Gateway));
    H2Peer::open(H2PeerConfig::near(address), connector, ProxyMetrics::unregistered())
}

#[test]
fn bodies_and_trailers_pass_both_ways() {
    run(async {
        let ca = Ca::new();
        let echo = handler(|exchange| async move {
            assert_eq!(exchange.authority(), "shop.example");
            assert_eq!(exchange.request.uri(), "/a?b=c");
            let collected = exchange.request.into_body().collect().await.unwrap();
            let trailers = collected.trailers().cloned().unwrap();
            let body = http_body_util::Full::new(collected.to_bytes())
                .map_err(|never| match never {})
                .with_trailers(async move { Some(Ok(trailers)) });
            Response::new(Body::boxed(body))
        });
        let server = mesh_server(&ca.node("fra1-gateway", Role::Gateway), ServerLimits::tunnel(), echo).await;
        let peer = edge_peer(&ca, server.address);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let body = http_body_util::Full::new(Bytes::from_static(b"hello"))
            .map_err(|never| match never {})
            .with_trailers(async move { Some(Ok(trailers)) });
        let mut request = get("/a?b=c");
        *request.method_mut() = http::Method::POST;
        *request.body_mut() = Body::boxed(body);
        let response = peer.send(request, SendTimeouts::default(), &Interim::default()).await.unwrap();
        assert_eq!(peer.in_flight(), 1);
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(collected.to_bytes(), "hello");
        assert_eq!(peer.in_flight(), 0);
    });
}

#[test]
fn a_peer_that_is_not_there_gets_nothing_and_the_request_comes_back() {
    run(async {
        let ca = Ca::new();
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let peer = edge_peer(&ca, free);
        let error =
            peer.send(post("/", "content"), SendTimeouts::default(), &Interim::default()).await.unwrap_err();
        assert_eq!((error.fault, error.sent), (SendFault::Connect, false));
        let request = error.request.unwrap();
        assert_eq!(read_all(request.into_body()).await.unwrap(), "content");
    });
}

#[test]
fn a_peer_of_another_role_is_not_talked_to() {
    run(async {
        let ca = Ca::new();
        let handler = handler(|_| async { Response::new(Body::empty()) });
        let server = mesh_server(&ca.node("fra1-host", Role::Host), ServerLimits::tunnel(), handler).await;
        let error = edge_peer(&ca, server.address)
            .send(get("/"), SendTimeouts::default(), &Interim::default())
            .await
            .unwrap_err();
        assert_eq!((error.fault, error.sent), (SendFault::Connect, false));
    });
}

/// A server that speaks HTTP/2 by hand.
async fn raw_server<Fut: Future<Output = ()> + 'static>(
    identity: &Identity,
    serve: impl Fn(TlsStream<TcpStream>) -> Fut + 'static,
) -> SocketAddr {
    let config = identity.server_config(&[b"h2"], policy(Role::Edge), ClientAuth::Required);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            if let Ok(tls) = TlsAcceptor::from(config.clone()).accept(tcp).await {
                serve(tls).await;
            }
        }
    });
    address
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

/// Reads frames until the headers of a request are there.
async fn read_headers(tls: &mut TlsStream<TcpStream>) {
    let mut preface = [0; 24];
    tls.read_exact(&mut preface).await.unwrap();
    tls.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    read_frames_to_headers(tls).await;
}

async fn read_frames_to_headers(tls: &mut TlsStream<TcpStream>) {
    loop {
        let mut head = [0; 9];
        tls.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        tls.read_exact(&mut vec![0; length]).await.unwrap();
        if head[3] == 1 {
            return;
        }
    }
}

async fn outcome_of(answer: Vec<u8>) -> (SendFault, bool) {
    let ca = Ca::new();
    let gateway = ca.node("fra1-gateway", Role::Gateway);
    let address = raw_server(&gateway, move |mut tls| {
        let answer = answer.clone();
        async move {
            read_headers(&mut tls).await;
            tls.write_all(&answer).await.unwrap();
            tls.flush().await.unwrap();
            // What follows must not change the outcome; close with a FIN, not a reset.
            let _gone = tls.shutdown().await;
            let _rest = tls.read_to_end(&mut Vec::new()).await;
        }
    })
    .await;
    let peer = edge_peer(&ca, address);
    let error = peer.send(post("/", "x"), SendTimeouts::default(), &Interim::default()).await.unwrap_err();
    (error.fault, error.sent)
}

#[test]
fn what_is_known_of_a_failed_request() {
    run(async {
        let reset = |code: u32| frame(3, 0, 1, &code.to_be_bytes());
        let go_away =
            |last: u32, code: u32| frame(7, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat());
        for (what, answer, wanted) in [
            ("REFUSED_STREAM", reset(7), (SendFault::Refused, false)),
            ("INTERNAL_ERROR", reset(2), (SendFault::Reset, true)),
            ("GOAWAY before it", go_away(0, 0), (SendFault::Refused, false)),
            ("GOAWAY before it, in anger", go_away(0, 11), (SendFault::Refused, false)),
            ("GOAWAY after it, then the end", go_away(1, 0), (SendFault::Reset, true)),
            ("GOAWAY after it, in anger", go_away(1, 2), (SendFault::Reset, true)),
            ("the end", vec![], (SendFault::Reset, true)),
        ] {
            assert_eq!(outcome_of(answer).await, wanted, "{what}");
        }
    });
}

#[test]
fn a_refused_stream_can_be_sent_again_from_its_replay() {
    run(async {
        let ca = Ca::new();
        let gateway = ca.node("fra1-gateway", Role::Gateway);
        let refuse = raw_server(&gateway, |mut tls| async move {
            read_headers(&mut tls).await;
            // Only once the body has been read too: REFUSED_STREAM still says that it was not processed.
            tls.write_all(&frame(3, 0, 1, &7_u32.to_be_bytes())).await.unwrap();
            let _rest = tls.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let echo = handler(|exchange| async move { Response::new(exchange.request.into_body()) });
        let server = mesh_server(&gateway, ServerLimits::tunnel(), echo).await;
        let (head, body) = post("/", "content").into_parts();
        let replay = Replay::new(body);
        let first = http::Request::from_parts(head.clone(), replay.body().unwrap());
        let error = edge_peer(&ca, refuse)
            .send(first, SendTimeouts::default(), &Interim::default())
            .await
            .unwrap_err();
        assert!(!error.sent);
        let second = http::Request::from_parts(head, replay.body().unwrap());
        let response = edge_peer(&ca, server.address)
            .send(second, SendTimeouts::default(), &Interim::default())
            .await
            .unwrap();
        assert_eq!(read_all(response.into_body()).await.unwrap(), "content");
    });
}

#[test]
fn a_body_that_ends_in_a_reset_is_not_whole_whatever_the_reset_says() {
    run(async {
        let ca = Ca::new();
        let gateway = ca.node("fra1-gateway", Role::Gateway);
        let address = raw_server(&gateway, |mut tls| async move {
            read_headers(&mut tls).await;
            // 200 without a length, a piece, and NO_ERROR.
            let answer =
                [frame(1, 4, 1, &[0x88]), frame(0, 0, 1, b"torso"), frame(3, 0, 1, &[0; 4])].concat();
            tls.write_all(&answer).await.unwrap();
            tls.flush().await.unwrap();
            let _rest = tls.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let peer = edge_peer(&ca, address);
        let response = peer.send(get("/"), SendTimeouts::default(), &Interim::default()).await.unwrap();
        let error = read_all(response.into_body()).await.unwrap_err();
        assert_eq!(error.reset_code(), BodyError::CANCEL, "nor does the next hop hear that all is well");
    });
}

#[test]
fn who_asks_again_at_once_gets_the_next_connection() {
    run(async {
        let ca = Ca::new();
        let gateway = ca.node("fra1-gateway", Role::Gateway);
        let address = raw_server(&gateway, move |mut tls| async move {
            read_headers(&mut tls).await;
            tls.write_all(&frame(1, 5, 1, &[0x88])).await.unwrap();
            tls.flush().await.unwrap();
            // Ends under the second request of this connection.
            read_frames_to_headers(&mut tls).await;
        })
        .await;
        let peer = edge_peer(&ca, address);
        // As requests are: a task among those that drive connections.
        let asking = tokio::task::spawn_local(async move {
            let ask = async || peer.send(get("/"), SendTimeouts::default(), &Interim::default()).await;
            assert_eq!(ask().await.unwrap().status(), 200);
            // Else that it ends would be a failure, after which there is a pause.
            tokio::time::sleep(Duration::from_millis(2_100)).await;
            assert!(ask().await.unwrap_err().sent);
            assert_eq!(ask().await.unwrap().status(), 200);
        });
        asking.await.unwrap();
    });
}

#[test]
fn a_peer_that_is_dropped_closes_its_connections() {
    run(async {
        let ca = Ca::new();
        let gateway = ca.node("fra1-gateway", Role::Gateway);
        let closed = Rc::<Cell<bool>>::default();
        let seen = Rc::clone(&closed);
        let address = raw_server(&gateway, move |mut tls| {
            let seen = Rc::clone(&seen);
            async move {
                read_headers(&mut tls).await;
                tls.write_all(&frame(1, 5, 1, &[0x88])).await.unwrap();
                tls.flush().await.unwrap();
                let _rest = tls.read_to_end(&mut Vec::new()).await;
                seen.set(true);
            }
        })
        .await;
        let peer = edge_peer(&ca, address);
        let response = peer.send(get("/"), SendTimeouts::default(), &Interim::default()).await.unwrap();
        drop(response);
        assert!(!closed.get());
        drop(peer);
        until("the connection is closed", || closed.get()).await;
    });
}

#[test]
fn no_answer_in_time_and_a_reset_when_given_up() {
    run(async {
        struct Gone(Rc<Cell<bool>>);
        impl Drop for Gone {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        let ca = Ca::new();
        let gone = Rc::<Cell<bool>>::default();
        let noted = Rc::clone(&gone);
        let handler = handler(move |_| {
            let gone = Gone(Rc::clone(&noted));
            async move {
                let _held = gone;
                std::future::pending::<Response<Body>>().await
            }
        });
        let server =
            mesh_server(&ca.node("fra1-gateway", Role::Gateway), ServerLimits::tunnel(), handler).await;
        let peer = edge_peer(&ca, server.address);
        let timeouts = SendTimeouts { head: Duration::from_millis(50), body_idle: None };
        let error = peer.send(get("/"), timeouts, &Interim::default()).await.unwrap_err();
        assert_eq!((error.fault, error.sent), (SendFault::Timeout, true));
        until("the handler is dropped", || gone.get()).await;
        assert_eq!(peer.in_flight(), 0);
    });
}

#[test]
fn a_denied_peer_is_cut_while_it_serves() {
    run(async {
        let ca = Ca::new();
        let edge = ca.node("fra1-edge", Role::Edge);
        let gateway = ca.node("fra1-gateway", Role::Gateway);
        let handler = handler(|_| std::future::pending());
        let server = mesh_server(&gateway, ServerLimits::tunnel(), handler).await;
        let connector = MeshConnector::new(&edge, policy(Role::Gateway));
        let peer = H2Peer::open(H2PeerConfig::near(server.address), connector, ProxyMetrics::unregistered());
        let sent = peer.clone();
        let pending = tokio::task::spawn_local(async move {
            sent.send(get("/"), SendTimeouts::default(), &Interim::default()).await.map(drop)
        });
        until("the request is under way", || server.metrics.in_flight.get() == 1).await;
        edge.connections().set_denied([gateway.own_id()]);
        let error = pending.await.unwrap().unwrap_err();
        assert!(error.sent);
        until("no connection is left", || peer.connected() == 0).await;
    });
}

#[test]
fn a_drain_loses_no_request() {
    run(async {
        let ca = Ca::new();
        let gateway = ca.node("fra1-gateway", Role::Gateway);
        let gate = Rc::new(tokio::sync::Semaphore::new(0));
        let handler = {
            let gate = Rc::clone(&gate);
            handler(move |_| {
                let gate = Rc::clone(&gate);
                async move {
                    gate.acquire().await.unwrap().forget();
                    Response::new(Body::full("done"))
                }
            })
        };
        let server = mesh_server(&gateway, ServerLimits::tunnel(), handler).await;
        let peer = edge_peer(&ca, server.address);
        assert!(peer.ready(Duration::from_secs(5)).await);
        let requests: Vec<_> = (0..20)
            .map(|_| {
                let peer = peer.clone();
                tokio::task::spawn_local(async move {
                    peer.send(get("/"), SendTimeouts::default(), &Interim::default()).await
                })
            })
            .collect();
        until("they are under way", || server.metrics.in_flight.get() == 20).await;
        server.trigger.start();
        gate.add_permits(20);
        for request in requests {
            let response = request.await.unwrap().unwrap();
            assert_eq!(read_all(response.into_body()).await.unwrap(), "done");
        }
    });
}

#[test]
fn while_a_server_drains_a_request_is_answered_or_certainly_unsent() {
    run(async {
        let ca = Ca::new();
        let gateway = ca.node("fra1-gateway", Role::Gateway);
        let handled = Rc::<Cell<usize>>::default();
        let counted = Rc::clone(&handled);
        let handler = handler(move |_| {
            counted.set(counted.get() + 1);
            async { Response::new(Body::full("done")) }
        });
        let server = mesh_server(&gateway, ServerLimits::tunnel(), handler).await;
        let peer = edge_peer(&ca, server.address);
        let requests = (0..400).map(|number| {
            let peer = peer.clone();
            let trigger = &server.trigger;
            async move {
                // Spread over the drain's beginning, so that some meet each of its steps.
                for _ in 0..number {
                    tokio::task::yield_now().await;
                }
                if number == 100 {
                    trigger.start();
                }
                match peer.send(post("/", "x"), SendTimeouts::default(), &Interim::default()).await {
                    Ok(response) => {
                        assert_eq!(read_all(response.into_body()).await.unwrap(), "done");
                        true
                    }
                    Err(error) => {
                        assert!(!error.sent, "{error}");
                        false
                    }
                }
            }
        });
        let answered = futures_util::future::join_all(requests).await.into_iter().filter(|ok| *ok).count();
        assert_eq!(handled.get(), answered);
        assert!(answered >= 100, "{answered}");
    });
}

#[test]
fn an_instance_whose_certificate_has_expired_is_given_nothing_new_on_an_old_connection() {
    run(async {
        let ca = Ca::new();
        let late = Rc::<tokio::sync::Notify>::default();
        let waits = Rc::clone(&late);
        let handler = handler(move |exchange| {
            let waits = Rc::clone(&waits);
            async move {
                if exchange.request.uri().path() == "/late" {
                    waits.notified().await;
                }
                Response::new(Body::full("done"))
            }
        });
        let gateway = ca.node("fra1-gateway", Role::Gateway);
        let server =
            mesh_server_for(PeerPolicy::AnyWorkload, &gateway, ServerLimits::tunnel(), handler).await;
        let instance = ca.workload("default/shop/web", Duration::from_secs(3));
        let connector = MeshConnector::new(&instance, policy(Role::Gateway));
        let peer = H2Peer::open(H2PeerConfig::near(server.address), connector, ProxyMetrics::unregistered());
        assert_eq!(
            peer.send(get("/"), SendTimeouts::default(), &Interim::default()).await.unwrap().status(),
            200
        );
        let other = peer.clone();
        let under_way = tokio::task::spawn_local(async move {
            other.send(get("/late"), SendTimeouts::default(), &Interim::default()).await
        });
        until("it is under way", || server.metrics.in_flight.get() == 1).await;
        while peer.send(get("/"), SendTimeouts::default(), &Interim::default()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(server.metrics.in_flight.get() == 1 && !under_way.is_finished());
        late.notify_one();
        let answer = under_way.await.unwrap().unwrap();
        assert_eq!(read_all(answer.into_body()).await.unwrap(), "done", "what was under way is finished");
    });
}
