//! Taking connections of mesh peers.

use super::limits::ServerLimits;
use super::serve::{ConnectionEnd, HttpVersion, serve_connection};
use crate::exchange::{ConnectionInfo, Handler, TlsInfo};
use crate::metrics::ProxyMetrics;
use atoll_identity::{
    CertificateFault, ClientAuth, Clock, ConnectionGuard, Denied, Identity, PeerIdentity, PeerPolicy,
    SpiffeKind,
};
use atoll_process::Drain;
use atoll_process::drain::channel;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// For the whole TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest wait between two looks at a certificate's end: clocks are corrected.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// A connection that was not let in.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// TLS, or an identity that the policy doesn't let in.
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    /// The handshake took too long.
    #[error("the TLS handshake did not end in time")]
    Timeout,
    /// A certificate that can't be read.
    #[error("the peer's certificate is not one of the mesh")]
    Certificate(#[source] CertificateFault),
    /// On the deny-list, or too many connections.
    #[error("the peer is not let in")]
    Denied(#[source] Denied),
}

/// Takes mutual-TLS connections as one identity, from peers that a policy lets in. HTTP/2 only.
#[derive(Clone)]
pub struct MeshAcceptor {
    identity: Identity,
    tls: TlsAcceptor,
}

impl std::fmt::Debug for MeshAcceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshAcceptor").field("identity", &self.identity.own_id()).finish()
    }
}

/// A connection of a peer whose identity is verified.
#[derive(Debug)]
pub struct MeshConnection {
    stream: TlsStream<TcpStream>,
    guard: ConnectionGuard,
    info: Arc<ConnectionInfo>,
    peer: Arc<PeerIdentity>,
    clock: Clock,
}

impl MeshAcceptor {
    /// Shows the identity's certificate of the day: the configuration follows rotation.
    #[must_use]
    pub fn new(identity: &Identity, who: PeerPolicy) -> Self {
        let config = identity.server_config(&[b"h2"], who, ClientAuth::Required);
        Self { identity: identity.clone(), tls: TlsAcceptor::from(config) }
    }

    /// Does the handshake.
    ///
    /// # Errors
    /// When the peer is not let in, or does not finish.
    pub async fn accept(&self, stream: TcpStream, peer: SocketAddr) -> Result<MeshConnection, AcceptError> {
        let local = stream.local_addr().map_err(AcceptError::Tls)?;
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.tls.accept(stream))
            .await
            .map_err(|_elapsed| AcceptError::Timeout)?
            .map_err(AcceptError::Tls)?;
        let (_, session) = stream.get_ref();
        let identity = Identity::peer_of(session.peer_certificates().unwrap_or_default())
            .map_err(AcceptError::Certificate)?;
        let guard = self.identity.connections().admit(&identity).map_err(AcceptError::Denied)?;
        let tls = TlsInfo {
            server_name: None,
            version: session.protocol_version().and_then(|v| v.as_str()).map(str::to_owned),
            alpn: session.alpn_protocol().map(<[u8]>::to_vec),
        };
        let identity = Arc::new(identity);
        let info =
            Arc::new(ConnectionInfo { peer, local, tls: Some(tls), identity: Some(Arc::clone(&identity)) });
        Ok(MeshConnection { stream, guard, info, peer: identity, clock: self.identity.clock().clone() })
    }
}

impl MeshConnection {
    /// Who is at the other end.
    #[must_use]
    pub const fn peer(&self) -> &Arc<PeerIdentity> {
        &self.peer
    }

    /// Serves the connection to its end, or until its peer's identity is denied. Once an instance's certificate has
    /// expired, it is given nothing new here: it comes back with that of the day, or not at all. Nodes that are to
    /// be gone are denied.
    pub async fn serve<H: Handler>(
        self,
        limits: &ServerLimits,
        handler: Rc<H>,
        metrics: &ProxyMetrics,
        drain: Drain,
    ) -> ConnectionEnd {
        let (trigger, own) = channel();
        let served = serve_connection(self.stream, HttpVersion::H2, self.info, limits, handler, metrics, own);
        let drained = async {
            tokio::select! {
                () = drain.draining() => {}
                () = expired(&self.peer, &self.clock) => {}
            }
            trigger.start();
            drain.forced().await;
            trigger.force();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            end = served => end,
            () = self.guard.cut() => {
                metrics.connections_cut.inc();
                ConnectionEnd::Denied
            }
            () = drained => ConnectionEnd::Forced,
        }
    }
}

/// Resolves once an instance's certificate has expired.
async fn expired(peer: &PeerIdentity, clock: &Clock) {
    if !matches!(peer.id.kind(), SpiffeKind::Workload(_)) {
        return std::future::pending().await;
    }
    // The last second counts as a whole: handshakes look no closer.
    let end_ms = peer.not_after_ms.saturating_add(1000);
    let left = || Duration::from_millis(end_ms.saturating_sub(clock.now_ms()));
    if left().is_zero() {
        // It was let in by another clock than this one, which may be wrong.
        tokio::time::sleep(LOOK_EVERY).await;
    }
    while !left().is_zero() {
        tokio::time::sleep(left().min(LOOK_EVERY)).await;
    }
}
