//! Who is who on the mesh: SPIFFE ids, the certificates that prove them, and the rustls
//! configurations that check them at every handshake.
//!
//! * [`SpiffeId`], [`TrustDomain`]: strict parsing of names.
//! * [`AtollExtension`]: what a certificate says beside the name (roles, region, epoch).
//! * [`TlsKey`], [`RecordKey`]: keys, certificate requests, proof of possession.
//! * [`Material`], [`RecordIdentity`]: what a node or workload holds, in memory and on disk.
//! * [`Identity`]: rotating material and TLS configurations that follow it.
//! * [`TrustStore`]: the roots; checks certificates of peers and of record signers.
//! * [`LiveConnections`]: every mesh connection, so that a denied peer's can be cut.
//!
//! This crate issues nothing (that is `atoll-mesh-ca`) and opens no sockets. Invariants: a peer is
//! accepted only after its chain, extended key usage, single SPIFFE id, trust domain, policy and the
//! deny-list were checked, at *every* handshake: there is no TLS resumption on the mesh.

pub mod certificate;
mod clock;
pub mod connections;
mod cut;
pub mod extension;
pub mod identity;
pub mod keys;
pub mod material;
pub mod spiffe;
pub mod trust;
pub mod verify;

#[cfg(test)]
mod handshake_tests;
#[cfg(test)]
mod testing;

pub use certificate::{CertificateFault, PeerIdentity};
pub use clock::Clock;
pub use connections::{ConnectionGuard, Denied, LiveConnections};
pub use cut::CutStream;
pub use extension::{ATOLL_EXTENSION, AtollExtension, ExtensionError, RECORD_SIGNING};
pub use identity::{
    ClientAuth, Identity, IdentityError, MESH_SERVER_NAME, anonymous_client_config, crypto_provider,
    join_client_config, mesh_server_name,
};
pub use keys::{KeyError, RecordKey, RecoveryError, TlsKey, sign_recovery, verify_ed25519, verify_recovery};
pub use material::{
    Material, MaterialError, RecordIdentity, load_material, load_record, save_material, save_record,
};
pub use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
pub use spiffe::{SpiffeId, SpiffeIdError, SpiffeKind, TrustDomain};
pub use trust::{RecordSigner, TrustError, TrustStore, fingerprint, fingerprint_hex};
pub use verify::{PeerPolicy, PeerRefusal};
