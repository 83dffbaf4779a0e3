//! What the tests share.

use atoll_identity::{CertificateDer, Identity, Material, PeerPolicy, TrustDomain, keys::TlsKey};
use atoll_mesh_ca::{Lifetimes, MeshCa, NodeSubject};
use atoll_model::{Role, Roles};
use atoll_process::drain::{DrainTrigger, channel};
use atoll_proxy::server::{MeshAcceptor, ServerLimits};
use atoll_proxy::{Body, BodyError, Exchange, Handler, ProxyMetrics};
use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt as _;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::LocalSet;

pub fn run<F: Future<Output = ()>>(test: F) {
    run_within(Duration::from_secs(30), test);
}

pub fn run_within<F: Future<Output = ()>>(longest: Duration, test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(longest, test).await.expect("the test takes too long");
    });
}

pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(10), waited).await.is_ok(), "{what}");
}

pub struct Ca {
    ca: MeshCa,
    _dir: tempfile::TempDir,
}

impl Ca {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let domain = TrustDomain::new("atoll.test").unwrap();
        let now = atoll_process::clock::unix_ms();
        let ca = MeshCa::open_or_create(dir.path(), domain, Lifetimes::default(), now).unwrap();
        Self { ca, _dir: dir }
    }

    pub fn node(&self, name: &str, role: Role) -> Identity {
        let key = TlsKey::generate().unwrap();
        let subject = NodeSubject {
            node: name.parse().unwrap(),
            site: "fra1".parse().unwrap(),
            region: "fra".parse().unwrap(),
            roles: Roles::NONE.with(role),
            epoch: 1,
        };
        let now = atoll_process::clock::unix_ms();
        let chain = self.ca.issue_node(&subject, &key.csr().unwrap(), now).unwrap();
        self.identity(chain, &key)
    }

    /// Of an instance whose certificate expires after `left`.
    pub fn workload(&self, cluster: &str, left: Duration) -> Identity {
        let key = TlsKey::generate().unwrap();
        let age = u64::try_from((Lifetimes::default().workload - left).as_millis()).unwrap();
        let issued = atoll_process::clock::unix_ms() - age;
        let chain = self.ca.issue_workload(&cluster.parse().unwrap(), &key.csr().unwrap(), issued).unwrap();
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

pub fn policy(role: Role) -> PeerPolicy {
    PeerPolicy::NodeWithAny(Roles::NONE.with(role))
}

type Answer = Pin<Box<dyn Future<Output = Response<Body>>>>;

pub struct FnHandler<F>(pub F);

impl<F: Fn(Exchange) -> Answer + 'static> Handler for FnHandler<F> {
    async fn handle(&self, exchange: Exchange) -> Response<Body> {
        (self.0)(exchange).await
    }
}

pub fn handler<Fut: Future<Output = Response<Body>> + 'static>(
    answer: impl Fn(Exchange) -> Fut + 'static,
) -> Rc<FnHandler<impl Fn(Exchange) -> Answer + 'static>> {
    Rc::new(FnHandler(move |exchange| -> Answer { Box::pin(answer(exchange)) }))
}

pub struct Served {
    pub address: SocketAddr,
    pub trigger: DrainTrigger,
    pub metrics: ProxyMetrics,
}

/// A gateway-like server: mutual TLS from edges.
pub async fn mesh_server<H: Handler>(identity: &Identity, limits: ServerLimits, handler: Rc<H>) -> Served {
    mesh_server_for(policy(Role::Edge), identity, limits, handler).await
}

/// Mutual TLS from whom `who` lets in.
pub async fn mesh_server_for<H: Handler>(
    who: PeerPolicy,
    identity: &Identity,
    limits: ServerLimits,
    handler: Rc<H>,
) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (trigger, drain) = channel();
    let acceptor = MeshAcceptor::new(identity, who);
    let metrics = ProxyMetrics::unregistered();
    let (counted, draining) = (metrics.clone(), drain);
    tokio::task::spawn_local(async move {
        loop {
            let (stream, peer) = listener.accept().await.unwrap();
            let (acceptor, limits) = (acceptor.clone(), limits.clone());
            let (handler, metrics, drain) = (Rc::clone(&handler), counted.clone(), draining.clone());
            tokio::task::spawn_local(async move {
                if let Ok(connection) = acceptor.accept(stream, peer).await {
                    connection.serve(&limits, handler, &metrics, drain).await;
                }
            });
        }
    });
    Served { address, trigger, metrics }
}

pub async fn read_all(body: Body) -> Result<Bytes, BodyError> {
    Ok(body.collect().await?.to_bytes())
}

pub fn get(path: &str) -> http::Request<Body> {
    http::Request::builder().uri(path).header("host", "shop.example").body(Body::empty()).unwrap()
}

pub fn post(path: &str, content: &'static (impl AsRef<[u8]> + ?Sized)) -> http::Request<Body> {
    http::Request::builder()
        .method("POST")
        .uri(path)
        .header("host", "shop.example")
        .body(Body::full(content.as_ref()))
        .unwrap()
}
