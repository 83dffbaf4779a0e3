//! Making a connection to a mesh peer.

use crate::delay::Delayed;
use crate::sever::{SeverHandle, Severable, severable};
use atoll_identity::identity::mesh_server_name;
use atoll_identity::{ConnectionGuard, Denied, Identity, PeerIdentity, PeerPolicy};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// TCP.
    #[error("can't connect to {address}")]
    Tcp {
        /// Where to.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// TLS, or an identity that may not be there.
    #[error("the TLS handshake with {address} failed")]
    Tls {
        /// Where to.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The peer's identity is not one of the mesh, or is denied.
    #[error("{address} has no identity that is let in")]
    Peer {
        /// Where to.
        address: SocketAddr,
    },
    /// The peer's identity is denied, or there are too many connections.
    #[error("{address} is not let in")]
    Denied {
        /// Where to.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: Denied,
    },
    /// HTTP/2.
    #[error("{address} does not speak HTTP/2")]
    Http {
        /// Where to.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: h2::Error,
    },
    /// Nothing of this in time.
    #[error("no connection to {address} within {} ms", .within.as_millis())]
    Timeout {
        /// Where to.
        address: SocketAddr,
        /// How long it may take.
        within: Duration,
    },
}

/// Makes mutual-TLS connections as one identity to peers that a policy lets in.
#[derive(Clone)]
pub struct MeshConnector {
    identity: Identity,
    tls: TlsConnector,
    read_delay: Duration,
}

impl std::fmt::Debug for MeshConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshConnector").field("identity", &self.identity.own_id()).finish()
    }
}

pub(crate) type MeshStream = Severable<TlsStream<Delayed<TcpStream>>>;

pub(crate) struct Connected {
    pub(crate) stream: MeshStream,
    pub(crate) handle: SeverHandle,
    pub(crate) guard: ConnectionGuard,
    pub(crate) peer: Arc<PeerIdentity>,
}

impl MeshConnector {
    /// Shows the identity's certificate of the day (the configuration follows rotation), speaks `h2`.
    #[must_use]
    pub fn new(identity: &Identity, who: PeerPolicy) -> Self {
        let tls = TlsConnector::from(identity.client_config(&[b"h2"], who));
        Self { identity: identity.clone(), tls, read_delay: Duration::ZERO }
    }

    /// Delays all that is read: a simulated distance, as a whole round trip.
    #[must_use]
    pub fn with_read_delay(mut self, delay: Duration) -> Self {
        self.read_delay = delay;
        self
    }

    pub(crate) async fn connect(&self, address: SocketAddr) -> Result<Connected, ConnectError> {
        let tcp = TcpStream::connect(address).await.map_err(|cause| ConnectError::Tcp { address, cause })?;
        tcp.set_nodelay(true).map_err(|cause| ConnectError::Tcp { address, cause })?;
        let tls = self
            .tls
            .connect(mesh_server_name(), Delayed::new(tcp, self.read_delay))
            .await
            .map_err(|cause| ConnectError::Tls { address, cause })?;
        let certificates = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let peer = Identity::peer_of(certificates).map_err(|_fault| ConnectError::Peer { address })?;
        let guard = self
            .identity
            .connections()
            .admit(&peer)
            .map_err(|cause| ConnectError::Denied { address, cause })?;
        let (stream, handle) = severable(tls);
        Ok(Connected { stream, handle, guard, peer: Arc::new(peer) })
    }
}
