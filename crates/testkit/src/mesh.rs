//! A client of the mesh that shows whatever certificate it is given and trusts every server, and a CA
//! that nobody trusts.

use atoll_identity::{ATOLL_EXTENSION, AtollExtension, crypto_provider};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const WAIT: Duration = Duration::from_secs(10);

/// Key and chain, PEM.
#[derive(Debug, Clone)]
pub struct MeshClient {
    pem: String,
}

/// An answer over the mesh.
#[derive(Debug, Clone)]
pub struct MeshAnswer {
    /// The status.
    pub status: u16,
    /// Fields, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl MeshAnswer {
    /// The first field of that name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }
}

/// How far a client got that was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MeshFailure {
    /// Nobody listens.
    Connect(String),
    /// TLS, or HTTP right after it: a server that refuses a client's certificate says so only when the
    /// client already thinks that the handshake is done.
    Refused(String),
    /// Nothing came.
    Silent,
}

impl MeshClient {
    /// Shows the certificate of that file (a node's `identity.pem`: key and chain).
    ///
    /// # Panics
    /// When it can't be read.
    #[must_use]
    pub fn from_file(file: &Path) -> Self {
        let pem = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        Self { pem }
    }

    /// Shows the certificate of a service, as a host keeps it (`workloads/ORG_APP_SERVICE.json`).
    ///
    /// # Panics
    /// When it can't be read.
    #[must_use]
    pub fn from_workload(file: &Path) -> Self {
        let text =
            std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let kept: serde_json::Value = serde_json::from_str(&text).unwrap();
        let block = |kind: &str, body: &serde_json::Value| {
            format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", body.as_str().unwrap())
        };
        let chain = kept["chain"].as_array().unwrap().iter().map(|der| block("CERTIFICATE", der));
        Self { pem: chain.chain([block("PRIVATE KEY", &kept["key"])]).collect() }
    }

    fn tls(&self) -> ClientConfig {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(self.pem.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(self.pem.as_bytes()).unwrap();
        let mut config = ClientConfig::builder_with_provider(crypto_provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone))
            .with_client_auth_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    /// GETs a path over HTTP/2, with header fields such as `atoll-cluster`.
    ///
    /// # Errors
    /// When there is no answer.
    ///
    /// # Panics
    /// When the fields are no header fields.
    pub fn get(
        &self,
        to: SocketAddr,
        path: &str,
        fields: &[(&str, &str)],
    ) -> Result<MeshAnswer, MeshFailure> {
        let mut request = http::Request::get(format!("https://shop.localhost{path}"));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let asked = async { tokio::time::timeout(WAIT, ask(self.tls(), to, request)).await };
        runtime.block_on(asked).unwrap_or(Err(MeshFailure::Silent))
    }
}

async fn ask(
    tls: ClientConfig,
    to: SocketAddr,
    request: http::Request<Empty<Bytes>>,
) -> Result<MeshAnswer, MeshFailure> {
    let stream = TcpStream::connect(to).await.map_err(|error| MeshFailure::Connect(error.to_string()))?;
    let refused = |error: &dyn std::fmt::Debug| MeshFailure::Refused(format!("{error:?}"));
    let name = ServerName::try_from("mesh.atoll").unwrap();
    let stream =
        TlsConnector::from(Arc::new(tls)).connect(name, stream).await.map_err(|error| refused(&error))?;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|error| refused(&error))?;
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(|error| refused(&error))?;
    let fields = answer.headers().iter();
    let headers = fields
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.map_err(|error| refused(&error))?.to_bytes().to_vec();
    Ok(MeshAnswer { status, headers, body })
}

/// A CA that the mesh does not know, and that says what the mesh's own would say.
#[derive(Debug)]
pub struct ForeignCa {
    issuer: Issuer<'static, KeyPair>,
}

impl Default for ForeignCa {
    fn default() -> Self {
        Self::new()
    }
}

impl ForeignCa {
    /// With a new key.
    ///
    /// # Panics
    /// Never: the parameters are fixed.
    #[must_use]
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "atoll mesh root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: Issuer::new(params, key) }
    }

    /// A client with a certificate that is right in everything but who signed it.
    ///
    /// # Panics
    /// When the texts are no SPIFFE id, role or region.
    #[must_use]
    pub fn client(&self, spiffe_id: &str, role: &str, region: &str) -> MeshClient {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) =
            (now - time::Duration::minutes(5), now + time::Duration::hours(1));
        params.subject_alt_names = vec![SanType::URI(spiffe_id.try_into().unwrap())];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let roles = [role.parse().unwrap()].into_iter().collect();
        let extension = AtollExtension { roles, region: region.parse().unwrap(), epoch: 1 };
        params.custom_extensions =
            vec![CustomExtension::from_oid_content(ATOLL_EXTENSION, extension.encode())];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        MeshClient { pem: format!("{}{}", key.serialize_pem(), certificate.pem()) }
    }
}

#[derive(Debug)]
struct Anyone;

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
}
