//! What shows that a record is its owner's, in as few bytes as it can be kept in: an edge holds some
//! hundred thousand of them.

use crate::batch::Hash;
use atoll_wire::record::SignedRecord;
use bytes::Bytes;
use std::sync::Arc;

/// What the records under one signature share.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) signer: Hash,
    pub(crate) leaf_count: u32,
    pub(crate) signature: [u8; 64],
}

/// The bytes that were signed, and the way from them to the signature.
#[derive(Debug)]
pub(crate) struct Proof {
    pub(crate) record: Bytes,
    pub(crate) batch: Arc<Batch>,
    pub(crate) leaf_index: u32,
    /// Hashes of 32 bytes, from the leaf's sibling up.
    pub(crate) path: Box<[u8]>,
}

impl Batch {
    /// The part of a signed record that its batch shares; nothing when it is not well-formed.
    pub(crate) fn of(signed: &SignedRecord) -> Option<Self> {
        Some(Self {
            signer: signed.signer.as_slice().try_into().ok()?,
            leaf_count: signed.leaf_count,
            signature: signed.signature.as_slice().try_into().ok()?,
        })
    }
}

impl Proof {
    /// Of a record that belongs to the batch.
    pub(crate) fn new(signed: SignedRecord, batch: Arc<Batch>) -> Self {
        let SignedRecord { record, leaf_index, path, .. } = signed;
        Self { record, batch, leaf_index, path: path.concat().into() }
    }

    /// As it travels and is kept on disk.
    pub(crate) fn signed(&self) -> SignedRecord {
        SignedRecord {
            record: self.record.clone(),
            signer: self.batch.signer.to_vec(),
            leaf_index: self.leaf_index,
            leaf_count: self.batch.leaf_count,
            path: self.path.chunks(size_of::<Hash>()).map(<[u8]>::to_vec).collect(),
            signature: self.batch.signature.to_vec(),
        }
    }
}
