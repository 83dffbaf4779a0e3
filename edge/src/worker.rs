//! One data-path worker: its sockets, its tunnels, and what its requests share.

use crate::edge::Shared;
use crate::peers::PeerConnections;
use crate::plain::PlainConnection;
use crate::request::edges::EdgeConnection;
use crate::tls;
use atoll_identity::PeerPolicy;
use atoll_model::{Hop, Role, Roles};
use atoll_proxy::exchange::ConnectionInfo;
use atoll_proxy::listen::serve_all;
use atoll_proxy::regions::Regions;
use atoll_proxy::server::{HttpVersion, MeshAcceptor, ServerLimits, serve_connection};
use atoll_proxy::workers::spawn_task;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;
use tracing::debug;

/// The listening sockets of one worker.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    pub(crate) http: Vec<TcpListener>,
    pub(crate) https: Vec<TcpListener>,
    /// For other edges.
    pub(crate) edges: Vec<TcpListener>,
}

/// What a worker's requests share.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) regions: Regions,
    pub(crate) peers: PeerConnections,
    pub(crate) limits: ServerLimits,
}

/// Runs a worker until the drain is over and its connections have ended.
pub(crate) async fn run(shared: Arc<Shared>, index: usize, sockets: Sockets) {
    let worker = Rc::new(Worker {
        regions: Regions::new(shared.tunnel_facts.clone()),
        peers: PeerConnections::new(shared.site.clone(), shared.tunnel_facts.clone()),
        limits: ServerLimits::public(),
        shared,
    });
    let follower = Rc::clone(&worker);
    let follow = spawn_task("tunnels", &worker.shared.metrics, async move {
        let shared = &follower.shared;
        follower.regions.follow(shared.views.gateways(), &shared.board, index).await;
    });
    let connections = TaskTracker::new();
    let https = sockets.https.into_iter().map(|socket| (socket, true));
    let http = sockets.http.into_iter().map(|socket| (socket, false));
    let loops: Vec<_> =
        https.chain(http).map(|(socket, secure)| accept(&worker, socket, secure, &connections)).collect();
    let of_edges = sockets.edges.into_iter().map(|socket| accept_edges(&worker, socket, &connections));
    futures_util::future::join(
        futures_util::future::join_all(loops),
        futures_util::future::join_all(of_edges),
    )
    .await;
    connections.close();
    connections.wait().await;
    follow.abort();
}

async fn accept(worker: &Rc<Worker>, socket: TcpListener, secure: bool, connections: &TaskTracker) {
    let shared = &worker.shared;
    let (cap, drain) = (shared.connections.clone(), shared.drain.clone());
    let serve = |stream, peer| {
        let worker = Rc::clone(worker);
        async move {
            if secure {
                tls::serve(worker, stream, peer).await;
            } else {
                serve_plain(worker, stream, peer).await;
            }
        }
    };
    serve_all(socket, ("client connection", cap), &shared.metrics, drain, connections, serve).await;
}

async fn accept_edges(worker: &Rc<Worker>, socket: TcpListener, connections: &TaskTracker) {
    let shared = &worker.shared;
    let policy = PeerPolicy::NodeWithAny(Roles::NONE.with(Role::Edge));
    let acceptor = MeshAcceptor::new(&shared.tunnel_facts.identity, policy);
    let (cap, drain) = (shared.edge_connections.clone(), shared.drain.clone());
    let serve = |stream, peer| serve_edge(Rc::clone(worker), acceptor.clone(), stream, peer);
    serve_all(socket, ("edge connection", cap), &shared.metrics, drain, connections, serve).await;
}

async fn serve_edge(worker: Rc<Worker>, acceptor: MeshAcceptor, stream: TcpStream, peer: SocketAddr) {
    let shared = &worker.shared;
    let accepted = tokio::select! {
        accepted = acceptor.accept(stream, peer) => accepted,
        () = shared.drain.forced() => return,
    };
    let connection = match accepted {
        Ok(connection) => connection,
        Err(error) => {
            shared.metrics.handshake_errors.inc();
            return debug!(%peer, %error, "refused a connection of who is no edge");
        }
    };
    let identity = Arc::clone(connection.peer());
    let limits = ServerLimits { hop: Hop::Edge, ..ServerLimits::tunnel() };
    let handler = Rc::new(EdgeConnection { worker: Rc::clone(&worker), peer: identity });
    let end = connection.serve(&limits, handler, &shared.metrics, shared.drain.clone()).await;
    debug!(%peer, ?end, "a connection of an edge ended");
}

async fn serve_plain(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr) {
    let Ok(local) = stream.local_addr() else { return };
    let info = Arc::new(ConnectionInfo { peer, local, tls: None, identity: None });
    let handler = Rc::new(PlainConnection { worker: Rc::clone(&worker) });
    let (metrics, drain) = (&worker.shared.metrics, worker.shared.drain.clone());
    let _how = serve_connection(stream, HttpVersion::H1, info, &worker.limits, handler, metrics, drain).await;
}
