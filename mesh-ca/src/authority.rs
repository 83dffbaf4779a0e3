//! A key that signs certificates, with its own certificate, in one file.

use crate::error::CaError;
use atoll_identity::material::pem_certificates;
use atoll_process::files::write_atomic;
use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::fmt;
use std::path::Path;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A root or an intermediate.
pub(crate) struct Authority {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) issuer: Issuer<'static, KeyPair>,
    pub(crate) not_before_ms: u64,
    pub(crate) not_after_ms: u64,
    /// The URI that the certificate names: `spiffe://<trust domain>`, for the mesh's.
    pub(crate) uri: Option<String>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("not_after_ms", &self.not_after_ms).finish_non_exhaustive()
    }
}

/// Why a file holds no authority.
type Damage = String;

impl Authority {
    /// Puts key and certificate together, if they fit.
    pub(crate) fn new(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, Damage> {
        let (_, read) = X509Certificate::from_der(&certificate)
            .map_err(|_| "its certificate is not well-formed".to_owned())?;
        if read.public_key().raw != rcgen::PublicKeyData::subject_public_key_info(&key) {
            return Err("its key does not belong to its certificate".to_owned());
        }
        if !read.is_ca() {
            return Err("its certificate is not a CA's".to_owned());
        }
        let ms = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
        let not_before_ms = ms(read.validity().not_before.timestamp());
        let not_after_ms = ms(read.validity().not_after.timestamp());
        let uri = uri(&read);
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|error| error.to_string())?;
        Ok(Self { certificate, issuer, not_before_ms, not_after_ms, uri })
    }

    /// Reads it from `path`; `None` if there is no such file.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>, CaError> {
        let pem = match std::fs::read(path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(CaError::file(path, source));
            }
        };
        let authority = Self::from_pem(&pem);
        authority.map(Some).map_err(|why| CaError::damaged(path, why))
    }

    fn from_pem(pem: &[u8]) -> Result<Self, Damage> {
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem)
            .map_err(|error| format!("there is no private key in it ({error})"))?;
        let certificate = CertificateDer::from_pem_slice(pem)
            .map_err(|error| format!("there is no certificate in it ({error})"))?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| "its key is not an ECDSA P-256 key".to_owned())?;
        Self::new(certificate, key)
    }

    /// Keeps it at `path`, mode 0600.
    pub(crate) fn save(&self, path: &Path) -> Result<(), CaError> {
        let key = self.issuer.key().serialize_der();
        let pem = atoll_identity::material::pem("PRIVATE KEY", &key)
            + &pem_certificates(std::slice::from_ref(&self.certificate));
        write_atomic(path, pem.as_bytes(), 0o600).map_err(|source| CaError::file(path, source))
    }
}

fn uri(certificate: &X509Certificate<'_>) -> Option<String> {
    let names = certificate.subject_alternative_name().ok().flatten()?;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    })
}
