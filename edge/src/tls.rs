//! Public TLS: the certificate by server name, or a refusal.

use crate::certificates::{Certificate, Certificates};
use crate::request::SecureConnection;
use crate::worker::Worker;
use atoll_identity::crypto_provider;
use atoll_proxy::exchange::{ConnectionInfo, TlsInfo};
use atoll_proxy::server::{HttpVersion, serve_connection};
use rustls::ServerConfig;
use rustls::server::{Acceptor, ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

/// For the whole handshake: a client that opens connections and says nothing is cut.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A fatal `unrecognized_name` alert as a record of its own (RFC 8446, section 6; RFC 6066, section 3).
const UNRECOGNIZED_NAME: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 0x70];

/// Why a handshake did not end in a connection.
#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("the client asks for no name, or for one that has no certificate here")]
    UnrecognizedName,
    #[error("the handshake did not end in time")]
    Timeout,
    #[error("the handshake failed")]
    Io(#[from] io::Error),
}

/// The configuration that every connection starts from; the certificate is put in by name.
pub(crate) fn base_config() -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(crypto_provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(NoCertificate));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // One for all workers, so that a ticket is good at each of them.
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    Ok(config)
}

/// Serves a connection from its first byte to its end.
pub(crate) async fn serve(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr) {
    let shared = Arc::clone(&worker.shared);
    let Ok(local) = stream.local_addr() else { return };
    let handshake = handshake(stream, &shared.certificates, &shared.tls);
    let handshake = async {
        tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(|_| HandshakeError::Timeout)?
    };
    let outcome = tokio::select! {
        outcome = handshake => outcome,
        () = shared.drain.forced() => return,
    };
    let (stream, certificate, server_name) = match outcome {
        Ok(done) => done,
        Err(error) => {
            shared.metrics.handshake_errors.inc();
            debug!(%peer, error = &error as &dyn std::error::Error, "no TLS connection");
            return;
        }
    };
    let (_, tls) = stream.get_ref();
    let alpn = tls.alpn_protocol().map(<[u8]>::to_vec);
    let version = if alpn.as_deref() == Some(b"h2") { HttpVersion::H2 } else { HttpVersion::H1 };
    let tls = TlsInfo {
        server_name: Some(server_name),
        version: tls.protocol_version().and_then(|version| version.as_str()).map(str::to_owned),
        alpn,
    };
    let info = Arc::new(ConnectionInfo { peer, local, tls: Some(tls), identity: None });
    let handler = Rc::new(SecureConnection { worker: Rc::clone(&worker), certificate });
    let (metrics, drain) = (&shared.metrics, shared.drain.clone());
    let _how = serve_connection(stream, version, info, &worker.limits, handler, metrics, drain).await;
}

async fn handshake(
    stream: TcpStream,
    certificates: &Certificates,
    base: &ServerConfig,
) -> Result<(TlsStream<TcpStream>, Arc<Certificate>, String), HandshakeError> {
    let mut start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    let name = start.client_hello().server_name().map(str::to_ascii_lowercase);
    let found = name.and_then(|name| certificates.find(&name).map(|certificate| (name, certificate)));
    let Some((name, certificate)) = found else {
        // Best effort: the client may be gone already.
        let _sent = start.io.write_all(&UNRECOGNIZED_NAME).await;
        let _closed = start.io.shutdown().await;
        return Err(HandshakeError::UnrecognizedName);
    };
    // The very certificate that was looked up, which decides later what hosts the connection is for.
    let mut config = base.clone();
    config.cert_resolver = Arc::new(Exactly(Arc::clone(&certificate.key)));
    let stream = start.into_stream(Arc::new(config)).await?;
    Ok((stream, certificate, name))
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

#[derive(Debug)]
struct Exactly(Arc<CertifiedKey>);

impl ResolvesServerCert for Exactly {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}
