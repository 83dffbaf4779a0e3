//! Certificate requests: the public key is taken, and nothing else.

use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData, SubjectPublicKeyInfo};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// Longest request that is read, in bytes; ours have under 300.
pub const CSR_BYTES_MAX: usize = 8 * 1024;

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Longer than [`CSR_BYTES_MAX`].
    #[error("the certificate request is longer than {CSR_BYTES_MAX} bytes")]
    TooLong,
    /// Not PKCS#10 in DER.
    #[error("the certificate request is not well-formed")]
    Encoding,
    /// Not signed by the key that is in it.
    #[error("the certificate request is not signed by its own key")]
    Signature,
    /// A key of another kind.
    #[error("the certificate request's key must be {0}")]
    KeyKind(&'static str),
}

/// What the key is for; each use has one kind of key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyKind {
    /// ECDSA P-256
    Tls,
    /// Ed25519
    Record,
}

/// The public key of a request that is signed by that key.
pub(crate) fn public_key(der: &[u8], kind: KeyKind) -> Result<SubjectPublicKeyInfo, CsrError> {
    if der.len() > CSR_BYTES_MAX {
        return Err(CsrError::TooLong);
    }
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Encoding)?;
    if !rest.is_empty() {
        return Err(CsrError::Encoding);
    }
    let (wanted, name) = match kind {
        KeyKind::Tls => (&PKCS_ECDSA_P256_SHA256, "ECDSA P-256"),
        KeyKind::Record => (&PKCS_ED25519, "Ed25519"),
    };
    let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
        .map_err(|_| CsrError::KeyKind(name))?;
    if key.algorithm() != wanted {
        return Err(CsrError::KeyKind(name));
    }
    request.verify_signature().map_err(|_| CsrError::Signature)?;
    Ok(key)
}
