//! One target's connections.

use super::{LoadTarget, Version};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

type Body = Empty<Bytes>;

/// Idle HTTP/1.1 connections that are kept.
const IDLE_MAX: usize = 64;

pub(super) struct Client {
    target: LoadTarget,
    tls: TlsConnector,
    idle: RefCell<Vec<http1::SendRequest<Body>>>,
    /// A lock, so that one connection is made and not one for each request that finds none.
    shared: Mutex<Option<http2::SendRequest<Body>>>,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.target.version, self.target.address)
    }
}

impl Client {
    pub(super) fn new(target: LoadTarget) -> Self {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&target.ca).unwrap() {
            roots.add(certificate.unwrap()).unwrap();
        }
        let mut config = ClientConfig::builder_with_provider(atoll_identity::crypto_provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = match target.version {
            Version::H1 => vec![b"http/1.1".to_vec()],
            Version::H2 => vec![b"h2".to_vec()],
        };
        let tls = TlsConnector::from(Arc::new(config));
        Self { target, tls, idle: RefCell::default(), shared: Mutex::default() }
    }

    /// The region that answered. `head_seen` is set once the head of an instance's answer is there;
    /// an error that the platform makes is none.
    pub(super) async fn get(&self, number: u64, head_seen: &Cell<bool>) -> Result<String, String> {
        match self.target.version {
            Version::H1 => self.get_h1(number, head_seen).await,
            Version::H2 => self.get_h2(number, head_seen).await,
        }
    }

    async fn get_h1(&self, number: u64, head_seen: &Cell<bool>) -> Result<String, String> {
        let idle = self.idle.borrow_mut().pop().filter(http1::SendRequest::is_ready);
        let mut sender = match idle {
            Some(sender) => sender,
            None => {
                let io = TokioIo::new(self.connect().await?);
                let (sender, connection) = http1::handshake(io).await.map_err(chain)?;
                tokio::task::spawn_local(connection);
                sender
            }
        };
        let answer = sender.send_request(self.request(number)).await.map_err(chain)?;
        head_seen.set(answer.status() == http::StatusCode::OK);
        let region = read(answer).await?;
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_MAX && sender.is_ready() {
            idle.push(sender);
        }
        Ok(region)
    }

    async fn get_h2(&self, number: u64, head_seen: &Cell<bool>) -> Result<String, String> {
        let mut sender = {
            let mut shared = self.shared.lock().await;
            match shared.as_ref().filter(|sender| sender.is_ready()) {
                Some(sender) => sender.clone(),
                None => {
                    let io = TokioIo::new(self.connect().await?);
                    let (sender, connection) =
                        http2::handshake(TokioExecutor::new(), io).await.map_err(chain)?;
                    tokio::task::spawn_local(connection);
                    shared.insert(sender).clone()
                }
            }
        };
        let answer = sender.send_request(self.request(number)).await.map_err(chain)?;
        head_seen.set(answer.status() == http::StatusCode::OK);
        read(answer).await
    }

    async fn connect(&self) -> Result<TlsStream<TcpStream>, String> {
        let stream =
            TcpStream::connect(self.target.address).await.map_err(|error| format!("connect: {error}"))?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let name = ServerName::try_from(self.target.host.clone()).map_err(|error| error.to_string())?;
        self.tls.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))
    }

    fn request(&self, number: u64) -> Request<Body> {
        let LoadTarget { host, path, address, .. } = &self.target;
        let (uri, authority) = (format!("{path}?load={number}"), format!("{host}:{}", address.port()));
        let request = match self.target.version {
            Version::H1 => Request::get(uri).header("host", authority),
            Version::H2 => Request::get(format!("https://{authority}{uri}")),
        };
        request.header("x-request-id", format!("load-{number}")).body(Body::new()).unwrap()
    }
}

async fn read(answer: http::Response<Incoming>) -> Result<String, String> {
    let status = answer.status();
    let field = |name: &str| {
        let value =
            answer.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        value.unwrap_or_default()
    };
    let (region, proxy_status) = (field("atoll-region"), field("proxy-status"));
    let body = answer
        .into_body()
        .collect()
        .await
        .map_err(|error| format!("the body broke off: {}", chain(error)))?;
    if status == http::StatusCode::OK {
        return Ok(region);
    }
    let text = String::from_utf8_lossy(&body.to_bytes()).chars().take(200).collect::<String>();
    Err(format!("{status}; Proxy-Status: {proxy_status}; {text}"))
}

fn chain(error: hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text
}
