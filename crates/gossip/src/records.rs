//! The replicated records, as a state machine without I/O and without a clock.
//!
//! Every record of an owner in a scope has a place in one order, (epoch, version). What a node holds of
//! it is therefore told by one number, the watermark: everything up to and with it is here. Two nodes
//! compare watermarks, and each sends what the other lacks, in that order; several records may share one
//! version (a revision of the store), and are never parted.
//!
//! A deletion is a record too. It is collected after a while; `floor` is the newest one collected. Who is
//! behind the floor can't be told what was deleted, and is *reset*: it is sent everything that there is,
//! and what it held before and was not sent again is dropped at the end, not before, so that readers never
//! see a table emptied and filled again. A higher epoch is a reset, too.
//!
//! A peer can't make a record, nor raise a watermark beyond a record that its owner signed. It can withhold.

pub(crate) mod log;
pub(crate) mod proof;
pub(crate) mod store;

use crate::scope::{Entry, Owner, Scope};
use atoll_model::Kind;
use proof::Proof;
use std::sync::Arc;

pub(crate) use store::{Applied, Delta, Store};

/// A record whose signature and authority were checked, and the bytes to hand on.
#[derive(Debug, Clone)]
pub(crate) struct Verified {
    pub(crate) entry: Arc<Entry>,
    pub(crate) proof: Arc<Proof>,
}

impl Verified {
    /// Bytes on the wire, about.
    pub(crate) fn bytes(&self) -> usize {
        self.proof.record.len() + self.proof.path.len() / 32 * 34 + 110
    }
}

/// One owner's records in one scope.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LogId {
    pub(crate) owner: Owner,
    pub(crate) scope: Scope,
}

/// How far somebody is with a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Watermark {
    pub(crate) epoch: u64,
    pub(crate) version: u64,
    pub(crate) floor: u64,
    pub(crate) resyncing: bool,
}

/// Bounds of a store.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Logs in all.
    pub(crate) logs: usize,
    /// Records of one node in one scope.
    pub(crate) node_records: usize,
    /// Bytes of those: a node that was taken over must not fill the memory of all others.
    pub(crate) node_bytes: usize,
    /// Records of control in one scope.
    pub(crate) control_records: usize,
    /// Records of kinds that this version doesn't know, of one owner in one scope.
    pub(crate) opaque_records: usize,
    /// Bytes of those.
    pub(crate) opaque_bytes: usize,
    /// How long a deletion is kept, ms.
    pub(crate) tombstone_ms: u64,
    /// Deletions kept of one owner in one scope.
    pub(crate) tombstones: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            logs: 40_000,
            node_records: 200_000,
            node_bytes: 64 << 20,
            control_records: 1_000_000,
            opaque_records: 256,
            opaque_bytes: 256 * 1024,
            tombstone_ms: 24 * 3600 * 1000,
            tombstones: 10_000,
        }
    }
}

/// What says that a node was removed.
pub(crate) const DENIALS: [Kind; 2] = [Kind::DENIAL, Kind::REGION_DENIAL];

/// Whether this version reads records of the kind.
pub(crate) fn is_known(kind: Kind) -> bool {
    Kind::KNOWN.contains(&kind)
}
