//! One data-path worker: its sockets, its tunnels, and what its requests share.

use crate::edge::Shared;
use crate::plain::PlainConnection;
use crate::tls;
use atoll_proxy::exchange::ConnectionInfo;
use atoll_proxy::listen::serve_all;
use atoll_proxy::regions::Regions;
use atoll_proxy::server::{HttpVersion, ServerLimits, serve_connection};
use atoll_proxy::workers::spawn_task;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

/// The listening sockets of one worker.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    pub(crate) http: Vec<TcpListener>,
    pub(crate) https: Vec<TcpListener>,
}

/// What a worker's requests share.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) regions: Regions,
    pub(crate) limits: ServerLimits,
}

/// Runs a worker until the drain is over and its connections have ended.
pub(crate) async fn run(shared: Arc<Shared>, index: usize, sockets: Sockets) {
    let worker = Rc::new(Worker {
        regions: Regions::new(shared.tunnel_facts.clone()),
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
    futures_util::future::join_all(loops).await;
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

async fn serve_plain(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr) {
    let Ok(local) = stream.local_addr() else { return };
    let info = Arc::new(ConnectionInfo { peer, local, tls: None, identity: None });
    let handler = Rc::new(PlainConnection { worker: Rc::clone(&worker) });
    let (metrics, drain) = (&worker.shared.metrics, worker.shared.drain.clone());
    let _how = serve_connection(stream, HttpVersion::H1, info, &worker.limits, handler, metrics, drain).await;
}
