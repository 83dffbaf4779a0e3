//! Between the wire's messages and the store: reads, verifies, and writes. Whatever comes in here was
//! made by somebody else.

use crate::authority::{self, Refusal};
use crate::batch::{RECORD_BYTES_MAX, Verifier, sha256};
use crate::records::proof::Proof;
use crate::records::{Delta, LogId, Verified, Watermark};
use crate::scope::{Entry, Owner, Scope};
use crate::signers::KnownSigner;
use atoll_model::Kind;
use atoll_wire::Message;
use atoll_wire::gossip;
use atoll_wire::record::{Record, SignedRecord};
use bytes::Bytes;
use std::sync::Arc;

/// Most watermarks read from one message.
pub(crate) const WATERMARKS_MAX: usize = 100_000;
/// Most scopes read from one message.
const SCOPES_MAX: usize = 1000;
/// Of a summary. A peer that forges one only keeps itself from being told.
const SUMMARY_BYTES: usize = 16;

pub(crate) fn log_id(owner: &str, scope: &str) -> Option<LogId> {
    Some(LogId { owner: Owner::parse(owner).ok()?, scope: Scope::parse(scope).ok()? })
}

pub(crate) fn read_scopes(names: &[String]) -> Vec<Scope> {
    names.iter().take(SCOPES_MAX).filter_map(|name| Scope::parse(name).ok()).collect()
}

pub(crate) fn read_digest(watermarks: &[gossip::Watermark]) -> Vec<(LogId, Watermark)> {
    let read = |mark: &gossip::Watermark| {
        let id = log_id(&mark.owner, &mark.scope)?;
        let (epoch, version) = (mark.epoch, mark.version);
        Some((id, Watermark { epoch, version, floor: mark.floor, resyncing: mark.resyncing }))
    };
    watermarks.iter().take(WATERMARKS_MAX).filter_map(read).collect()
}

/// A hash of how far a store is: equal where neither side has anything to tell. Floors are left out: they
/// differ with the time at which each node collects its deletions.
pub(crate) fn summary(digest: &[(LogId, Watermark)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(digest.len() * 48);
    for (id, mark) in digest {
        for name in [id.owner.as_str(), id.scope.as_str()] {
            bytes.extend_from_slice(name.as_bytes());
            bytes.push(0);
        }
        bytes.extend_from_slice(&mark.epoch.to_be_bytes());
        bytes.extend_from_slice(&mark.version.to_be_bytes());
        bytes.push(u8::from(mark.resyncing));
    }
    sha256(&[&bytes])[..SUMMARY_BYTES].to_vec()
}

pub(crate) fn write_digest(digest: &[(LogId, Watermark)]) -> Vec<gossip::Watermark> {
    let write = |(id, mark): &(LogId, Watermark)| gossip::Watermark {
        owner: id.owner.as_str().to_owned(),
        scope: id.scope.as_str().to_owned(),
        epoch: mark.epoch,
        version: mark.version,
        floor: mark.floor,
        resyncing: mark.resyncing,
    };
    digest.iter().map(write).collect()
}

pub(crate) fn write_delta(delta: &Delta) -> gossip::Delta {
    gossip::Delta {
        owner: delta.log.owner.as_str().to_owned(),
        scope: delta.log.scope.as_str().to_owned(),
        epoch: delta.epoch,
        upto: delta.records.last().map_or(delta.after, |record| record.entry.version),
        reset: delta.reset,
        after: delta.after,
        more: delta.more,
        floor: delta.floor,
        records: delta.records.iter().map(|record| record.proof.signed()).collect(),
    }
}

/// A delta with its records verified. What a signer may not write is left out; at the first record that
/// does not verify the rest is left out, too, because nothing in it can be trusted to be complete.
pub(crate) fn read_delta(
    delta: gossip::Delta,
    log: LogId,
    held: Option<Watermark>,
    verifier: &Verifier,
    signer_of: impl Fn(&[u8]) -> Option<KnownSigner>,
    mut refuse: impl FnMut(Refusal, &Record),
) -> Delta {
    let mut read = Delta {
        log,
        epoch: delta.epoch,
        after: delta.after,
        reset: delta.reset,
        floor: delta.floor,
        more: delta.more,
        records: Vec::with_capacity(delta.records.len()),
    };
    let known_upto = held.filter(|mark| {
        mark.epoch == delta.epoch && !(mark.version < delta.floor && mark.floor < delta.floor)
    });
    for signed in delta.records {
        if known_upto.is_some_and(|mark| peek_version(&signed).is_some_and(|version| version <= mark.version))
        {
            continue;
        }
        match read_record(signed, verifier, &signer_of) {
            Ok(record) => read.records.push(record),
            Err((refusal, record)) => {
                refuse(refusal, &record);
                if matches!(refusal, Refusal::Signature | Refusal::UnknownSigner | Refusal::Malformed) {
                    read.more = true;
                    break;
                }
            }
        }
    }
    read
}

/// The version that an unverified record claims. Good enough to skip what is held anyway.
fn peek_version(signed: &SignedRecord) -> Option<u64> {
    if signed.record.len() > RECORD_BYTES_MAX {
        return None;
    }
    Record::decode(signed.record.clone()).ok().map(|record| record.version)
}

/// Verifies one record: signature, authority, shape.
pub(crate) fn read_record(
    mut signed: SignedRecord,
    verifier: &Verifier,
    signer_of: impl Fn(&[u8]) -> Option<KnownSigner>,
) -> Result<Verified, (Refusal, Box<Record>)> {
    // A slice of the message would keep all of the message in memory.
    signed.record = Bytes::copy_from_slice(&signed.record);
    let nothing = |refusal| (refusal, Box::new(Record::default()));
    let known = signer_of(&signed.signer).ok_or_else(|| nothing(Refusal::UnknownSigner))?;
    let (record, batch) = verifier.verify(&signed, &known.signer.public_key).map_err(nothing)?;
    if let Err(refusal) = authority::check(&known.signer, &record) {
        return Err((refusal, Box::new(record)));
    }
    let id = log_id(&record.owner, &record.scope);
    let Some(id) = id else { return Err((Refusal::Malformed, Box::new(record))) };
    Ok(verified(id, record, Proof::new(signed, batch), &known))
}

/// A record that was checked, or that this node has just signed.
pub(crate) fn verified(id: LogId, record: Record, proof: Proof, by: &KnownSigner) -> Verified {
    // The body is in the bytes that were signed: it is not to be kept twice.
    let body = Record::decode(proof.record.clone()).map_or(record.body, |same| same.body);
    let entry = Entry {
        owner: id.owner,
        kind: Kind(record.kind),
        scope: id.scope,
        key: record.key.into(),
        epoch: record.epoch,
        version: record.version,
        deleted: record.deleted,
        body,
        signer: Arc::clone(&by.signer),
        written_ms: record.written_ms,
    };
    Verified { entry: Arc::new(entry), proof: Arc::new(proof) }
}
