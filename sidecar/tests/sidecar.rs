//! A sidecar between a gateway's mutual TLS and an instance, with a host on its unix socket.
#![allow(clippy::unwrap_used, missing_docs)]

use atoll_identity::{Identity, Material, TrustDomain, keys::TlsKey};
use atoll_mesh_ca::{Lifetimes, MeshCa, NodeSubject};
use atoll_model::{InstanceId, Reason, Role, Roles};
use atoll_process::{Metrics, drain};
use atoll_proxy::answer::read_internal;
use atoll_proxy::client::{H2Peer, H2PeerConfig, MeshConnector, SendFault, SendTimeouts};
use atoll_proxy::{Body, ProxyMetrics};
use atoll_sidecar::{Config, Sidecar};
use atoll_wire::Message as _;
use atoll_wire::sidecar::{Denied, SidecarState, SidecarStatus};
use http_body_util::BodyExt as _;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::watch;
use tokio::task::{JoinHandle, LocalSet};

const CLUSTER: &str = "default/shop/web";

fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(30), test).await.expect("the test takes too long");
    });
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(10), waited).await.is_ok(), "{what}");
}

/// The fake host: sends each state, keeps the last status.
struct Host {
    states: watch::Sender<SidecarState>,
    status: Rc<RefCell<SidecarStatus>>,
    links: Rc<Cell<usize>>,
    task: JoinHandle<()>,
}

fn host(socket: &Path, state: SidecarState) -> Host {
    let _absent = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).unwrap();
    let (states, receiver) = watch::channel(state);
    let status = Rc::<RefCell<SidecarStatus>>::default();
    let links = Rc::<Cell<usize>>::default();
    let (last, linked) = (Rc::clone(&status), Rc::clone(&links));
    let task = tokio::task::spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            linked.set(linked.get() + 1);
            let (mut reader, mut writer) = stream.into_split();
            let mut states = receiver.clone();
            let tell = async {
                loop {
                    let bytes = states.borrow_and_update().encode_to_vec();
                    writer.write_u32(u32::try_from(bytes.len()).unwrap()).await?;
                    writer.write_all(&bytes).await?;
                    states.changed().await.map_err(std::io::Error::other)?;
                }
            };
            let hear = async {
                loop {
                    let mut bytes = vec![0; reader.read_u32().await? as usize];
                    reader.read_exact(&mut bytes).await?;
                    *last.borrow_mut() = SidecarStatus::decode(bytes.as_slice()).unwrap();
                }
            };
            let _broken: std::io::Result<()> =
                tokio::select! { ended = tell => ended, ended = hear => ended };
        }
    });
    Host { states, status, links, task }
}

/// An instance: the answer depends on the path; every head that it got is kept.
async fn instance() -> (u16, Rc<RefCell<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heads = Rc::<RefCell<Vec<String>>>::default();
    let seen = Rc::clone(&heads);
    tokio::task::spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::task::spawn_local(answer(stream, Rc::clone(&seen)));
        }
    });
    (port, heads)
}

async fn answer(mut stream: TcpStream, heads: Rc<RefCell<Vec<String>>>) -> Option<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).unwrap();
        heads.borrow_mut().push(head.clone());
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let answer = match path.as_str() {
            "/trailers" => {
                "HTTP/1.1 200 OK\r\ntrailer: grpc-status\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\ngrpc-status: 7\r\n\r\n"
            }
            "/close" => return None,
            "/nonsense" => "nonsense\r\n\r\n",
            "/silent" => std::future::pending().await,
            "/slow" => {
                tokio::time::sleep(Duration::from_millis(1500)).await;
                "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nslow"
            }
            _ => {
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\natoll-reason: edge;internal\r\natoll-x: 1\r\nkeep-alive: 5\r\nx-app: 1\r\n\r\nok"
            }
        };
        stream.write_all(answer.as_bytes()).await.ok()?;
    }
}

struct World {
    ca: MeshCa,
    dir: tempfile::TempDir,
    host: Host,
    state: SidecarState,
    heads: Rc<RefCell<Vec<String>>>,
    address: SocketAddr,
    drain: drain::DrainTrigger,
    running: JoinHandle<()>,
}

impl World {
    async fn new(adjust: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let domain = TrustDomain::new("atoll.test").unwrap();
        let ca = MeshCa::open_or_create(&dir.path().join("ca"), domain, Lifetimes::default(), now()).unwrap();
        let (port, heads) = instance().await;
        let instance = InstanceId::from_parts(now(), 7);
        let mut state = SidecarState {
            instance: instance.to_string(),
            cluster: CLUSTER.to_owned(),
            revision: "r-1".to_owned(),
            trust_domain: "atoll.test".to_owned(),
            instance_port: u32::from(port),
            response_timeout_ms: 3000,
            ..SidecarState::default()
        };
        certify(&ca, &mut state, CLUSTER);
        let socket = dir.path().join("host.sock");
        let host = host(&socket, state.clone());
        let mut config = Config::new(socket, instance);
        config.lame_duck = Duration::from_millis(200);
        adjust(&mut config);
        let (trigger, drain) = drain::channel();
        let bound = Sidecar::bind(config, &Metrics::new(), drain.clone()).await.unwrap();
        let address = bound.address;
        let running = tokio::task::spawn_local(bound.run(drain));
        Self { ca, dir, host, state, heads, address, drain: trigger, running }
    }

    fn peer(&self, role: Role) -> H2Peer {
        let key = TlsKey::generate().unwrap();
        let subject = NodeSubject {
            node: format!("fra1-{role}").parse().unwrap(),
            site: "fra1".parse().unwrap(),
            region: "fra".parse().unwrap(),
            roles: Roles::NONE.with(role),
            epoch: 1,
        };
        let identity = Identity::new(Material {
            chain: self.ca.issue_node(&subject, &key.csr().unwrap(), now()).unwrap(),
            key: key.to_pkcs8(),
            roots: self.ca.roots(),
            trust_domain: self.ca.trust_domain().clone(),
        })
        .unwrap();
        let who = atoll_identity::PeerPolicy::Workload(CLUSTER.parse().unwrap());
        let connector = MeshConnector::new(&identity, who);
        H2Peer::open(H2PeerConfig::near(self.address), connector, ProxyMetrics::unregistered())
    }

    fn tell(&mut self, change: impl FnOnce(&mut SidecarState)) {
        change(&mut self.state);
        self.host.states.send_replace(self.state.clone());
    }
}

fn now() -> u64 {
    atoll_process::clock::unix_ms()
}

fn certify(ca: &MeshCa, state: &mut SidecarState, cluster: &str) {
    let key = TlsKey::generate().unwrap();
    let chain = ca.issue_workload(&cluster.parse().unwrap(), &key.csr().unwrap(), now()).unwrap();
    state.chain = chain.iter().map(|der| der.to_vec()).collect();
    state.key = key.to_pkcs8().secret_pkcs8_der().to_vec();
    state.roots = ca.roots().iter().map(|der| der.to_vec()).collect();
}

fn get(path: &str) -> http::Request<Body> {
    http::Request::builder()
        .uri(path)
        .header("host", "shop.example:8443")
        .header("atoll-cluster", CLUSTER)
        .body(Body::empty())
        .unwrap()
}

async fn ask(peer: &H2Peer, request: http::Request<Body>) -> http::Response<Body> {
    peer.send(request, SendTimeouts::default()).await.unwrap()
}

async fn reason(peer: &H2Peer, request: http::Request<Body>) -> (Reason, bool) {
    let answer = read_internal(ask(peer, request).await.headers()).unwrap();
    (answer.reason, answer.sent)
}

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
            let error = world.peer(role).send(get("/"), SendTimeouts::default()).await.unwrap_err();
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
            while gateway.send(get("/"), SendTimeouts::default()).await.is_ok() {}
        })
        .await
        .expect("the open connection is cut");
        assert!(world.peer(Role::Gateway).send(get("/"), SendTimeouts::default()).await.is_err());
        world.tell(|state| state.denied.clear());
        tokio::time::timeout(Duration::from_secs(10), async {
            while world.peer(Role::Gateway).send(get("/"), SendTimeouts::default()).await.is_err() {}
        })
        .await
        .expect("it is let in again once it is not denied any more");
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
        certify(&world.ca, &mut wrong, "default/shop/api");
        wrong.revision = "r-2".to_owned();
        world.host.states.send_replace(wrong);
        while ask(&before, get("/")).await.headers()["atoll-revision"] != "r-2" {}
        // Were it taken, a new connection would not find the service that it wants.
        ask(&world.peer(Role::Gateway), get("/")).await;
        let mut renewed = world.state.clone();
        certify(&world.ca, &mut renewed, CLUSTER);
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
            refused = match peer.send(get("/"), SendTimeouts::default()).await {
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
