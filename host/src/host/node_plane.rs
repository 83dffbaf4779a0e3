//! Workload certificates from control, over the node plane.

use crate::workload::Issue;
use atoll_identity::Identity;
use atoll_wire::node::IssueWorkloadRequest;
use atoll_wire::node::node_plane_client::NodePlaneClient;
use futures_util::FutureExt;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;

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
