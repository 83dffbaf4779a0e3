//! A stand-in for a sidecar and its instance.

use atoll_process::drain;
use atoll_proxy::exchange::{ConnectionInfo, Handler};
use atoll_proxy::server::{HttpVersion, ServerLimits, serve_connection};
use atoll_proxy::{Body, BodyError, Exchange, ProxyMetrics, Side, workers};
use bytes::Bytes;
use http::Response;
use http_body::Frame;
use http_body_util::BodyExt as _;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
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
    /// Gives back the bytes that it gets, in upper case, and says so at the end.
    Shout,
    /// Ends its answer at once, and counts the bytes that still come.
    Count(&'static AtomicU64),
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
            Answer::Shout => {
                assert_eq!(exchange.request.headers()["atoll-protocol"], "tcp");
                return Response::new(Body::boxed(Shouted {
                    source: exchange.request.into_body(),
                    ended: false,
                }));
            }
            Answer::Count(bytes) => {
                let mut body = exchange.request.into_body();
                tokio::task::spawn_local(async move {
                    while let Some(Ok(frame)) = body.frame().await {
                        let piece = frame.into_data().map_or(0, |data| data.len());
                        bytes.fetch_add(piece as u64, Ordering::Relaxed);
                    }
                    bytes.fetch_add(1_000_000, Ordering::Relaxed);
                });
                return Response::new(Body::full("early"));
            }
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

struct Shouted {
    source: Body,
    ended: bool,
}

impl http_body::Body for Shouted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(Pin::new(&mut self.source).poll_frame(context)) {
            None => {
                self.ended = true;
                Some(Ok(Frame::data(Bytes::from_static(b"the end"))))
            }
            Some(Ok(frame)) => {
                let data = frame.into_data().unwrap();
                // Cuts the stream.
                if data.as_ref() == b"reset" {
                    self.ended = true;
                    return Poll::Ready(Some(Err(BodyError::new(
                        Side::Upstream,
                        "reset",
                        BodyError::CANCEL,
                    ))));
                }
                Some(Ok(Frame::data(data.to_ascii_uppercase().into())))
            }
            Some(Err(error)) => Some(Err(error)),
        })
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
