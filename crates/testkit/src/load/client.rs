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
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

type Body = Empty<Bytes>;

/// Idle HTTP/1.1 connections that are kept.
const IDLE_MAX: usize = 64;

/// Edges that a request is tried at, at most.
const TRIES_MAX: usize = 4;

/// Why a try gave no answer.
struct Failure {
    /// No answer at all came of the connection, so that a client sends an idempotent request again.
    unanswered: bool,
    detail: String,
}

impl Failure {
    fn unanswered(detail: impl Into<String>) -> Self {
        Self { unanswered: true, detail: detail.into() }
    }

    fn answered(detail: String) -> Self {
        Self { unanswered: false, detail }
    }
}

pub(super) struct Client {
    target: LoadTarget,
    /// Which of the edges is asked: 0 is the target's own.
    edge: Cell<usize>,
    tls: TlsConnector,
    idle: RefCell<Vec<http1::SendRequest<Body>>>,
    /// A lock, so that one connection is made and not one for each request that finds none.
    shared: Mutex<Option<(usize, http2::SendRequest<Body>)>>,
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
        Self { target, edge: Cell::new(0), tls, idle: RefCell::default(), shared: Mutex::default() }
    }

    /// The region that answered. `head_seen` is set once the head of an instance's answer is there;
    /// an error that the platform makes is none. `again` counts the tries after the first.
    pub(super) async fn get(
        &self,
        number: u64,
        head_seen: &Cell<bool>,
        again: &Cell<u32>,
    ) -> Result<String, String> {
        let edges = self.target.others.len() + 1;
        let tries = if edges == 1 { 1 } else { TRIES_MAX };
        let mut why = String::new();
        for _ in 0..tries {
            let edge = self.edge.get();
            let got = match self.target.version {
                Version::H1 => self.get_h1(number, head_seen).await,
                Version::H2 => self.get_h2(number, head_seen).await,
            };
            match got {
                Ok(region) => return Ok(region),
                Err(failure) if !failure.unanswered || edges == 1 => return Err(why + &failure.detail),
                Err(failure) => why.push_str(&format!("{} at {}; then ", failure.detail, self.address(edge))),
            }
            again.set(again.get() + 1);
            // Another request may have moved on already.
            if self.edge.get() == edge {
                self.edge.set((edge + 1) % edges);
                self.idle.borrow_mut().clear();
            }
        }
        Err(why + "given up")
    }

    fn address(&self, edge: usize) -> SocketAddr {
        let others = &self.target.others;
        edge.checked_sub(1).and_then(|at| others.get(at)).copied().unwrap_or(self.target.address)
    }

    async fn get_h1(&self, number: u64, head_seen: &Cell<bool>) -> Result<String, Failure> {
        let idle = self.idle.borrow_mut().pop().filter(http1::SendRequest::is_ready);
        let mut sender = match idle {
            Some(sender) => sender,
            None => {
                let io = TokioIo::new(self.connect().await.map_err(Failure::unanswered)?);
                let (sender, connection) = http1::handshake(io).await.map_err(unanswered)?;
                tokio::task::spawn_local(connection);
                sender
            }
        };
        let edge = self.edge.get();
        let answer = sender.send_request(self.request(number)).await.map_err(unanswered)?;
        head_seen.set(answer.status() == http::StatusCode::OK);
        let region = read(answer).await.map_err(Failure::answered)?;
        let mut idle = self.idle.borrow_mut();
        if edge == self.edge.get() && idle.len() < IDLE_MAX && sender.is_ready() {
            idle.push(sender);
        }
        Ok(region)
    }

    async fn get_h2(&self, number: u64, head_seen: &Cell<bool>) -> Result<String, Failure> {
        let mut sender = {
            let mut shared = self.shared.lock().await;
            let edge = self.edge.get();
            match shared.as_ref().filter(|(at, sender)| *at == edge && sender.is_ready()) {
                Some((_, sender)) => sender.clone(),
                None => {
                    let io = TokioIo::new(self.connect().await.map_err(Failure::unanswered)?);
                    let (sender, connection) =
                        http2::handshake(TokioExecutor::new(), io).await.map_err(unanswered)?;
                    tokio::task::spawn_local(connection);
                    shared.insert((edge, sender)).1.clone()
                }
            }
        };
        let answer = sender.send_request(self.request(number)).await.map_err(unanswered)?;
        head_seen.set(answer.status() == http::StatusCode::OK);
        read(answer).await.map_err(Failure::answered)
    }

    async fn connect(&self) -> Result<TlsStream<TcpStream>, String> {
        let address = self.address(self.edge.get());
        let stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let name = ServerName::try_from(self.target.host.clone()).map_err(|error| error.to_string())?;
        self.tls.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))
    }

    fn request(&self, number: u64) -> Request<Body> {
        let LoadTarget { host, path, .. } = &self.target;
        let address = self.address(self.edge.get());
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

fn unanswered(error: hyper::Error) -> Failure {
    Failure::unanswered(chain(error))
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
