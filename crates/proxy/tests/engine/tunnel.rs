//! Tunnels: warm, measured, told of headroom and drain, and never trusted when they are dead.

use super::support::*;
use atoll_identity::Identity;
use atoll_model::Role;
use atoll_proxy::client::{H2PeerConfig, MeshConnector, SendFault, SendTimeouts};
use atoll_proxy::server::ServerLimits;
use atoll_proxy::tunnel::{ControlStream, Tunnel, TunnelConfig, is_control_stream, serve_control_stream};
use atoll_proxy::{Body, Interim, ProxyMetrics};
use atoll_wire::tunnel::ClusterHeadroom;
use http::Response;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

async fn gateway(identity: &Identity, drain: atoll_process::Drain) -> Served {
    let control = ControlStream {
        node: "fra1-gateway".to_owned(),
        region: "fra".to_owned(),
        headroom: Rc::new(|| {
            vec![ClusterHeadroom { cluster: "default/shop/web".to_owned(), healthy: 3, in_flight: 1 }]
        }),
        drain,
        metrics: ProxyMetrics::unregistered(),
    };
    let handler = handler(move |exchange| {
        let control = control.clone();
        async move {
            if is_control_stream(&exchange) {
                return serve_control_stream(exchange, control);
            }
            if exchange.request.uri().path() == "/slow" {
                return std::future::pending().await;
            }
            Response::new(Body::full("ok"))
        }
    });
    mesh_server(identity, ServerLimits::tunnel(), handler).await
}

fn tunnel(ca: &Ca, address: SocketAddr, delay: Duration) -> Tunnel {
    let connector =
        MeshConnector::new(&ca.node("fra1-edge", Role::Edge), policy(Role::Gateway)).with_read_delay(delay);
    let config = TunnelConfig {
        peer: H2PeerConfig { connections: 2, ..H2PeerConfig::far(address) },
        node: "fra1-edge".to_owned(),
        region: "fra".to_owned(),
    };
    Tunnel::open(config, connector, ProxyMetrics::unregistered())
}

#[test]
fn a_tunnel_is_warm_measures_and_hears_of_headroom() {
    run(async {
        let ca = Ca::new();
        let (_trigger, drain) = atoll_process::drain::channel();
        let server = gateway(&ca.node("fra1-gateway", Role::Gateway), drain).await;
        let delay = Duration::from_millis(60);
        let tunnel = tunnel(&ca, server.address, delay);
        until("it is connected", || tunnel.state().connected).await;
        until("headroom is known", || !tunnel.state().headroom.is_empty()).await;
        let state = tunnel.state();
        assert_eq!(state.headroom["default/shop/web"].healthy, 3);
        let rtt = state.rtt.unwrap();
        assert!(rtt >= delay && rtt < delay * 4, "{rtt:?}");
        let response = tunnel.send(get("/"), SendTimeouts::default(), &Interim::default()).await.unwrap();
        assert_eq!(read_all(response.into_body()).await.unwrap(), "ok");
    });
}

#[test]
fn a_drain_is_heard_and_what_is_in_flight_goes_on() {
    run(async {
        let ca = Ca::new();
        let (trigger, drain) = atoll_process::drain::channel();
        let server = gateway(&ca.node("fra1-gateway", Role::Gateway), drain).await;
        let tunnel = tunnel(&ca, server.address, Duration::ZERO);
        until("it is connected", || tunnel.state().connected && tunnel.peer().connected() == 2).await;
        let sent = tunnel.clone();
        let slow = tokio::task::spawn_local(async move {
            sent.send(get("/slow"), SendTimeouts::default(), &Interim::default()).await.map(drop)
        });
        until("it is under way", || tunnel.peer().in_flight() == 1).await;
        trigger.start();
        until("the drain is heard", || !tunnel.state().connected).await;
        assert!(!slow.is_finished());
    });
}

#[test]
fn a_gateway_that_falls_silent_is_dead_within_seconds_and_its_streams_fail() {
    run(async {
        let ca = Ca::new();
        let (_trigger, drain) = atoll_process::drain::channel();
        let server = gateway(&ca.node("fra1-gateway", Role::Gateway), drain).await;
        // A relay that can be silenced without closing anything.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = listener.local_addr().unwrap();
        let (silence, silenced) = tokio::sync::watch::channel(false);
        tokio::task::spawn_local(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut far = tokio::net::TcpStream::connect(server.address).await.unwrap();
                let mut silenced = silenced.clone();
                tokio::task::spawn_local(async move {
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = silenced.wait_for(|silent| *silent) => {}
                    }
                    if *silenced.borrow() {
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        let tunnel = tunnel(&ca, relay, Duration::ZERO);
        until("it is connected", || tunnel.state().connected).await;
        let sent = tunnel.clone();
        let slow = tokio::task::spawn_local(async move {
            sent.send(get("/slow"), SendTimeouts::default(), &Interim::default()).await.map(drop)
        });
        until("it is under way", || tunnel.peer().in_flight() == 1).await;
        silence.send_replace(true);
        let started = tokio::time::Instant::now();
        let error = slow.await.unwrap().unwrap_err();
        assert_eq!((error.fault, error.sent), (SendFault::Reset, true));
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        until("it is known to be dead", || !tunnel.state().connected).await;
        assert!(tunnel.state().rtt.is_some(), "the last known distance is kept");
    });
}
