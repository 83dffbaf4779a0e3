//! The roots of a trust domain, and what is accepted because of them.

use crate::certificate::{CertificateFault, Leaf, PeerIdentity};
use crate::spiffe::{SpiffeId, SpiffeKind, TrustDomain};
use arc_swap::ArcSwap;
use atoll_model::{NodeName, RegionName, Roles, SiteName};
use data_encoding::HEXLOWER;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use std::sync::Arc;
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage};

/// SHA-256 of a certificate.
#[must_use]
pub fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// [`fingerprint`] in lower-case hexadecimal, as tokens and `atoll ca status` show it.
#[must_use]
pub fn fingerprint_hex(certificate: &[u8]) -> String {
    HEXLOWER.encode(&fingerprint(certificate))
}

/// Why a certificate is not trusted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TrustError {
    /// Something that was given as a root is no certificate.
    #[error("a root certificate can't be read")]
    Root(#[source] webpki::Error),
    /// No root was given.
    #[error("there is no root certificate to trust")]
    NoRoots,
    /// The certificate itself doesn't fit.
    #[error(transparent)]
    Certificate(#[from] CertificateFault),
    /// It doesn't link to a root of ours, or is out of its time.
    #[error("the certificate does not link to a trusted root: {0}")]
    Chain(webpki::Error),
    /// It is not meant for this use.
    #[error("the certificate is not for {0}")]
    Usage(&'static str),
    /// Another trust domain's.
    #[error("{id} is not of the trust domain {ours}")]
    TrustDomain {
        /// Whose it is.
        id: SpiffeId,
        /// Ours.
        ours: TrustDomain,
    },
    /// A record certificate that is no node's, or has no Ed25519 key.
    #[error("the record certificate {0}")]
    Record(&'static str),
}

/// Who signs records, from a record certificate that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordSigner {
    /// The node.
    pub node: NodeName,
    /// Its site.
    pub site: SiteName,
    /// Its region.
    pub region: RegionName,
    /// What it may write follows from these.
    pub roles: Roles,
    /// Which join of the node's name this is; a later one outranks it.
    pub epoch: u64,
    /// Ed25519.
    pub public_key: [u8; 32],
}

/// What a TLS certificate is presented for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsUse {
    Server,
    Client,
}

/// The current roots of our trust domain. Cheap to clone; clones share, and follow rotation.
#[derive(Debug, Clone)]
pub struct TrustStore {
    trust_domain: TrustDomain,
    // Read at each handshake and each unknown record signer, replaced at rotation.
    roots: Arc<ArcSwap<Vec<TrustAnchor<'static>>>>,
}

impl TrustStore {
    /// Trusts `roots` (DER) for `trust_domain`.
    pub fn new(trust_domain: TrustDomain, roots: &[CertificateDer<'static>]) -> Result<Self, TrustError> {
        let roots = Arc::new(ArcSwap::from_pointee(anchors(roots)?));
        Ok(Self { trust_domain, roots })
    }

    /// Trusts these roots from now on, and no other.
    pub fn replace(&self, roots: &[CertificateDer<'static>]) -> Result<(), TrustError> {
        self.roots.store(Arc::new(anchors(roots)?));
        Ok(())
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Checks a record certificate: it links to a trusted root, is meant for signing records, and is
    /// a node's of our trust domain.
    ///
    /// No clock is involved: records outlive the intermediate that their signer's certificate came
    /// from, so the chain must have been valid when the certificate was issued. A root that is no
    /// longer trusted takes all that it certified with it.
    pub fn verify_record_certificate(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<RecordSigner, TrustError> {
        let read = Leaf::read(leaf)?;
        verify_chain(&self.roots.load(), leaf, intermediates, read.not_before, &AnyUse)?;
        self.check_trust_domain(&read.peer.id)?;
        if !read.record_signing || read.server_auth || read.client_auth {
            return Err(TrustError::Usage("signing records"));
        }
        record_signer(&read)
    }

    /// Checks a certificate that a TLS peer presents, all but the policy.
    pub(crate) fn verify_tls(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        tls_use: TlsUse,
    ) -> Result<PeerIdentity, TrustError> {
        let read = verify_tls_chain(&self.roots.load(), leaf, intermediates, now, tls_use)?;
        self.check_trust_domain(&read.peer.id)?;
        Ok(read.peer)
    }

    /// Checks that a TLS certificate is one of ours, whether or not its time is over: it was valid when
    /// it was issued. For recovery only; `issuers` are the intermediates it may come from.
    pub fn verify_expired(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
    ) -> Result<PeerIdentity, TrustError> {
        let at = Leaf::read(leaf)?.not_before;
        let read = verify_tls_chain(&self.roots.load(), leaf, issuers, at, TlsUse::Client)?;
        self.check_trust_domain(&read.peer.id)?;
        Ok(read.peer)
    }

    fn check_trust_domain(&self, id: &SpiffeId) -> Result<(), TrustError> {
        if id.trust_domain() == self.trust_domain.as_str() {
            return Ok(());
        }
        Err(TrustError::TrustDomain { id: id.clone(), ours: self.trust_domain.clone() })
    }
}

pub(crate) fn anchors(roots: &[CertificateDer<'static>]) -> Result<Vec<TrustAnchor<'static>>, TrustError> {
    if roots.is_empty() {
        return Err(TrustError::NoRoots);
    }
    let anchor = |root| webpki::anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned());
    roots.iter().map(anchor).collect::<Result<_, _>>().map_err(TrustError::Root)
}

/// The chain and the extended key usage; the leaf must have one (webpki takes "none" for "all").
pub(crate) fn verify_tls_chain(
    anchors: &[TrustAnchor<'_>],
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
    tls_use: TlsUse,
) -> Result<Leaf, TrustError> {
    let (usage, name) = match tls_use {
        TlsUse::Server => (KeyUsage::server_auth(), "TLS servers"),
        TlsUse::Client => (KeyUsage::client_auth(), "TLS clients"),
    };
    verify_chain(anchors, leaf, intermediates, now, &usage).map_err(|error| match error {
        TrustError::Chain(webpki::Error::RequiredEkuNotFoundContext(_)) => TrustError::Usage(name),
        other => other,
    })?;
    let read = Leaf::read(leaf)?;
    let fits = match tls_use {
        TlsUse::Server => read.server_auth,
        TlsUse::Client => read.client_auth,
    };
    if fits { Ok(read) } else { Err(TrustError::Usage(name)) }
}

/// That `leaf` links to one of `anchors`, whatever it is for.
pub(crate) fn verify_links(
    anchors: &[TrustAnchor<'_>],
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    at: UnixTime,
) -> Result<(), TrustError> {
    verify_chain(anchors, leaf, intermediates, at, &AnyUse)
}

fn verify_chain(
    anchors: &[TrustAnchor<'_>],
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    at: UnixTime,
    usage: &impl ExtendedKeyUsageValidator,
) -> Result<(), TrustError> {
    let provider = crate::identity::crypto_provider();
    let algorithms = provider.signature_verification_algorithms.all;
    let end_entity = EndEntityCert::try_from(leaf).map_err(TrustError::Chain)?;
    end_entity
        .verify_for_usage(algorithms, anchors, intermediates, at, usage, None, None)
        .map_err(TrustError::Chain)?;
    Ok(())
}

struct AnyUse;

impl ExtendedKeyUsageValidator for AnyUse {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

fn record_signer(leaf: &Leaf) -> Result<RecordSigner, TrustError> {
    let SpiffeKind::Node { site, node } = leaf.peer.id.kind() else {
        return Err(TrustError::Record("is not a node's"));
    };
    let (Some(region), Some(epoch)) = (leaf.peer.region.clone(), leaf.peer.epoch) else {
        return Err(TrustError::Record("does not say region and epoch"));
    };
    match leaf.public_key.as_slice().try_into() {
        Ok(public_key) if leaf.is_ed25519 => {
            Ok(RecordSigner { node, site, region, roles: leaf.peer.roles, epoch, public_key })
        }
        _ => Err(TrustError::Record("has no Ed25519 key")),
    }
}
