//! What gateways ask of an instance.

use super::world::*;
use atoll_model::{Reason, Role};
use atoll_proxy::Interim;
use atoll_proxy::answer::read_internal;
use atoll_proxy::client::{SendFault, SendTimeouts};
use atoll_wire::sidecar::Denied;
use http_body_util::BodyExt as _;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpListener;

#[test]
fn a_request_reaches_the_instance_without_what_it_must_not_see() {
    run(async {
        let world = World::new(|_| {}).await;
        let peer = world.peer(Role::Gateway);
        let mut request = get("/a?b");
        for name in
            ["atoll-tries", "atoll-anything", "atoll-edge", "atoll-region", "atoll-client-ip", "x-own"]
        {
            request.headers_mut().insert(name, "v".parse().unwrap());
        }
        let response = ask(&peer, request).await;
        let fields = response.headers();
        assert_eq!(fields["atoll-instance"], world.state.instance.as_str());
        assert_eq!(fields["atoll-revision"], "r-1");
        assert!(fields["atoll-hops"].to_str().unwrap().starts_with("sc="), "{fields:?}");
        assert_eq!(fields["x-app"], "1");
        for gone in ["atoll-reason", "atoll-x", "keep-alive"] {
            assert!(!fields.contains_key(gone), "the instance's {gone} passed");
        }
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
        let head = world.heads.borrow()[0].to_ascii_lowercase();
        assert!(
            head.starts_with("get /a?b http/1.1\r\n") && head.contains("host: shop.example:8443\r\n"),
            "{head}"
        );
        for shown in ["atoll-edge: v", "atoll-region: v", "atoll-client-ip: v", "x-own: v"] {
            assert!(head.contains(shown), "{shown}: {head}");
        }
        for hidden in ["atoll-cluster", "atoll-tries", "atoll-anything"] {
            assert!(!head.contains(hidden), "{hidden}: {head}");
        }
    });
}

#[test]
fn trailers_pass() {
    run(async {
        let world = World::new(|_| {}).await;
        let response = ask(&world.peer(Role::Gateway), get("/trailers")).await;
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "7");
    });
}

#[test]
fn others_than_gateways_are_refused_in_the_handshake() {
    run(async {
        let world = World::new(|_| {}).await;
        for role in [Role::Edge, Role::Host, Role::Control] {
            let error = world
                .peer(role)
                .send(get("/"), SendTimeouts::default(), &Interim::default())
                .await
                .unwrap_err();
            // In TLS 1.3 the client is done first: the refusal may come after the request was sent.
            assert!(
                matches!(error.fault, SendFault::Connect | SendFault::Reset | SendFault::Refused),
                "{error}"
            );
        }
        assert!(world.heads.borrow().is_empty());
    });
}

#[test]
fn a_removed_gateway_is_cut_and_not_let_in_again() {
    run(async {
        let mut world = World::new(|_| {}).await;
        let gateway = world.peer(Role::Gateway);
        assert_eq!(ask(&gateway, get("/")).await.status(), 200);
        let denied = |before_epoch| Denied {
            spiffe_id: "spiffe://atoll.test/node/fra1/fra1-gateway".to_owned(),
            before_epoch,
        };
        // Its certificate is of epoch 1: what ends before that does not mean it.
        world.tell(|state| state.denied = vec![denied(1)]);
        assert_eq!(ask(&world.peer(Role::Gateway), get("/")).await.status(), 200);
        world.tell(|state| state.denied = vec![denied(2)]);
        tokio::time::timeout(Duration::from_secs(10), async {
            while gateway.send(get("/"), SendTimeouts::default(), &Interim::default()).await.is_ok() {}
        })
        .await
        .expect("the open connection is cut");
        assert!(
            world
                .peer(Role::Gateway)
                .send(get("/"), SendTimeouts::default(), &Interim::default())
                .await
                .is_err()
        );
        world.tell(|state| state.denied.clear());
        tokio::time::timeout(Duration::from_secs(10), async {
            while world
                .peer(Role::Gateway)
                .send(get("/"), SendTimeouts::default(), &Interim::default())
                .await
                .is_err()
            {}
        })
        .await
        .expect("it is let in again once it is not denied any more");
    });
}

#[test]
fn an_instance_that_changes_the_protocol_unasked_harms_nobody_else() {
    run(async {
        let world = World::new(|_| {}).await;
        let peer = world.peer(Role::Gateway);
        let slow = ask(&peer, get("/slow"));
        let switch = async {
            until("the other has come", || !world.heads.borrow().is_empty()).await;
            reason(&peer, get("/switch")).await
        };
        let (slow, switched) = tokio::join!(slow, switch);
        assert_eq!(switched, (Reason::InstanceProtocol, true));
        assert_eq!(slow.into_body().collect().await.unwrap().to_bytes(), "slow");
    });
}

#[test]
fn another_cluster_is_refused() {
    run(async {
        let world = World::new(|_| {}).await;
        let peer = world.peer(Role::Gateway);
        let mut other = get("/");
        other.headers_mut().insert("atoll-cluster", "default/shop/api".parse().unwrap());
        let mut none = get("/");
        none.headers_mut().remove("atoll-cluster");
        let mut two = get("/");
        two.headers_mut().append("atoll-cluster", "default/shop/api".parse().unwrap());
        for request in [other, none, two] {
            assert_eq!(reason(&peer, request).await, (Reason::NotAuthorized, false));
        }
        assert!(world.heads.borrow().is_empty());
    });
}

#[test]
fn an_instance_that_fails_is_named() {
    run(async {
        let mut world = World::new(|_| {}).await;
        let peer = world.peer(Role::Gateway);
        assert_eq!(reason(&peer, get("/close")).await, (Reason::InstanceReset, true));
        assert_eq!(reason(&peer, get("/nonsense")).await, (Reason::InstanceProtocol, true));
        world.tell(|state| state.response_timeout_ms = 100);
        // The new time-out holds from some request on; until then /silent would wait for the old one.
        assert_eq!(reason(&peer, get("/silent")).await, (Reason::InstanceTimeout, true));
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        world.tell(|state| state.instance_port = u32::from(free));
        let mut last = (Reason::Internal, true);
        while last != (Reason::InstanceUnreachable, false) {
            let response = ask(&peer, get("/")).await;
            last = read_internal(response.headers()).map_or(last, |answer| (answer.reason, answer.sent));
        }
    });
}

#[test]
fn over_the_bound_a_request_is_refused_unread() {
    run(async {
        let world = World::new(|config| config.requests_max = 1).await;
        let peer = world.peer(Role::Gateway);
        let silent = peer.clone();
        let waiting = tokio::task::spawn_local(async move { ask(&silent, get("/silent")).await });
        until("the first is at the instance", || world.heads.borrow().len() == 1).await;
        assert_eq!(reason(&peer, get("/")).await, (Reason::InstanceFull, false));
        waiting.abort();
        let _cancelled = waiting.await;
        while read_internal(ask(&peer, get("/")).await.headers()).is_some() {}
    });
}

#[test]
fn the_host_hears_and_may_come_back() {
    run(async {
        let world = World::new(|_| {}).await;
        let status = Rc::clone(&world.host.status);
        until("the address is told", || status.borrow().address == world.address.to_string()).await;
        assert_eq!(status.borrow().pid, std::process::id());
        let peer = world.peer(Role::Gateway);
        world.host.task.abort();
        std::fs::remove_file(world.dir.path().join("host.sock")).unwrap();
        assert!(read_internal(ask(&peer, get("/")).await.headers()).is_none(), "served without a host");
        let again = host(&world.dir.path().join("host.sock"), world.state.clone());
        until("it is linked again", || again.links.get() > 0).await;
        until("the address is told again", || again.status.borrow().address == world.address.to_string())
            .await;
    });
}

#[test]
fn certificates_are_followed_and_those_of_others_are_not() {
    run(async {
        let mut world = World::new(|_| {}).await;
        let before = world.peer(Role::Gateway);
        ask(&before, get("/")).await;
        let mut wrong = world.state.clone();
        certify(&world.ca.ca, &mut wrong, "default/shop/api");
        wrong.revision = "r-2".to_owned();
        world.host.states.send_replace(wrong);
        while ask(&before, get("/")).await.headers()["atoll-revision"] != "r-2" {}
        // Were it taken, a new connection would not find the service that it wants.
        ask(&world.peer(Role::Gateway), get("/")).await;
        let mut renewed = world.state.clone();
        certify(&world.ca.ca, &mut renewed, CLUSTER);
        renewed.revision = "r-3".to_owned();
        world.tell(|state| *state = renewed);
        while ask(&before, get("/")).await.headers()["atoll-revision"] != "r-3" {}
        ask(&world.peer(Role::Gateway), get("/")).await;
        assert!(read_internal(ask(&before, get("/")).await.headers()).is_none(), "open connections stay");
    });
}

#[test]
fn a_drain_finishes_what_is_in_flight_then_refuses_and_can_be_taken_back() {
    run(async {
        let mut world = World::new(|_| {}).await;
        let peer = world.peer(Role::Gateway);
        let slow = peer.clone();
        let in_flight = tokio::task::spawn_local(async move { ask(&slow, get("/slow")).await });
        until("it is at the instance", || world.heads.borrow().len() == 1).await;
        world.tell(|state| state.draining = true);
        assert!(read_internal(ask(&peer, get("/")).await.headers()).is_none(), "a lame duck serves");
        let mut refused = false;
        while !refused {
            refused = match peer.send(get("/"), SendTimeouts::default(), &Interim::default()).await {
                Ok(response) => read_internal(response.headers())
                    .is_some_and(|answer| answer.reason == Reason::Draining && !answer.sent),
                Err(error) => !error.sent,
            };
        }
        assert!(!world.host.status.borrow().drained);
        let response = in_flight.await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "slow");
        let status = Rc::clone(&world.host.status);
        until("the host hears that it has drained", || status.borrow().drained).await;
        world.tell(|state| state.draining = false);
        until("the host hears that it has not", || !status.borrow().drained).await;
        assert!(read_internal(ask(&world.peer(Role::Gateway), get("/")).await.headers()).is_none());
    });
}

#[test]
fn a_terminated_sidecar_ends_after_its_requests() {
    run(async {
        let world = World::new(|_| {}).await;
        let peer = world.peer(Role::Gateway);
        let in_flight = tokio::task::spawn_local(async move { ask(&peer, get("/slow")).await });
        until("it is at the instance", || world.heads.borrow().len() == 1).await;
        world.drain.start();
        let response = in_flight.await.unwrap();
        assert!(!world.running.is_finished());
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "slow");
        world.running.await.unwrap();
    });
}
