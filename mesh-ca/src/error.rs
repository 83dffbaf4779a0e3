//! Why the CA can't start or issue.

use crate::csr::CsrError;
use crate::recovery::RecoveryRefusal;
use atoll_identity::{RecoveryError, SpiffeId, TrustError};
use std::io;
use std::path::{Path, PathBuf};

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

impl CaError {
    pub(crate) fn file(path: &Path, source: io::Error) -> Self {
        Self::File { path: path.to_owned(), source }
    }

    pub(crate) fn damaged(path: &Path, why: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), why: why.into() }
    }
}
