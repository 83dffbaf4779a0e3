//! How a node reaches control's node plane: one channel over mutual TLS that reconnects by itself and
//! takes control's addresses in turn.

use atoll_identity::{ConnectionGuard, CutStream, Identity, PeerPolicy, mesh_server_name};
use atoll_model::{Role, Roles};
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A channel that authenticates as `identity`, whatever its certificate is at the time of a connect.
pub fn channel(addresses: Vec<SocketAddr>, identity: &Identity) -> Channel {
    let policy = PeerPolicy::NodeWithAny(Roles::NONE.with(Role::Control));
    let tls = identity.client_config(&[b"h2"], policy);
    lazy(Connector::new(addresses, tls, Some(identity.clone())))
}

/// A channel that shows no certificate: for joining and recovery.
pub fn anonymous_channel(addresses: Vec<SocketAddr>, tls: Arc<ClientConfig>) -> Channel {
    lazy(Connector::new(addresses, tls, None))
}

fn lazy(connector: Connector) -> Channel {
    // The name says nothing: the connector knows the addresses, and TLS checks the SPIFFE id.
    Endpoint::from_static("http://mesh.atoll")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connector)
}

/// Ends when control is denied.
type Connection = CutStream<TlsStream<TcpStream>>;

#[derive(Clone)]
struct Connector {
    addresses: Arc<[SocketAddr]>,
    next: Arc<AtomicUsize>,
    tls: TlsConnector,
    /// Registers the connection, so that a denied peer's is cut; none before there is an identity.
    identity: Option<Identity>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Connector {
    fn new(addresses: Vec<SocketAddr>, tls: Arc<ClientConfig>, identity: Option<Identity>) -> Self {
        Self { addresses: addresses.into(), next: Arc::default(), tls: tls.into(), identity }
    }

    async fn connect(self) -> io::Result<Connection> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let address = self
            .addresses
            .get(turn % self.addresses.len().max(1))
            .ok_or_else(|| io::Error::other("no address of a control node is configured"))?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let stream = self.tls.connect(mesh_server_name(), stream).await?;
        match &self.identity {
            Some(identity) => {
                let guard = admit(identity, &stream)?;
                Ok(CutStream::guarded(stream, guard))
            }
            None => Ok(CutStream::uncut(stream)),
        }
    }
}

fn admit(identity: &Identity, stream: &TlsStream<TcpStream>) -> io::Result<ConnectionGuard> {
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = Identity::peer_of(certificates).map_err(io::Error::other)?;
    identity.connections().admit(&peer).map_err(io::Error::other)
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Connection>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Connection>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let connected = tokio::time::timeout(CONNECT_TIMEOUT, connector.connect()).await;
            connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(TokioIo::new)
        })
    }
}
