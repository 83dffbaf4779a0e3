//! One data-path worker: its socket, its sidecars, its tunnel connections.

use crate::gateway::Shared;
use crate::request::TunnelConnection;
use crate::sidecars::Sidecars;
use atoll_identity::{ConnectionGuard, Identity, PeerIdentity, SpiffeId};
use atoll_proxy::exchange::{ConnectionInfo, TlsInfo};
use atoll_proxy::listen::{ConnectionPermit, accept_loop};
use atoll_proxy::sample::Sample;
use atoll_proxy::server::{HttpVersion, ServerLimits, serve_connection};
use atoll_proxy::sever::severable;
use atoll_proxy::workers::spawn_task;
use std::cell::RefCell;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a worker's requests share.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) sidecars: Sidecars,
    /// Which failed requests are logged.
    pub(crate) failures: Sample,
    /// Which connections that were not let in are logged.
    strangers: Sample,
    pub(crate) own_id: SpiffeId,
    limits: ServerLimits,
}

/// Runs a worker until the drain is over and its connections have ended.
pub(crate) async fn run(shared: Arc<Shared>, socket: TcpListener) {
    let sidecars = Sidecars::new(shared.identity.clone(), shared.metrics.clone(), shared.reach.clone());
    let worker = Rc::new(Worker {
        sidecars,
        failures: Sample::default(),
        strangers: Sample::default(),
        own_id: shared.identity.own_id(),
        limits: ServerLimits::tunnel(),
        shared,
    });
    let follower = Rc::clone(&worker);
    let follow = spawn_task("sidecars", &worker.shared.metrics, async move {
        follower.sidecars.follow(follower.shared.views.clone()).await;
    });
    let connections = TaskTracker::new();
    accept(&worker, socket, &connections).await;
    connections.close();
    connections.wait().await;
    follow.abort();
}

async fn accept(worker: &Rc<Worker>, socket: TcpListener, connections: &TaskTracker) {
    let shared = &worker.shared;
    let on_connection = |stream: TcpStream, peer: SocketAddr, permit: ConnectionPermit| {
        let worker = Rc::clone(worker);
        let token = connections.token();
        let metrics = worker.shared.metrics.clone();
        spawn_task("tunnel connection", &metrics, async move {
            // Held until the connection has ended.
            let _held = (permit, token);
            serve(worker, stream, peer).await;
        });
    };
    let (cap, metrics) = (shared.connections.clone(), shared.metrics.clone());
    if let Err(error) = accept_loop(socket, cap, metrics, shared.drain.clone(), on_connection).await {
        error!(%error, "the listener has failed");
    }
}

async fn serve(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr) {
    let shared = Arc::clone(&worker.shared);
    let Ok(local) = stream.local_addr() else { return };
    let admitted = tokio::select! {
        admitted = handshake(&worker, stream, peer) => admitted,
        () = shared.drain.forced() => return,
    };
    let Some((stream, identity, guard)) = admitted else {
        shared.metrics.handshake_errors.inc();
        return;
    };
    let Some(edge) = identity.id.node_name() else { return };
    let (_, tls) = stream.get_ref();
    let tls = TlsInfo { server_name: None, version: None, alpn: tls.alpn_protocol().map(<[u8]>::to_vec) };
    let identity = Arc::new(identity);
    let info =
        Arc::new(ConnectionInfo { peer, local, tls: Some(tls), identity: Some(Arc::clone(&identity)) });
    let handler = Rc::new(TunnelConnection {
        worker: Rc::clone(&worker),
        peer: identity,
        edge: edge.clone(),
        noted: RefCell::default(),
    });
    let (stream, sever) = severable(stream);
    let (metrics, drain) = (&shared.metrics, shared.drain.clone());
    let served = serve_connection(stream, HttpVersion::H2, info, &worker.limits, handler, metrics, drain);
    let mut served = std::pin::pin!(served);
    tokio::select! {
        how = served.as_mut() => debug!(%edge, ?how, "a tunnel connection ended"),
        () = guard.cut() => {
            info!(%edge, "a tunnel connection is cut: its peer is denied");
            metrics.connections_cut.inc();
            sever.sever();
            served.await;
        }
    }
}

async fn handshake(
    worker: &Worker,
    stream: TcpStream,
    peer: SocketAddr,
) -> Option<(TlsStream<TcpStream>, PeerIdentity, ConnectionGuard)> {
    let shared = &worker.shared;
    let refused = |why: &dyn std::fmt::Display| {
        if let Some(left_out) = worker.strangers.take(Instant::now()) {
            warn!(%peer, own = %worker.own_id, %why, left_out, "refused a connection: it has no identity that may tunnel");
        }
    };
    let accepted = TlsAcceptor::from(Arc::clone(&shared.tls)).accept(stream);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, accepted).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            refused(&error);
            return None;
        }
        Err(_elapsed) => {
            debug!(%peer, "a handshake did not end in time");
            return None;
        }
    };
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let identity = match Identity::peer_of(certificates) {
        Ok(identity) => identity,
        Err(fault) => {
            refused(&fault);
            return None;
        }
    };
    match shared.identity.connections().admit(&identity) {
        Ok(guard) => Some((stream, identity, guard)),
        Err(denied) => {
            if let Some(left_out) = worker.strangers.take(Instant::now()) {
                warn!(%peer, id = %identity.id, own = %worker.own_id, %denied, left_out, "refused a connection");
            }
            None
        }
    }
}
