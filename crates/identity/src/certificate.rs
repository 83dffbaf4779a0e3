//! What one certificate says about its holder. Reading is not trusting: the chain is checked in
//! [`trust`](crate::trust).

use crate::extension::{ATOLL_EXTENSION, AtollExtension, ExtensionError, RECORD_SIGNING};
use crate::spiffe::{SpiffeId, SpiffeIdError, SpiffeKind};
use atoll_model::{RegionName, Roles};
use rustls::pki_types::UnixTime;
use std::time::Duration;
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::oid::Oid;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// Who a certificate says its holder is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The only URI among its names.
    pub id: SpiffeId,
    /// What a node may do; none for a workload.
    pub roles: Roles,
    /// A node's region.
    pub region: Option<RegionName>,
    /// Which join of the node's name this is.
    pub epoch: Option<u64>,
    /// The serial number, big-endian.
    pub serial: Vec<u8>,
    /// Start of validity, ms since 1970.
    pub not_before_ms: u64,
    /// End of validity, ms since 1970.
    pub not_after_ms: u64,
}

/// Why a certificate names no peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFault {
    /// The other side sent none.
    #[error("there is no certificate")]
    Missing,
    /// Not one X.509 certificate in DER, or an extension is there twice.
    #[error("the certificate is not well-formed")]
    Encoding,
    /// Not exactly one URI among the subject's alternative names.
    #[error("the certificate has {0} URI names; an identity has exactly one")]
    UriNames(usize),
    /// The URI is no SPIFFE id.
    #[error(transparent)]
    Id(#[from] SpiffeIdError),
    /// The Atoll extension can't be read.
    #[error(transparent)]
    Extension(#[from] ExtensionError),
    /// A node's certificate that doesn't say roles and region.
    #[error("the certificate is a node's and has no Atoll extension")]
    NoExtension,
    /// The key may sign certificates, or may not sign handshakes.
    #[error("the certificate's key usage does not fit an identity")]
    KeyUsage,
}

/// A leaf certificate, read.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) peer: PeerIdentity,
    pub(crate) server_auth: bool,
    pub(crate) client_auth: bool,
    pub(crate) record_signing: bool,
    /// The subject's public key, as in the SubjectPublicKeyInfo's BIT STRING.
    pub(crate) public_key: Vec<u8>,
    pub(crate) is_ed25519: bool,
    pub(crate) not_before: UnixTime,
}

impl PeerIdentity {
    /// What the certificate `der` says. Not whether that is true.
    pub fn from_certificate(der: &[u8]) -> Result<Self, CertificateFault> {
        Leaf::read(der).map(|leaf| leaf.peer)
    }
}

impl Leaf {
    pub(crate) fn read(der: &[u8]) -> Result<Self, CertificateFault> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateFault::Encoding)?;
        if !rest.is_empty() {
            return Err(CertificateFault::Encoding);
        }
        check_key_usage(&certificate)?;
        let id = SpiffeId::parse(only_uri(&certificate)?)?;
        let extension = atoll_extension(&certificate)?;
        if extension.is_none() && matches!(id.kind(), SpiffeKind::Node { .. }) {
            return Err(CertificateFault::NoExtension);
        }
        let usage = certificate.extended_key_usage().map_err(|_| CertificateFault::Encoding)?;
        let usage = usage.map(|extension| extension.value);
        let record_signing = oid(RECORD_SIGNING);
        let validity = certificate.validity();
        let key = certificate.public_key();
        Ok(Self {
            peer: PeerIdentity {
                id,
                roles: extension.as_ref().map_or(Roles::NONE, |extension| extension.roles),
                epoch: extension.as_ref().map(|extension| extension.epoch),
                region: extension.map(|extension| extension.region),
                serial: certificate.raw_serial().to_vec(),
                not_before_ms: unix_ms(validity.not_before.timestamp()),
                not_after_ms: unix_ms(validity.not_after.timestamp()),
            },
            server_auth: usage.is_some_and(|usage| usage.server_auth),
            client_auth: usage.is_some_and(|usage| usage.client_auth),
            record_signing: usage.is_some_and(|usage| usage.other.contains(&record_signing)),
            public_key: key.subject_public_key.data.to_vec(),
            is_ed25519: key.algorithm.algorithm == oid(&[1, 3, 101, 112]),
            not_before: UnixTime::since_unix_epoch(Duration::from_millis(unix_ms(
                validity.not_before.timestamp(),
            ))),
        })
    }
}

fn only_uri<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, CertificateFault> {
    let names = certificate.subject_alternative_name().map_err(|_| CertificateFault::Encoding)?;
    let Some(names) = names else {
        return Err(CertificateFault::UriNames(0));
    };
    let names = &names.value.general_names;
    if names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return Err(CertificateFault::Encoding);
    }
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    match uris.as_slice() {
        [uri] => Ok(uri),
        _ => Err(CertificateFault::UriNames(uris.len())),
    }
}

fn atoll_extension(certificate: &X509Certificate<'_>) -> Result<Option<AtollExtension>, CertificateFault> {
    let extension =
        certificate.get_extension_unique(&oid(ATOLL_EXTENSION)).map_err(|_| CertificateFault::Encoding)?;
    Ok(extension.map(|extension| AtollExtension::parse(extension.value)).transpose()?)
}

/// X.509-SVID, section 4.3: a leaf signs handshakes and no certificates.
fn check_key_usage(certificate: &X509Certificate<'_>) -> Result<(), CertificateFault> {
    let usage = certificate.key_usage().map_err(|_| CertificateFault::Encoding)?;
    let fits = usage.is_none_or(|usage| {
        let usage = usage.value;
        usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign()
    });
    if fits && !certificate.is_ca() { Ok(()) } else { Err(CertificateFault::KeyUsage) }
}

fn oid(components: &[u64]) -> Oid<'static> {
    Oid::from(components).expect("our constants are well-formed object identifiers")
}

fn unix_ms(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)
}
