//! Public certificates for `atoll dev`: from a root of its own, that a user may give to curl.

use crate::audit::AuditLog;
use crate::authority::Authority;
use crate::error::CaError;
use crate::issue::{self, Validity, random_serial};
use atoll_identity::material::pem_certificates;
use atoll_process::files::private_dir;
use data_encoding::HEXLOWER;
use rcgen::{ExtendedKeyUsagePurpose, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::{CertificateDer, DnsName, PrivatePkcs8KeyDer};
use std::path::Path;
use std::time::Duration;

const FILE: &str = "public-test-root.pem";
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long a public certificate is valid.
pub const PUBLIC_LIFETIME: Duration = Duration::from_secs(89 * 86_400);

/// A public certificate with its key.
#[derive(Debug)]
pub struct PublicCertificate {
    /// Leaf first, without the root; DER.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8, DER.
    pub key: PrivatePkcs8KeyDer<'static>,
    /// End of validity, ms since 1970.
    pub not_after_ms: u64,
}

/// The CA that stands in for a public one. Nothing on the mesh trusts it.
#[derive(Debug)]
pub struct PublicTestCa {
    audit: AuditLog,
    root: Authority,
}

impl PublicTestCa {
    /// Opens the CA in `dir`, or makes it. One process at a time.
    pub fn open_or_create(dir: &Path, now_ms: u64) -> Result<Self, CaError> {
        private_dir(dir).map_err(|source| CaError::file(dir, source))?;
        let audit = AuditLog::open(dir)?;
        let path = dir.join(FILE);
        let root = match Authority::load(&path)? {
            Some(root) => root,
            None => make_root(&path, &audit, now_ms)?,
        };
        Ok(Self { audit, root })
    }

    /// A certificate and a new key for `domain` (lower case; `*.` as first label is a wildcard).
    pub fn issue(&self, domain: &str, now_ms: u64) -> Result<PublicCertificate, CaError> {
        let unfit = || CaError::Name(domain.to_owned());
        let plain = domain.strip_prefix("*.").unwrap_or(domain);
        if DnsName::try_from(plain).is_err() || plain.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(unfit());
        }
        let name = domain.try_into().map(SanType::DnsName).map_err(|_| unfit())?;
        let validity = Validity::of(now_ms, PUBLIC_LIFETIME)
            .not_before(self.root.not_before_ms)
            .not_after(self.root.not_after_ms);
        let serial = random_serial()?;
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let params = issue::leaf(domain, vec![name], usages, validity, &serial)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Sign)?;
        let leaf = params.signed_by(&key, &self.root.issuer).map_err(CaError::Sign)?;
        self.audit.append("public", domain.to_owned(), &serial, validity, now_ms)?;
        Ok(PublicCertificate {
            chain: vec![leaf.der().clone()],
            key: key.serialize_der().into(),
            not_after_ms: validity.not_after_ms,
        })
    }

    /// The root, for `curl --cacert` and trust stores.
    #[must_use]
    pub fn ca_pem(&self) -> String {
        pem_certificates(std::slice::from_ref(&self.root.certificate))
    }
}

fn make_root(path: &Path, audit: &AuditLog, now_ms: u64) -> Result<Authority, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Sign)?;
    let serial = random_serial()?;
    let name = format!("public test CA {}", HEXLOWER.encode(&serial[12..]));
    let validity = Validity::of(now_ms, ROOT_LIFETIME);
    let params = issue::authority(&name, Vec::new(), 0, validity, &serial)?;
    let certificate = params.self_signed(&key).map_err(CaError::Sign)?.der().clone();
    let root = Authority::new(certificate, key).map_err(|why| CaError::damaged(path, why))?;
    audit.append("public-root", name, &serial, validity, now_ms)?;
    root.save(path)?;
    Ok(root)
}
