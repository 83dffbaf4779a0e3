//! Connections of the node plane: TLS with our own check of the client, who may be nobody yet.

use atoll_identity::{ConnectionGuard, CutStream, Identity, PeerIdentity};
use atoll_process::Drain;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

/// Longest handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Who shows no certificate is here to join or recover, which is soon done: places are not theirs to keep.
const ANONYMOUS_LIFE: Duration = Duration::from_secs(30);
/// Connections and handshakes at once.
const CONNECTIONS_MAX: usize = 4096;

/// Who is at the other end; nobody before it has joined.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) identity: Option<Arc<PeerIdentity>>,
    pub(super) address: SocketAddr,
}

/// An encrypted connection that ends when its peer is denied.
pub(super) struct MeshStream {
    stream: CutStream<TlsStream<TcpStream>>,
    peer: Peer,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl std::fmt::Debug for MeshStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshStream").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// Accepts until the drain starts.
pub(super) async fn accept(
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
    identity: Identity,
    accepted: mpsc::Sender<io::Result<MeshStream>>,
    drain: Drain,
) {
    let acceptor = TlsAcceptor::from(config);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = tokio::select! {
            permit = places.clone().acquire_owned() => permit,
            () = drain.draining() => return,
        };
        let Ok(permit) = permit else { return };
        let connection = tokio::select! {
            connection = listener.accept() => connection,
            () = drain.draining() => return,
        };
        let (stream, address) = match connection {
            Ok(connection) => connection,
            Err(error) => {
                // Out of file descriptors, most likely: others must end first.
                tracing::warn!(%error, "the node plane could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, identity, accepted) = (acceptor.clone(), identity.clone(), accepted.clone());
        tokio::spawn(async move {
            let handshake =
                tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(stream, address, acceptor, identity));
            match handshake.await {
                Ok(Ok((stream, peer))) => {
                    let stream = MeshStream { stream, peer, _permit: permit };
                    let _ended = accepted.send(Ok(stream)).await.is_err();
                }
                // Anybody who can reach the port can cause this: no line for each.
                Ok(Err(error)) => tracing::debug!(%address, %error, "a node plane handshake failed"),
                Err(_elapsed) => tracing::debug!(%address, "a node plane handshake took too long"),
            }
        });
    }
}

async fn handshake(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    identity: Identity,
) -> io::Result<(CutStream<TlsStream<TcpStream>>, Peer)> {
    stream.set_nodelay(true)?;
    let tls = acceptor.accept(stream).await?;
    let Some(certificates) = tls.get_ref().1.peer_certificates().filter(|list| !list.is_empty()) else {
        let stream = CutStream::new(tls, tokio::time::sleep(ANONYMOUS_LIFE));
        return Ok((stream, Peer { identity: None, address }));
    };
    let peer = Identity::peer_of(certificates).map_err(io::Error::other)?;
    let guard: ConnectionGuard = identity.connections().admit(&peer).map_err(io::Error::other)?;
    Ok((CutStream::guarded(tls, guard), Peer { identity: Some(Arc::new(peer)), address }))
}

impl Connected for MeshStream {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for MeshStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for MeshStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
