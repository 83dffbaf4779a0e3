//! TCP calls of the instance: each connection is a stream of its own over the mesh.

use super::http::Caller;
use crate::bytes::{Activity, abort, from_socket, into_socket, reset};
use atoll_model::{ClusterName, Hop, Reason};
use atoll_proxy::answer::InternalAnswer;
use atoll_proxy::server::STREAM_SILENCE_MAX;
use atoll_proxy::{Interim, Outgoing, Side, headers};
use http::{HeaderValue, Request};
use std::rc::Rc;
use tokio::net::TcpStream;
use tracing::debug;

/// Serves one connection of the instance to its end. One that reaches no instance is reset.
pub(crate) async fn carry(caller: &Caller, cluster: &ClusterName, stream: TcpStream) {
    let Some(admission) = caller.admissions.take().map(Rc::new) else {
        let full = InternalAnswer { hop: Hop::Sidecar, reason: Reason::InstanceFull, sent: false };
        caller.failed(&full, cluster, "");
        abort(&stream);
        return;
    };
    let activity = Activity::begin();
    let (read, write) = stream.into_split();
    let Some(mut request) = head(cluster) else { return };
    // Either direction may end first; the place is taken until both have.
    *request.body_mut() = from_socket(read, Side::Client, &activity).holding(Rc::clone(&admission));
    let (head, body) = request.into_parts();
    let called = caller.mesh.called(cluster);
    let outgoing = Outgoing::new(head, body, called.to.clone(), Interim::default());
    let response = match caller.mesh.forward(&called, &outgoing).await {
        Ok(response) => response,
        Err(made) => {
            caller.failed(&made, cluster, "");
            reset(write);
            return;
        }
    };
    // It is held by whoever sends it on: here it would keep the socket open after both are done.
    drop(outgoing);
    tokio::select! {
        whole = into_socket(response.into_body(), write, &activity) => {
            debug!(%cluster, whole, "a stream of bytes from the called service ended");
        }
        () = activity.silent(STREAM_SILENCE_MAX) => debug!(%cluster, "a stream of bytes was silent for too long"),
    }
    drop(admission);
}

fn head(cluster: &ClusterName) -> Option<Request<atoll_proxy::Body>> {
    Request::post("/")
        .header("host", super::mesh::host_of(cluster))
        .header(headers::CLUSTER, cluster.to_string())
        .header(headers::PROTOCOL, HeaderValue::from_static("tcp"))
        .body(atoll_proxy::Body::empty())
        .ok()
}
