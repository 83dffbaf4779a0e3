//! Checking a certificate that someone brings for a domain of their own. Pure: no store, no clock.
//!
//! Checked is what an edge needs to serve with it, and what a client would stumble over later. Whether
//! clients trust the CA at its end is theirs to say.

use atoll_identity::crypto_provider;
use atoll_routing::hosts::{normalise_host, wildcard_of};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use std::time::Duration;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// Longest chain, in certificates, and in bytes of PEM.
const CHAIN_MAX: usize = 10;
const CHAIN_BYTES_MAX: usize = 64 * 1024;
/// Longest key, in bytes of PEM.
const KEY_BYTES_MAX: usize = 32 * 1024;

/// A certificate with its key, found good for a domain.
pub struct Uploaded {
    /// Leaf first, DER.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8, DER.
    pub key: Vec<u8>,
    /// Start of the leaf's validity, ms since 1970.
    pub not_before_ms: u64,
    /// Its end; of the chain's, the one that comes first.
    pub not_after_ms: u64,
}

impl std::fmt::Debug for Uploaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uploaded").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}

/// Why it is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UploadFault {
    /// Nothing in PEM, or too much.
    #[error(
        "there is no certificate in it: a PEM file with `-----BEGIN CERTIFICATE-----` is needed, at most {CHAIN_MAX} certificates"
    )]
    NoCertificate,
    /// A certificate that can't be read.
    #[error("certificate {0} of the chain cannot be read as X.509 (version 3)")]
    Unreadable(usize),
    /// No private key.
    #[error(
        "there is no private key in it: an unencrypted PEM file is needed (`openssl pkey -in FILE -out KEY` takes a passphrase off)"
    )]
    NoKey,
    /// A key that can't be used.
    #[error(
        "the private key cannot be used: RSA of 2048 bits or more, ECDSA P-256, P-384 or P-521, or Ed25519 is needed"
    )]
    Key,
    /// Another certificate's key.
    #[error(
        "the private key does not belong to the first certificate: put the domain's own certificate first, then its issuers"
    )]
    KeyMismatch,
    /// Not for the domain.
    #[error("the certificate is for {found}, not for {domain}")]
    Names {
        /// The domain.
        domain: String,
        /// What it covers.
        found: String,
    },
    /// Over.
    #[error("certificate {0} of the chain has expired")]
    Expired(usize),
    /// Not yet.
    #[error("certificate {0} of the chain is not valid yet")]
    NotYet(usize),
    /// A certificate that the next did not issue.
    #[error("certificate {next} of the chain did not issue certificate {}: put the domain's own first, then each one's issuer", next - 1)]
    Order {
        /// Counted from 1.
        next: usize,
    },
    /// The chain does not hold for another reason.
    #[error("the chain does not hold: {0}")]
    Chain(String),
}

impl UploadFault {
    /// Which of the two files is wrong.
    #[must_use]
    pub const fn place(&self) -> &'static str {
        match self {
            Self::NoKey | Self::Key => "key_pem",
            _ => "certificate_pem",
        }
    }
}

/// Checks a chain and its key for a domain (see [`own_domain`]).
///
/// # Errors
/// The first thing that is wrong.
pub fn check(
    domain: &str,
    certificate_pem: &str,
    key_pem: &str,
    now_ms: u64,
) -> Result<Uploaded, UploadFault> {
    let chain = read_chain(certificate_pem)?;
    let parsed = chain
        .iter()
        .enumerate()
        .map(|(i, der)| match X509Certificate::from_der(der) {
            Ok(([], certificate)) => Ok(certificate),
            _ => Err(UploadFault::Unreadable(i + 1)),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let leaf = parsed.first().ok_or(UploadFault::NoCertificate)?;
    let key = read_key(key_pem, leaf)?;
    let loaded = crypto_provider()
        .key_provider
        .load_private_key(PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.clone())))
        .map_err(|_| UploadFault::Key)?;
    CertifiedKey::new(chain.clone(), loaded).keys_match().map_err(|_| UploadFault::KeyMismatch)?;
    check_names(domain, &chain)?;
    let mut not_after_ms = u64::MAX;
    for (i, certificate) in parsed.iter().enumerate() {
        let (from_ms, until_ms) = validity_ms(certificate);
        if until_ms <= now_ms {
            return Err(UploadFault::Expired(i + 1));
        }
        if from_ms > now_ms {
            return Err(UploadFault::NotYet(i + 1));
        }
        not_after_ms = not_after_ms.min(until_ms);
    }
    for (i, pair) in parsed.windows(2).enumerate() {
        if let [below, above] = pair
            && below.issuer().as_raw() != above.subject().as_raw()
        {
            return Err(UploadFault::Order { next: i + 2 });
        }
    }
    check_signatures(&chain, now_ms)?;
    let not_before_ms = validity_ms(leaf).0;
    Ok(Uploaded { chain: chain.iter().map(|der| der.to_vec()).collect(), key, not_before_ms, not_after_ms })
}

fn read_chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, UploadFault> {
    if pem.len() > CHAIN_BYTES_MAX {
        return Err(UploadFault::NoCertificate);
    }
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match chain {
        Ok(chain) if (1..=CHAIN_MAX).contains(&chain.len()) => Ok(chain),
        _ => Err(UploadFault::NoCertificate),
    }
}

/// The key as PKCS#8. What comes as PKCS#1 or SEC1 is put into that frame, with the algorithm that the
/// certificate names: it is written there in the same form.
fn read_key(pem: &str, leaf: &X509Certificate<'_>) -> Result<Vec<u8>, UploadFault> {
    if pem.len() > KEY_BYTES_MAX {
        return Err(UploadFault::NoKey);
    }
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| UploadFault::NoKey)?;
    let bare = match &key {
        PrivateKeyDer::Pkcs8(key) => return Ok(key.secret_pkcs8_der().to_vec()),
        PrivateKeyDer::Pkcs1(key) => key.secret_pkcs1_der(),
        PrivateKeyDer::Sec1(key) => key.secret_sec1_der(),
        _ => return Err(UploadFault::Key),
    };
    let public = leaf.public_key().raw;
    let algorithm = first_inside(public).ok_or(UploadFault::Unreadable(1))?;
    let version = [0x02, 0x01, 0x00];
    let body = [version.as_slice(), algorithm, &der(0x04, bare)].concat();
    Ok(der(0x30, &body))
}

/// The first element within a DER sequence, whole.
fn first_inside(sequence: &[u8]) -> Option<&[u8]> {
    let (_, content) = element(sequence)?;
    let (whole, _) = element(content)?;
    Some(whole)
}

/// A DER element: all of it, and its content.
fn element(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (head, length) = match *bytes.get(1)? {
        short @ 0..=0x7f => (2, usize::from(short)),
        0x81 => (3, usize::from(*bytes.get(2)?)),
        0x82 => (4, usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]))),
        _ => return None,
    };
    let whole = bytes.get(..head + length)?;
    Some((whole, whole.get(head..)?))
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let [.., high, low] = length.to_be_bytes();
    let mut whole = match length {
        0..=0x7f => vec![tag, low],
        0x80..=0xff => vec![tag, 0x81, low],
        // Keys are bounded far below 64 KiB.
        _ => vec![tag, 0x82, high, low],
    };
    whole.extend_from_slice(content);
    whole
}

fn check_names(domain: &str, chain: &[CertificateDer<'static>]) -> Result<(), UploadFault> {
    let leaf = chain.first().ok_or(UploadFault::NoCertificate)?;
    // As the edges read it.
    let leaf = EndEntityCert::try_from(leaf).map_err(|_| UploadFault::Unreadable(1))?;
    let names: Vec<String> = leaf.valid_dns_names().map(str::to_ascii_lowercase).collect();
    let wildcard = wildcard_of(domain).filter(|_| !domain.starts_with("*."));
    if names.iter().any(|name| name == domain || Some(name) == wildcard.as_ref()) {
        return Ok(());
    }
    let found = if names.is_empty() { "no DNS name".to_owned() } else { names.join(", ") };
    Err(UploadFault::Names { domain: domain.to_owned(), found })
}

fn validity_ms(certificate: &X509Certificate<'_>) -> (u64, u64) {
    let ms = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
    let validity = certificate.validity();
    (ms(validity.not_before.timestamp()), ms(validity.not_after.timestamp()))
}

/// Each certificate is signed by the next. A lone one says nothing of its issuer: it may be trusted as such.
fn check_signatures(chain: &[CertificateDer<'static>], now_ms: u64) -> Result<(), UploadFault> {
    let [leaf, between @ .., last] = chain else { return Ok(()) };
    let wrong = |error: webpki::Error| UploadFault::Chain(error.to_string());
    let anchor = anchor_from_trusted_cert(last).map_err(|_| UploadFault::Unreadable(chain.len()))?;
    let now = UnixTime::since_unix_epoch(Duration::from_millis(now_ms));
    let algorithms = crypto_provider().signature_verification_algorithms.all;
    let leaf = EndEntityCert::try_from(leaf).map_err(wrong)?;
    leaf.verify_for_usage(algorithms, &[anchor], between, now, KeyUsage::server_auth(), None, None)
        .map(|_| ())
        .map_err(wrong)
}

/// Why a name can't be an organization's own domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainFault {
    /// No name.
    #[error(
        "`{0}` is no domain: a host name such as www.example.com is needed, or `*.example.com` for one label before it; names with other letters in their ASCII form (`xn--…`)"
    )]
    Name(String),
    /// One that the platform gives.
    #[error("`{0}` is within the platform's own zone {1}: its names come with the apps")]
    Zone(String, String),
    /// Names of the mesh.
    #[error("`{0}` is a name within the mesh: those come with the apps")]
    Internal(String),
}

/// A domain of one's own in the form that everything here uses: lower case, no dot at its end.
///
/// # Errors
/// Why it can't be one.
pub fn own_domain(text: &str, zone: &str) -> Result<String, DomainFault> {
    let shown = || text.escape_debug().take(80).collect::<String>();
    let wrong = || DomainFault::Name(shown());
    let (star, host) = match text.strip_prefix("*.") {
        Some(host) => ("*.", host),
        None => ("", text),
    };
    if host.contains([':', '[', '_']) {
        return Err(wrong());
    }
    let host = normalise_host(host).ok_or_else(wrong)?;
    let labels: Vec<&str> = host.split('.').collect();
    let bad = |label: &&str| label.starts_with('-') || label.ends_with('-');
    let is_address = labels.last().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    let zone = zone.trim_end_matches('.').to_ascii_lowercase();
    let below = |name: &str| *host == *name || host.ends_with(&format!(".{name}"));
    if below(&zone) {
        return Err(DomainFault::Zone(shown(), zone));
    }
    if below("internal") {
        return Err(DomainFault::Internal(shown()));
    }
    if labels.len() < 2 || labels.iter().any(bad) || is_address {
        return Err(wrong());
    }
    Ok(format!("{star}{host}"))
}

#[cfg(test)]
mod tests;
