//! HTTP/1.1, by hyper.

use super::answering::{Answering, InFlight};
use super::framing::{Findings, Followed};
use super::interject::{Interjections, interjected};
use super::serve::ConnectionEnd;
use super::unread::Unread;
use crate::body::{Body, Side};
use crate::exchange::Handler;
use atoll_model::Reason;
use atoll_process::Drain;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::debug;

pub(super) async fn serve<I, H>(io: I, answering: Rc<Answering<H>>, drain: Drain) -> ConnectionEnd
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
    H: Handler,
{
    let (io, framing) = Followed::new(io);
    let (io, interjections) = interjected(io);
    let unread = Unread::default();
    let server = Rc::new(Server { answering, framing, interjections, unread: unread.clone() });
    let patience = server.answering.limits.take_timeout;
    tokio::select! {
        biased;
        end = drive(io, Rc::clone(&server), drain) => end,
        () = unread.stalled(patience) => {
            server.answering.metrics.connections_stalled.inc();
            ConnectionEnd::Stalled
        }
    }
}

async fn drive<I, H>(io: I, server: Rc<Server<H>>, drain: Drain) -> ConnectionEnd
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
    H: Handler,
{
    let (limits, metrics) = (server.answering.limits.clone(), server.answering.metrics.clone());
    let service = service_fn(move |request| {
        let server = Rc::clone(&server);
        async move { Ok::<_, Infallible>(server.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_headers(limits.headers_max)
        .max_header_size(limits.head_bytes_max)
        .max_buf_size(64 * 1024)
        .half_close(false)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    let ended = |outcome: Result<(), hyper::Error>, well| match outcome {
        Ok(()) => well,
        Err(error) => {
            // hyper has answered these heads by itself.
            if error.is_parse() {
                let large = error.is_parse_too_large();
                let reason = if large { Reason::HeadTooLarge } else { Reason::BadRequest };
                metrics.failed(limits.hop, reason);
            }
            debug!(%error, "a connection ended in an error");
            ConnectionEnd::Failed
        }
    };
    tokio::select! {
        // What has arrived already is served, also when the drain began before we first looked.
        biased;
        outcome = connection.as_mut() => return ended(outcome, ConnectionEnd::Closed),
        () = drain.draining() => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        biased;
        outcome = connection => ended(outcome, ConnectionEnd::Drained),
        () = drain.forced() => {
            metrics.connections_cut.inc();
            ConnectionEnd::Forced
        }
    }
}

struct Server<H> {
    answering: Rc<Answering<H>>,
    framing: Findings,
    interjections: Interjections,
    unread: Unread,
}

impl<H: Handler> Server<H> {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let in_flight = InFlight::new(&self.answering.metrics);
        let (head, body) = request.into_parts();
        let body = Body::incoming(body, Side::Client, Some(self.answering.limits.body_idle_timeout));
        let interim = self.interjections.of_next(head.version);
        let response =
            self.answering.answer(head, body, interim, (Instant::now(), self.framing.next())).await;
        self.interjections.sent().await;
        self.unread.watch(response.map(|body| body.holding(in_flight)))
    }
}
