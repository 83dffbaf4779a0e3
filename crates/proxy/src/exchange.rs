//! A request on its way through a hop, and who answers it.

use crate::body::Body;
use crate::interim::Interim;
use atoll_identity::PeerIdentity;
use atoll_model::Reason;
use http::{Request, Response, header};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// What is known of the connection that a request came on.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// Who is at the other end.
    pub peer: SocketAddr,
    /// The address that it came to.
    pub local: SocketAddr,
    /// What TLS agreed on; `None` for plain text.
    pub tls: Option<TlsInfo>,
    /// The mesh identity that TLS has verified.
    pub identity: Option<Arc<PeerIdentity>>,
}

/// What TLS agreed on.
#[derive(Debug, Clone, Default)]
pub struct TlsInfo {
    /// The server name that the client asked for, in lower case.
    pub server_name: Option<String>,
    /// `TLSv1_3` and its like.
    pub version: Option<String>,
    /// The protocol by ALPN, such as `h2`.
    pub alpn: Option<Vec<u8>>,
}

/// A request and what came with it.
///
/// [`crate::server`] brings every request into one form, whatever its version: the URI is the path
/// and query alone, and there is exactly one valid `Host` field.
#[derive(Debug)]
pub struct Exchange {
    /// The request.
    pub request: Request<Body>,
    /// Its connection.
    pub connection: Arc<ConnectionInfo>,
    /// When its head was complete.
    pub started: Instant,
    /// The way back for responses that come before the response.
    pub interim: Interim,
}

impl Exchange {
    /// The `Host` field: a host name with perhaps a port, as the client sent it.
    #[must_use]
    pub fn authority(&self) -> &str {
        self.request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("")
    }

    /// The host of [`Self::authority`], without port; an IPv6 address keeps its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        host_of(self.authority())
    }
}

/// `authority` without its port.
#[must_use]
pub fn host_of(authority: &str) -> &str {
    if authority.starts_with('[') {
        return authority.find(']').map_or(authority, |end| &authority[..=end]);
    }
    authority.rsplit_once(':').map_or(authority, |(host, _port)| host)
}

/// Answers requests. Called concurrently on one thread.
pub trait Handler: 'static {
    /// Answers one request. Dropped when the client gives up.
    fn handle(&self, exchange: Exchange) -> impl Future<Output = Response<Body>>;

    /// Answers a request that the server has refused, whose head may be in any form; `None` for the
    /// server's own answer. The server has counted it.
    fn refused(&self, exchange: Exchange, reason: Reason) -> Option<Response<Body>> {
        let _unused = (exchange, reason);
        None
    }
}
