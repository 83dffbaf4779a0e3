//! Connections to the API.

use bytes::Bytes;
use http::Uri;
use hyper::body::Body;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// How an API is reached.
#[derive(Clone)]
pub(super) struct Transport {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport")
            .field("host", &self.host)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// A TLS configuration that trusts the certificates of `pem` and nothing else.
pub fn trusting(pem: &[u8]) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("the CA is not PEM ({error})"))?;
        roots.add(certificate).map_err(|error| format!("the CA's certificate is not usable ({error})"))?;
    }
    if roots.is_empty() {
        return Err("the CA's file holds no certificate".to_owned());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_root_certificates(roots).with_no_client_auth())
        .map_err(|error| error.to_string())
}

impl Transport {
    pub(super) fn new(base: &Uri, ca: Option<&str>) -> Result<Self, String> {
        let host = base.host().ok_or("the API's address names no host")?.trim_matches(['[', ']']).to_owned();
        if !matches!(base.path(), "" | "/") || base.query().is_some() {
            return Err("the API's address has a path".to_owned());
        }
        let tls = match base.scheme_str() {
            Some("http") if is_loopback(&host) => None,
            Some("http") => {
                return Err("plain HTTP is for loopback only; the token would travel in the clear".to_owned());
            }
            Some("https") => {
                let pem = ca.ok_or("the context pins no CA (`atoll context add --ca FILE`)")?;
                let name = ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
                Some((TlsConnector::from(Arc::new(trusting(pem.as_bytes())?)), name))
            }
            _ => return Err("the API's address is neither https:// nor http://".to_owned()),
        };
        let default_port = if tls.is_some() { 443 } else { 80 };
        let port = base.port_u16().unwrap_or(default_port);
        Ok(Self { host, port, tls })
    }

    /// A connection for requests with bodies of that kind.
    pub(super) async fn connect<B>(&self) -> Result<SendRequest<B>, String>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let connecting = async {
            let stream =
                TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|e| e.to_string())?;
            stream.set_nodelay(true).map_err(|e| e.to_string())?;
            match &self.tls {
                None => speak(TokioIo::new(stream)).await,
                Some((connector, name)) => {
                    let stream = connector.connect(name.clone(), stream).await.map_err(|e| e.to_string())?;
                    speak(TokioIo::new(stream)).await
                }
            }
        };
        match tokio::time::timeout(CONNECT_WAIT, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(format!("no connection within {} s", CONNECT_WAIT.as_secs())),
        }
    }
}

async fn speak<I, B>(io: I) -> Result<SendRequest<B>, String>
where
    I: Read + Write + Unpin + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (sender, connection) = handshake(io).await.map_err(|error| error.to_string())?;
    // Ends with the request, whose error says what happened to the connection.
    tokio::spawn(async move {
        let _ended = connection.await;
    });
    Ok(sender)
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
