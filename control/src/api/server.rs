//! The API's listener: plain HTTP on loopback, HTTPS elsewhere, with bounds that axum's own has not.

use atoll_identity::{TlsKey, crypto_provider};
use atoll_mesh_ca::MeshCa;
use atoll_process::Drain;
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

const CONNECTIONS_MAX: usize = 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long open requests may take after the drain has started. Streams end then.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The API's certificate, from the mesh CA; renewed at half its life.
#[derive(Debug)]
pub struct ServerTls {
    ca: Arc<MeshCa>,
    names: Vec<ServerName<'static>>,
    current: Mutex<Option<(Arc<CertifiedKey>, u64)>>,
}

impl ServerTls {
    /// A server under those names. Issues its first certificate.
    pub fn new(ca: Arc<MeshCa>, names: Vec<ServerName<'static>>, now_ms: u64) -> io::Result<Arc<Self>> {
        let tls = Self { ca, names, current: Mutex::new(None) };
        tls.issue(now_ms)?;
        Ok(Arc::new(tls))
    }

    fn issue(&self, now_ms: u64) -> io::Result<Arc<CertifiedKey>> {
        let key = TlsKey::generate().map_err(io::Error::other)?;
        let csr = key.csr().map_err(io::Error::other)?;
        let chain = self.ca.issue_server(&self.names, &csr, now_ms).map_err(io::Error::other)?;
        let key = crypto_provider()
            .key_provider
            .load_private_key(key.to_pkcs8().into())
            .map_err(io::Error::other)?;
        let certified = Arc::new(CertifiedKey::new(chain, key));
        let life_ms = u64::try_from(self.ca.lifetimes().server.as_millis()).unwrap_or(u64::MAX);
        let renew_ms = now_ms.saturating_add(life_ms / 2);
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some((certified.clone(), renew_ms));
        Ok(certified)
    }

    fn config(self: &Arc<Self>) -> Arc<rustls::ServerConfig> {
        let mut config = rustls::ServerConfig::builder_with_provider(crypto_provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .expect("the provider has cipher suites for both versions")
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

impl ResolvesServerCert for ServerTls {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let now_ms = atoll_process::clock::unix_ms();
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match current {
            Some((certified, renew_ms)) if now_ms < renew_ms => Some(certified),
            current => match self.issue(now_ms) {
                Ok(certified) => Some(certified),
                Err(error) => {
                    tracing::error!(%error, "the API's certificate could not be renewed");
                    current.map(|(certified, _)| certified)
                }
            },
        }
    }
}

/// Serves until the drain starts, and then what is open for a moment.
pub async fn serve(listener: TcpListener, tls: Option<Arc<ServerTls>>, router: Router, drain: Drain) {
    let acceptor = tls.map(|tls| TlsAcceptor::from(tls.config()));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.draining() => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the API could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, router, drain) = (acceptor.clone(), router.clone(), drain.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let Some(acceptor) = acceptor else { return connection(stream, router, drain).await };
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => connection(stream, router, drain).await,
                Ok(Err(error)) => tracing::debug!(%address, %error, "an API handshake failed"),
                Err(_elapsed) => tracing::debug!(%address, "an API handshake took too long"),
            }
        });
    }
    // Connections hold their places; all of them back means that all have ended.
    let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
    let _timed_out = tokio::time::timeout(DRAIN_TIMEOUT, places.acquire_many(all)).await.is_err();
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    drain: Drain,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(64)
        .keep_alive_interval(Some(Duration::from_secs(20)))
        .keep_alive_timeout(Duration::from_secs(10));
    let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = drain.draining() => {
            serving.as_mut().graceful_shutdown();
            tokio::time::timeout(DRAIN_TIMEOUT, serving).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an API connection broke");
    }
}
