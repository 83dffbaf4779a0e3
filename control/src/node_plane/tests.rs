#![allow(clippy::unwrap_used, reason = "tests")]

use super::{NodePlaneService, serve};
use crate::attach::Attached;
use crate::bundles::{Bundles, BundlesConfig};
use crate::certificates::Certificates;
use crate::config::Config;
use crate::local::renew_locally;
use crate::metrics::NodePlaneMetrics;
use crate::store::objects::{JoinToken, Node, Placement, PlacementState, Revision};
use crate::store::seal::Sealer;
use crate::store::{Store, StoreError};
use crate::testing::mesh_ca;
use atoll_bundle::{Digest, Entry, List};
use atoll_identity::{
    Identity, Material, PeerPolicy, TlsKey, anonymous_client_config, join_client_config, mesh_server_name,
    sign_recovery,
};
use atoll_mesh_ca::client::JoinKeys;
use atoll_mesh_ca::token::{self, TokenGrant};
use atoll_mesh_ca::{MeshCa, NodeSubject};
use atoll_model::{Bundle, InstanceId, Kind, NodeName, OrgName, RevisionId, Role, Roles};
use atoll_process::Metrics;
use atoll_process::clock::unix_ms;
use atoll_process::drain::{self, DrainTrigger};
use atoll_wire::node::node_message::Answer;
use atoll_wire::node::node_plane_client::NodePlaneClient;
use atoll_wire::node::{
    ChallengeRequest, FetchBundleRequest, FetchCertificatesRequest, IdentityReply, IssueWorkloadRequest,
    JoinRequest, NodeMessage, RecoverRequest, RenewRequest, ServeAnswer, WantedContent,
};
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};

struct Plane {
    _folder: tempfile::TempDir,
    store: Store,
    ca: Arc<MeshCa>,
    certificates: Certificates,
    attached: Attached,
    bundles: Bundles,
    address: SocketAddr,
    _trigger: DrainTrigger,
}

impl Plane {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = mesh_ca(folder.path());
        let (store, _feed) = Store::open(folder.path(), unix_ms()).unwrap();
        let sealer = Sealer::open_or_create(&folder.path().join("seal.key")).unwrap();
        let certificates = Certificates::open(&Config::default(), folder.path(), sealer, unix_ms()).unwrap();
        let attached = Attached::default();
        let metrics = NodePlaneMetrics::new(&Metrics::new());
        let plain = BundlesConfig { keep_free_bytes: 0, ..BundlesConfig::default() };
        let bundles = Bundles::new(folder.path(), plain, &Metrics::new());
        let service = NodePlaneService::new(
            store.clone(),
            ca.clone(),
            certificates.clone(),
            attached.clone(),
            ["fra".parse().unwrap()].into(),
            bundles.clone(),
            metrics,
        )
        .unwrap();
        let identity =
            Identity::new(renew_locally(&ca, &subject("control", Role::Control), unix_ms()).unwrap())
                .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (trigger, drain) = drain::channel();
        tokio::spawn(serve(listener, identity, service, drain));
        Self { _folder: folder, store, ca, certificates, attached, bundles, address, _trigger: trigger }
    }

    async fn token(&self, role: Role, node: Option<&str>, ttl_ms: u64) -> String {
        let grant = TokenGrant {
            roles: Roles::NONE.with(role),
            site: "fra1".parse().unwrap(),
            region: "fra".parse().unwrap(),
            node: node.map(|node| node.parse().unwrap()),
            expires_ms: unix_ms() + ttl_ms,
        };
        let (token, record) = token::create(grant, self.fingerprint(), unix_ms()).unwrap();
        let stored = JoinToken { org: OrgName::default_org(), record };
        self.store.change(move |change| change.put(&stored)).await.unwrap();
        token.to_string()
    }

    fn fingerprint(&self) -> [u8; 32] {
        atoll_identity::fingerprint(&self.ca.roots()[0])
    }

    async fn client(&self, config: Arc<rustls::ClientConfig>) -> NodePlaneClient<Channel> {
        let dial = Dial { address: self.address, tls: TlsConnector::from(config) };
        let endpoint = Endpoint::from_static("http://mesh.atoll");
        NodePlaneClient::new(endpoint.connect_with_connector(dial).await.unwrap())
    }

    async fn joining(&self) -> NodePlaneClient<Channel> {
        self.client(join_client_config(self.fingerprint(), &[b"h2"])).await
    }

    async fn join(&self, name: &str, role: Role) -> Identity {
        let token = self.token(role, None, 60_000).await;
        let (reply, keys) = try_join(&mut self.joining().await, &token, name, ("fra1", "fra", role)).await;
        Identity::new(material(reply.unwrap(), keys.tls.to_pkcs8())).unwrap()
    }

    async fn as_node(&self, identity: &Identity) -> NodePlaneClient<Channel> {
        self.client(
            identity.client_config(&[b"h2"], PeerPolicy::NodeWithAny(Roles::NONE.with(Role::Control))),
        )
        .await
    }
}

fn subject(name: &str, role: Role) -> NodeSubject {
    NodeSubject {
        node: name.parse().unwrap(),
        site: "fra1".parse().unwrap(),
        region: "fra".parse().unwrap(),
        roles: Roles::NONE.with(role),
        epoch: 1,
    }
}

fn material(reply: IdentityReply, key: atoll_identity::PrivatePkcs8KeyDer<'static>) -> Material {
    Material {
        chain: reply.chain.into_iter().map(Into::into).collect(),
        key,
        roots: reply.roots.into_iter().map(Into::into).collect(),
        trust_domain: reply.trust_domain.parse().unwrap(),
    }
}

const EDGE: (&str, &str, Role) = ("fra1", "fra", Role::Edge);
const HOST: (&str, &str, Role) = ("fra1", "fra", Role::Host);

async fn try_join(
    client: &mut NodePlaneClient<Channel>,
    token: &str,
    name: &str,
    (site, region, role): (&str, &str, Role),
) -> (Result<IdentityReply, tonic::Status>, JoinKeys) {
    let keys = JoinKeys::generate().unwrap();
    let request = JoinRequest {
        token: token.to_owned(),
        node: name.to_owned(),
        csr: keys.tls.csr().unwrap(),
        record_csr: keys.record.csr().unwrap(),
        site: site.to_owned(),
        region: region.to_owned(),
        roles: vec![role.to_string()],
    };
    (client.join(request).await.map(tonic::Response::into_inner), keys)
}

/// Dials the plane, whatever address tonic thinks of.
#[derive(Clone)]
struct Dial {
    address: SocketAddr,
    tls: TlsConnector,
}

impl tower_service::Service<Uri> for Dial {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, _: Uri) -> Self::Future {
        let dial = self.clone();
        Box::pin(async move {
            let stream = TcpStream::connect(dial.address).await?;
            Ok(TokioIo::new(dial.tls.connect(mesh_server_name(), stream).await?))
        })
    }
}

#[tokio::test]
async fn of_two_joins_with_one_token_exactly_one_wins() {
    let plane = Plane::start().await;
    let token = plane.token(Role::Host, None, 60_000).await;
    let (mut one, mut two) = (plane.joining().await, plane.joining().await);
    let ((first, _), (second, _)) =
        tokio::join!(try_join(&mut one, &token, "host-a", HOST), try_join(&mut two, &token, "host-b", HOST));
    assert_eq!(usize::from(first.is_ok()) + usize::from(second.is_ok()), 1);
    let refused = first.err().or_else(|| second.err()).unwrap();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::PermissionDenied, atoll_mesh_ca::TokenRefusal::PUBLIC)
    );
    assert_eq!(plane.store.list::<Node>("").len(), 1);
}

#[tokio::test]
async fn every_refused_join_hears_the_same() {
    let plane = Plane::start().await;
    let mut client = plane.joining().await;
    let bound = plane.token(Role::Edge, Some("the-edge"), 60_000).await;
    let expired = plane.token(Role::Edge, None, 0).await;
    plane.join("taken", Role::Edge).await;
    let fresh = plane.token(Role::Edge, None, 60_000).await;
    let other = format!("{}.{}", &fresh[..22], &bound[22..]);
    for (token, name, what) in [
        (bound.as_str(), "other-edge", EDGE),
        (expired.as_str(), "a", EDGE),
        ("nonsense", "a", EDGE),
        (other.as_str(), "a", EDGE),
        (fresh.as_str(), "taken", EDGE),
        (fresh.as_str(), "NO NAME", EDGE),
        (fresh.as_str(), "control", EDGE),
        (fresh.as_str(), "a", HOST),
        (fresh.as_str(), "a", ("was1", "fra", Role::Edge)),
        (fresh.as_str(), "a", ("fra1", "was", Role::Edge)),
    ] {
        let refused = try_join(&mut client, token, name, what).await.0.unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::PermissionDenied, atoll_mesh_ca::TokenRefusal::PUBLIC)
        );
    }
    // None of them burned a token.
    try_join(&mut client, &fresh, "fresh", EDGE).await.0.unwrap();
    try_join(&mut client, &bound, "the-edge", EDGE).await.0.unwrap();
}

#[tokio::test]
async fn what_a_node_may_have_depends_on_what_the_store_says() {
    let plane = Plane::start().await;
    let (edge, host) = (plane.join("edge", Role::Edge).await, plane.join("host", Role::Host).await);
    assert!(edge.own_roles().has(Role::Edge) && !edge.own_roles().has(Role::Host));
    let domain =
        plane.certificates.issue(&"default/shop/web".parse().unwrap(), "shop.localhost", unix_ms()).unwrap();
    let placement = Placement {
        instance: InstanceId::from_parts(1, 1),
        cluster: "default/shop/web".parse().unwrap(),
        revision: RevisionId::from_parts(1, 1),
        region: "fra".parse().unwrap(),
        host: "host".parse().unwrap(),
        state: PlacementState::Run,
        placed_ms: 0,
        state_ms: 0,
    };
    let stored = plane.store.change(move |change| {
        change.put(&domain)?;
        change.put(&placement)
    });
    stored.await.unwrap();
    let domains = FetchCertificatesRequest { domains: vec!["shop.localhost".into(), "other".into()] };
    let (mut as_edge, mut as_host) = (plane.as_node(&edge).await, plane.as_node(&host).await);
    let fetched = as_edge.fetch_certificates(domains.clone()).await.unwrap().into_inner();
    assert_eq!(fetched.certificates.len(), 1);
    assert!(!fetched.certificates[0].key.is_empty());
    assert_eq!(as_host.fetch_certificates(domains.clone()).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(
        plane.joining().await.fetch_certificates(domains).await.unwrap_err().code(),
        Code::Unauthenticated
    );

    let csr = TlsKey::generate().unwrap().csr().unwrap();
    let ask = |cluster: &str| IssueWorkloadRequest { cluster: cluster.into(), csr: csr.clone() };
    let issued = as_host.issue_workload(ask("default/shop/web")).await.unwrap().into_inner();
    let leaf = atoll_identity::CertificateDer::from(issued.chain[0].clone());
    let workload = Identity::peer_of(&[leaf]).unwrap();
    assert!(workload.id.as_str().ends_with("/org/default/app/shop/service/web"), "{}", workload.id);
    assert_eq!(
        as_host.issue_workload(ask("default/shop/api")).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert_eq!(
        as_edge.issue_workload(ask("default/shop/web")).await.unwrap_err().code(),
        Code::PermissionDenied
    );
}

/// Everything that a bundle's stream holds, by index.
async fn fetched(
    client: &mut NodePlaneClient<Channel>,
    request: FetchBundleRequest,
) -> Result<Vec<Vec<u8>>, Code> {
    let mut contents = vec![Vec::new(); request.contents.len().max(1)];
    let mut pieces = client.fetch_bundle(request).await.map_err(|status| status.code())?.into_inner();
    while let Some(piece) = pieces.message().await.map_err(|status| status.code())? {
        contents[piece.index as usize].extend_from_slice(&piece.data);
    }
    Ok(contents)
}

#[tokio::test]
async fn a_host_gets_the_bundles_of_what_is_placed_on_it() {
    let plane = Plane::start().await;
    let (edge, host, other) = (
        plane.join("edge", Role::Edge).await,
        plane.join("host", Role::Host).await,
        plane.join("other", Role::Host).await,
    );
    let large = vec![7_u8; 600_000];
    let entry = |path: &str, bytes: &[u8]| Entry::File {
        path: path.into(),
        executable: false,
        size: bytes.len() as u64,
        sha256: Digest::of(bytes),
    };
    let list = List::new(vec![entry("a", b"hello"), entry("b", &large), entry("c", b"")]).unwrap();
    let org = OrgName::default_org();
    for bytes in [b"hello".to_vec(), large.clone(), Vec::new(), b"foreign".to_vec()] {
        let digest = Digest::of(&bytes);
        let body = futures_util::stream::iter([Ok::<_, ()>(bytes::Bytes::from(bytes))]);
        plane.bundles.receive(&org, digest, body).await.unwrap();
    }
    assert!(plane.bundles.offer(&org, &list).unwrap().missing.is_empty());
    let cluster: atoll_model::ClusterName = "default/shop/web".parse().unwrap();
    let spec = crate::testing::shop(&[("fra", 1)])["services"]["web"].clone();
    let mut revision = Revision {
        id: RevisionId::from_parts(1, 1),
        cluster: cluster.clone(),
        number: 1,
        spec: serde_json::from_value(spec).unwrap(),
        created_ms: 0,
        failed: false,
        by: String::new(),
    };
    revision.spec.bundle = Some(Bundle { digest: list.digest().to_string(), size: list.size() });
    let placement = Placement {
        instance: InstanceId::from_parts(1, 1),
        cluster,
        revision: revision.id.clone(),
        region: "fra".parse().unwrap(),
        host: "host".parse().unwrap(),
        state: PlacementState::Run,
        placed_ms: 0,
        state_ms: 0,
    };
    let stored = plane.store.change(move |change| {
        change.put(&revision)?;
        change.put(&placement)
    });
    stored.await.unwrap();
    let ask = |contents: &[(&[u8], u64)]| FetchBundleRequest {
        cluster: "default/shop/web".into(),
        digest: list.digest().to_string(),
        contents: contents
            .iter()
            .map(|(bytes, offset)| WantedContent { sha256: Digest::of(bytes).to_string(), offset: *offset })
            .collect(),
    };
    let mut as_host = plane.as_node(&host).await;
    assert_eq!(fetched(&mut as_host, ask(&[])).await.unwrap(), [list.text().as_bytes()]);
    let got = fetched(&mut as_host, ask(&[(b"hello", 2), (b"", 0), (&large, 0)])).await.unwrap();
    assert_eq!(got, [b"llo".to_vec(), Vec::new(), large]);
    // Of the organization, but not of the bundle.
    assert_eq!(fetched(&mut as_host, ask(&[(b"foreign", 0)])).await.unwrap_err(), Code::InvalidArgument);
    let mut unknown = ask(&[]);
    unknown.digest = Digest::of(b"x").to_string();
    assert_eq!(fetched(&mut as_host, unknown).await.unwrap_err(), Code::PermissionDenied);
    let mut foreign = ask(&[]);
    foreign.cluster = "default/shop/api".into();
    assert_eq!(fetched(&mut as_host, foreign).await.unwrap_err(), Code::PermissionDenied);
    let mut broken = ask(&[]);
    broken.digest = "../../x".into();
    assert_eq!(fetched(&mut as_host, broken).await.unwrap_err(), Code::InvalidArgument);
    let many = vec![(&b"hello"[..], 0); 1_025];
    assert_eq!(fetched(&mut as_host, ask(&many)).await.unwrap_err(), Code::InvalidArgument);
    let mut as_other = plane.as_node(&other).await;
    assert_eq!(fetched(&mut as_other, ask(&[])).await.unwrap_err(), Code::PermissionDenied);
    let mut as_edge = plane.as_node(&edge).await;
    assert_eq!(fetched(&mut as_edge, ask(&[])).await.unwrap_err(), Code::PermissionDenied);
    assert_eq!(fetched(&mut plane.joining().await, ask(&[])).await.unwrap_err(), Code::Unauthenticated);
}

#[tokio::test]
async fn renewal_and_recovery_end_with_removal() {
    let plane = Plane::start().await;
    let edge = plane.join("edge", Role::Edge).await;
    let mut client = plane.as_node(&edge).await;
    let key = TlsKey::generate().unwrap();
    let renew = RenewRequest { csr: key.csr().unwrap() };
    let renewed = client.renew(renew.clone()).await.unwrap().into_inner();
    edge.replace(material(renewed, key.to_pkcs8())).unwrap();

    // Recovery asks nothing of the connection: the proof is in the message.
    let trust = edge.trust().clone();
    let mut nobody = plane.client(anonymous_client_config(trust, &[b"h2"], PeerPolicy::AnyNode)).await;
    let current = edge.current();
    let old_key = TlsKey::from_pkcs8(&current.key).unwrap();
    let new_csr = TlsKey::generate().unwrap().csr().unwrap();
    let nonce = nobody.challenge(ChallengeRequest {}).await.unwrap().into_inner().nonce;
    let request = RecoverRequest {
        expired_certificate: current.chain[0].to_vec(),
        csr: new_csr.clone(),
        proof: sign_recovery(&old_key, &nonce, &new_csr).unwrap(),
        nonce,
    };
    nobody.recover(request.clone()).await.unwrap();
    let forged = RecoverRequest {
        proof: sign_recovery(&key_of_nobody(), &request.nonce, &new_csr).unwrap(),
        ..request.clone()
    };
    assert_eq!(nobody.recover(forged).await.unwrap_err().code(), Code::PermissionDenied);
    let stale = RecoverRequest { nonce: vec![0; 56], ..request.clone() };
    assert_eq!(nobody.recover(stale).await.unwrap_err().code(), Code::FailedPrecondition);

    let removed = plane.store.change(|change| {
        let mut node = change.get::<Node>("default/edge").unwrap();
        node.removed = true;
        change.put(&node)?;
        Ok::<_, StoreError>(())
    });
    removed.await.unwrap();
    assert_eq!(client.renew(renew).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(nobody.recover(request).await.unwrap_err().code(), Code::PermissionDenied);

    // It joins again: what has the old key stays out, here and wherever the denial is heard.
    let again = plane.join("edge", Role::Edge).await;
    assert_eq!(client.renew(renew_request()).await.unwrap_err().code(), Code::PermissionDenied);
    plane.as_node(&again).await.renew(renew_request()).await.unwrap();
    let desired = plane.store.desired();
    let denials: Vec<_> = desired.iter().filter(|record| record.key == "edge").collect();
    let scopes: Vec<_> = denials.iter().map(|record| (record.kind, record.scope.as_str())).collect();
    assert_eq!(scopes, [(Kind::DENIAL, ""), (Kind::REGION_DENIAL, "fra")]);
    for record in denials {
        let denial: atoll_wire::record::Denial =
            atoll_wire::Message::decode(record.body.as_deref().unwrap()).unwrap();
        assert_eq!(
            (denial.spiffe_id, Some(denial.before_epoch)),
            (edge.own_id().to_string(), again.own().epoch)
        );
        assert!(edge.own().epoch < again.own().epoch);
    }
}

fn renew_request() -> RenewRequest {
    RenewRequest { csr: key_of_nobody().csr().unwrap() }
}

fn key_of_nobody() -> TlsKey {
    TlsKey::generate().unwrap()
}

#[tokio::test]
async fn control_asks_over_the_line_that_a_node_holds() {
    let plane = Plane::start().await;
    let edge = plane.join("edge", Role::Edge).await;
    let mut client = plane.as_node(&edge).await;
    let (answers, outgoing) = tokio::sync::mpsc::channel(4);
    let stream = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut asked = client.attach(stream).await.unwrap().into_inner();
    let name: NodeName = "edge".parse().unwrap();
    tokio::time::timeout(Duration::from_secs(5), async {
        while !plane.attached.is_attached(&name) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let answering = tokio::spawn(async move {
        let id = asked.message().await.unwrap().unwrap().id;
        let serve = ServeAnswer { serves: true, why_not: String::new() };
        answers.send(NodeMessage { id, answer: Some(Answer::Serve(serve)), last: true }).await.unwrap();
        asked
    });
    plane.attached.can_serve(&name, "shop.localhost", 1, Duration::from_secs(5)).await.unwrap();
    drop(answering.await.unwrap());
    drop(client);
    tokio::time::timeout(Duration::from_secs(5), async {
        while plane.attached.is_attached(&name) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}
