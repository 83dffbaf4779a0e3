//! The CA's folder: root, intermediate, retired intermediates and audit log; made at first start, and
//! what a crash left half made is completed.
//!
//! Order of writing: root, then intermediate. So a lone root is a first start that was interrupted, and a
//! lone intermediate is damage.

use crate::audit::AuditLog;
use crate::authority::Authority;
use crate::ca::Lifetimes;
use crate::error::CaError;
use crate::issue::{self, Validity, random_serial, uri};
use atoll_identity::TrustDomain;
use atoll_identity::material::pem_certificates;
use atoll_process::files::{private_dir, write_atomic};
use data_encoding::HEXLOWER;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::io;
use std::path::{Path, PathBuf};
use x509_parser::prelude::{FromDer, X509Certificate};

const ROOT_FILE: &str = "root.pem";
const INTERMEDIATE_FILE: &str = "intermediate.pem";
const RETIRED_FILE: &str = "retired-intermediates.pem";
/// Retired intermediates that are kept, to check what they issued; one goes at half its life.
const RETIRED_MAX: usize = 8;

/// The folder, open.
#[derive(Debug)]
pub(crate) struct Folder {
    dir: PathBuf,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) lifetimes: Lifetimes,
    pub(crate) audit: AuditLog,
}

impl Folder {
    pub(crate) fn open(dir: &Path, trust_domain: TrustDomain, lifetimes: Lifetimes) -> Result<Self, CaError> {
        private_dir(dir).map_err(|source| CaError::file(dir, source))?;
        let audit = AuditLog::open(dir)?;
        Ok(Self { dir: dir.to_owned(), trust_domain, lifetimes, audit })
    }

    /// Root and intermediate, kept or made.
    pub(crate) fn authorities(&self, now_ms: u64) -> Result<(Authority, Authority), CaError> {
        let intermediate = Authority::load(&self.path(INTERMEDIATE_FILE))?;
        let root = match Authority::load(&self.path(ROOT_FILE))? {
            Some(root) => root,
            None if intermediate.is_some() => {
                let why = "it is missing, but the intermediate is there";
                return Err(CaError::damaged(&self.path(ROOT_FILE), why));
            }
            None => self.make_root(now_ms)?,
        };
        self.check_trust_domain(&root)?;
        let intermediate = match intermediate {
            Some(intermediate) => intermediate,
            None => self.make_intermediate(&root, now_ms)?,
        };
        if !is_signed_by(&intermediate, &root) {
            let why = "it was not signed by the root";
            return Err(CaError::damaged(&self.path(INTERMEDIATE_FILE), why));
        }
        Ok((root, intermediate))
    }

    fn make_root(&self, now_ms: u64) -> Result<Authority, CaError> {
        self.make(ROOT_FILE, None, Validity::of(now_ms, self.lifetimes.root), now_ms)
    }

    /// A new intermediate, in place of the one that was there.
    pub(crate) fn make_intermediate(&self, root: &Authority, now_ms: u64) -> Result<Authority, CaError> {
        if now_ms >= root.not_after_ms {
            return Err(CaError::RootExpired);
        }
        let validity = Validity::of(now_ms, self.lifetimes.intermediate)
            .not_before(root.not_before_ms)
            .not_after(root.not_after_ms);
        self.make(INTERMEDIATE_FILE, Some(root), validity, now_ms)
    }

    fn make(
        &self,
        file: &str,
        signer: Option<&Authority>,
        validity: Validity,
        now_ms: u64,
    ) -> Result<Authority, CaError> {
        let (kind, below) = if signer.is_none() { ("root", 1) } else { ("intermediate", 0) };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Sign)?;
        let serial = random_serial()?;
        // A part of the serial keeps the names of generations apart, for people and path building.
        let tail = HEXLOWER.encode(&serial[12..]);
        let name = format!("mesh {kind} {tail} of {}", self.trust_domain);
        let id = format!("spiffe://{}", self.trust_domain);
        let mut params = issue::authority(&name, vec![uri(&id)?], below, validity, &serial)?;
        let certificate = match signer {
            None => params.self_signed(&key),
            Some(signer) => {
                params.use_authority_key_identifier_extension = true;
                params.signed_by(&key, &signer.issuer)
            }
        };
        let certificate = certificate.map_err(CaError::Sign)?.der().clone();
        let path = self.path(file);
        let authority = Authority::new(certificate, key).map_err(|why| CaError::damaged(&path, why))?;
        self.audit.append(kind, id, &serial, validity, now_ms)?;
        authority.save(&path)?;
        Ok(authority)
    }

    /// The intermediates before the present one, newest first.
    pub(crate) fn retired(&self) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let path = self.path(RETIRED_FILE);
        let pem = match std::fs::read(&path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(CaError::file(&path, source)),
        };
        let certificates: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(&pem).take(RETIRED_MAX).collect();
        certificates.map_err(|error| CaError::damaged(&path, error.to_string()))
    }

    /// Adds `next` to the retired ones and keeps them, before its successor takes its place.
    pub(crate) fn retire(
        &self,
        next: &CertificateDer<'static>,
        retired: &[CertificateDer<'static>],
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let retired: Vec<_> = std::iter::once(next).chain(retired).take(RETIRED_MAX).cloned().collect();
        let path = self.path(RETIRED_FILE);
        write_atomic(&path, pem_certificates(&retired).as_bytes(), 0o600)
            .map_err(|source| CaError::file(&path, source))?;
        Ok(retired)
    }

    fn check_trust_domain(&self, root: &Authority) -> Result<(), CaError> {
        let wanted = format!("spiffe://{}", self.trust_domain);
        let found = root.uri.clone().unwrap_or_else(|| "no trust domain".into());
        if found == wanted {
            return Ok(());
        }
        Err(CaError::OtherTrustDomain { path: self.dir.clone(), found, wanted })
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }
}

fn is_signed_by(intermediate: &Authority, root: &Authority) -> bool {
    let parse = |der| X509Certificate::from_der(der).map(|(_, certificate)| certificate);
    match (parse(&intermediate.certificate), parse(&root.certificate)) {
        (Ok(intermediate), Ok(root)) => intermediate.verify_signature(Some(root.public_key())).is_ok(),
        _ => false,
    }
}
