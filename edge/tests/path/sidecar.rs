//! A stand-in for a sidecar and its instance.

use atoll_process::drain;
use atoll_proxy::exchange::{ConnectionInfo, Handler};
use atoll_proxy::server::{HttpVersion, ServerLimits, serve_connection};
use atoll_proxy::{Body, Exchange, ProxyMetrics, workers};
use http::Response;
use http_body_util::BodyExt as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// What it does with a request.
#[derive(Debug, Clone, Copy)]
pub enum Answer {
    /// Says what it got, and its name.
    Echo(&'static str),
    /// Drops the connection once it has the request.
    Hangup,
    /// Never answers.
    Silence,
}

struct Instance(Answer, tokio::sync::mpsc::UnboundedSender<()>);

impl Handler for Instance {
    async fn handle(&self, exchange: Exchange) -> Response<Body> {
        let name = match self.0 {
            Answer::Echo(name) => name,
            Answer::Hangup => {
                self.1.send(()).unwrap();
                return std::future::pending().await;
            }
            Answer::Silence => return std::future::pending().await,
        };
        let (head, body) = exchange.request.into_parts();
        let Ok(content) = body.collect().await else { return Response::new(Body::empty()) };
        let trailers = content.trailers().cloned().unwrap_or_default();
        let content = content.to_bytes();
        let fields: Vec<String> =
            head.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        let text = format!(
            "{} {}\n{}\n\n{} bytes\n{trailers:?}\n",
            head.method,
            head.uri,
            fields.join("\n"),
            content.len()
        );
        Response::builder()
            .header("atoll-instance", name)
            .header("atoll-revision", "r-1")
            .header("atoll-hops", "sc=20,app=10")
            .header("x-from-the-app", "yes")
            .body(Body::full(text))
            .unwrap()
    }
}

pub fn serve(tls: Arc<rustls::ServerConfig>, answer: Answer) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    workers::spawn(1, "sidecar", move |_| {
        let (tls, listener) = (Arc::clone(&tls), listener.try_clone().unwrap());
        async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, peer) = listener.accept().await.unwrap();
                let acceptor = TlsAcceptor::from(Arc::clone(&tls));
                tokio::task::spawn_local(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let info = ConnectionInfo { peer, local: peer, tls: None, identity: None };
                    let (hangup, mut hung_up) = tokio::sync::mpsc::unbounded_channel();
                    let (_trigger, drain) = drain::channel();
                    let (limits, metrics) = (ServerLimits::sidecar(), ProxyMetrics::unregistered());
                    let handler = Rc::new(Instance(answer, hangup));
                    let served = serve_connection(
                        stream,
                        HttpVersion::H2,
                        Arc::new(info),
                        &limits,
                        handler,
                        &metrics,
                        drain,
                    );
                    tokio::select! {
                        _ = served => {}
                        _ = hung_up.recv() => {}
                    }
                });
            }
        }
    })
    .unwrap();
    address
}
