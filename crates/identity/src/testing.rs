//! A CA for tests that signs anything, and TLS ends that accept anyone.
#![allow(clippy::unwrap_used)]

use crate::extension::{ATOLL_EXTENSION, AtollExtension, RECORD_SIGNING};
use crate::identity::crypto_provider;
use crate::material::Material;
use crate::spiffe::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    version::TLS13,
};
use std::sync::Arc;
use time::{Duration, OffsetDateTime};

pub(crate) const DOMAIN: &str = "atoll.test";
pub(crate) const EDGE: &str = "spiffe://atoll.test/node/fra1/fra1-edge";
pub(crate) const GATEWAY: &str = "spiffe://atoll.test/node/fra1/fra1-gateway";

pub(crate) fn domain() -> TrustDomain {
    TrustDomain::new(DOMAIN).unwrap()
}

/// What a leaf says. Starts out as a good node's.
pub(crate) struct LeafSpec {
    pub(crate) uris: Vec<String>,
    pub(crate) dns: Vec<String>,
    pub(crate) common_name: String,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
    pub(crate) key_usages: Vec<KeyUsagePurpose>,
    pub(crate) not_before: Duration,
    pub(crate) not_after: Duration,
    pub(crate) extension: Option<Vec<u8>>,
    pub(crate) is_ca: bool,
}

pub(crate) fn node(uri: &str, role: &str) -> LeafSpec {
    let extension = AtollExtension {
        roles: [role.parse().unwrap()].into_iter().collect(),
        region: "fra".parse().unwrap(),
        epoch: 3,
    };
    LeafSpec {
        uris: vec![uri.into()],
        dns: vec![],
        common_name: "a node".into(),
        usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        key_usages: vec![KeyUsagePurpose::DigitalSignature],
        not_before: Duration::seconds(-60),
        not_after: Duration::hours(1),
        extension: Some(extension.encode()),
        is_ca: false,
    }
}

pub(crate) fn record(uri: &str, role: &str) -> LeafSpec {
    let usages = vec![ExtendedKeyUsagePurpose::Other(RECORD_SIGNING.to_vec())];
    LeafSpec { usages, not_after: Duration::days(36_500), ..node(uri, role) }
}

/// Chain and key, as an attacker may hold them.
pub(crate) struct Holder {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivatePkcs8KeyDer<'static>,
}

/// All have the same names: only keys tell them apart.
pub(crate) struct TestCa {
    root: CertificateDer<'static>,
    intermediate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl TestCa {
    pub(crate) fn new() -> Self {
        Self::with_intermediate_until(Duration::days(1))
    }

    pub(crate) fn with_intermediate_until(not_after: Duration) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let params = ca_params("root", Duration::days(2));
        let root = params.self_signed(&key).unwrap().der().clone();
        let root_issuer = Issuer::new(params, key);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let params = ca_params("intermediate", not_after);
        let intermediate = params.signed_by(&key, &root_issuer).unwrap().der().clone();
        Self { root, intermediate, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn roots(&self) -> Vec<CertificateDer<'static>> {
        vec![self.root.clone()]
    }

    pub(crate) fn certify(&self, spec: &LeafSpec, key: &impl PublicKeyData) -> Vec<CertificateDer<'static>> {
        let mut params = CertificateParams::default();
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now + spec.not_before, now + spec.not_after);
        params.distinguished_name.push(DnType::CommonName, spec.common_name.as_str());
        let uris = spec.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap()));
        let dns = spec.dns.iter().map(|dns| SanType::DnsName(dns.as_str().try_into().unwrap()));
        params.subject_alt_names = uris.chain(dns).collect();
        params.extended_key_usages = spec.usages.clone();
        params.key_usages = spec.key_usages.clone();
        if spec.is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let extension = |der: &Vec<u8>| CustomExtension::from_oid_content(ATOLL_EXTENSION, der.clone());
        params.custom_extensions = spec.extension.iter().map(extension).collect();
        let leaf = params.signed_by(key, &self.issuer).unwrap();
        vec![leaf.der().clone(), self.intermediate.clone()]
    }

    pub(crate) fn holder(&self, spec: &LeafSpec) -> Holder {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        Holder { chain: self.certify(spec, &key), key: key.serialize_der().into() }
    }

    pub(crate) fn material(&self, spec: &LeafSpec) -> Material {
        let Holder { chain, key } = self.holder(spec);
        Material { chain, key, roots: self.roots(), trust_domain: domain() }
    }
}

fn ca_params(name: &str, not_after: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - Duration::days(1), now + not_after);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

impl Holder {
    /// A client that shows this and accepts any server.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        let config = ClientConfig::builder_with_provider(crypto_provider())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key().into());
        Arc::new(config.unwrap())
    }

    /// A server that shows this and accepts any client.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        let config = ServerConfig::builder_with_provider(crypto_provider())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_client_cert_verifier(Arc::new(Anyone))
            .with_single_cert(self.chain.clone(), self.key.clone_key().into());
        Arc::new(config.unwrap())
    }
}

#[derive(Debug)]
struct Anyone;

macro_rules! any_signature {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            crypto_provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    any_signature!();
}

impl ClientCertVerifier for Anyone {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }
    any_signature!();
}
