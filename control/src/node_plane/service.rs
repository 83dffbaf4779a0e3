//! The calls of the node plane.

use super::bundle::Sending;
use super::challenge::Challenges;
use super::join::{JoinError, RateLimit, Wish, der, join, subject_of};
use super::tls::Peer;
use crate::api::{Deed, record_deed};
use crate::attach::Attached;
use crate::bundles::Bundles;
use crate::certificates::Certificates;
use crate::metrics::NodePlaneMetrics;
use crate::store::objects::{Domain, Node, Org, Placement};
use crate::store::{Store, StoreError};
use atoll_identity::{Clock, PeerIdentity, TrustDomain};
use atoll_mesh_ca::{CaError, MeshCa, TokenRefusal, token};
use atoll_model::{ClusterName, OrgName, RegionName, Role};
use atoll_process::clock::unix_ms;
use atoll_wire::node::node_plane_server::NodePlane;
use atoll_wire::node::{
    BundlePiece, ChallengeReply, ChallengeRequest, ControlMessage, DomainCertificate, FetchBundleRequest,
    FetchCertificatesReply, FetchCertificatesRequest, IdentityReply, IssueWorkloadRequest, JoinRequest,
    NodeMessage, RecoverRequest, RenewRequest,
};
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Domains in one request for certificates.
const DOMAINS_MAX: usize = 512;
/// Joins and recoveries: this many at once, then that many a second. They cost signatures.
const JOIN_BURST: u64 = 100;
const JOINS_PER_SECOND: u64 = 20;

/// Answers nodes.
#[derive(Debug)]
pub struct NodePlaneService {
    store: Store,
    ca: Arc<MeshCa>,
    /// By which certificates are issued.
    clock: Clock,
    trust_domain: TrustDomain,
    certificates: Certificates,
    attached: Attached,
    regions: Arc<[RegionName]>,
    challenges: Challenges,
    rate: RateLimit,
    sending: Sending,
    metrics: NodePlaneMetrics,
}

impl NodePlaneService {
    /// A service over those parts.
    pub fn new(
        store: Store,
        ca: Arc<MeshCa>,
        certificates: Certificates,
        attached: Attached,
        regions: Arc<[RegionName]>,
        bundles: Bundles,
        metrics: NodePlaneMetrics,
    ) -> std::io::Result<Self> {
        Ok(Self {
            store,
            trust_domain: ca.trust_domain().clone(),
            clock: Clock::default(),
            ca,
            certificates,
            attached,
            regions,
            challenges: Challenges::new()?,
            rate: RateLimit::new(JOIN_BURST, JOINS_PER_SECOND),
            sending: Sending::new(bundles),
            metrics,
        })
    }

    /// The same, issuing certificates by the time that the mesh has, not by this machine's alone.
    #[must_use]
    pub fn by_clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    fn reply(&self, chain: Vec<Vec<u8>>, record_chain: Vec<Vec<u8>>) -> Response<IdentityReply> {
        Response::new(IdentityReply {
            chain,
            roots: der(self.ca.roots()),
            record_chain,
            trust_domain: self.trust_domain.to_string(),
        })
    }

    fn limit(&self) -> Result<(), Status> {
        if self.rate.admits(unix_ms()) {
            return Ok(());
        }
        self.metrics.refused.inc();
        Err(Status::resource_exhausted("too many nodes join at once: try again in a few seconds"))
    }

    /// The CA waits for its disk: not on a thread that other calls need.
    async fn with_ca<T: Send + 'static>(
        &self,
        work: impl FnOnce(&MeshCa) -> Result<T, CaError> + Send + 'static,
    ) -> Result<Result<T, CaError>, Status> {
        let ca = self.ca.clone();
        let done = tokio::task::spawn_blocking(move || work(&ca)).await;
        done.map_err(|_panicked| Status::internal("the CA failed; control's log says why"))
    }

    /// The node at the other end, as the store has it.
    fn node<T>(&self, request: &Request<T>) -> Result<(Arc<PeerIdentity>, Node), Status> {
        let identity = request.extensions().get::<Peer>().and_then(|peer| peer.identity.clone());
        let identity =
            identity.ok_or_else(|| Status::unauthenticated("this call needs the node's certificate"))?;
        let node = known(&self.store, &identity).ok_or_else(|| {
            self.metrics.refused.inc();
            tracing::warn!(peer = %identity.id, "a node that is unknown or removed was refused");
            Status::permission_denied("this node was removed, or never joined")
        })?;
        Ok((identity, node))
    }
}

/// A certificate from before the node was removed and joined again is worth nothing: its epoch differs.
fn known(store: &Store, identity: &PeerIdentity) -> Option<Node> {
    let (org, name) = (OrgName::default_org(), identity.id.node_name()?);
    let node = store.get::<Node>(&format!("{org}/{name}"))?;
    (!node.removed && identity.epoch == Some(node.epoch)).then_some(node)
}

/// A refusal that tells a node no more than it may know; the rest is logged.
fn refused(what: &'static str, peer: &dyn std::fmt::Display, error: &CaError) -> Status {
    tracing::warn!(%peer, error = chain(error), "{what} was refused");
    Status::permission_denied(format!("{what} was refused; control's log says why"))
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn address<T>(request: &Request<T>) -> String {
    request.extensions().get::<Peer>().map_or_else(String::new, |peer| peer.address.to_string())
}

#[tonic::async_trait]
impl NodePlane for NodePlaneService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<IdentityReply>, Status> {
        self.limit()?;
        let peer = address(&request);
        let request = request.into_inner();
        let invalid = || Status::permission_denied(TokenRefusal::PUBLIC);
        let (Ok(presented), Some(wish)) = (request.token.parse::<token::JoinToken>(), Wish::read(&request))
        else {
            self.metrics.refused.inc();
            tracing::warn!(
                peer,
                "a join without a well-formed token, name, site, region and roles was refused"
            );
            return Err(invalid());
        };
        let (ca, name, id) = (self.ca.clone(), wish.node.clone(), presented.id.clone());
        let regions = self.regions.clone();
        let joined = self.store.change(move |change| {
            let (csr, record_csr) = (&request.csr, &request.record_csr);
            join(change, &ca, &presented, &wish, csr, record_csr, &regions, unix_ms())
        });
        match joined.await {
            Ok((issued, _)) => {
                self.metrics.joined.inc();
                tracing::info!(node = %name, token = id, peer, "node joined");
                Ok(self.reply(issued.chain, issued.record_chain))
            }
            Err(JoinError::Store(error)) => Err(unavailable(&error)),
            Err(error) => {
                self.metrics.refused.inc();
                tracing::warn!(node = %name, token = id, peer, %error, "join refused");
                Err(invalid())
            }
        }
    }

    async fn challenge(
        &self,
        _request: Request<ChallengeRequest>,
    ) -> Result<Response<ChallengeReply>, Status> {
        self.limit()?;
        let nonce = self.challenges.make(unix_ms()).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(ChallengeReply { nonce }))
    }

    async fn recover(&self, request: Request<RecoverRequest>) -> Result<Response<IdentityReply>, Status> {
        self.limit()?;
        let peer = address(&request);
        let request = request.into_inner();
        let now_ms = unix_ms();
        if !self.challenges.is_valid(&request.nonce, now_ms) {
            return Err(Status::failed_precondition("the challenge has expired: ask for a new one"));
        }
        let store = self.store.clone();
        let recovered = self.with_ca(move |ca| {
            let mut node = None;
            let removed = |identity: &PeerIdentity| {
                node = known(&store, identity);
                node.is_none()
            };
            let (expired, csr) = (&request.expired_certificate, &request.csr);
            ca.check_recovery(expired, &request.nonce, csr, &request.proof, removed, now_ms)?;
            let chain =
                node.as_ref().map(|node| ca.issue_node(&subject_of(node), csr, now_ms)).transpose()?;
            Ok(node.zip(chain))
        });
        let recovered = recovered.await?.map_err(|error| {
            self.metrics.refused.inc();
            refused("recovery", &peer, &error)
        })?;
        let (node, chain) = recovered.ok_or_else(|| Status::permission_denied("this node was removed"))?;
        let deed = format!("from {peer}");
        let name = node.name.clone();
        let written = self.store.change(move |change| {
            record_deed(
                change,
                Deed { node: name.as_str(), call: "recover", token: "", detail: deed },
                now_ms,
            )
        });
        // The node needs its certificate more than we need the entry; it is in the CA's own log too.
        if let Err(error) = written.await {
            tracing::error!(node = %node.name, %error, "a recovery is missing in the audit log");
        }
        self.metrics.recovered.inc();
        tracing::info!(node = %node.name, peer, "an expired certificate was exchanged");
        Ok(self.reply(der(chain), Vec::new()))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<IdentityReply>, Status> {
        let (identity, node) = self.node(&request)?;
        let (subject, csr) = (subject_of(&node), request.into_inner().csr);
        let now_ms = self.clock.now_ms();
        let issued = self.with_ca(move |ca| ca.issue_node(&subject, &csr, now_ms)).await?;
        let chain = issued.map_err(|error| refused("renewal", &identity.id, &error))?;
        self.metrics.renewed.inc();
        Ok(self.reply(der(chain), Vec::new()))
    }

    async fn issue_workload(
        &self,
        request: Request<IssueWorkloadRequest>,
    ) -> Result<Response<IdentityReply>, Status> {
        let (identity, node) = self.node(&request)?;
        let request = request.into_inner();
        let cluster: ClusterName =
            request.cluster.parse().map_err(|_| Status::invalid_argument("the cluster has no valid name"))?;
        let placed = self.store.list::<Placement>(&format!("{cluster}/"));
        let here = placed.iter().any(|placement| placement.host == node.name);
        if !(node.roles.has(Role::Host) && identity.roles.has(Role::Host) && here) {
            self.metrics.refused.inc();
            tracing::warn!(node = %node.name, %cluster, "a workload certificate was refused: nothing of it is placed there");
            return Err(Status::permission_denied(format!(
                "no instance of {cluster} is placed on this host"
            )));
        }
        let (csr, now_ms) = (request.csr, self.clock.now_ms());
        let issued = self.with_ca(move |ca| ca.issue_workload(&cluster, &csr, now_ms)).await?;
        let chain = issued.map_err(|error| refused("a workload certificate", &identity.id, &error))?;
        self.metrics.workloads.inc();
        Ok(self.reply(der(chain), Vec::new()))
    }

    async fn fetch_certificates(
        &self,
        request: Request<FetchCertificatesRequest>,
    ) -> Result<Response<FetchCertificatesReply>, Status> {
        let (identity, node) = self.node(&request)?;
        if !(node.roles.has(Role::Edge) && identity.roles.has(Role::Edge)) {
            self.metrics.refused.inc();
            tracing::warn!(node = %node.name, "public keys were refused to a node that is no edge");
            return Err(Status::permission_denied("only edges get public certificates"));
        }
        let domains = request.into_inner().domains;
        if domains.len() > DOMAINS_MAX {
            return Err(Status::invalid_argument(format!("at most {DOMAINS_MAX} domains at once")));
        }
        // A domain is of one organization, and the edge does not know of which.
        let orgs = Org::names(self.store.list(""));
        let find = |domain: &String| {
            orgs.iter().find_map(|org| self.store.get::<Domain>(&format!("{org}/{domain}")))
        };
        let stored = domains.iter().filter_map(find);
        let certificates = stored
            .filter_map(|domain| {
                let opened = self.certificates.unseal(&domain)?;
                let Domain { domain, fingerprint, .. } = domain;
                Some(DomainCertificate { domain, chain: opened.chain, key: opened.key, fingerprint })
            })
            .collect();
        Ok(Response::new(FetchCertificatesReply { certificates }))
    }

    type FetchBundleStream = ReceiverStream<Result<BundlePiece, Status>>;

    async fn fetch_bundle(
        &self,
        request: Request<FetchBundleRequest>,
    ) -> Result<Response<Self::FetchBundleStream>, Status> {
        let (identity, node) = self.node(&request)?;
        if !(node.roles.has(Role::Host) && identity.roles.has(Role::Host)) {
            self.metrics.refused.inc();
            tracing::warn!(node = %node.name, "a bundle was refused to a node that is no host");
            return Err(Status::permission_denied("only hosts get bundles"));
        }
        let request = request.into_inner();
        let pieces = self.sending.send(&self.store, &node, &request).inspect_err(|status| {
            self.metrics.refused.inc();
            tracing::warn!(node = %node.name, cluster = request.cluster, why = status.message(), "a bundle was refused");
        })?;
        Ok(Response::new(ReceiverStream::new(pieces)))
    }

    type AttachStream = ReceiverStream<Result<ControlMessage, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let (_identity, node) = self.node(&request)?;
        let (end, asked) = self.attached.attach(node.name.clone());
        let mut answers = request.into_inner();
        tracing::debug!(node = %node.name, "a node opened its line");
        tokio::spawn(async move {
            // Ends with the stream, which ends with the connection.
            while let Ok(Some(message)) = answers.message().await {
                end.deliver(message);
            }
            tracing::debug!(node = %node.name, "a node's line ended");
        });
        Ok(Response::new(ReceiverStream::new(asked)))
    }
}

fn unavailable(error: &StoreError) -> Status {
    tracing::error!(%error, "a join could not be stored");
    Status::unavailable("control cannot store anything now: try again later")
}
