//! Our own certificate verifiers for rustls, and the policies that they apply.

use crate::certificate::{CertificateFault, PeerIdentity};
use crate::clock::Clock;
use crate::connections::LiveConnections;
use crate::identity::{ClientAuth, crypto_provider};
use crate::spiffe::{SpiffeId, SpiffeKind};
use crate::trust::{TlsUse, TrustError, TrustStore, anchors, fingerprint, verify_tls_chain};
use atoll_model::{ClusterName, NodeName, OrgName, RegionName, Role, Roles};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Whom a connection is for. Checked in the handshake, on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerPolicy {
    /// Any node of our trust domain.
    AnyNode,
    /// A node with at least one of these roles.
    NodeWithAny(Roles),
    /// That node, if it has that role.
    Node(NodeName, Role),
    /// A node of that region, if it has that role.
    NodeOf(RegionName, Role),
    /// An instance of that service.
    Workload(ClusterName),
    /// An instance of any service of that organization.
    WorkloadOf(OrgName),
    /// An instance of any service.
    AnyWorkload,
    /// Any node or workload of our trust domain.
    AnyMember,
    /// Whoever one of these lets in.
    AnyOf(Vec<Self>),
}

impl PeerPolicy {
    /// Whether a peer, whose certificate is trusted, is one that this is for.
    #[must_use]
    pub fn allows(&self, peer: &PeerIdentity) -> bool {
        let kind = peer.id.kind();
        match (self, &kind) {
            (Self::AnyOf(policies), _) => policies.iter().any(|policy| policy.allows(peer)),
            (Self::AnyNode, SpiffeKind::Node { .. }) => true,
            (Self::NodeWithAny(roles), SpiffeKind::Node { .. }) => {
                roles.iter().any(|role| peer.roles.has(role))
            }
            (Self::Node(name, role), SpiffeKind::Node { node, .. }) => name == node && peer.roles.has(*role),
            (Self::NodeOf(region, role), SpiffeKind::Node { .. }) => {
                peer.region.as_ref() == Some(region) && peer.roles.has(*role)
            }
            (Self::Workload(wanted), SpiffeKind::Workload(cluster)) => wanted == cluster,
            (Self::WorkloadOf(org), SpiffeKind::Workload(cluster)) => *org == cluster.org,
            (Self::AnyWorkload, SpiffeKind::Workload(_)) => true,
            (Self::AnyMember, kind) => *kind != SpiffeKind::Other,
            _ => false,
        }
    }
}

/// Why a peer is refused in the handshake.
#[derive(Clone, thiserror::Error)]
pub enum PeerRefusal {
    /// Its certificate isn't trusted.
    #[error(transparent)]
    Untrusted(#[from] TrustError),
    /// It is who it says, but not one that this connection is for.
    #[error("{id} (roles: {roles}) may not use this connection")]
    Policy {
        /// The peer.
        id: SpiffeId,
        /// Its roles.
        roles: Roles,
    },
    /// It is on the deny-list.
    #[error("{0} is on the deny-list")]
    Denied(SpiffeId),
    /// The server's chain holds no certificate with the pinned fingerprint.
    #[error(
        "the server's certificate chain does not hold the CA that the join token names; is this the right platform?"
    )]
    NotPinned,
}

impl fmt::Debug for PeerRefusal {
    /// The sentence: rustls shows our reason by its `Debug`, and people read that.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<PeerRefusal> for Error {
    /// Keeps what has a TLS alert of its own apart; the rest carries our reason.
    fn from(refusal: PeerRefusal) -> Self {
        let error = match &refusal {
            PeerRefusal::Untrusted(TrustError::Chain(webpki::Error::CertExpired { .. })) => {
                CertificateError::Expired
            }
            PeerRefusal::Untrusted(TrustError::Chain(webpki::Error::CertNotValidYet { .. })) => {
                CertificateError::NotValidYet
            }
            PeerRefusal::Untrusted(TrustError::Chain(webpki::Error::UnknownIssuer)) => {
                CertificateError::UnknownIssuer
            }
            PeerRefusal::Untrusted(TrustError::Chain(webpki::Error::InvalidSignatureForPublicKey)) => {
                CertificateError::BadSignature
            }
            PeerRefusal::Untrusted(TrustError::Certificate(CertificateFault::Encoding)) => {
                CertificateError::BadEncoding
            }
            _ => CertificateError::Other(OtherError(Arc::new(refusal))),
        };
        Self::InvalidCertificate(error)
    }
}

/// Checks mesh peers, as server and as client.
#[derive(Debug)]
pub(crate) struct PeerVerifier {
    pub(crate) trust: TrustStore,
    pub(crate) connections: LiveConnections,
    pub(crate) policy: PeerPolicy,
    /// For the server side.
    pub(crate) client_auth: ClientAuth,
    /// Told of certificates that are out of their time.
    pub(crate) clock: Clock,
    /// See [`Identity::by_either_clock`](crate::Identity::by_either_clock).
    pub(crate) by_either_clock: bool,
}

impl PeerVerifier {
    /// Checks all but the policy. A certificate that begins in our future shows that our clock is behind: our
    /// CA issues none for the future. It is believed for as long as other nodes have not told us the time.
    fn in_time(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        tls_use: TlsUse,
    ) -> Result<PeerIdentity, TrustError> {
        use webpki::Error::{CertExpired, CertNotValidYet};
        let at = |time| self.trust.verify_tls(leaf, intermediates, time, tls_use);
        let fault = match at(now) {
            Err(fault @ TrustError::Chain(CertExpired { .. } | CertNotValidYet { .. })) => fault,
            checked => return checked,
        };
        let by_own_clock = self.clock.contradicted().filter(|_| self.by_either_clock).map(at);
        if let Some(Ok(peer)) = by_own_clock {
            return Ok(peer);
        }
        let is_confirmed = self.clock.is_confirmed();
        if matches!(fault, TrustError::Chain(CertExpired { .. })) || is_confirmed && !self.by_either_clock {
            self.clock.out_of_time(leaf);
            return Err(fault);
        }
        let begins_ms = PeerIdentity::from_certificate(leaf)?.not_before_ms;
        let Ok(peer) = at(UnixTime::since_unix_epoch(Duration::from_millis(begins_ms))) else {
            return Err(fault);
        };
        if !is_confirmed {
            self.clock.not_before(begins_ms);
        }
        Ok(peer)
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        tls_use: TlsUse,
    ) -> Result<(), PeerRefusal> {
        let peer = self.in_time(leaf, intermediates, now, tls_use)?;
        if self.connections.denies(&peer) {
            return Err(PeerRefusal::Denied(peer.id));
        }
        if !self.policy.allows(&peer) {
            return Err(PeerRefusal::Policy { id: peer.id, roles: peer.roles });
        }
        Ok(())
    }
}

/// The signature checks, which are the same for every verifier of ours.
macro_rules! handshake_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &crypto_provider().signature_verification_algorithms;
            verify_tls12_signature(message, cert, dss, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &crypto_provider().signature_verification_algorithms;
            verify_tls13_signature(message, cert, dss, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            crypto_provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for PeerVerifier {
    /// The name is not looked at: a mesh server is who its SPIFFE id says.
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, now, TlsUse::Server)?;
        Ok(ServerCertVerified::assertion())
    }

    handshake_signatures!();
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.client_auth == ClientAuth::Required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, now, TlsUse::Client)?;
        Ok(ClientCertVerified::assertion())
    }

    handshake_signatures!();
}

/// Before a node has any root: the one whose fingerprint its join token holds.
#[derive(Debug)]
pub(crate) struct PinnedVerifier {
    pub(crate) ca_fingerprint: [u8; 32],
}

impl PinnedVerifier {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), PeerRefusal> {
        let pinned = |sent: &&CertificateDer<'_>| fingerprint(sent) == self.ca_fingerprint;
        let root = intermediates.iter().find(pinned).ok_or(PeerRefusal::NotPinned)?;
        let anchors = anchors(&[root.clone().into_owned()])?;
        let peer = verify_tls_chain(&anchors, leaf, intermediates, now, TlsUse::Server)?.peer;
        if PeerPolicy::NodeWithAny(Roles::NONE.with(Role::Control)).allows(&peer) {
            return Ok(());
        }
        Err(PeerRefusal::Policy { id: peer.id, roles: peer.roles })
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    handshake_signatures!();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn peer(path: &str, role: Option<(&str, Role)>) -> PeerIdentity {
        PeerIdentity {
            id: SpiffeId::parse(&format!("spiffe://td/{path}")).unwrap(),
            roles: role.map_or(Roles::NONE, |(_, role)| Roles::NONE.with(role)),
            region: role.map(|(region, _)| region.parse().unwrap()),
            epoch: None,
            serial: Vec::new(),
            not_before_ms: 0,
            not_after_ms: 0,
        }
    }

    #[test]
    fn each_policy_lets_in_whom_it_names() {
        let workload = |org: &str| peer(&format!("org/{org}/app/shop/service/web"), None);
        let gateway = |region| peer("node/fra1/fra1-gateway", Some((region, Role::Gateway)));
        let own = PeerPolicy::NodeOf("fra".parse().unwrap(), Role::Gateway);
        assert!(own.allows(&gateway("fra")) && !own.allows(&gateway("was")));
        assert!(!own.allows(&peer("node/fra1/fra1-edge", Some(("fra", Role::Edge)))));
        // A workload's certificate says neither region nor role; one that does is still no node.
        assert!(!own.allows(&peer("org/o/app/a/service/s", Some(("fra", Role::Gateway)))));
        let org = PeerPolicy::WorkloadOf("default".parse().unwrap());
        assert!(org.allows(&workload("default")) && !org.allows(&workload("acme")));
        assert!(PeerPolicy::AnyWorkload.allows(&workload("acme")));
        for policy in [org, PeerPolicy::AnyWorkload] {
            assert!(!policy.allows(&gateway("fra")) && !policy.allows(&peer("org/default", None)));
        }
    }
}
