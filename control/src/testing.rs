//! What several tests of this crate need: a store with an API over it, without gossip.

use crate::api::{Api, Parts, admin_token};
use crate::apps::Context;
use crate::attach::Attached;
use crate::bundles::{Bundles, BundlesConfig};
use crate::certificates::Certificates;
use crate::config::{Config, Timing};
use crate::metrics::ControlMetrics;
use crate::publisher::Held;
use crate::reconciler::Reconciler;
use crate::reconciler::progress::Progresses;
use crate::store::Store;
use crate::store::objects::{Placement, PlacementState};
use crate::store::seal::Sealer;
use crate::world::{NodeSeen, Observed, World};
use atoll_identity::TrustDomain;
use atoll_mesh_ca::{Lifetimes, MeshCa};
use atoll_model::{Kind, NodeName, Role, Roles};
use atoll_process::Metrics;
use atoll_process::clock::unix_ms;
use atoll_process::drain::{self, Drain, DrainTrigger};
use atoll_wire::record::{self, NodeFacts, instance::State};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub(crate) struct Platform {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) parts: Api,
    pub(crate) address: SocketAddr,
    pub(crate) token: String,
    pub(crate) world: watch::Sender<Arc<World>>,
    pub(crate) drain: Drain,
    _trigger: DrainTrigger,
}

pub(crate) fn mesh_ca(folder: &std::path::Path) -> Arc<MeshCa> {
    let trust_domain = TrustDomain::new("test.atoll").unwrap();
    Arc::new(
        MeshCa::open_or_create(&folder.join("ca"), trust_domain, Lifetimes::default(), unix_ms()).unwrap(),
    )
}

impl Platform {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, _feed) = Store::open(folder.path(), unix_ms()).unwrap();
        let sealer = Sealer::open_or_create(&folder.path().join("seal.key")).unwrap();
        let config = Config {
            regions: vec!["fra".parse().unwrap(), "was".parse().unwrap()],
            sites: [("fra1".parse().unwrap(), "fra".parse().unwrap())].into(),
            public_https_port: 8443,
            timing: Timing { warm_up_ms: 0, settle_ms: 50, serve_deadline_ms: 5_000, ..Timing::default() },
            ..Config::default()
        };
        let certificates = Certificates::open(&config, folder.path(), sealer.clone(), unix_ms()).unwrap();
        let token = admin_token(&store, folder.path(), unix_ms()).await.unwrap();
        let context = Context {
            zone: config.zone.as_str().into(),
            regions: config.regions.as_slice().into(),
            certificates,
            now_ms: 0,
        };
        let (world, world_out) = watch::channel(Arc::new(World::default()));
        let parts = Api::new(Parts {
            store: store.clone(),
            world: world_out,
            attached: Attached::default(),
            context,
            config: Arc::new(config),
            progresses: Progresses::default(),
            sealer,
            ca: mesh_ca(folder.path()),
            held: Held::default(),
            bundles: Bundles::new(
                folder.path(),
                BundlesConfig { keep_free_bytes: 0, ..BundlesConfig::default() },
                &Metrics::new(),
            ),
            metrics: ControlMetrics::new(&Metrics::new()),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (trigger, drain) = drain::channel();
        tokio::spawn(crate::api::serve(listener, None, parts.router(), drain.clone()));
        Self { folder, store, parts, address, token, world, drain, _trigger: trigger }
    }

    /// Runs the reconciler, and hosts that behave as `behave` says; an edge `fra1-edge` while it is attached.
    pub(crate) fn reconcile(&self, behave: impl Fn(&Placement) -> record::Instance + Send + 'static) {
        let parts = &self.parts;
        let reconciler = Reconciler {
            store: self.store.clone(),
            world: parts.world.clone(),
            attached: parts.attached.clone(),
            context: parts.context.clone(),
            config: parts.config.clone(),
            progresses: parts.progresses.clone(),
            metrics: parts.metrics.clone(),
        };
        tokio::spawn(reconciler.run(self.drain.clone()));
        let (store, world, attached) = (self.store.clone(), self.world.clone(), self.parts.attached.clone());
        tokio::spawn(async move {
            let (edge, edge_seen) = node("fra1-edge", "fra", Role::Edge);
            loop {
                let nodes =
                    [node("fra1-host", "fra", Role::Host), node("was1-host", "was", Role::Host)].into();
                let mut now = World { nodes, ..World::default() };
                if attached.is_attached(&edge) {
                    now.nodes.insert(edge.clone(), edge_seen.clone());
                }
                for placement in store.list::<Placement>("") {
                    let mut facts = behave(&placement);
                    if placement.state == PlacementState::Drain {
                        facts.set_state(State::Stopped);
                    }
                    let seen =
                        Observed::from_record(placement.host.clone(), placement.region.as_str(), facts);
                    now.instances.insert(&placement.instance, seen);
                }
                world.send_replace(Arc::new(now));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }

    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: Value,
    ) -> (u16, Value) {
        let mut request = Request::builder().method(method).uri(path);
        request = request.header("authorization", format!("Bearer {}", self.token));
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let response = self.send(request.body(Full::from(body)).unwrap()).await;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.call(Method::GET, path, None, Value::Null).await
    }

    pub(crate) async fn send(&self, mut request: Request<Full<Bytes>>) -> Response<hyper::body::Incoming> {
        request.headers_mut().insert("host", "control".parse().unwrap());
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    }
}

pub(crate) fn node(name: &str, region: &str, role: Role) -> (NodeName, NodeSeen) {
    let seen = NodeSeen {
        roles: Roles::NONE.with(role),
        region: region.parse().unwrap(),
        alive: true,
        facts: NodeFacts::default(),
        written_ms: 1,
        kind: if role == Role::Host { Kind::REGION_NODE } else { Kind::NODE },
    };
    (name.parse().unwrap(), seen)
}

pub(crate) fn healthy(_placement: &Placement) -> record::Instance {
    let mut facts = record::Instance::default();
    facts.set_state(State::Healthy);
    facts
}

/// An app `shop` with a public service `web`.
pub(crate) fn shop(regions: &[(&str, u32)]) -> Value {
    let regions: BTreeMap<&str, Value> =
        regions.iter().map(|(name, min)| (*name, serde_json::json!({ "min": min, "max": min }))).collect();
    serde_json::json!({ "app": "shop", "services": { "web": {
        "run": ["./web"], "working_dir": "/tmp", "env": {}, "labels": {}, "protocol": "http", "public": true,
        "drain_ms": 1000, "checks": [], "regions": regions } } })
}
