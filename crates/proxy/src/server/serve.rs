//! The life of one connection.

use super::answering::Answering;
use super::limits::ServerLimits;
use super::patience::Patient;
use super::{http1, http2};
use crate::exchange::{ConnectionInfo, Handler};
use crate::metrics::ProxyMetrics;
use atoll_process::Drain;
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

/// What ALPN, or the lack of it, has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.1 (and 1.0).
    H1,
    /// HTTP/2.
    H2,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionEnd {
    /// The peer closed it.
    Closed,
    /// All that was in flight at the start of the drain has finished.
    Drained,
    /// It still had work at the drain's deadline.
    Forced,
    /// Its peer's identity was denied.
    Denied,
    /// The peer took nothing of its responses for too long.
    Stalled,
    /// It broke, or the peer broke the protocol.
    Failed,
}

/// Serves one connection to its end. When `drain` starts, what is in flight is finished and nothing
/// new is taken (`GOAWAY`, `Connection: close`); when it is forced, the connection is dropped.
pub async fn serve_connection<I, H>(
    io: I,
    version: HttpVersion,
    info: Arc<ConnectionInfo>,
    limits: &ServerLimits,
    handler: Rc<H>,
    metrics: &ProxyMetrics,
    drain: Drain,
) -> ConnectionEnd
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
    H: Handler,
{
    let io = Patient::new(io, limits.take_timeout);
    let answering = Rc::new(Answering { info, limits: limits.clone(), handler, metrics: metrics.clone() });
    match version {
        HttpVersion::H1 => http1::serve(io, answering, drain).await,
        HttpVersion::H2 => http2::serve(io, answering, drain).await,
    }
}
