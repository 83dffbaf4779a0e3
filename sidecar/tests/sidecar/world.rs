//! A sidecar, a host on its unix socket, an instance, and who may call.

use atoll_identity::{CertificateDer, Identity, Material, TrustDomain, keys::TlsKey};
use atoll_mesh_ca::{Lifetimes, MeshCa, NodeSubject};
use atoll_model::{InstanceId, Reason, Role, Roles};
use atoll_process::{Metrics, drain};
use atoll_proxy::answer::read_internal;
use atoll_proxy::client::{H2Peer, H2PeerConfig, MeshConnector, SendTimeouts};
use atoll_proxy::{Body, Interim, ProxyMetrics};
use atoll_sidecar::{Config, Sidecar};
use atoll_wire::Message as _;
use atoll_wire::sidecar::{SidecarState, SidecarStatus};
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

pub(crate) const CLUSTER: &str = "default/shop/web";

pub(crate) fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(30), test).await.expect("the test takes too long");
    });
}

pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(10), waited).await.is_ok(), "{what}");
}

/// The fake host: sends each state, keeps the last status.
pub(crate) struct Host {
    pub(crate) states: watch::Sender<SidecarState>,
    pub(crate) status: Rc<RefCell<SidecarStatus>>,
    pub(crate) links: Rc<Cell<usize>>,
    pub(crate) task: JoinHandle<()>,
}

pub(crate) fn host(socket: &Path, state: SidecarState) -> Host {
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
pub(crate) async fn instance() -> (u16, Rc<RefCell<Vec<String>>>) {
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
            "/switch" => "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nok",
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

pub(crate) struct World {
    pub(crate) ca: Rc<Mesh>,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) host: Host,
    pub(crate) state: SidecarState,
    pub(crate) heads: Rc<RefCell<Vec<String>>>,
    pub(crate) address: SocketAddr,
    pub(crate) drain: drain::DrainTrigger,
    pub(crate) running: JoinHandle<()>,
}

impl World {
    /// The sidecar of an instance of `web` that answers HTTP.
    pub(crate) async fn new(adjust: impl FnOnce(&mut Config)) -> Self {
        Self::of(&mesh(), CLUSTER, adjust, |_| {}).await
    }

    /// The sidecar of an instance of `cluster`, which answers HTTP unless the state says another port.
    pub(crate) async fn of(
        ca: &Rc<Mesh>,
        cluster: &str,
        adjust: impl FnOnce(&mut Config),
        tell: impl FnOnce(&mut SidecarState),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (port, heads) = instance().await;
        let instance = InstanceId::from_parts(now(), rand::random());
        let mut state = SidecarState {
            instance: instance.to_string(),
            cluster: cluster.to_owned(),
            revision: "r-1".to_owned(),
            trust_domain: "atoll.test".to_owned(),
            region: "fra".to_owned(),
            instance_port: u32::from(port),
            response_timeout_ms: 3000,
            ..SidecarState::default()
        };
        certify(&ca.ca, &mut state, cluster);
        tell(&mut state);
        let socket = dir.path().join("host.sock");
        let host = host(&socket, state.clone());
        let mut config = Config::new(socket, instance);
        config.lame_duck = Duration::from_millis(200);
        adjust(&mut config);
        let (trigger, drain) = drain::channel();
        let bound = Sidecar::bind(config, &Metrics::new(), drain.clone()).await.unwrap();
        let address = bound.address;
        let running = tokio::task::spawn_local(bound.run(drain));
        Self { ca: Rc::clone(ca), dir, host, state, heads, address, drain: trigger, running }
    }

    pub(crate) fn peer(&self, role: Role) -> H2Peer {
        self.connect(self.ca.node(role, "fra"))
    }

    /// Whoever `identity` is, to this sidecar.
    pub(crate) fn connect(&self, identity: Identity) -> H2Peer {
        let who = atoll_identity::PeerPolicy::Workload(self.state.cluster.parse().unwrap());
        let connector = MeshConnector::new(&identity, who);
        H2Peer::open(H2PeerConfig::near(self.address), connector, ProxyMetrics::unregistered())
    }

    pub(crate) fn tell(&mut self, change: impl FnOnce(&mut SidecarState)) {
        change(&mut self.state);
        self.host.states.send_replace(self.state.clone());
    }
}

/// A CA that all of a test's sidecars and peers are of.
pub(crate) struct Mesh {
    pub(crate) ca: MeshCa,
    _dir: tempfile::TempDir,
}

pub(crate) fn mesh() -> Rc<Mesh> {
    let dir = tempfile::tempdir().unwrap();
    let domain = TrustDomain::new("atoll.test").unwrap();
    let ca = MeshCa::open_or_create(&dir.path().join("ca"), domain, Lifetimes::default(), now()).unwrap();
    Rc::new(Mesh { ca, _dir: dir })
}

impl Mesh {
    pub(crate) fn node(&self, role: Role, region: &str) -> Identity {
        let key = TlsKey::generate().unwrap();
        let subject = NodeSubject {
            node: format!("fra1-{role}").parse().unwrap(),
            site: "fra1".parse().unwrap(),
            region: region.parse().unwrap(),
            roles: Roles::NONE.with(role),
            epoch: 1,
        };
        let chain = self.ca.issue_node(&subject, &key.csr().unwrap(), now()).unwrap();
        self.identity(chain, &key)
    }

    pub(crate) fn workload(&self, cluster: &str) -> Identity {
        let key = TlsKey::generate().unwrap();
        let chain = self.ca.issue_workload(&cluster.parse().unwrap(), &key.csr().unwrap(), now()).unwrap();
        self.identity(chain, &key)
    }

    fn identity(&self, chain: Vec<CertificateDer<'static>>, key: &TlsKey) -> Identity {
        Identity::new(Material {
            chain,
            key: key.to_pkcs8(),
            roots: self.ca.roots(),
            trust_domain: self.ca.trust_domain().clone(),
        })
        .unwrap()
    }
}

pub(crate) fn now() -> u64 {
    atoll_process::clock::unix_ms()
}

pub(crate) fn certify(ca: &MeshCa, state: &mut SidecarState, cluster: &str) {
    let key = TlsKey::generate().unwrap();
    let chain = ca.issue_workload(&cluster.parse().unwrap(), &key.csr().unwrap(), now()).unwrap();
    state.chain = chain.iter().map(|der| der.to_vec()).collect();
    state.key = key.to_pkcs8().secret_pkcs8_der().to_vec();
    state.roots = ca.roots().iter().map(|der| der.to_vec()).collect();
}

pub(crate) fn get(path: &str) -> http::Request<Body> {
    http::Request::builder()
        .uri(path)
        .header("host", "shop.example:8443")
        .header("atoll-cluster", CLUSTER)
        .body(Body::empty())
        .unwrap()
}

pub(crate) async fn ask(peer: &H2Peer, request: http::Request<Body>) -> http::Response<Body> {
    peer.send(request, SendTimeouts::default(), &Interim::default()).await.unwrap()
}

pub(crate) async fn reason(peer: &H2Peer, request: http::Request<Body>) -> (Reason, bool) {
    let answer = read_internal(ask(peer, request).await.headers()).unwrap();
    (answer.reason, answer.sent)
}
