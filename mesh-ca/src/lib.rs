//! The mesh's certificate authority: a root and an intermediate made at first start, identities for
//! nodes and workloads, record certificates, join tokens, and the rules of renewal and recovery.
//!
//! * [`MeshCa`] issues. It takes the public key from a request and nothing else.
//! * [`PublicTestCa`] issues public certificates for `atoll dev`, from a root of its own.
//! * [`token`]: join tokens, and the pure check of one.
//! * [`recovery`]: when an expired certificate may be exchanged.
//! * [`client`]: when to renew, how long to wait between tries.
//!
//! This crate keeps no record of tokens and nodes (control's store does), opens no sockets, and reads
//! no clock: each call says what time it is. Every certificate is in the audit log, on disk, before it
//! is returned.

mod audit;
mod authority;
pub mod ca;
pub mod client;
mod csr;
mod error;
mod folder;
mod issue;
pub mod public_test;
pub mod recovery;
pub mod token;

pub use ca::{CaStatus, Lifetimes, MeshCa, NodeSubject};
pub use csr::CsrError;
pub use error::CaError;
pub use public_test::{PublicCertificate, PublicTestCa};
pub use recovery::{RecoveryRefusal, may_recover};
pub use token::{JoinToken, TokenRecord, TokenRefusal};
