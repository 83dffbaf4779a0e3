//! The control node's own identity, issued straight from the CA that is in its process.

use atoll_identity::{KeyError, Material, MaterialError, RecordIdentity, RecordKey, TlsKey};
use atoll_mesh_ca::{CaError, MeshCa, NodeSubject};

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// A key could not be made.
    #[error("the control node's key could not be made")]
    Key(#[from] KeyError),
    /// The CA refused.
    #[error("the mesh CA did not issue the control node's certificate")]
    Ca(#[from] CaError),
    /// What was issued makes no identity.
    #[error("the control node's new certificate is not usable")]
    Material(#[from] MaterialError),
}

/// A new TLS key and certificate for the control node: at first start, and to renew.
pub fn renew_locally(ca: &MeshCa, subject: &NodeSubject, now_ms: u64) -> Result<Material, LocalError> {
    let key = TlsKey::generate()?;
    let chain = ca.issue_node(subject, &key.csr()?, now_ms)?;
    Ok(Material { chain, key: key.to_pkcs8(), roots: ca.roots(), trust_domain: ca.trust_domain().clone() })
}

/// A new record key and its certificate, at first start. The subject's epoch must be greater than that of
/// every record key the node had before; the time in seconds will do.
pub fn issue_record_locally(
    ca: &MeshCa,
    subject: &NodeSubject,
    now_ms: u64,
) -> Result<RecordIdentity, LocalError> {
    let key = RecordKey::generate()?;
    let chain = ca.issue_record(subject, &key.csr()?, now_ms)?;
    Ok(RecordIdentity::new(key, chain)?)
}
