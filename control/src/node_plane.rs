//! What nodes ask of control: joining, identities, certificates, and the line over which control asks them.

mod bundle;
mod challenge;
mod join;
mod service;
mod tls;

#[cfg(test)]
mod tests;

pub use service::NodePlaneService;

use atoll_identity::{ClientAuth, Identity, PeerPolicy};
use atoll_process::Drain;
use atoll_wire::node::node_plane_server::NodePlaneServer;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;

/// The largest message that is read.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Handshakes done, connections waiting to be served.
const ACCEPTED_MAX: usize = 16;

/// Serves until the drain starts, then ends the open lines.
pub async fn serve(listener: TcpListener, identity: Identity, service: NodePlaneService, drain: Drain) {
    // With the roots in the chain: a joining node knows no more than the root's fingerprint.
    let tls = identity.server_config_with_roots(&[b"h2"], PeerPolicy::AnyNode, ClientAuth::Optional);
    let (sender, accepted) = tokio::sync::mpsc::channel(ACCEPTED_MAX);
    let accept = tls::accept(listener, tls, identity, sender, drain.clone());
    let ended = drain.clone();
    let serving = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .concurrency_limit_per_connection(256)
        .max_concurrent_streams(256)
        .add_service(NodePlaneServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .serve_with_incoming_shutdown(ReceiverStream::new(accepted), async move { ended.draining().await });
    let serving = async {
        // Lines stay open for as long as nodes live: they are not waited for.
        tokio::select! {
            served = serving => if let Err(error) = served {
                tracing::error!(%error, "the node plane ended");
            },
            () = async { drain.draining().await; tokio::time::sleep(Duration::from_millis(500)).await } => {}
        }
    };
    tokio::join!(accept, serving);
}
