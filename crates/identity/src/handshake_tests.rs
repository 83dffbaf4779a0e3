//! Real handshakes: who is let in, who is refused and why, on both sides.
#![allow(clippy::unwrap_used)]

use crate::certificate::PeerIdentity;
use crate::identity::{
    ClientAuth, Identity, IdentityError, anonymous_client_config, join_client_config, mesh_server_name,
};
use crate::keys::{RecordKey, TlsKey};
use crate::material::{
    IDENTITY_FILE, Material, MaterialError, RecordIdentity, load_material, load_record, save_material,
    save_record,
};
use crate::spiffe::SpiffeId;
use crate::testing::{DOMAIN, EDGE, GATEWAY, Holder, LeafSpec, TestCa, domain, node, record};
use crate::trust::{TlsUse, TrustError, TrustStore, fingerprint};
use crate::verify::PeerPolicy;
use atoll_model::{Role, Roles};
use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose};
use rustls::{ClientConfig, HandshakeKind, ServerConfig};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use time::Duration as Span;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

type ServerEnd = server::TlsStream<DuplexStream>;
type ClientEnd = client::TlsStream<DuplexStream>;

/// Both ends after a byte each way, or the errors of the two (TLS 1.3 clients finish before the server
/// has seen their certificate, so only traffic tells).
async fn shake(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
) -> Result<(ServerEnd, ClientEnd), (String, String)> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (acceptor, connector) =
        (TlsAcceptor::from(Arc::clone(server)), TlsConnector::from(Arc::clone(client)));
    let serve = async move {
        let mut stream = acceptor.accept(near).await?;
        let byte = stream.read_u8().await?;
        stream.write_u8(byte).await?;
        stream.flush().await?;
        std::io::Result::Ok(stream)
    };
    let connect = async move {
        let mut stream = connector.connect(mesh_server_name(), far).await?;
        stream.write_u8(7).await?;
        stream.flush().await?;
        assert_eq!(stream.read_u8().await?, 7);
        std::io::Result::Ok(stream)
    };
    let both = async { tokio::join!(serve, connect) };
    match tokio::time::timeout(Duration::from_secs(10), both).await.unwrap() {
        (Ok(server), Ok(client)) => Ok((server, client)),
        (server, client) => {
            let text =
                |error: Option<std::io::Error>| error.map_or_else(String::new, |error| error.to_string());
            Err((text(server.err()), text(client.err())))
        }
    }
}

fn roles(role: Role) -> Roles {
    Roles::NONE.with(role)
}

fn peer(certificates: Option<&[rustls::pki_types::CertificateDer<'_>]>) -> PeerIdentity {
    Identity::peer_of(certificates.unwrap()).unwrap()
}

#[tokio::test]
async fn members_meet_and_know_each_other() {
    let ca = TestCa::new();
    let gateway = Identity::new(ca.material(&node(GATEWAY, "gateway"))).unwrap();
    let edge = Identity::new(ca.material(&node(EDGE, "edge"))).unwrap();
    let server =
        gateway.server_config(&[b"h2"], PeerPolicy::NodeWithAny(roles(Role::Edge)), ClientAuth::Required);
    let client = edge.client_config(&[b"h2"], PeerPolicy::NodeWithAny(roles(Role::Gateway)));
    for _ in 0..2 {
        let (server, client) = shake(&server, &client).await.unwrap();
        let seen = peer(server.get_ref().1.peer_certificates());
        assert_eq!((seen.id.as_str(), seen.roles, seen.epoch), (EDGE, roles(Role::Edge), Some(3)));
        assert_eq!(seen.region.unwrap().as_str(), "fra");
        assert_eq!(peer(client.get_ref().1.peer_certificates()).id.as_str(), GATEWAY);
        assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        // The second time too: nothing is resumed, so the certificate is checked again.
        assert_eq!(client.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

/// What is refused, as (name, certificate, what the error says).
fn unfit(ca: &TestCa, other: &TestCa) -> Vec<(&'static str, Holder, &'static str)> {
    let edge = || node(EDGE, "edge");
    let with = |change: &dyn Fn(&mut LeafSpec)| {
        let mut spec = edge();
        change(&mut spec);
        ca.holder(&spec)
    };
    let uris = |uris: &[&str]| {
        let uris: Vec<String> = uris.iter().map(|uri| (*uri).to_owned()).collect();
        with(&move |spec| spec.uris.clone_from(&uris))
    };
    vec![
        ("another CA, right id", other.holder(&edge()), "BadSignature"),
        (
            "another CA, our intermediate sent along",
            {
                let mut holder = other.holder(&edge());
                holder.chain.extend(ca.holder(&edge()).chain.split_off(1));
                holder.chain.extend(ca.roots());
                holder
            },
            "",
        ),
        ("wrong trust domain", uris(&["spiffe://other/node/fra1/fra1-edge"]), "not of the trust domain"),
        ("two URI names", uris(&[EDGE, "spiffe://atoll.test/node/fra1/x"]), "2 URI names"),
        ("the same URI twice", uris(&[EDGE, EDGE]), "2 URI names"),
        ("no URI name", uris(&[]), "0 URI names"),
        (
            "the id in the common name alone",
            with(&|spec| {
                spec.uris.clear();
                spec.common_name = EDGE.into();
            }),
            "0 URI names",
        ),
        (
            "the id as DNS name",
            with(&|spec| {
                spec.uris.clear();
                spec.dns = vec!["mesh.atoll".into()];
            }),
            "0 URI names",
        ),
        ("https", uris(&["https://atoll.test/node/fra1/fra1-edge"]), "spiffe://"),
        ("dots in the path", uris(&["spiffe://atoll.test/../node/fra1/fra1-edge"]), "segments"),
        ("a wildcard", uris(&["spiffe://atoll.test/node/fra1/*"]), "segments"),
        ("the trust domain alone", uris(&["spiffe://atoll.test"]), "no path"),
        ("expired a second ago", with(&|spec| spec.not_after = Span::seconds(-1)), "Expired"),
        ("valid in ten minutes", with(&|spec| spec.not_before = Span::minutes(10)), "NotValidYet"),
        ("no extended key usage", with(&|spec| spec.usages.clear()), "not for TLS"),
        (
            "any extended key usage",
            with(&|spec| spec.usages = vec![ExtendedKeyUsagePurpose::Any]),
            "not for TLS",
        ),
        ("a record certificate", ca.holder(&record(EDGE, "edge")), "not for TLS"),
        (
            "a key that signs certificates",
            with(&|spec| {
                spec.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
            }),
            "key usage",
        ),
        ("a CA's certificate", with(&|spec| spec.is_ca = true), "CaUsedAsEndEntity"),
        ("a node without roles", with(&|spec| spec.extension = None), "no Atoll extension"),
        ("a damaged extension", with(&|spec| spec.extension = Some(vec![0x0c, 9, b'v'])), "Atoll extension"),
        ("the wrong role", ca.holder(&node(EDGE, "host")), "may not use"),
        (
            "a workload",
            {
                let id = "spiffe://atoll.test/org/default/app/shop/service/web";
                ca.holder(&LeafSpec { extension: None, ..node(id, "edge") })
            },
            "may not use",
        ),
    ]
}

#[tokio::test]
async fn each_unfit_peer_is_refused_in_both_directions() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    let gateway = Identity::new(ca.material(&node(GATEWAY, "gateway"))).unwrap();
    let only_edges = || PeerPolicy::NodeWithAny(roles(Role::Edge));
    let client = gateway.client_config(&[], only_edges());
    hears_the_time(&gateway, &ca, Duration::ZERO);
    for auth in [ClientAuth::Required, ClientAuth::Optional] {
        let server = gateway.server_config(&[], only_edges(), auth);
        for (name, holder, why) in unfit(&ca, &other) {
            let (at_server, _) = shake(&server, &holder.client()).await.expect_err(name);
            assert!(at_server.contains(why) && !at_server.is_empty(), "{name}, as client: {at_server}");
            let (_, at_client) = shake(&holder.server(), &client).await.expect_err(name);
            assert!(at_client.contains(why) && !at_client.is_empty(), "{name}, as server: {at_client}");
        }
        // The same with nothing wrong is let in.
        let good = ca.holder(&node(EDGE, "edge"));
        assert!(shake(&server, &good.client()).await.is_ok());
        assert!(shake(&good.server(), &client).await.is_ok());
    }
}

/// A control node says what time it has.
fn hears_the_time(identity: &Identity, ca: &TestCa, ahead: Duration) {
    let control = Identity::new(ca.material(&node(GATEWAY, "control"))).unwrap().own();
    let now_ms = identity.clock().now_ms() + u64::try_from(ahead.as_millis()).unwrap();
    assert_eq!(identity.hear_time(&control, Duration::ZERO, now_ms), !ahead.is_zero());
}

/// Our CA issues nothing for the future: a certificate from there shows that our clock is behind.
#[tokio::test]
async fn a_certificate_of_the_future_tells_the_time_to_who_knows_none() {
    let ca = TestCa::new();
    let future = ca.holder(&LeafSpec { not_before: Span::minutes(10), ..node(EDGE, "edge") });
    let gateway = Identity::new(ca.material(&node(GATEWAY, "gateway"))).unwrap();
    let server = gateway.server_config(&[], PeerPolicy::AnyNode, ClientAuth::Required);
    let before_ms = gateway.clock().now_ms();
    assert!(shake(&server, &future.client()).await.is_ok());
    assert!(gateway.clock().now_ms() >= before_ms + 9 * 60_000, "it goes by that certificate's time");
    let foreign = TestCa::new().holder(&LeafSpec { not_before: Span::minutes(20), ..node(EDGE, "edge") });
    assert!(shake(&server, &foreign.client()).await.is_err(), "only our own CA is believed");

    let told = Identity::new(ca.material(&node(GATEWAY, "gateway"))).unwrap();
    hears_the_time(&told, &ca, Duration::ZERO);
    let server = told.server_config(&[], PeerPolicy::AnyNode, ClientAuth::Required);
    assert!(shake(&server, &future.client()).await.is_err(), "others say that our clock is right");
    let gossip = told.by_either_clock();
    let server = gossip.server_config(&[], PeerPolicy::AnyNode, ClientAuth::Required);
    assert!(shake(&server, &future.client()).await.is_ok(), "it may have something to say");
    assert!(told.clock().now_ms() < before_ms + 9 * 60_000, "and is not the time");
}

/// Who has moved our clock can't thereby keep out those that would put it right.
#[tokio::test]
async fn who_contradicts_a_wrong_majority_is_heard_still() {
    let ca = TestCa::new();
    let gateway = Identity::new(ca.material(&node(GATEWAY, "gateway"))).unwrap();
    let ends = |minutes| LeafSpec { not_after: Span::minutes(minutes), ..node(EDGE, "edge") };
    let (honest, over) =
        (ca.holder(&ends(10)), ca.holder(&LeafSpec { not_before: Span::hours(-1), ..ends(-1) }));
    let server_of = |own: &Identity| own.server_config(&[], PeerPolicy::AnyNode, ClientAuth::Required);
    let (mesh, gossip) = (server_of(&gateway), server_of(&gateway.by_either_clock()));
    hears_the_time(&gateway, &ca, Duration::from_secs(30 * 60));
    assert!(shake(&mesh, &honest.client()).await.is_err(), "by the others' clock it is over");
    assert!(shake(&gossip, &honest.client()).await.is_ok());
    assert!(shake(&gossip, &over.client()).await.is_err(), "over by both clocks");
    gateway.connections().set_denied([EDGE, GATEWAY].map(|id| SpiffeId::parse(id).unwrap()));
    assert!(shake(&gossip, &honest.client()).await.is_err(), "the deny-list holds there too");
    let removed = Identity::new(ca.material(&node(GATEWAY, "control"))).unwrap().own();
    assert!(
        gateway.hear_time(&removed, Duration::ZERO, gateway.clock().now_ms()),
        "its earlier word is forgotten"
    );
    assert_eq!(gateway.clock().correction_ms(), 0);
}

#[tokio::test]
async fn a_certificate_for_one_side_is_not_taken_on_the_other() {
    let ca = TestCa::new();
    let gateway = Identity::new(ca.material(&node(GATEWAY, "gateway"))).unwrap();
    let server = gateway.server_config(&[], PeerPolicy::AnyNode, ClientAuth::Required);
    let client = gateway.client_config(&[], PeerPolicy::AnyNode);
    let one = |usage| ca.holder(&LeafSpec { usages: vec![usage], ..node(EDGE, "edge") });
    let server_only = one(ExtendedKeyUsagePurpose::ServerAuth);
    let client_only = one(ExtendedKeyUsagePurpose::ClientAuth);
    let (error, _) = shake(&server, &server_only.client()).await.unwrap_err();
    assert!(error.contains("not for TLS clients"), "{error}");
    let (_, error) = shake(&client_only.server(), &client).await.unwrap_err();
    assert!(error.contains("not for TLS servers"), "{error}");
    assert!(shake(&server, &client_only.client()).await.is_ok());
    assert!(shake(&server_only.server(), &client).await.is_ok());
}

#[tokio::test]
async fn a_denied_peer_is_refused_and_cut() {
    let ca = TestCa::new();
    let gateway = Identity::new(ca.material(&node(GATEWAY, "gateway"))).unwrap();
    let edge = Identity::new(ca.material(&node(EDGE, "edge"))).unwrap();
    let server = gateway.server_config(&[], PeerPolicy::AnyNode, ClientAuth::Required);
    let client = edge.client_config(&[], PeerPolicy::AnyNode);
    let (open, _) = shake(&server, &client).await.unwrap();
    let guard = gateway.connections().admit(&peer(open.get_ref().1.peer_certificates())).unwrap();
    gateway.connections().set_denied([SpiffeId::parse(EDGE).unwrap()]);
    tokio::time::timeout(Duration::from_secs(5), guard.cut()).await.unwrap();
    let (error, _) = shake(&server, &client).await.unwrap_err();
    assert!(error.contains("deny-list"), "{error}");
    gateway.connections().set_denied([]);
    assert!(shake(&server, &client).await.is_ok());
}

#[tokio::test]
async fn rotation_is_seen_by_new_handshakes_and_not_by_open_connections() {
    let ca = TestCa::new();
    let gateway = Identity::new(ca.material(&node(GATEWAY, "gateway"))).unwrap();
    let edge = Identity::new(ca.material(&node(EDGE, "edge"))).unwrap();
    let server = gateway.server_config(&[], PeerPolicy::AnyNode, ClientAuth::Required);
    let client = edge.client_config(&[], PeerPolicy::AnyNode);
    let (mut open_server, mut open_client) = shake(&server, &client).await.unwrap();
    let before = peer(open_client.get_ref().1.peer_certificates()).serial;

    let next = TestCa::new();
    let both = |mut material: Material| {
        material.roots = [ca.roots(), next.roots()].concat();
        material
    };
    // First both roots are trusted on both sides, then each side changes over.
    edge.replace(both(ca.material(&node(EDGE, "edge")))).unwrap();
    gateway.replace(both(next.material(&node(GATEWAY, "gateway")))).unwrap();
    let (_, new) = shake(&server, &client).await.unwrap();
    let after = peer(new.get_ref().1.peer_certificates());
    assert_ne!(after.serial, before);
    assert_eq!(after.serial, gateway.own().serial);

    open_client.write_all(b"still").await.unwrap();
    open_client.flush().await.unwrap();
    let mut text = [0; 5];
    open_server.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"still");

    // When the old root goes, so does what it vouched for.
    edge.replace(both(next.material(&node(EDGE, "edge")))).unwrap();
    gateway.replace(next.material(&node(GATEWAY, "gateway"))).unwrap();
    assert!(shake(&server, &client).await.is_ok());
    assert!(shake(&server, &ca.holder(&node(EDGE, "edge")).client()).await.is_err());
}

#[tokio::test]
async fn a_joining_node_finds_the_control_that_its_token_names() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    let uri = "spiffe://atoll.test/node/fra1/control1";
    let control = Identity::new(ca.material(&node(uri, "control"))).unwrap();
    let pin = fingerprint(&ca.roots()[0]);
    let join = join_client_config(pin, &[]);
    let server = control.server_config_with_roots(&[], PeerPolicy::AnyNode, ClientAuth::Optional);
    assert!(shake(&server, &join).await.is_ok());

    let refused = |server: Arc<ServerConfig>| {
        let join = Arc::clone(&join);
        async move { shake(&server, &join).await.unwrap_err().1 }
    };
    let no_root = control.server_config(&[], PeerPolicy::AnyNode, ClientAuth::Optional);
    assert!(refused(no_root).await.contains("join token"));
    let stranger = Identity::new(other.material(&node(uri, "control"))).unwrap();
    let stranger = stranger.server_config_with_roots(&[], PeerPolicy::AnyNode, ClientAuth::Optional);
    assert!(refused(stranger).await.contains("join token"));
    let edge = Identity::new(ca.material(&node(EDGE, "edge"))).unwrap();
    let edge = edge.server_config_with_roots(&[], PeerPolicy::AnyNode, ClientAuth::Optional);
    assert!(refused(edge).await.contains("may not use"));
    // The root is public: sending it along proves nothing.
    let mut forged = other.holder(&node(uri, "control"));
    forged.chain.extend(ca.roots());
    assert!(refused(forged.server()).await.contains("BadSignature"));

    let required = control.server_config_with_roots(&[], PeerPolicy::AnyNode, ClientAuth::Required);
    assert!(shake(&required, &join).await.is_err());
    let trust = TrustStore::new(domain(), &ca.roots()).unwrap();
    let policy = PeerPolicy::NodeWithAny(roles(Role::Control));
    assert!(shake(&server, &anonymous_client_config(trust, &[], policy)).await.is_ok());
}

#[tokio::test]
async fn the_configurations_serve_quic() {
    let ca = TestCa::new();
    let gateway = Identity::new(ca.material(&node(GATEWAY, "gateway"))).unwrap();
    let edge = Identity::new(ca.material(&node(EDGE, "edge"))).unwrap();
    let server = gateway.server_config(&[b"gossip"], PeerPolicy::AnyNode, ClientAuth::Required);
    let client = edge.client_config(&[b"gossip"], PeerPolicy::AnyNode);
    let server = quinn::crypto::rustls::QuicServerConfig::try_from(server).unwrap();
    let client = quinn::crypto::rustls::QuicClientConfig::try_from(client).unwrap();
    let loopback = "127.0.0.1:0".parse().unwrap();
    let server =
        quinn::Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(server)), loopback).unwrap();
    let near = quinn::Endpoint::client(loopback).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(client));
    let connecting = near.connect_with(config, server.local_addr().unwrap(), "mesh.atoll").unwrap();
    let accept = async { server.accept().await.unwrap().await.unwrap() };
    let both = async { tokio::join!(accept, connecting) };
    let (accepted, connected) = tokio::time::timeout(Duration::from_secs(10), both).await.unwrap();
    connected.unwrap();
    let certificates =
        accepted.peer_identity().unwrap().downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>();
    assert_eq!(Identity::peer_of(&certificates.unwrap()).unwrap().id.as_str(), EDGE);
}

#[test]
fn material_that_does_not_hold_together_is_refused() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    let good = ca.material(&node(EDGE, "edge"));
    let identity = Identity::new(good.clone()).unwrap();
    let wrong_key = Material { key: TlsKey::generate().unwrap().to_pkcs8(), ..good.clone() };
    let error = identity.replace(wrong_key).unwrap_err();
    assert!(matches!(error, IdentityError::Material(MaterialError::KeyMismatch(_))), "{error}");
    assert!(identity.replace(Material { roots: other.roots(), ..good.clone() }).is_err());
    assert!(identity.replace(Material { chain: vec![], ..good.clone() }).is_err());
    assert!(identity.replace(Material { roots: vec![], ..good.clone() }).is_err());
    let error = identity.replace(ca.material(&node(GATEWAY, "gateway"))).unwrap_err();
    assert!(matches!(error, IdentityError::OtherId { .. }), "{error}");
    let elsewhere = Material { trust_domain: "other.test".parse().unwrap(), ..good.clone() };
    assert!(Identity::new(elsewhere).is_err());
    assert_eq!(identity.own().serial, PeerIdentity::from_certificate(&good.chain[0]).unwrap().serial);
}

#[test]
fn material_comes_back_from_disk_also_when_it_has_expired() {
    let ca = TestCa::new();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("identity");
    assert!(load_material(&dir).unwrap().is_none());
    let material = ca.material(&LeafSpec { not_after: Span::seconds(-1), ..node(EDGE, "edge") });
    save_material(&dir, &material).unwrap();
    let loaded = load_material(&dir).unwrap().unwrap();
    assert_eq!(loaded.chain, material.chain);
    assert_eq!(loaded.roots, material.roots);
    assert_eq!(loaded.trust_domain.as_str(), DOMAIN);
    assert_eq!(loaded.key.secret_pkcs8_der(), material.key.secret_pkcs8_der());
    assert!(TlsKey::from_pkcs8(&loaded.key).is_ok());

    let path = dir.join(IDENTITY_FILE);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&path)), (0o700, 0o600));
    let pem = std::fs::read_to_string(&path).unwrap();
    for damaged in ["", &pem[..pem.len() / 2], &pem.replacen("BEGIN PRIVATE", "BEGIN PUBLIC", 1)] {
        std::fs::write(&path, damaged).unwrap();
        let error = load_material(&dir).unwrap_err();
        assert!(matches!(&error, MaterialError::Damaged { .. }), "{error}");
    }
}

#[test]
fn record_certificates_name_their_signer_and_nothing_else_does() {
    // An intermediate that has run out since: what it certified holds.
    let ca = TestCa::with_intermediate_until(Span::seconds(-1));
    let trust = TrustStore::new(domain(), &ca.roots()).unwrap();
    let key = RecordKey::generate().unwrap();
    let pair = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&key.to_pkcs8(), &rcgen::PKCS_ED25519).unwrap();
    let chain = ca.certify(&record(EDGE, "edge"), &pair);
    let signer = trust.verify_record_certificate(&chain[0], &chain[1..]).unwrap();
    assert_eq!(
        (signer.node.as_str(), signer.site.as_str(), signer.region.as_str()),
        ("fra1-edge", "fra1", "fra")
    );
    assert_eq!((signer.roles, signer.epoch, signer.public_key), (roles(Role::Edge), 3, key.public_key()));

    let tls = ca.certify(&node(EDGE, "edge"), &pair);
    let error = trust.verify_record_certificate(&tls[0], &tls[1..]).unwrap_err();
    assert!(matches!(error, TrustError::Usage(_)), "{error}");
    let both = [node(EDGE, "edge").usages, record(EDGE, "edge").usages].concat();
    let both = ca.certify(&LeafSpec { usages: both, ..node(EDGE, "edge") }, &pair);
    assert!(trust.verify_record_certificate(&both[0], &both[1..]).is_err());
    let ecdsa = ca.holder(&record(EDGE, "edge")).chain;
    assert!(trust.verify_record_certificate(&ecdsa[0], &ecdsa[1..]).is_err());
    let foreign = TestCa::new().certify(&record(EDGE, "edge"), &pair);
    assert!(trust.verify_record_certificate(&foreign[0], &foreign[1..]).is_err());
    let elsewhere = ca.certify(&record("spiffe://other/node/fra1/fra1-edge", "edge"), &pair);
    assert!(trust.verify_record_certificate(&elsewhere[0], &elsewhere[1..]).is_err());
    assert!(trust.verify_record_certificate(&chain[0], &[]).is_err());

    let dir = tempfile::tempdir().unwrap();
    assert!(load_record(dir.path()).unwrap().is_none());
    save_record(dir.path(), &RecordIdentity::new(key, chain.clone()).unwrap()).unwrap();
    let loaded = load_record(dir.path()).unwrap().unwrap();
    assert_eq!((&loaded.chain, loaded.fingerprint()), (&chain, fingerprint(&chain[0])));
    assert!(RecordIdentity::new(RecordKey::generate().unwrap(), chain).is_err());
}

#[test]
fn a_changed_certificate_is_never_trusted_and_never_a_panic() {
    use proptest::prelude::*;
    let ca = TestCa::new();
    let trust = TrustStore::new(domain(), &ca.roots()).unwrap();
    let chain = ca.holder(&node(EDGE, "edge")).chain;
    let now = rustls::pki_types::UnixTime::now();
    let check = |leaf: Vec<u8>| {
        let leaf = rustls::pki_types::CertificateDer::from(leaf);
        trust.verify_tls(&leaf, &chain[1..], now, TlsUse::Client)
    };
    assert!(check(chain[0].to_vec()).is_ok());
    let change = (any::<prop::sample::Index>(), 1u8..=255, 0usize..4);
    proptest!(|((at, flip, cut) in change)| {
        let mut leaf = chain[0].to_vec();
        let at = at.index(leaf.len());
        leaf[at] ^= flip;
        leaf.truncate(leaf.len() - cut);
        prop_assert!(check(leaf).is_err());
    });
    proptest!(|(noise in prop::collection::vec(any::<u8>(), 0..200))| {
        prop_assert!(PeerIdentity::from_certificate(&noise).is_err());
    });
}
