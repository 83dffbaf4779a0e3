//! Workload certificates and bundles from control, over the node plane.

use crate::bundles::{Fetch, FetchError};
use crate::workload::Issue;
use atoll_identity::Identity;
use atoll_wire::node::IssueWorkloadRequest;
use atoll_wire::node::node_plane_client::NodePlaneClient;
use futures_util::{FutureExt, StreamExt};
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A control that does not answer is asked again later.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Asks control for a workload certificate.
pub(super) fn issue(channel: Channel, identity: Identity) -> Issue {
    Arc::new(move |cluster, csr| {
        let mut client = NodePlaneClient::new(channel.clone());
        let identity = identity.clone();
        async move {
            let asked = client.issue_workload(IssueWorkloadRequest { cluster: cluster.to_string(), csr });
            let mut reply = match tokio::time::timeout(ANSWER_WAIT, asked).await {
                Ok(Ok(reply)) => reply.into_inner(),
                Ok(Err(status)) => return Err(format!("{:?}: {}", status.code(), status.message())),
                Err(_) => return Err(format!("control did not answer within {} s", ANSWER_WAIT.as_secs())),
            };
            // While the root is rotated, this node may trust one more than the answer says.
            for root in &identity.current().roots {
                if !reply.roots.iter().any(|known| known.as_slice() == root.as_ref()) {
                    reply.roots.push(root.as_ref().to_vec());
                }
            }
            Ok(reply)
        }
        .boxed()
    })
}

/// Asks control for parts of a bundle.
pub(super) fn fetch(channel: Channel) -> Fetch {
    Arc::new(move |request| {
        let mut client = NodePlaneClient::new(channel.clone());
        async move {
            match tokio::time::timeout(ANSWER_WAIT, client.fetch_bundle(request)).await {
                Ok(Ok(pieces)) => {
                    Ok(pieces.into_inner().map(|piece| piece.map_err(|s| not_sent(&s))).boxed())
                }
                Ok(Err(status)) => Err(not_sent(&status)),
                Err(_) => Err(FetchError::Away(format!(
                    "control did not answer within {} s",
                    ANSWER_WAIT.as_secs()
                ))),
            }
        }
        .boxed()
    })
}

/// What control decided stays so; all else is a matter of time.
fn not_sent(status: &Status) -> FetchError {
    match status.code() {
        Code::NotFound
        | Code::PermissionDenied
        | Code::InvalidArgument
        | Code::Unimplemented
        | Code::DataLoss => {
            FetchError::Refused(format!("control does not send the service's files: {}", status.message()))
        }
        code => FetchError::Away(format!("{code:?}: {}", status.message())),
    }
}
