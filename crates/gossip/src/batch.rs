//! Signing and checking batches: one signature over a hash tree of up to [`BATCH_MAX`] records, so that
//! each record can travel alone, with its path, as the very bytes that were signed.

mod tree;

use crate::authority::Refusal;
use crate::records::proof::{Batch, Proof};
use atoll_identity::{RecordIdentity, RecordKey};
use atoll_wire::Message;
use atoll_wire::record::{Record, RecordCertificate, SignedRecord};
use aws_lc_rs::digest;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Most records under one signature.
pub const BATCH_MAX: usize = 256;
/// Longest record on the wire: body, key, and room for fields that this version does not know.
pub(crate) const RECORD_BYTES_MAX: usize = 80 * 1024;

const CONTEXT: &[u8] = b"atoll record batch v1\0";
/// Verified signatures remembered, in each of two generations: 2 × 4096 × about 250 bytes.
const REMEMBERED_MAX: usize = 4096;

pub(crate) type Hash = [u8; 32];

pub(crate) fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// Signs a node's own records, and knows the certificate that says whose they are.
#[derive(Debug)]
pub struct BatchSigner {
    key: RecordKey,
    certificate: RecordCertificate,
    fingerprint: Hash,
}

impl From<RecordIdentity> for BatchSigner {
    fn from(own: RecordIdentity) -> Self {
        let fingerprint = own.fingerprint();
        let mut chain = own.chain.into_iter().map(|der| der.to_vec());
        let certificate = RecordCertificate {
            certificate: chain.next().unwrap_or_default(),
            intermediates: chain.collect(),
        };
        Self { key: own.key, certificate, fingerprint }
    }
}

impl BatchSigner {
    #[cfg(test)]
    pub(crate) fn for_tests(key: RecordKey, certificate: Vec<u8>) -> Self {
        let fingerprint = sha256(&[&certificate]);
        Self { key, certificate: RecordCertificate { certificate, intermediates: Vec::new() }, fingerprint }
    }

    /// What goes with the records.
    #[must_use]
    pub fn certificate(&self) -> &RecordCertificate {
        &self.certificate
    }

    /// Signs records, at most [`BATCH_MAX`] at a time.
    #[must_use]
    pub fn sign(&self, records: &[Record]) -> Vec<SignedRecord> {
        self.prove(records).iter().map(Proof::signed).collect()
    }

    /// The same, as they are kept.
    pub(crate) fn prove(&self, records: &[Record]) -> Vec<Proof> {
        records.chunks(BATCH_MAX).flat_map(|batch| self.prove_batch(batch)).collect()
    }

    fn prove_batch(&self, records: &[Record]) -> Vec<Proof> {
        let encoded: Vec<Bytes> = records.iter().map(|record| record.encode_to_vec().into()).collect();
        let tree = tree::Tree::new(encoded.iter().map(|bytes| tree::leaf(bytes)).collect());
        let leaf_count = encoded.len() as u32;
        let signature = self.key.sign(&signed_bytes(leaf_count, &tree.root()));
        let batch = Arc::new(Batch { signer: self.fingerprint, leaf_count, signature });
        encoded
            .into_iter()
            .enumerate()
            .map(|(index, record)| Proof {
                record,
                batch: Arc::clone(&batch),
                leaf_index: index as u32,
                path: tree.path(index).concat().into(),
            })
            .collect()
    }
}

fn signed_bytes(leaf_count: u32, root: &Hash) -> Vec<u8> {
    [CONTEXT, &leaf_count.to_be_bytes(), root].concat()
}

/// Checks records against their signatures, and remembers signatures that were good, so that a batch
/// costs one check.
#[derive(Debug)]
pub struct Verifier {
    good: Mutex<Remembered>,
    most: usize,
}

impl Default for Verifier {
    fn default() -> Self {
        Self { good: Mutex::default(), most: REMEMBERED_MAX }
    }
}

#[derive(Debug, Default)]
struct Remembered {
    young: HashMap<Hash, Arc<Batch>>,
    old: HashMap<Hash, Arc<Batch>>,
}

impl Remembered {
    fn find(&self, mark: &Hash) -> Option<Arc<Batch>> {
        self.young.get(mark).or_else(|| self.old.get(mark)).cloned()
    }

    fn keep(&mut self, mark: Hash, batch: Arc<Batch>, most: usize) {
        if self.young.len() >= most {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(mark, batch);
    }
}

impl Verifier {
    /// Nothing remembered.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One that remembers every signature, for as long as a node reads what it has kept.
    pub(crate) fn unforgetting() -> Self {
        Self { most: usize::MAX, ..Self::default() }
    }

    /// Checks that `signed` holds a record which the key `public_key` signed, and decodes it.
    pub(crate) fn verify(
        &self,
        signed: &SignedRecord,
        public_key: &[u8; 32],
    ) -> Result<(Record, Arc<Batch>), Refusal> {
        let batch = Batch::of(signed).ok_or(Refusal::Malformed)?;
        if signed.record.len() > RECORD_BYTES_MAX {
            return Err(Refusal::Malformed);
        }
        let path = signed
            .path
            .iter()
            .map(|hash| Hash::try_from(hash.as_slice()).map_err(|_| Refusal::Malformed))
            .collect::<Result<Vec<_>, _>>()?;
        let root = tree::root_of(&signed.record, signed.leaf_index, signed.leaf_count, &path)
            .ok_or(Refusal::Signature)?;
        let batch = self.verify_root(public_key, &root, batch)?;
        let record = Record::decode(signed.record.clone()).map_err(|_| Refusal::Malformed)?;
        Ok((record, batch))
    }

    fn verify_root(&self, key: &[u8; 32], root: &Hash, batch: Batch) -> Result<Arc<Batch>, Refusal> {
        // The signature is part of what is remembered: a copy with another, bad one must not be relayed.
        let count = batch.leaf_count.to_be_bytes();
        let mark = sha256(&[key, &batch.signer, &count, root, &batch.signature]);
        if let Some(batch) = self.remembered().find(&mark) {
            return Ok(batch);
        }
        UnparsedPublicKey::new(&ED25519, key)
            .verify(&signed_bytes(batch.leaf_count, root), &batch.signature)
            .map_err(|_| Refusal::Signature)?;
        let batch = Arc::new(batch);
        self.remembered().keep(mark, Arc::clone(&batch), self.most);
        Ok(batch)
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, Remembered> {
        self.good.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn new_key() -> BatchSigner {
        let certificate =
            RecordCertificate { certificate: b"certificate".to_vec(), intermediates: Vec::new() };
        BatchSigner { key: RecordKey::generate().unwrap(), fingerprint: [1; 32], certificate }
    }

    fn records(count: usize) -> Vec<Record> {
        (0..count).map(|n| Record { key: format!("k{n}"), version: n as u64, ..Record::default() }).collect()
    }

    #[test]
    fn every_batch_size_verifies() {
        let key = new_key();
        let public = key.key.public_key();
        for count in [1, 2, 3, 5, 8, 255, 256, 257] {
            let records = records(count);
            let verifier = Verifier::new();
            for (record, signed) in records.iter().zip(key.sign(&records)) {
                assert_eq!(verifier.verify(&signed, &public).unwrap().0, *record);
            }
        }
    }

    #[test]
    fn changed_parts_are_refused() {
        let key = new_key();
        let public = key.key.public_key();
        let signed = key.sign(&records(7));
        let verifier = Verifier::new();
        assert!(verifier.verify(&signed[3], &public).is_ok());
        let mut changed: Vec<SignedRecord> = Vec::new();
        let mut bytes = signed[3].record.to_vec();
        bytes[1] ^= 1;
        changed.push(SignedRecord { record: bytes.into(), ..signed[3].clone() });
        changed.push(SignedRecord { leaf_index: 2, ..signed[3].clone() });
        changed.push(SignedRecord { leaf_index: u32::MAX, ..signed[3].clone() });
        changed.push(SignedRecord { leaf_count: 8, ..signed[3].clone() });
        changed.push(SignedRecord { leaf_count: 0, ..signed[3].clone() });
        changed.push(SignedRecord { path: Vec::new(), ..signed[3].clone() });
        changed.push(SignedRecord { signature: vec![0; 64], ..signed[3].clone() });
        changed.push(SignedRecord { signature: Vec::new(), ..signed[3].clone() });
        let mut longer = signed[3].clone();
        longer.path.push(vec![0; 32]);
        changed.push(longer);
        for bad in changed {
            assert!(verifier.verify(&bad, &public).is_err(), "{bad:?}");
        }
        let other = new_key().key.public_key();
        assert_eq!(verifier.verify(&signed[3], &other).unwrap_err(), Refusal::Signature);
    }

    #[test]
    fn an_inner_node_does_not_pass_as_a_record() {
        let key = new_key();
        let public = key.key.public_key();
        let signed = key.sign(&records(4));
        let left = tree::leaf(&signed[0].record);
        let right = tree::leaf(&signed[1].record);
        let forged = SignedRecord {
            record: [left, right].concat().into(),
            path: vec![signed[0].path[1].clone()],
            leaf_index: 0,
            leaf_count: 2,
            ..signed[0].clone()
        };
        assert_eq!(Verifier::new().verify(&forged, &public).unwrap_err(), Refusal::Signature);
    }

    proptest! {
        #[test]
        fn random_bytes_never_pass_nor_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(signed) = SignedRecord::decode(bytes.as_slice()) {
                prop_assert!(Verifier::new().verify(&signed, &[7; 32]).is_err());
            }
        }
    }
}
