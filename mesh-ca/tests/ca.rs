//! What the CA issues, keeps and refuses.
#![allow(clippy::unwrap_used)]

use atoll_identity::{
    ClientAuth, Identity, Material, PeerIdentity, PeerPolicy, RecordIdentity, RecordKey, TlsKey, TrustDomain,
    TrustStore, fingerprint, join_client_config, mesh_server_name, sign_recovery,
};
use atoll_mesh_ca::{
    CaError, CsrError, JoinToken, Lifetimes, MeshCa, NodeSubject, PublicTestCa, RecoveryRefusal, token,
};
use atoll_model::{Role, Roles};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256,
    SanType,
};
use rustls::pki_types::{CertificateDer, ServerName};
use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::prelude::{FromDer, X509Certificate};

const SECOND_MS: u64 = 1_000;
const DAY_MS: u64 = 86_400 * SECOND_MS;

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

fn domain() -> TrustDomain {
    "atoll.test".parse().unwrap()
}

fn open(dir: &Path, lifetimes: Lifetimes, now_ms: u64) -> Result<MeshCa, CaError> {
    MeshCa::open_or_create(dir, domain(), lifetimes, now_ms)
}

fn subject(node: &str, role: Role) -> NodeSubject {
    NodeSubject {
        node: node.parse().unwrap(),
        site: "fra1".parse().unwrap(),
        region: "fra".parse().unwrap(),
        roles: Roles::NONE.with(role),
        epoch: 2,
    }
}

fn seconds(node: u64, intermediate: u64) -> Lifetimes {
    let [node, intermediate] = [node, intermediate].map(Duration::from_secs);
    Lifetimes { node, workload: node, server: node, intermediate, root: intermediate * 100 }
}

fn identity(ca: &MeshCa, node: &str, role: Role, now_ms: u64) -> Identity {
    let key = TlsKey::generate().unwrap();
    let chain = ca.issue_node(&subject(node, role), &key.csr().unwrap(), now_ms).unwrap();
    Identity::new(Material { chain, key: key.to_pkcs8(), roots: ca.roots(), trust_domain: domain() }).unwrap()
}

#[test]
fn a_reopened_ca_is_the_same_and_its_files_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("ca");
    let first = open(&dir, Lifetimes::default(), now_ms()).unwrap().status();
    assert_eq!(open(&dir, Lifetimes::default(), now_ms()).unwrap().status(), first);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    assert_eq!(first.issued.values().sum::<u64>(), 2);
    let years = |ms: u64| (ms - now_ms() + DAY_MS) / (365 * DAY_MS);
    assert_eq!((years(first.root_not_after_ms), years(first.intermediate_not_after_ms)), (10, 5));
}

#[test]
fn a_crash_between_root_and_intermediate_is_made_good() {
    let dir = tempfile::tempdir().unwrap();
    let before = open(dir.path(), Lifetimes::default(), now_ms()).unwrap().status();
    std::fs::remove_file(dir.path().join("intermediate.pem")).unwrap();
    let ca = open(dir.path(), Lifetimes::default(), now_ms()).unwrap();
    assert_eq!(ca.status().root_fingerprint, before.root_fingerprint);
    assert_ne!(ca.status().intermediate_fingerprint, before.intermediate_fingerprint);
    identity(&ca, "fra1-edge", Role::Edge, now_ms());
}

#[test]
fn damaged_files_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), Lifetimes::default(), now_ms()).unwrap();
    let other_dir = tempfile::tempdir().unwrap();
    open(other_dir.path(), Lifetimes::default(), now_ms()).unwrap();
    let (root, intermediate) = (dir.path().join("root.pem"), dir.path().join("intermediate.pem"));
    let good = [&root, &intermediate].map(|path| std::fs::read_to_string(path).unwrap());
    let other = std::fs::read_to_string(other_dir.path().join("root.pem")).unwrap();
    let foreign = std::fs::read_to_string(other_dir.path().join("intermediate.pem")).unwrap();
    let (key, _) = other.split_at(other.find("-----BEGIN CERT").unwrap());
    let (_, certificate) = good[0].split_at(good[0].find("-----BEGIN CERT").unwrap());
    let swapped = format!("{key}{certificate}");
    for (path, text, why) in [
        (&root, "", "no private key"),
        (&root, &good[0][..good[0].len() - 200], "no certificate"),
        (&root, swapped.as_str(), "does not belong"),
        (&intermediate, foreign.as_str(), "not signed by the root"),
    ] {
        std::fs::write(path, text).unwrap();
        let error = open(dir.path(), Lifetimes::default(), now_ms()).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains(path.to_str().unwrap()), "{error}");
        assert_eq!(std::fs::read_to_string(path).unwrap(), text);
        std::fs::write(&root, &good[0]).unwrap();
        std::fs::write(&intermediate, &good[1]).unwrap();
    }
    std::fs::remove_file(&root).unwrap();
    let error = open(dir.path(), Lifetimes::default(), now_ms()).unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
    assert!(!root.exists());
    std::fs::write(&root, &good[0]).unwrap();
    let other =
        MeshCa::open_or_create(dir.path(), "other.test".parse().unwrap(), Lifetimes::default(), now_ms());
    assert!(matches!(other, Err(CaError::OtherTrustDomain { .. })));
    assert!(open(dir.path(), seconds(10, 15), now_ms()).is_err());
}

#[test]
fn a_request_gives_its_key_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path(), Lifetimes::default(), now_ms()).unwrap();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut forged = CertificateParams::default();
    forged.distinguished_name.push(DnType::CommonName, "control1");
    forged.subject_alt_names =
        vec![SanType::URI("spiffe://atoll.test/node/fra1/control1".try_into().unwrap())];
    forged.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let extension = b"\x0c\x25v1;roles=control;region=fra;epoch=999";
    let extension = CustomExtension::from_oid_content(atoll_identity::ATOLL_EXTENSION, extension.to_vec());
    forged.custom_extensions = vec![extension];
    let csr = forged.serialize_request(&key).unwrap().der().to_vec();

    let chain = ca.issue_node(&subject("fra1-edge", Role::Edge), &csr, now_ms()).unwrap();
    let peer = PeerIdentity::from_certificate(&chain[0]).unwrap();
    assert_eq!(peer.id.as_str(), "spiffe://atoll.test/node/fra1/fra1-edge");
    assert_eq!((peer.roles, peer.epoch), (Roles::NONE.with(Role::Edge), Some(2)));
    let (_, certificate) = X509Certificate::from_der(&chain[0]).unwrap();
    assert!(!certificate.is_ca() && !certificate.subject().to_string().contains("control1"));
    assert_eq!(certificate.public_key().raw, rcgen::PublicKeyData::subject_public_key_info(&key));
    let cluster = "default/shop/web".parse().unwrap();
    let workload = ca.issue_workload(&cluster, &csr, now_ms()).unwrap();
    let peer = PeerIdentity::from_certificate(&workload[0]).unwrap();
    assert_eq!(
        (peer.id.as_str(), peer.roles.is_empty()),
        ("spiffe://atoll.test/org/default/app/shop/service/web", true)
    );

    let mut broken = csr.clone();
    let last = broken.len() - 1;
    broken[last] ^= 1;
    let record_csr = RecordKey::generate().unwrap().csr().unwrap();
    let node = subject("fra1-edge", Role::Edge);
    let refused = |csr: &[u8]| match ca.issue_node(&node, csr, now_ms()) {
        Err(CaError::Request(error)) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&broken), CsrError::Signature);
    assert_eq!(refused(&record_csr), CsrError::KeyKind("ECDSA P-256"));
    assert_eq!(refused(b"nothing"), CsrError::Encoding);
    assert_eq!(refused(&[csr.as_slice(), b"x"].concat()), CsrError::Encoding);
    assert_eq!(refused(&vec![0; 100_000]), CsrError::TooLong);
    assert!(matches!(
        ca.issue_record(&node, &csr, now_ms()),
        Err(CaError::Request(CsrError::KeyKind("Ed25519")))
    ));
    let nothing = NodeSubject { roles: Roles::NONE, ..node };
    assert!(matches!(ca.issue_node(&nothing, &csr, now_ms()), Err(CaError::NoRoles)));
}

#[test]
fn every_certificate_is_in_the_log_with_its_own_serial() {
    let dir = tempfile::tempdir().unwrap();
    let now = now_ms();
    let ca = open(dir.path(), seconds(4, 60), now).unwrap();
    let csr = TlsKey::generate().unwrap().csr().unwrap();
    let record = RecordKey::generate().unwrap();
    let node = subject("fra1-edge", Role::Edge);
    let names = [ServerName::try_from("api.atoll.test").unwrap(), ServerName::try_from("::1").unwrap()];
    let mut leaves: Vec<CertificateDer<'_>> = vec![];
    for _ in 0..20 {
        leaves.push(ca.issue_node(&node, &csr, now).unwrap().remove(0));
        leaves.push(ca.issue_record(&node, &record.csr().unwrap(), now).unwrap().remove(0));
        leaves.push(ca.issue_workload(&"default/shop/web".parse().unwrap(), &csr, now).unwrap().remove(0));
        leaves.push(ca.issue_server(&names, &csr, now).unwrap().remove(0));
    }
    let log = std::fs::read_to_string(dir.path().join("issued.log")).unwrap();
    let logged: HashSet<String> = log
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["serial"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(logged.len(), 82);
    for leaf in &leaves {
        let (_, leaf) = X509Certificate::from_der(leaf).unwrap();
        assert_eq!(leaf.raw_serial().len(), 16);
        assert!(logged.contains(&leaf.raw_serial_as_string().replace(':', "")));
    }
    let issued = open(dir.path(), seconds(4, 60), now).unwrap().status().issued;
    assert_eq!(
        issued.into_iter().collect::<Vec<_>>(),
        [
            ("intermediate".to_owned(), 1),
            ("node".to_owned(), 20),
            ("record".to_owned(), 20),
            ("root".to_owned(), 1),
            ("server".to_owned(), 20),
            ("workload".to_owned(), 20),
        ]
    );
    let peer = PeerIdentity::from_certificate(&leaves[0]).unwrap();
    assert!((now + 4 * SECOND_MS..now + 5 * SECOND_MS).contains(&peer.not_after_ms));
    assert!((now - 2 * SECOND_MS..=now).contains(&peer.not_before_ms));
    let trust = TrustStore::new(domain(), &ca.roots()).unwrap();
    let chain = ca.issue_record(&node, &record.csr().unwrap(), now).unwrap();
    let signer = trust.verify_record_certificate(&chain[0], &chain[1..]).unwrap();
    assert_eq!(
        (signer.node, signer.roles, signer.epoch, signer.public_key),
        (node.node, node.roles, 2, record.public_key())
    );
    let (_, certificate) = X509Certificate::from_der(&chain[0]).unwrap();
    assert_eq!(certificate.validity().not_after.to_datetime().year(), 9999);
    assert!(RecordIdentity::new(record, chain).is_ok());
}

#[test]
fn the_intermediate_is_replaced_in_time_and_what_it_issued_still_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let start = now_ms();
    let ca = open(dir.path(), seconds(10, 100), start).unwrap();
    let key = TlsKey::generate().unwrap();
    let csr = key.csr().unwrap();
    let edge = subject("fra1-edge", Role::Edge);
    let old = ca.issue_node(&edge, &csr, start).unwrap();
    let same = ca.issue_node(&edge, &csr, start + 30 * SECOND_MS).unwrap();
    assert_eq!(old[1], same[1]);
    let later = start + 60 * SECOND_MS;
    let new = ca.issue_node(&edge, &csr, later).unwrap();
    assert_ne!(old[1], new[1]);
    assert_eq!(ca.issue_node(&edge, &csr, later).unwrap()[1], new[1]);
    drop(ca);

    let ca = open(dir.path(), seconds(10, 100), later).unwrap();
    assert_eq!(ca.issue_node(&edge, &csr, later).unwrap()[1], new[1]);
    let ended = PeerIdentity::from_certificate(&old[0]).unwrap().not_after_ms;
    let next = TlsKey::generate().unwrap().csr().unwrap();
    let proof = sign_recovery(&key, b"nonce", &next).unwrap();
    let recover = |leaf: &[u8], proof: &[u8], removed: bool, now: u64| {
        ca.check_recovery(leaf, b"nonce", &next, proof, |_| removed, now)
    };
    assert_eq!(
        recover(&old[0], &proof, false, ended + 30 * DAY_MS).unwrap().id.node_name().unwrap(),
        edge.node
    );
    let refusal = |result| match result {
        Err(CaError::Recovery(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    assert_eq!(refusal(recover(&old[0], &proof, false, ended + 31 * DAY_MS)), RecoveryRefusal::TooLate);
    assert_eq!(refusal(recover(&old[0], &proof, true, ended)), RecoveryRefusal::Removed);
    let thief = sign_recovery(&TlsKey::generate().unwrap(), b"nonce", &next).unwrap();
    assert!(matches!(recover(&old[0], &thief, false, ended), Err(CaError::Proof(_))));
    let other_dir = tempfile::tempdir().unwrap();
    let other = open(other_dir.path(), seconds(10, 100), start).unwrap();
    let foreign = other.issue_node(&edge, &csr, start).unwrap();
    assert!(matches!(recover(&foreign[0], &proof, false, ended), Err(CaError::NotOurs(_))));
    let workload = ca.issue_workload(&"default/shop/web".parse().unwrap(), &csr, later).unwrap();
    assert!(matches!(recover(&workload[0], &proof, false, ended), Err(CaError::NotNode(_))));
    assert!(matches!(recover(b"x", &proof, false, ended), Err(CaError::NotOurs(_))));
}

async fn handshake(
    server: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
    name: ServerName<'static>,
) -> Result<(), String> {
    use tokio::io::AsyncReadExt;
    let (near, far) = tokio::io::duplex(64 * 1024);
    let connector = tokio_rustls::TlsConnector::from(client);
    let accept = async {
        let accepted = tokio_rustls::TlsAcceptor::from(server).accept(near).await;
        accepted.map(drop).map_err(|error| error.to_string())
    };
    let connect = async {
        let mut stream = connector.connect(name, far).await.map_err(|error| error.to_string())?;
        // The end, or the alert of a server that refused our certificate.
        let _ended = stream.read_u8().await;
        Ok::<(), String>(())
    };
    let both = async { tokio::join!(accept, connect) };
    let (accepted, connected) = tokio::time::timeout(Duration::from_secs(10), both).await.unwrap();
    connected.and(accepted)
}

#[tokio::test]
async fn a_node_joins_by_token_and_meets_others() {
    let dir = tempfile::tempdir().unwrap();
    let now = now_ms();
    let ca = open(dir.path(), Lifetimes::default(), now).unwrap();
    let control = identity(&ca, "control1", Role::Control, now);
    let grant = token::TokenGrant {
        roles: Roles::NONE.with(Role::Edge),
        site: "fra1".parse().unwrap(),
        region: "fra".parse().unwrap(),
        node: None,
        expires_ms: now + DAY_MS,
    };
    let (made, _) = token::create(grant, fingerprint(&ca.roots()[0]), now).unwrap();
    assert!(made.to_string().ends_with(&ca.fingerprint()));
    let read: JoinToken = made.to_string().parse().unwrap();
    let server = control.server_config_with_roots(&[], PeerPolicy::AnyNode, ClientAuth::Optional);
    let join = join_client_config(read.ca_fingerprint, &[]);
    handshake(Arc::clone(&server), join, mesh_server_name()).await.unwrap();

    let edge = identity(&ca, "fra1-edge", Role::Edge, now);
    let client = edge.client_config(&[], PeerPolicy::NodeWithAny(Roles::NONE.with(Role::Control)));
    handshake(Arc::clone(&server), client, mesh_server_name()).await.unwrap();
    let host = identity(&ca, "fra1-host", Role::Host, now);
    let client = host.client_config(&[], PeerPolicy::NodeWithAny(Roles::NONE.with(Role::Gateway)));
    assert!(handshake(server, client, mesh_server_name()).await.is_err());
}

#[tokio::test]
async fn public_test_certificates_satisfy_an_ordinary_client() {
    let dir = tempfile::tempdir().unwrap();
    let now = now_ms();
    let pem = PublicTestCa::open_or_create(dir.path(), now).unwrap().ca_pem();
    let ca = PublicTestCa::open_or_create(dir.path(), now).unwrap();
    assert_eq!(ca.ca_pem(), pem);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    let roots = Arc::new(roots);
    for (domain, asked, fits) in [
        ("shop.localhost", "shop.localhost", true),
        ("shop.localhost", "other.localhost", false),
        ("*.shop.localhost", "a.shop.localhost", true),
        ("*.shop.localhost", "shop.localhost", false),
    ] {
        let issued = ca.issue(domain, now).unwrap();
        assert!(issued.not_after_ms - now <= 90 * DAY_MS);
        let provider = atoll_identity::crypto_provider;
        let server = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap();
        let server = server.with_no_client_auth().with_single_cert(issued.chain, issued.key.into()).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap();
        let client = client.with_root_certificates(Arc::clone(&roots)).with_no_client_auth();
        let name = ServerName::try_from(asked).unwrap();
        let result = handshake(Arc::new(server), Arc::new(client), name).await;
        assert_eq!(result.is_ok(), fits, "{domain} for {asked}: {result:?}");
    }
    for bad in ["", "Shop.localhost", "a b", "*", "*.*.x", "ä.localhost", "127.0.0.1/8", "shop.localhost\n"]
    {
        assert!(ca.issue(bad, now).is_err(), "{bad:?}");
    }
}
