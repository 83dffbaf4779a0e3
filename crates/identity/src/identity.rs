//! A node's or workload's own identity, and the TLS configurations that follow its rotation.

use crate::certificate::{CertificateFault, PeerIdentity};
use crate::clock::Clock;
use crate::connections::LiveConnections;
use crate::material::{Material, MaterialError};
use crate::spiffe::SpiffeId;
use crate::trust::{TrustError, TrustStore};
use crate::verify::{PeerPolicy, PeerVerifier, PinnedVerifier};
use arc_swap::ArcSwap;
use atoll_model::Roles;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme, version::TLS13};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// The server name on every mesh connection. It says nothing; the SPIFFE id is what is checked.
pub const MESH_SERVER_NAME: &str = "mesh.atoll";

/// [`MESH_SERVER_NAME`], as rustls takes it.
#[must_use]
pub fn mesh_server_name() -> ServerName<'static> {
    ServerName::try_from(MESH_SERVER_NAME).expect("the constant is a DNS name")
}

/// The one cryptography provider of all our TLS (aws-lc-rs).
#[must_use]
pub fn crypto_provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    Arc::clone(&PROVIDER)
}

/// Whether a client must show a certificate. One that it does show is checked in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// The handshake fails without one.
    Required,
    /// For services that a node uses before it has an identity: joining, recovery.
    Optional,
}

/// Why material can't be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The material doesn't hold together.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// Its roots can't be trusted.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// New material that is somebody else's.
    #[error("the new certificate is for {new}, but this identity is {own}")]
    OtherId {
        /// Who we are.
        own: SpiffeId,
        /// Whose it is.
        new: SpiffeId,
    },
}

/// Who we are on the mesh. Cheap to clone; clones share, and rotate together.
#[derive(Debug, Clone)]
pub struct Identity {
    current: Arc<ArcSwap<Current>>,
    trust: TrustStore,
    connections: LiveConnections,
    clock: Clock,
    /// Whether peers are let in that are in time by the machine's clock or by the others'.
    by_either_clock: bool,
}

/// One generation; replaced whole, so that key, chain and roots always fit each other.
#[derive(Debug)]
struct Current {
    material: Arc<Material>,
    own: PeerIdentity,
    certified: Arc<CertifiedKey>,
    /// The same with the roots after it, for clients that only know a root's fingerprint.
    with_roots: Arc<CertifiedKey>,
}

impl Current {
    fn new(material: Material) -> Result<Self, IdentityError> {
        let own = material.check()?;
        let key = crypto_provider()
            .key_provider
            .load_private_key(material.key.clone_key().into())
            .map_err(MaterialError::Key)?;
        let certified = CertifiedKey::new(material.chain.clone(), Arc::clone(&key));
        certified.keys_match().map_err(MaterialError::KeyMismatch)?;
        let with_roots = material.chain.iter().chain(&material.roots).cloned().collect();
        Ok(Self {
            own,
            certified: Arc::new(certified),
            with_roots: Arc::new(CertifiedKey::new(with_roots, key)),
            material: Arc::new(material),
        })
    }
}

impl Identity {
    /// Starts with `material`, which must hold together; its certificate may have expired.
    pub fn new(material: Material) -> Result<Self, IdentityError> {
        let trust = TrustStore::new(material.trust_domain.clone(), &material.roots)?;
        let current = Current::new(material)?;
        let clock = Clock::of(current.own.roles);
        clock.not_before(current.own.not_before_ms);
        let current = Arc::new(ArcSwap::from_pointee(current));
        Ok(Self { current, trust, connections: LiveConnections::default(), clock, by_either_clock: false })
    }

    /// Uses `material` from the next handshake on. Open connections stay. On an error nothing changes.
    pub fn replace(&self, material: Material) -> Result<(), IdentityError> {
        let next = Current::new(material)?;
        let own = self.own_id();
        if next.own.id != own {
            return Err(IdentityError::OtherId { own, new: next.own.id });
        }
        self.trust.replace(&next.material.roots)?;
        self.clock.not_before(next.own.not_before_ms);
        self.current.store(Arc::new(next));
        Ok(())
    }

    /// The material in use.
    #[must_use]
    pub fn current(&self) -> Arc<Material> {
        Arc::clone(&self.current.load().material)
    }

    /// What our own certificate says.
    #[must_use]
    pub fn own(&self) -> PeerIdentity {
        self.current.load().own.clone()
    }

    /// Our SPIFFE id. It never changes.
    #[must_use]
    pub fn own_id(&self) -> SpiffeId {
        self.current.load().own.id.clone()
    }

    /// Our roles; none for a workload.
    #[must_use]
    pub fn own_roles(&self) -> Roles {
        self.current.load().own.roles
    }

    /// Start of our certificate's validity, ms since 1970.
    #[must_use]
    pub fn not_before_ms(&self) -> u64 {
        self.current.load().own.not_before_ms
    }

    /// End of our certificate's validity, ms since 1970.
    #[must_use]
    pub fn not_after_ms(&self) -> u64 {
        self.current.load().own.not_after_ms
    }

    /// A server's configuration: TLS 1.3, certificates checked, no resumption.
    #[must_use]
    pub fn server_config(
        &self,
        alpn: &[&[u8]],
        who: PeerPolicy,
        client_auth: ClientAuth,
    ) -> Arc<ServerConfig> {
        self.build_server(alpn, who, client_auth, false)
    }

    /// [`server_config`](Self::server_config) whose chain ends with the roots, so that a client with
    /// [`join_client_config`] can find the one that it has pinned. For the node plane.
    #[must_use]
    pub fn server_config_with_roots(
        &self,
        alpn: &[&[u8]],
        who: PeerPolicy,
        client_auth: ClientAuth,
    ) -> Arc<ServerConfig> {
        self.build_server(alpn, who, client_auth, true)
    }

    fn build_server(
        &self,
        alpn: &[&[u8]],
        who: PeerPolicy,
        client_auth: ClientAuth,
        with_roots: bool,
    ) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder_with_details(crypto_provider(), Arc::new(self.clock.clone()))
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has TLS 1.3 cipher suites")
            .with_client_cert_verifier(Arc::new(self.verifier(who, client_auth)))
            .with_cert_resolver(Arc::new(self.resolver(with_roots)));
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        // A resumed session would skip the check of the client's certificate.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }

    /// A client's configuration: TLS 1.3, shows our certificate, no resumption. Connect with
    /// [`mesh_server_name`].
    #[must_use]
    pub fn client_config(&self, alpn: &[&[u8]], who: PeerPolicy) -> Arc<ClientConfig> {
        let verifier = Arc::new(self.verifier(who, ClientAuth::Required));
        build_client(alpn, verifier, Some(Arc::new(self.resolver(false))), &self.clock)
    }

    /// Who is at the other end, from the chain of a finished handshake (which checked it).
    pub fn peer_of(certificates: &[CertificateDer<'_>]) -> Result<PeerIdentity, CertificateFault> {
        let leaf = certificates.first().ok_or(CertificateFault::Missing)?;
        PeerIdentity::from_certificate(leaf)
    }

    /// The live connections: the hook for the deny-list.
    #[must_use]
    pub fn connections(&self) -> &LiveConnections {
        &self.connections
    }

    /// The time by which peers' certificates are judged.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// A peer, whose certificate was verified `connected_for` ago, says what time its machine has. True when that
    /// changed the time by which certificates are judged. Of no effect from a peer on the deny-list.
    pub fn hear_time(&self, peer: &PeerIdentity, connected_for: Duration, their_ms: u64) -> bool {
        let denied = |id: &SpiffeId, epoch| self.connections.denies_epoch(id, epoch);
        self.clock.heard(peer, connected_for, their_ms, denied)
    }

    /// The same identity, for the connections on which nodes tell each other the time. Whoever contradicts our clock
    /// must not keep those from us who would confirm it: a certificate of our CA is taken there also if it is in
    /// time by the machine's own clock, or if it has yet to begin, which our CA issues none for.
    #[must_use]
    pub fn by_either_clock(&self) -> Self {
        Self { by_either_clock: true, ..self.clone() }
    }

    /// The roots, which follow rotation.
    #[must_use]
    pub fn trust(&self) -> &TrustStore {
        &self.trust
    }

    fn verifier(&self, policy: PeerPolicy, client_auth: ClientAuth) -> PeerVerifier {
        let (trust, connections) = (self.trust.clone(), self.connections.clone());
        let (clock, by_either_clock) = (self.clock.clone(), self.by_either_clock);
        PeerVerifier { trust, connections, policy, client_auth, clock, by_either_clock }
    }

    fn resolver(&self, with_roots: bool) -> OwnCertificate {
        OwnCertificate { current: Arc::clone(&self.current), with_roots }
    }
}

/// For a node that joins: trusts a server whose chain links to the CA certificate with this SHA-256
/// (from the token), and whose certificate is a control node's. Shows no certificate.
#[must_use]
pub fn join_client_config(ca_fingerprint: [u8; 32], alpn: &[&[u8]]) -> Arc<ClientConfig> {
    build_client(alpn, Arc::new(PinnedVerifier { ca_fingerprint }), None, &Clock::default())
}

/// For a node whose certificate has expired: trusts the roots that it kept, shows no certificate.
pub fn anonymous_client_config(trust: TrustStore, alpn: &[&[u8]], who: PeerPolicy) -> Arc<ClientConfig> {
    let verifier = PeerVerifier {
        trust,
        connections: LiveConnections::default(),
        policy: who,
        client_auth: ClientAuth::Required,
        clock: Clock::default(),
        by_either_clock: false,
    };
    build_client(alpn, Arc::new(verifier), None, &Clock::default())
}

fn build_client(
    alpn: &[&[u8]],
    verifier: Arc<dyn ServerCertVerifier>,
    own: Option<Arc<OwnCertificate>>,
    clock: &Clock,
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_details(crypto_provider(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 cipher suites")
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(own),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// Gives each handshake the certificate of that moment.
#[derive(Debug)]
struct OwnCertificate {
    current: Arc<ArcSwap<Current>>,
    with_roots: bool,
}

impl OwnCertificate {
    fn certified(&self) -> Arc<CertifiedKey> {
        let current = self.current.load();
        Arc::clone(if self.with_roots { &current.with_roots } else { &current.certified })
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }
}

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
