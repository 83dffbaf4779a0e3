//! A small platform in one process: real gossip, real certificates, real sockets; only the sidecars and
//! control's node plane are stand-ins.

use atoll_core_gateway::Gateway;
use atoll_edge::{Config, Edge, Handles, Serving};
use atoll_gossip::{DesiredChange, Gossip, Scope};
use atoll_identity::{ClientAuth, Identity, Material, PeerPolicy, RecordIdentity, TlsKey};
use atoll_mesh_ca::client::JoinKeys;
use atoll_mesh_ca::{Lifetimes, MeshCa, NodeSubject};
use atoll_model::{Kind, NodeName, RegionName, Role, Roles};
use atoll_process::clock::unix_ms;
use atoll_process::{DrainTrigger, Metrics, Tasks, drain};
use atoll_wire::Message;
use atoll_wire::node::DomainCertificate;
use atoll_wire::record;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

pub const CLUSTER: &str = "default/shop/web";
pub const DOMAIN: &str = "shop.localhost";

/// Waits until `check` holds; panics with its last complaint otherwise.
pub async fn until(what: &str, mut check: impl AsyncFnMut() -> Result<(), String>) {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        match check().await {
            Ok(()) => return,
            Err(why) if Instant::now() > deadline => panic!("{what}: {why}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

pub struct Node {
    pub name: NodeName,
    pub identity: Identity,
    pub gossip: Gossip,
    pub metrics: Metrics,
    pub trigger: DrainTrigger,
}

pub struct World {
    pub folder: tempfile::TempDir,
    pub ca: MeshCa,
    pub control: Node,
    pub node_plane: SocketAddr,
    pub certificates: Arc<Mutex<HashMap<String, DomainCertificate>>>,
    pub public_ca: (rcgen::Issuer<'static, rcgen::KeyPair>, rustls::pki_types::CertificateDer<'static>),
    revision: u64,
    /// The newest one that edges hear of.
    global: u64,
}

pub fn region(name: &str) -> RegionName {
    RegionName::new(name).unwrap()
}

impl World {
    pub async fn new() -> Self {
        let _first = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let domain = atoll_identity::TrustDomain::new("atoll.test").unwrap();
        let ca = MeshCa::open_or_create(&folder.path().join("ca"), domain, Lifetimes::default(), unix_ms())
            .unwrap();
        let scopes = vec![Scope::Global, Scope::Region(region("fra")), Scope::Region(region("was"))];
        let control =
            node(&ca, folder.path().join("control"), "control1", "fra", Role::Control, scopes, vec![]).await;
        let certificates = Arc::default();
        let node_plane = super::node_plane::serve(Arc::clone(&certificates)).await;
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        let public_ca = (rcgen::Issuer::new(params, key), root);
        Self { folder, ca, control, node_plane, certificates, public_ca, revision: 0, global: 0 }
    }

    pub async fn join(&self, name: &str, of: &str, role: Role) -> Node {
        let own = Scope::Region(region(of));
        let scopes = match role {
            Role::Edge => vec![Scope::Global],
            Role::Host => vec![own],
            _ => vec![Scope::Global, own],
        };
        let seeds = vec![self.control.gossip.local_addr()];
        node(&self.ca, self.folder.path().join(name), name, of, role, scopes, seeds).await
    }

    /// Control says so.
    pub async fn desire(&mut self, kind: Kind, scope: Scope, key: &str, body: &impl Message) {
        self.revision += 1;
        if scope == Scope::Global {
            self.global = self.revision;
        }
        let change = DesiredChange {
            kind,
            scope,
            key: key.to_owned(),
            revision: self.revision,
            body: Some(body.encode_to_vec().into()),
        };
        self.control.gossip.publish_desired(1, vec![change]).await.unwrap();
    }

    /// The newest desired state that edges hear of.
    pub fn heard_revision(&self) -> u64 {
        self.global
    }

    /// Requests wait so long for a response head.
    pub async fn patience(&mut self, response_timeout_ms: u64) {
        let cluster = record::Cluster {
            name: CLUSTER.to_owned(),
            public: true,
            regions: vec!["fra".to_owned()],
            protocol: "http".to_owned(),
            revision: String::new(),
            response_timeout_ms,
        };
        self.desire(Kind::CLUSTER, Scope::Global, CLUSTER, &cluster).await;
    }

    /// The app `shop` with the domain [`DOMAIN`], and a certificate for each of `domains`.
    pub async fn deploy(&mut self, regions: &[&str]) {
        let cluster = record::Cluster {
            name: CLUSTER.to_owned(),
            public: true,
            regions: regions.iter().map(|&region| region.to_owned()).collect(),
            protocol: "http".to_owned(),
            revision: String::new(),
            response_timeout_ms: 5_000,
        };
        self.desire(Kind::CLUSTER, Scope::Global, CLUSTER, &cluster).await;
        let route = record::Route {
            name: "all".to_owned(),
            path_prefix: "/".to_owned(),
            cluster: CLUSTER.to_owned(),
        };
        let host = record::VirtualHost {
            org: "default".to_owned(),
            app: "shop".to_owned(),
            domains: vec![DOMAIN.to_owned()],
            routes: vec![route],
            ..record::VirtualHost::default()
        };
        self.desire(Kind::VIRTUAL_HOST, Scope::Global, "o-shop", &host).await;
        self.certify(DOMAIN).await;
    }

    /// The service is public no more.
    pub async fn hide(&mut self) {
        self.cluster(&["fra"], false).await;
    }

    pub async fn cluster(&mut self, regions: &[&str], public: bool) {
        let cluster = record::Cluster {
            name: CLUSTER.to_owned(),
            public,
            regions: regions.iter().map(|&region| region.to_owned()).collect(),
            protocol: "http".to_owned(),
            revision: String::new(),
            response_timeout_ms: 5_000,
        };
        self.desire(Kind::CLUSTER, Scope::Global, CLUSTER, &cluster).await;
    }

    /// A public certificate for a domain.
    pub async fn certify(&mut self, domain: &str) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![domain.to_owned()]).unwrap();
        let chain = vec![params.signed_by(&key, &self.public_ca.0).unwrap().der().to_vec()];
        let fingerprint = atoll_identity::fingerprint_hex(&chain.concat());
        let version = record::CertificateVersion {
            domain: domain.to_owned(),
            fingerprint: fingerprint.clone(),
            not_after_ms: 0,
        };
        let certificate =
            DomainCertificate { domain: domain.to_owned(), chain, key: key.serialize_der(), fingerprint };
        self.certificates.lock().unwrap().insert(domain.to_owned(), certificate);
        self.desire(Kind::CERTIFICATE, Scope::Global, domain, &version).await;
    }

    /// Places an instance on a host and lets the host say that it is well.
    pub async fn place(&mut self, host: &Node, of: &str, instance: &str, sidecar: SocketAddr) {
        let key = format!("{}/{instance}", host.name);
        let placement = record::Placement {
            instance: instance.to_owned(),
            host: host.name.to_string(),
            cluster: CLUSTER.to_owned(),
            ..record::Placement::default()
        };
        let scope = Scope::Region(region(of));
        self.desire(Kind::PLACEMENT, scope, &key, &placement).await;
        say(host, of, instance, sidecar, record::instance::State::Healthy);
    }

    /// An identity of the service's own.
    pub fn workload(&self) -> Identity {
        self.workload_of(CLUSTER)
    }

    /// An identity of any service.
    pub fn workload_of(&self, cluster: &str) -> Identity {
        let key = TlsKey::generate().unwrap();
        let cluster = cluster.parse().unwrap();
        let chain = self.ca.issue_workload(&cluster, &key.csr().unwrap(), unix_ms()).unwrap();
        Identity::new(self.material(chain, &key)).unwrap()
    }

    fn material(&self, chain: Vec<rustls::pki_types::CertificateDer<'static>>, key: &TlsKey) -> Material {
        material(&self.ca, chain, key)
    }

    /// A gateway that says where it is.
    pub async fn gateway(&self, name: &str, of: &str) -> (Node, atoll_core_gateway::Serving) {
        self.gateway_with(name, of, atoll_core_gateway::Config::default()).await
    }

    pub async fn gateway_with(
        &self,
        name: &str,
        of: &str,
        config: atoll_core_gateway::Config,
    ) -> (Node, atoll_core_gateway::Serving) {
        let node = self.join(name, of, Role::Gateway).await;
        let handles = atoll_core_gateway::Handles {
            name: node.name.clone(),
            region: region(of),
            identity: node.identity.clone(),
            gossip: node.gossip.clone(),
            metrics: node.metrics.clone(),
            drain: node.trigger.subscribe(),
            tasks: Tasks::new(Handle::current()),
        };
        let config = atoll_core_gateway::Config { workers: 1, ..config };
        let bound = Gateway::bind(config, handles).unwrap();
        let serving = bound.serving();
        let facts = record::NodeFacts {
            name: name.to_owned(),
            region: of.to_owned(),
            roles: vec!["gateway".to_owned()],
            gateway_address: bound.address.to_string(),
            ..record::NodeFacts::default()
        };
        node.gossip.publish(Kind::NODE, &Scope::Global, name, &facts);
        tokio::spawn(bound.run());
        (node, serving)
    }

    pub async fn edge(&self, name: &str) -> RunningEdge {
        let node = self.join(name, "fra", Role::Edge).await;
        let data_dir = self.folder.path().join(name);
        start_edge(node, data_dir, self.node_plane, self.public_ca.1.clone())
    }

    /// A sidecar that anyone but a gateway is kept from.
    pub fn sidecar(&self, answer: super::sidecar::Answer) -> SocketAddr {
        let gateways = PeerPolicy::NodeWithAny(Roles::NONE.with(Role::Gateway));
        let tls = self.workload().server_config(&[b"h2"], gateways, ClientAuth::Required);
        super::sidecar::serve(tls, answer)
    }
}

/// A host says how an instance does.
pub fn say(host: &Node, of: &str, instance: &str, sidecar: SocketAddr, state: record::instance::State) {
    let body = record::Instance {
        instance: instance.to_owned(),
        cluster: CLUSTER.to_owned(),
        state: state.into(),
        sidecar_address: sidecar.to_string(),
        ..record::Instance::default()
    };
    let key = format!("{}/{instance}", host.name);
    host.gossip.publish(Kind::INSTANCE, &Scope::Region(region(of)), &key, &body);
}

pub struct RunningEdge {
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub https_v6: SocketAddr,
    pub serving: Serving,
    pub root: rustls::pki_types::CertificateDer<'static>,
    pub log: PathBuf,
    pub node: Node,
    pub ended: tokio::task::JoinHandle<()>,
}

pub fn start_edge(
    node: Node,
    data_dir: PathBuf,
    node_plane: SocketAddr,
    root: rustls::pki_types::CertificateDer<'static>,
) -> RunningEdge {
    let log = data_dir.join("access.log");
    let handles = Handles {
        name: node.name.clone(),
        site: "fra1".parse().unwrap(),
        region: region("fra"),
        data_dir,
        identity: node.identity.clone(),
        gossip: node.gossip.clone(),
        metrics: node.metrics.clone(),
        drain: node.trigger.subscribe(),
        tasks: Tasks::new(Handle::current()),
        node_plane: tonic::transport::Endpoint::from_shared(format!("http://{node_plane}"))
            .unwrap()
            .connect_lazy(),
    };
    let any = "127.0.0.1:0".parse().unwrap();
    let config = Config {
        http: vec![any],
        https: vec![any, "[::1]:0".parse().unwrap()],
        workers: 2,
        access_log: Some(log.clone()),
        ..Config::default()
    };
    let bound = Edge::bind(config, handles).unwrap();
    let (http, https, https_v6, serving) = (bound.http[0], bound.https[0], bound.https[1], bound.serving());
    let ended = tokio::spawn(async move { bound.run().await.unwrap() });
    RunningEdge { http, https, https_v6, serving, root, log, node, ended }
}

fn material(ca: &MeshCa, chain: Vec<rustls::pki_types::CertificateDer<'static>>, key: &TlsKey) -> Material {
    Material { chain, key: key.to_pkcs8(), roots: ca.roots(), trust_domain: ca.trust_domain().clone() }
}

async fn node(
    ca: &MeshCa,
    data_dir: PathBuf,
    name: &str,
    of: &str,
    role: Role,
    scopes: Vec<Scope>,
    seeds: Vec<SocketAddr>,
) -> Node {
    let subject = NodeSubject {
        node: name.parse().unwrap(),
        site: format!("{of}1").parse().unwrap(),
        region: region(of),
        roles: Roles::NONE.with(role),
        epoch: 1,
    };
    let keys = JoinKeys::generate().unwrap();
    let chain = ca.issue_node(&subject, &keys.tls.csr().unwrap(), unix_ms()).unwrap();
    let identity = Identity::new(material(ca, chain, &keys.tls)).unwrap();
    let record_chain = ca.issue_record(&subject, &keys.record.csr().unwrap(), unix_ms()).unwrap();
    let record = RecordIdentity::new(keys.record, record_chain).unwrap();
    let (trigger, drain) = drain::channel();
    let metrics = Metrics::new();
    let any = "127.0.0.1:0".parse().unwrap();
    std::fs::create_dir_all(&data_dir).unwrap();
    let config = atoll_gossip::Config {
        seeds,
        interval: Duration::from_millis(20),
        ..atoll_gossip::Config::new(subject.node.clone(), scopes, any, data_dir, record)
    };
    let gossip = Gossip::start(config, identity.clone(), &metrics, drain).await.unwrap();
    Node { name: subject.node, identity, gossip, metrics, trigger }
}

/// One request for a cluster, over a connection of its own, as whoever `identity` is.
pub async fn ask_gateway(
    gateway: &Node,
    identity: Identity,
    cluster: &str,
) -> Result<http::Response<()>, String> {
    let mut mesh = super::client::Mesh::connect(gateway, identity).await?;
    Ok(mesh.get(cluster, &[]).await?.map(drop))
}
