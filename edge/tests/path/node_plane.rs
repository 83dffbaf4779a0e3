//! Control's node plane, as far as an edge asks: certificates.

use atoll_wire::node::node_plane_server::{NodePlane, NodePlaneServer};
use atoll_wire::node::*;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

pub type Certificates = Arc<Mutex<HashMap<String, DomainCertificate>>>;

struct Plane(Certificates);

fn no<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not in this test"))
}

#[tonic::async_trait]
impl NodePlane for Plane {
    async fn join(&self, _: Request<JoinRequest>) -> Result<Response<IdentityReply>, Status> {
        no()
    }
    async fn challenge(&self, _: Request<ChallengeRequest>) -> Result<Response<ChallengeReply>, Status> {
        no()
    }
    async fn recover(&self, _: Request<RecoverRequest>) -> Result<Response<IdentityReply>, Status> {
        no()
    }
    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<IdentityReply>, Status> {
        no()
    }
    async fn issue_workload(
        &self,
        _: Request<IssueWorkloadRequest>,
    ) -> Result<Response<IdentityReply>, Status> {
        no()
    }
    async fn fetch_certificates(
        &self,
        request: Request<FetchCertificatesRequest>,
    ) -> Result<Response<FetchCertificatesReply>, Status> {
        let all = self.0.lock().unwrap();
        let domains = request.into_inner().domains;
        let certificates = domains.iter().filter_map(|domain| all.get(domain).cloned());
        Ok(Response::new(FetchCertificatesReply { certificates: certificates.collect() }))
    }
    type FetchBundleStream = tokio_stream::Empty<Result<BundlePiece, Status>>;
    async fn fetch_bundle(
        &self,
        _: Request<FetchBundleRequest>,
    ) -> Result<Response<Self::FetchBundleStream>, Status> {
        no()
    }
    type AttachStream = tokio_stream::Empty<Result<ControlMessage, Status>>;
    async fn attach(
        &self,
        _: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        no()
    }
}

pub async fn serve(certificates: Certificates) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(NodePlaneServer::new(Plane(certificates)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}
