//! One data-path worker: its socket, its sidecars, its tunnels to other regions, and who is connected.

use crate::asking::Peer;
use crate::gateway::Shared;
use crate::request::Connection;
use atoll_identity::SpiffeId;
use atoll_model::{ClusterName, Hop};
use atoll_proxy::listen::serve_all;
use atoll_proxy::region::Sidecars;
use atoll_proxy::regions::Regions;
use atoll_proxy::sample::Sample;
use atoll_proxy::server::{AcceptError, ConnectionEnd, MeshAcceptor, ServerLimits};
use atoll_proxy::workers::spawn_task;
use std::cell::RefCell;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

/// What a worker's requests share.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) sidecars: Sidecars,
    pub(crate) regions: Regions,
    /// Which failed requests are logged.
    pub(crate) failures: Sample,
    /// Which connections that were not let in are logged.
    strangers: Sample,
    pub(crate) own_id: SpiffeId,
    tunnel_limits: ServerLimits,
    sidecar_limits: ServerLimits,
}

/// Runs a worker until the drain is over and its connections have ended.
pub(crate) async fn run(shared: Arc<Shared>, index: usize, acceptor: MeshAcceptor, socket: TcpListener) {
    let (identity, metrics) = (shared.identity.clone(), shared.metrics.clone());
    let sidecars = Sidecars::new(Hop::Gateway, identity, metrics.clone(), shared.reach.clone());
    let worker = Rc::new(Worker {
        sidecars,
        regions: Regions::new(shared.tunnel_facts.clone()),
        failures: Sample::default(),
        strangers: Sample::default(),
        own_id: shared.identity.own_id(),
        tunnel_limits: ServerLimits::tunnel(),
        // Their windows are smaller, and there are many of them.
        sidecar_limits: ServerLimits { hop: Hop::Gateway, ..ServerLimits::sidecar() },
        shared,
    });
    let follower = Rc::clone(&worker);
    let sidecars = spawn_task("sidecars", &metrics, async move { follower.follow().await });
    let follower = Rc::clone(&worker);
    let tunnels = spawn_task("tunnels", &metrics, async move {
        let shared = &follower.shared;
        follower.regions.follow(shared.views.gateways(), &shared.board, index).await;
    });
    let connections = TaskTracker::new();
    let (cap, drain) = (worker.shared.connections.clone(), worker.shared.drain.clone());
    let serve = |stream, peer| serve(Rc::clone(&worker), acceptor.clone(), stream, peer);
    serve_all(socket, ("mesh connection", cap), &metrics, drain, &connections, serve).await;
    connections.close();
    connections.wait().await;
    sidecars.abort();
    tunnels.abort();
}

impl Worker {
    /// Closes connections to instances that are gone. Runs as long as the worker.
    async fn follow(&self) {
        let mut changes = self.shared.views.changes();
        while changes.changed().await.is_ok() {
            let snapshot = self.shared.views.load();
            self.sidecars.keep(|cluster: &ClusterName, key, address| {
                let endpoints = snapshot.endpoints.get(&cluster.to_string());
                endpoints
                    .is_some_and(|known| known.all.iter().any(|e| *e.key == *key && e.address == address))
            });
        }
    }

    fn refused(&self, peer: SocketAddr, error: &AcceptError) {
        self.shared.metrics.handshake_errors.inc();
        if matches!(error, AcceptError::Timeout) {
            debug!(%peer, "a handshake did not end in time");
        } else if let Some(left_out) = self.strangers.take(Instant::now()) {
            let why = std::error::Error::source(error).map(ToString::to_string);
            warn!(%peer, own = %self.own_id, why, left_out, "refused a connection: {error}");
        }
    }

    fn full(&self, id: &SpiffeId) {
        self.shared.metrics.connections_refused.inc();
        if let Some(left_out) = self.strangers.take(Instant::now()) {
            warn!(%id, own = %self.own_id, left_out,
                  "refused a connection: gateway.sidecar_connections_max leaves no more for sidecars, or for this service's");
        }
    }
}

async fn serve(worker: Rc<Worker>, acceptor: MeshAcceptor, stream: TcpStream, peer: SocketAddr) {
    let shared = &worker.shared;
    let accepted = tokio::select! {
        accepted = acceptor.accept(stream, peer) => accepted,
        () = shared.drain.forced() => return,
    };
    let connection = match accepted {
        Ok(connection) => connection,
        Err(error) => return worker.refused(peer, &error),
    };
    let identity = Arc::clone(connection.peer());
    let Some(who) = Peer::of(&identity) else { return };
    let (limits, place) = match &who {
        Peer::Node { .. } => (&worker.tunnel_limits, None),
        Peer::Service { name, .. } => match shared.sidecar_connections.take_for(&name.to_string()) {
            Some(place) => (&worker.sidecar_limits, Some(place)),
            None => return worker.full(&identity.id),
        },
    };
    let id = identity.id.clone();
    let handler =
        Rc::new(Connection { worker: Rc::clone(&worker), peer: identity, who, noted: RefCell::default() });
    let end = connection.serve(limits, handler, &shared.metrics, shared.drain.clone()).await;
    drop(place);
    if end == ConnectionEnd::Denied {
        info!(%id, "a connection is cut: its peer is denied");
    } else {
        debug!(%id, ?end, "a connection ended");
    }
}
