//! The mesh CA: its root and intermediate, and what it issues.

use crate::audit::{AuditLog, Issued};
use crate::authority::Authority;
use crate::csr::{CsrError, KeyKind, public_key};
use crate::issue::{self, Validity, random_serial};
use crate::recovery::{RecoveryRefusal, may_recover};
use atoll_identity::{
    ATOLL_EXTENSION, AtollExtension, PeerIdentity, RECORD_SIGNING, RecoveryError, SpiffeId,
    TrustDomain, TrustError, TrustStore, fingerprint_hex, verify_recovery,
};
use atoll_model::{ClusterName, NodeName, RegionName, Roles, SiteName};
use atoll_process::files::{private_dir, write_atomic};
use data_encoding::HEXLOWER;
use rcgen::{
    CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, KeyPair, PKCS_ECDSA_P256_SHA256,
    SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const ROOT_FILE: &str = "root.pem";
const INTERMEDIATE_FILE: &str = "intermediate.pem";
const RETIRED_FILE: &str = "retired-intermediates.pem";
/// Retired intermediates that are kept, to check what they issued; one goes at half its life.
const RETIRED_MAX: usize = 8;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long certificates are valid. Whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// A node's TLS certificate.
    pub node: Duration,
    /// A workload's.
    pub workload: Duration,
    /// The API's server certificate.
    pub server: Duration,
    /// The intermediate; a new one takes over at half of it.
    pub intermediate: Duration,
    /// The root.
    pub root: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            node: 7 * DAY,
            workload: 2 * DAY,
            server: 7 * DAY,
            intermediate: 5 * 365 * DAY,
            root: 10 * 365 * DAY,
        }
    }
}

impl Lifetimes {
    /// What is issued must end before its issuer is replaced and gone.
    fn check(&self) -> Result<(), CaError> {
        let leaf = self.node.max(self.workload).max(self.server);
        let shortest = self.node.min(self.workload).min(self.server);
        if shortest < Duration::from_secs(1) {
            return Err(CaError::Lifetimes(
                "a certificate must be valid for at least a second",
            ));
        }
        if leaf * 2 > self.intermediate {
            return Err(CaError::Lifetimes(
                "the intermediate must last twice as long as what it issues",
            ));
        }
        if self.intermediate > self.root {
            return Err(CaError::Lifetimes(
                "the root must last as long as the intermediate",
            ));
        }
        Ok(())
    }
}

/// Why the CA can't start or issue.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file can't be read or written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is there, but not what it should be. Nothing is made anew over it.
    #[error("the CA's file {path} is damaged: {why}; restore it from a backup", path = path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The folder is another trust domain's.
    #[error("the CA in {path} is for {found}, but the configuration says {wanted}", path = path.display())]
    OtherTrustDomain {
        /// The folder.
        path: PathBuf,
        /// What the root names.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// The root has run out.
    #[error("the CA's root certificate has expired; the mesh needs a new root")]
    RootExpired,
    /// Lifetimes that can't work.
    #[error("certificate lifetimes: {0}")]
    Lifetimes(&'static str),
    /// The request is refused.
    #[error(transparent)]
    Request(#[from] CsrError),
    /// A node without roles.
    #[error("a node needs at least one role")]
    NoRoles,
    /// The certificate to recover was not issued here, or doesn't fit.
    #[error("the expired certificate is not one of this mesh's")]
    NotOurs(#[source] TrustError),
    /// The certificate to recover is a workload's; its host asks for a new one.
    #[error("{0} is not a node; only nodes exchange expired certificates")]
    NotNode(SpiffeId),
    /// The proof of possession is wrong.
    #[error(transparent)]
    Proof(#[from] RecoveryError),
    /// The certificate may not be exchanged any more.
    #[error(transparent)]
    Recovery(#[from] RecoveryRefusal),
    /// A time that no certificate can hold.
    #[error("the clock shows a time that no certificate can hold")]
    Clock,
    /// A name that no certificate can hold.
    #[error("`{0}` can't be a name in a certificate")]
    Name(String),
    /// The system's random source failed.
    #[error("the system gives no random numbers")]
    Random,
    /// The library refused to sign.
    #[error("signing a certificate failed")]
    Sign(#[source] rcgen::Error),
}

/// A node as its certificates describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSubject {
    /// Its name.
    pub node: NodeName,
    /// Where it is.
    pub site: SiteName,
    /// The site's region.
    pub region: RegionName,
    /// What it may do.
    pub roles: Roles,
    /// Counts up each time a node of this name joins.
    pub epoch: u64,
}

/// What `atoll ca status` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CaStatus {
    /// The trust domain.
    pub trust_domain: String,
    /// SHA-256 of the root certificate, hexadecimal; join tokens hold it.
    pub root_fingerprint: String,
    /// End of the root, ms since 1970.
    pub root_not_after_ms: u64,
    /// SHA-256 of the intermediate certificate, hexadecimal.
    pub intermediate_fingerprint: String,
    /// End of the intermediate, ms since 1970.
    pub intermediate_not_after_ms: u64,
    /// Certificates issued since the CA was made, by kind.
    pub issued: BTreeMap<String, u64>,
}

/// The CA. Its methods write to disk and wait for it: call them from threads that may block.
#[derive(Debug)]
pub struct MeshCa {
    dir: PathBuf,
    trust_domain: TrustDomain,
    lifetimes: Lifetimes,
    audit: AuditLog,
    root: Authority,
    // Replaced at half its life, under the lock, so that one thread makes the new one.
    intermediates: Mutex<Intermediates>,
}

#[derive(Debug)]
struct Intermediates {
    current: Arc<Authority>,
    retired: Vec<CertificateDer<'static>>,
}

/// What distinguishes one leaf from another.
struct Request<'a> {
    kind: &'static str,
    subject: String,
    common_name: &'a str,
    names: Vec<SanType>,
    usages: Vec<ExtendedKeyUsagePurpose>,
    extension: Option<AtollExtension>,
    validity: Validity,
}

impl MeshCa {
    /// Opens the CA in `dir`; makes root and intermediate if the folder is new. A crash at any point is
    /// made good at the next call. One process at a time: the caller holds the folder's lock.
    pub fn open_or_create(
        dir: &Path,
        trust_domain: TrustDomain,
        lifetimes: Lifetimes,
        now_ms: u64,
    ) -> Result<Self, CaError> {
        lifetimes.check()?;
        let in_dir = |source| CaError::File {
            path: dir.to_owned(),
            source,
        };
        private_dir(dir).map_err(in_dir)?;
        let audit = AuditLog::open(dir).map_err(in_dir)?;
        let intermediate = Authority::load(&dir.join(INTERMEDIATE_FILE))?;
        let root = match Authority::load(&dir.join(ROOT_FILE))? {
            Some(root) => root,
            // The intermediate is always the second file.
            None if intermediate.is_some() => {
                let why = "it is missing, but the intermediate is there".to_owned();
                return Err(CaError::Damaged {
                    path: dir.join(ROOT_FILE),
                    why,
                });
            }
            None => make_root(dir, &trust_domain, &lifetimes, &audit, now_ms)?,
        };
        check_trust_domain(dir, &root, &trust_domain)?;
        let current = match intermediate {
            Some(intermediate) => {
                check_issued_by(&dir.join(INTERMEDIATE_FILE), &root, &intermediate)?;
                intermediate
            }
            None => make_intermediate(dir, &root, &trust_domain, &lifetimes, &audit, now_ms)?,
        };
        let retired = load_retired(&dir.join(RETIRED_FILE))?;
        let intermediates = Mutex::new(Intermediates {
            current: Arc::new(current),
            retired,
        });
        Ok(Self {
            dir: dir.to_owned(),
            trust_domain,
            lifetimes,
            audit,
            root,
            intermediates,
        })
    }

    /// The roots that members trust.
    #[must_use]
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        vec![self.root.certificate.clone()]
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// SHA-256 of the root certificate, hexadecimal, as join tokens hold it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint_hex(&self.root.certificate)
    }

    /// The lifetimes in use.
    #[must_use]
    pub fn lifetimes(&self) -> &Lifetimes {
        &self.lifetimes
    }

    /// A node's TLS certificate. Leaf first, without the root.
    pub fn issue_node(
        &self,
        subject: &NodeSubject,
        csr: &[u8],
        now_ms: u64,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let validity = Validity::of(now_ms, self.lifetimes.node);
        let request = self.node_request("node", subject, usages, validity)?;
        self.issue(request, csr, KeyKind::Tls, now_ms)
    }

    /// The certificate of a node's record key: signs records, nothing else, and has no end.
    pub fn issue_record(
        &self,
        subject: &NodeSubject,
        csr: &[u8],
        now_ms: u64,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let usages = vec![ExtendedKeyUsagePurpose::Other(RECORD_SIGNING.to_vec())];
        let request = self.node_request("record", subject, usages, Validity::endless(now_ms))?;
        self.issue(request, csr, KeyKind::Record, now_ms)
    }

    /// A service's TLS certificate. The caller has checked that the asking host runs the service.
    pub fn issue_workload(
        &self,
        cluster: &ClusterName,
        csr: &[u8],
        now_ms: u64,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let id = SpiffeId::workload(&self.trust_domain, cluster);
        let request = Request {
            kind: "workload",
            common_name: cluster.service.as_str(),
            names: vec![uri(id.as_str())?],
            subject: id.to_string(),
            usages: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            extension: None,
            validity: Validity::of(now_ms, self.lifetimes.workload),
        };
        self.issue(request, csr, KeyKind::Tls, now_ms)
    }

    /// A certificate for the API's listener, with DNS names and addresses. It is no mesh identity.
    pub fn issue_server(
        &self,
        names: &[ServerName<'_>],
        csr: &[u8],
        now_ms: u64,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let texts: Vec<_> = names
            .iter()
            .map(|name| name.to_str().into_owned())
            .collect();
        let request = Request {
            kind: "server",
            subject: texts.join(","),
            common_name: texts.first().map_or("api", String::as_str),
            names: names.iter().map(server_name).collect::<Result<_, _>>()?,
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth],
            extension: None,
            validity: Validity::of(now_ms, self.lifetimes.server),
        };
        self.issue(request, csr, KeyKind::Tls, now_ms)
    }

    /// Checks a request to exchange an expired node certificate: we issued it, it is not expired for
    /// too long, its node was not removed, and the asker holds its key. The caller has checked that it
    /// gave the nonce, once. Says whose it is; issue with what the store knows of that node.
    pub fn check_recovery(
        &self,
        expired: &[u8],
        nonce: &[u8],
        csr: &[u8],
        proof: &[u8],
        removed: impl FnOnce(&PeerIdentity) -> bool,
        now_ms: u64,
    ) -> Result<PeerIdentity, CaError> {
        let leaf = CertificateDer::from(expired);
        let trust =
            TrustStore::new(self.trust_domain.clone(), &self.roots()).map_err(CaError::NotOurs)?;
        let issuers = self.issuers();
        let peer = trust
            .verify_expired(&leaf, &issuers)
            .map_err(CaError::NotOurs)?;
        if peer.id.node_name().is_none() {
            return Err(CaError::NotNode(peer.id));
        }
        verify_recovery(&leaf, nonce, csr, proof)?;
        may_recover(peer.not_after_ms, now_ms, removed(&peer))?;
        Ok(peer)
    }

    /// What the CA is and has done.
    #[must_use]
    pub fn status(&self) -> CaStatus {
        let current = Arc::clone(&self.intermediates().current);
        CaStatus {
            trust_domain: self.trust_domain.to_string(),
            root_fingerprint: self.fingerprint(),
            root_not_after_ms: self.root.not_after_ms,
            intermediate_fingerprint: fingerprint_hex(&current.certificate),
            intermediate_not_after_ms: current.not_after_ms,
            issued: self.audit.counts(),
        }
    }

    fn node_request<'a>(
        &self,
        kind: &'static str,
        subject: &'a NodeSubject,
        usages: Vec<ExtendedKeyUsagePurpose>,
        validity: Validity,
    ) -> Result<Request<'a>, CaError> {
        if subject.roles.is_empty() {
            return Err(CaError::NoRoles);
        }
        let id = SpiffeId::node(&self.trust_domain, &subject.site, &subject.node);
        let NodeSubject {
            roles,
            region,
            epoch,
            ..
        } = subject;
        Ok(Request {
            kind,
            common_name: subject.node.as_str(),
            names: vec![uri(id.as_str())?],
            subject: id.to_string(),
            usages,
            extension: Some(AtollExtension {
                roles: *roles,
                region: region.clone(),
                epoch: *epoch,
            }),
            validity,
        })
    }

    fn issue(
        &self,
        request: Request<'_>,
        csr: &[u8],
        key_kind: KeyKind,
        now_ms: u64,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let key = public_key(csr, key_kind)?;
        let issuer = self.issuer(now_ms)?;
        // A record certificate outlives its issuer; it is checked as of when it was issued.
        let latest_ms = if key_kind == KeyKind::Record {
            u64::MAX
        } else {
            issuer.not_after_ms
        };
        let validity = request
            .validity
            .not_before(issuer.not_before_ms)
            .not_after(latest_ms);
        let serial = random_serial()?;
        let mut params = issue::leaf(
            request.common_name,
            request.names,
            request.usages,
            validity,
            &serial,
        )?;
        if let Some(extension) = request.extension {
            let extension = CustomExtension::from_oid_content(ATOLL_EXTENSION, extension.encode());
            params.custom_extensions.push(extension);
        }
        let leaf = params
            .signed_by(&key, &issuer.issuer)
            .map_err(CaError::Sign)?;
        log(
            &self.dir,
            &self.audit,
            request.kind,
            request.subject,
            &serial,
            validity,
            now_ms,
        )?;
        Ok(vec![leaf.der().clone(), issuer.certificate.clone()])
    }

    /// The intermediate to sign with now; a new one once half of its life is over.
    fn issuer(&self, now_ms: u64) -> Result<Arc<Authority>, CaError> {
        let mut intermediates = self.intermediates();
        let current = &intermediates.current;
        let half = (current.not_after_ms - current.not_before_ms) / 2;
        // One that ends with the root has no better successor.
        let is_last = current.not_after_ms >= self.root.not_after_ms;
        if now_ms < current.not_before_ms + half || (is_last && now_ms < current.not_after_ms) {
            return Ok(Arc::clone(current));
        }
        let mut retired = intermediates.retired.clone();
        retired.insert(0, current.certificate.clone());
        retired.truncate(RETIRED_MAX);
        save_retired(&self.dir.join(RETIRED_FILE), &retired)?;
        let (root, domain) = (&self.root, &self.trust_domain);
        let next = make_intermediate(
            &self.dir,
            root,
            domain,
            &self.lifetimes,
            &self.audit,
            now_ms,
        )?;
        tracing::info!(
            not_after_ms = next.not_after_ms,
            "the mesh CA has a new intermediate"
        );
        *intermediates = Intermediates {
            current: Arc::new(next),
            retired,
        };
        Ok(Arc::clone(&intermediates.current))
    }

    fn issuers(&self) -> Vec<CertificateDer<'static>> {
        let intermediates = self.intermediates();
        let current = intermediates.current.certificate.clone();
        std::iter::once(current)
            .chain(intermediates.retired.iter().cloned())
            .collect()
    }

    fn intermediates(&self) -> std::sync::MutexGuard<'_, Intermediates> {
        // Replaced by one assignment, so whole whatever happened under the lock.
        self.intermediates
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn make_root(
    dir: &Path,
    trust_domain: &TrustDomain,
    lifetimes: &Lifetimes,
    audit: &AuditLog,
    now_ms: u64,
) -> Result<Authority, CaError> {
    let validity = Validity::of(now_ms, lifetimes.root);
    make_authority(
        dir,
        ROOT_FILE,
        "root",
        trust_domain,
        validity,
        audit,
        now_ms,
        None,
    )
}

fn make_intermediate(
    dir: &Path,
    root: &Authority,
    trust_domain: &TrustDomain,
    lifetimes: &Lifetimes,
    audit: &AuditLog,
    now_ms: u64,
) -> Result<Authority, CaError> {
    if now_ms >= root.not_after_ms {
        return Err(CaError::RootExpired);
    }
    let validity = Validity::of(now_ms, lifetimes.intermediate)
        .not_before(root.not_before_ms)
        .not_after(root.not_after_ms);
    make_authority(
        dir,
        INTERMEDIATE_FILE,
        "intermediate",
        trust_domain,
        validity,
        audit,
        now_ms,
        Some(root),
    )
}

#[expect(
    clippy::too_many_arguments,
    reason = "the two callers above are all that see it"
)]
fn make_authority(
    dir: &Path,
    file: &str,
    kind: &'static str,
    trust_domain: &TrustDomain,
    validity: Validity,
    audit: &AuditLog,
    now_ms: u64,
    signer: Option<&Authority>,
) -> Result<Authority, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Sign)?;
    let serial = random_serial()?;
    // A part of the serial in the name keeps two generations apart, for people and path building.
    let name = format!(
        "mesh {kind} {} of {trust_domain}",
        HEXLOWER.encode(&serial[12..])
    );
    let id = format!("spiffe://{trust_domain}");
    let below = u8::from(signer.is_none());
    let mut params: CertificateParams =
        issue::authority(&name, vec![uri(&id)?], below, validity, &serial)?;
    let certificate = match signer {
        None => params.self_signed(&key),
        Some(signer) => {
            params.use_authority_key_identifier_extension = true;
            params.signed_by(&key, &signer.issuer)
        }
    };
    let certificate = certificate.map_err(CaError::Sign)?.der().clone();
    let path = dir.join(file);
    let authority = Authority::new(certificate, key).map_err(|why| CaError::Damaged {
        path: path.clone(),
        why,
    })?;
    log(dir, audit, kind, id, &serial, validity, now_ms)?;
    authority.save(&path)?;
    Ok(authority)
}

fn log(
    dir: &Path,
    audit: &AuditLog,
    kind: &str,
    subject: String,
    serial: &[u8],
    validity: Validity,
    now_ms: u64,
) -> Result<(), CaError> {
    let issued = Issued {
        time_ms: now_ms,
        kind: kind.to_owned(),
        subject,
        serial: HEXLOWER.encode(serial),
        not_after_ms: validity.not_after_ms,
    };
    let in_log = |source| CaError::File {
        path: dir.join(crate::audit::AUDIT_FILE),
        source,
    };
    audit.append(&issued).map_err(in_log)
}

fn check_trust_domain(dir: &Path, root: &Authority, wanted: &TrustDomain) -> Result<(), CaError> {
    let wanted = format!("spiffe://{wanted}");
    match &root.uri {
        Some(found) if *found == wanted => Ok(()),
        found => Err(CaError::OtherTrustDomain {
            path: dir.to_owned(),
            found: found.clone().unwrap_or_else(|| "no trust domain".into()),
            wanted,
        }),
    }
}

fn check_issued_by(path: &Path, root: &Authority, intermediate: &Authority) -> Result<(), CaError> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let parse = |der| X509Certificate::from_der(der).map(|(_, certificate)| certificate);
    let linked = match (parse(&root.certificate), parse(&intermediate.certificate)) {
        (Ok(root), Ok(intermediate)) => intermediate
            .verify_signature(Some(root.public_key()))
            .is_ok(),
        _ => false,
    };
    if linked {
        return Ok(());
    }
    Err(CaError::Damaged {
        path: path.to_owned(),
        why: "it was not signed by the root".into(),
    })
}

fn load_retired(path: &Path) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let pem = match std::fs::read(path) {
        Ok(pem) => pem,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(CaError::File {
                path: path.to_owned(),
                source,
            });
        }
    };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem)
        .take(RETIRED_MAX)
        .collect();
    certificates.map_err(|error| CaError::Damaged {
        path: path.to_owned(),
        why: error.to_string(),
    })
}

fn save_retired(path: &Path, retired: &[CertificateDer<'static>]) -> Result<(), CaError> {
    let pem = atoll_identity::material::pem_certificates(retired);
    write_atomic(path, pem.as_bytes(), 0o600).map_err(|source| CaError::File {
        path: path.to_owned(),
        source,
    })
}

fn uri(text: &str) -> Result<SanType, CaError> {
    text.try_into()
        .map(SanType::URI)
        .map_err(|_| CaError::Name(text.to_owned()))
}

fn server_name(name: &ServerName<'_>) -> Result<SanType, CaError> {
    let unfit = || CaError::Name(name.to_str().into_owned());
    match name {
        ServerName::DnsName(dns) => dns
            .as_ref()
            .try_into()
            .map(SanType::DnsName)
            .map_err(|_| unfit()),
        ServerName::IpAddress(address) => Ok(SanType::IpAddress((*address).into())),
        _ => Err(unfit()),
    }
}
