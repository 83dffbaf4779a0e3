//! The mesh CA: its root and intermediate, and what it issues.

use crate::authority::Authority;
use crate::csr::{KeyKind, public_key};
use crate::error::CaError;
use crate::folder::Folder;
use crate::issue::{self, Validity, random_serial, uri};
use crate::recovery::may_recover;
use atoll_identity::{
    ATOLL_EXTENSION, AtollExtension, PeerIdentity, RECORD_SIGNING, SpiffeId, TrustDomain, TrustStore,
    fingerprint_hex, verify_recovery,
};
use atoll_model::{ClusterName, NodeName, RegionName, Roles, SiteName};
use rcgen::{CustomExtension, ExtendedKeyUsagePurpose, SanType};
use rustls::pki_types::{CertificateDer, ServerName};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

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
            return Err(CaError::Lifetimes("a certificate must be valid for at least a second"));
        }
        if leaf * 2 > self.intermediate {
            return Err(CaError::Lifetimes("the intermediate must last twice as long as what it issues"));
        }
        if self.intermediate > self.root {
            return Err(CaError::Lifetimes("the root must last as long as the intermediate"));
        }
        Ok(())
    }
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
    folder: Folder,
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
        let folder = Folder::open(dir, trust_domain, lifetimes)?;
        let (root, current) = folder.authorities(now_ms)?;
        let retired = folder.retired()?;
        let intermediates = Mutex::new(Intermediates { current: Arc::new(current), retired });
        Ok(Self { folder, root, intermediates })
    }

    /// The roots that members trust.
    #[must_use]
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        vec![self.root.certificate.clone()]
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.folder.trust_domain
    }

    /// SHA-256 of the root certificate, hexadecimal, as join tokens hold it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint_hex(&self.root.certificate)
    }

    /// The lifetimes in use.
    #[must_use]
    pub fn lifetimes(&self) -> &Lifetimes {
        &self.folder.lifetimes
    }

    /// A node's TLS certificate. Leaf first, without the root.
    pub fn issue_node(
        &self,
        subject: &NodeSubject,
        csr: &[u8],
        now_ms: u64,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let validity = Validity::of(now_ms, self.folder.lifetimes.node);
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
        let id = SpiffeId::workload(&self.folder.trust_domain, cluster);
        let request = Request {
            kind: "workload",
            common_name: cluster.service.as_str(),
            names: vec![uri(id.as_str())?],
            subject: id.to_string(),
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            extension: None,
            validity: Validity::of(now_ms, self.folder.lifetimes.workload),
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
        let texts: Vec<_> = names.iter().map(|name| name.to_str().into_owned()).collect();
        let request = Request {
            kind: "server",
            subject: texts.join(","),
            common_name: texts.first().map_or("api", String::as_str),
            names: names.iter().map(server_name).collect::<Result<_, _>>()?,
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth],
            extension: None,
            validity: Validity::of(now_ms, self.folder.lifetimes.server),
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
            TrustStore::new(self.folder.trust_domain.clone(), &self.roots()).map_err(CaError::NotOurs)?;
        let issuers = self.issuers();
        let peer = trust.verify_expired(&leaf, &issuers).map_err(CaError::NotOurs)?;
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
            trust_domain: self.folder.trust_domain.to_string(),
            root_fingerprint: self.fingerprint(),
            root_not_after_ms: self.root.not_after_ms,
            intermediate_fingerprint: fingerprint_hex(&current.certificate),
            intermediate_not_after_ms: current.not_after_ms,
            issued: self.folder.audit.counts(),
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
        let id = SpiffeId::node(&self.folder.trust_domain, &subject.site, &subject.node);
        let NodeSubject { roles, region, epoch, .. } = subject;
        Ok(Request {
            kind,
            common_name: subject.node.as_str(),
            names: vec![uri(id.as_str())?],
            subject: id.to_string(),
            usages,
            extension: Some(AtollExtension { roles: *roles, region: region.clone(), epoch: *epoch }),
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
        let latest_ms = if key_kind == KeyKind::Record { u64::MAX } else { issuer.not_after_ms };
        let validity = request.validity.not_before(issuer.not_before_ms).not_after(latest_ms);
        let serial = random_serial()?;
        let mut params = issue::leaf(request.common_name, request.names, request.usages, validity, &serial)?;
        if let Some(extension) = request.extension {
            let extension = CustomExtension::from_oid_content(ATOLL_EXTENSION, extension.encode());
            params.custom_extensions.push(extension);
        }
        let leaf = params.signed_by(&key, &issuer.issuer).map_err(CaError::Sign)?;
        self.folder.audit.append(request.kind, request.subject, &serial, validity, now_ms)?;
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
        let retired = self.folder.retire(&current.certificate, &intermediates.retired)?;
        let next = self.folder.make_intermediate(&self.root, now_ms)?;
        tracing::info!(not_after_ms = next.not_after_ms, "the mesh CA has a new intermediate");
        *intermediates = Intermediates { current: Arc::new(next), retired };
        Ok(Arc::clone(&intermediates.current))
    }

    fn issuers(&self) -> Vec<CertificateDer<'static>> {
        let intermediates = self.intermediates();
        let current = intermediates.current.certificate.clone();
        std::iter::once(current).chain(intermediates.retired.iter().cloned()).collect()
    }

    fn intermediates(&self) -> std::sync::MutexGuard<'_, Intermediates> {
        // Replaced by one assignment, so whole whatever happened under the lock.
        self.intermediates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn server_name(name: &ServerName<'_>) -> Result<SanType, CaError> {
    let unfit = || CaError::Name(name.to_str().into_owned());
    match name {
        ServerName::DnsName(dns) => dns.as_ref().try_into().map(SanType::DnsName).map_err(|_| unfit()),
        ServerName::IpAddress(address) => Ok(SanType::IpAddress((*address).into())),
        _ => Err(unfit()),
    }
}
