//! Keys: ECDSA P-256 for TLS, Ed25519 for records; requests for certificates; proof of possession.

use crate::trust::fingerprint;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair as _, UnparsedPublicKey,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::fmt;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

const RECOVERY_CONTEXT: &[u8] = b"atoll recover v1\0";

/// Why a key can't be made or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system's random source or the library failed.
    #[error("a key can't be generated")]
    Generate(#[source] rcgen::Error),
    /// Not PKCS#8 of the kind wanted.
    #[error("the private key is not a PKCS#8 {0} key")]
    Encoding(&'static str),
    /// Signing failed.
    #[error("signing failed")]
    Sign,
}

/// An ECDSA P-256 key for TLS.
pub struct TlsKey {
    pair: KeyPair,
}

impl TlsKey {
    /// A new key.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(KeyError::Generate)?;
        Ok(Self { pair })
    }

    /// A key that was kept.
    pub fn from_pkcs8(der: &PrivatePkcs8KeyDer<'_>) -> Result<Self, KeyError> {
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(der, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| KeyError::Encoding("ECDSA P-256"))?;
        Ok(Self { pair })
    }

    /// PKCS#8, DER.
    #[must_use]
    pub fn to_pkcs8(&self) -> PrivatePkcs8KeyDer<'static> {
        self.pair.serialize_der().into()
    }

    /// A certificate request (PKCS#10, DER) that says nothing but the key.
    pub fn csr(&self) -> Result<Vec<u8>, KeyError> {
        csr(&self.pair)
    }
}

impl fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsKey").finish_non_exhaustive()
    }
}

/// An Ed25519 key that signs a node's records.
pub struct RecordKey {
    pair: Ed25519KeyPair,
    pkcs8: PrivatePkcs8KeyDer<'static>,
}

impl RecordKey {
    /// A new key.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = KeyPair::generate_for(&PKCS_ED25519).map_err(KeyError::Generate)?;
        Self::from_pkcs8(&pair.serialize_der().into())
    }

    /// A key that was kept.
    pub fn from_pkcs8(der: &PrivatePkcs8KeyDer<'_>) -> Result<Self, KeyError> {
        let pair =
            Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| KeyError::Encoding("Ed25519"))?;
        Ok(Self { pair, pkcs8: der.clone_key() })
    }

    /// PKCS#8, DER.
    #[must_use]
    pub fn to_pkcs8(&self) -> PrivatePkcs8KeyDer<'static> {
        self.pkcs8.clone_key()
    }

    /// A certificate request (PKCS#10, DER) that says nothing but the key.
    pub fn csr(&self) -> Result<Vec<u8>, KeyError> {
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&self.pkcs8, &PKCS_ED25519)
            .map_err(|_| KeyError::Encoding("Ed25519"))?;
        csr(&pair)
    }

    /// Signs `message` (the caller puts what it is for in front).
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let signature = self.pair.sign(message);
        signature.as_ref().try_into().expect("an Ed25519 signature has 64 bytes")
    }

    /// The public key.
    #[must_use]
    pub fn public_key(&self) -> [u8; 32] {
        self.pair.public_key().as_ref().try_into().expect("an Ed25519 key has 32 bytes")
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordKey").field("public_key", &self.public_key()).finish_non_exhaustive()
    }
}

/// Whether `signature` over `message` is of the Ed25519 key `public_key`.
#[must_use]
pub fn verify_ed25519(public_key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public_key).verify(message, signature).is_ok()
}

fn csr(pair: &KeyPair) -> Result<Vec<u8>, KeyError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(pair).map_err(KeyError::Generate)?;
    Ok(request.der().to_vec())
}

/// Why a proof of possession is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// Not an X.509 certificate.
    #[error("the expired certificate is not well-formed")]
    Certificate,
    /// Not signed by the certificate's key, or over another nonce or request.
    #[error("the proof is not by the expired certificate's key, or is for another request")]
    Proof,
}

/// Proves that we hold the key of an expired certificate: a signature over the nonce that control
/// gave and the request for the new certificate.
pub fn sign_recovery(key: &TlsKey, nonce: &[u8], csr: &[u8]) -> Result<Vec<u8>, KeyError> {
    let pkcs8 = key.to_pkcs8();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.secret_pkcs8_der())
        .map_err(|_| KeyError::Encoding("ECDSA P-256"))?;
    let signature =
        pair.sign(&SystemRandom::new(), &recovery_message(nonce, csr)).map_err(|_| KeyError::Sign)?;
    Ok(signature.as_ref().to_vec())
}

/// Checks the proof of [`sign_recovery`]. The caller checks the certificate's chain, its age, and
/// that the nonce is one that it gave, once.
pub fn verify_recovery(
    expired: &CertificateDer<'_>,
    nonce: &[u8],
    csr: &[u8],
    proof: &[u8],
) -> Result<(), RecoveryError> {
    let (_, certificate) = X509Certificate::from_der(expired).map_err(|_| RecoveryError::Certificate)?;
    let key = &certificate.public_key().subject_public_key.data;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key)
        .verify(&recovery_message(nonce, csr), proof)
        .map_err(|_| RecoveryError::Proof)
}

fn recovery_message(nonce: &[u8], csr: &[u8]) -> Vec<u8> {
    [RECOVERY_CONTEXT, nonce, &fingerprint(csr)].concat()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn record_keys_sign_and_come_back() {
        let key = RecordKey::generate().unwrap();
        let again = RecordKey::from_pkcs8(&key.to_pkcs8()).unwrap();
        let signature = again.sign(b"a fact");
        assert!(verify_ed25519(&key.public_key(), b"a fact", &signature));
        assert!(!verify_ed25519(&key.public_key(), b"another", &signature));
        assert!(TlsKey::from_pkcs8(&key.to_pkcs8()).is_err());
        assert!(RecordKey::from_pkcs8(&TlsKey::generate().unwrap().to_pkcs8()).is_err());
    }

    #[test]
    fn a_proof_is_for_one_key_nonce_and_request() {
        let key = TlsKey::generate().unwrap();
        let certificate = CertificateParams::default().self_signed(&key.pair).unwrap();
        let csr = TlsKey::generate().unwrap().csr().unwrap();
        let proof = sign_recovery(&key, b"nonce", &csr).unwrap();
        assert_eq!(verify_recovery(certificate.der(), b"nonce", &csr, &proof), Ok(()));
        let other = TlsKey::generate().unwrap();
        let others = CertificateParams::default().self_signed(&other.pair).unwrap();
        for (certificate, nonce, csr) in [
            (others.der(), &b"nonce"[..], csr.as_slice()),
            (certificate.der(), b"other", &csr),
            (certificate.der(), b"nonce", b"other"),
        ] {
            assert_eq!(verify_recovery(certificate, nonce, csr, &proof), Err(RecoveryError::Proof));
        }
        let nothing = CertificateDer::from(vec![]);
        assert_eq!(verify_recovery(&nothing, b"nonce", &csr, &proof), Err(RecoveryError::Certificate));
    }
}
