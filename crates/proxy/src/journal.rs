//! What a role has applied of the records that it hears, and what it could not apply.

use atoll_model::Kind;
use std::collections::BTreeMap;
use std::fmt::Display;
use tracing::warn;

/// Errors that are remembered, to be shown.
const ERRORS_MAX: usize = 16;

/// The bookkeeping beside a role's view.
#[derive(Debug, Default)]
pub struct Journal {
    /// The newest desired state that was seen: the store's epoch and revision.
    pub desired: (u64, u64),
    /// Something was heard from another node.
    pub heard: bool,
    /// Record (`kind/key`) → why it can't be applied.
    errors: BTreeMap<String, String>,
}

impl Journal {
    /// Desired state of this version was heard.
    pub fn heard_desired(&mut self, version: (u64, u64)) {
        self.desired = self.desired.max(version);
        self.heard = true;
    }

    /// What became of a record. One that can't be applied changes nothing: the last good one stays.
    pub fn note(&mut self, kind: Kind, key: &str, outcome: Result<(), impl Display>) {
        match outcome {
            Ok(()) if self.errors.is_empty() => {}
            Ok(()) => {
                self.errors.remove(&name(kind, key));
            }
            Err(error) => {
                let record = name(kind, key);
                warn!(%record, %error, "a record can't be applied; the last good one stays");
                if self.errors.len() < ERRORS_MAX || self.errors.contains_key(&record) {
                    self.errors.insert(record, error.to_string());
                }
            }
        }
    }

    /// Records that could not be applied, and why; at most 16.
    #[must_use]
    pub fn errors(&self) -> Vec<(String, String)> {
        self.errors.iter().map(|(record, why)| (record.clone(), why.clone())).collect()
    }
}

fn name(kind: Kind, key: &str) -> String {
    format!("{:#x}/{key}", kind.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_shown_until_the_record_is_mended() {
        let mut journal = Journal::default();
        journal.note(Kind::CLUSTER, "a", Err("bad"));
        assert_eq!(journal.errors(), [("0x10402/a".to_owned(), "bad".to_owned())]);
        journal.note(Kind::CLUSTER, "a", Err("worse"));
        assert_eq!(journal.errors()[0].1, "worse");
        for n in 0..2 * ERRORS_MAX {
            journal.note(Kind::CLUSTER, &n.to_string(), Err("bad"));
        }
        assert_eq!(journal.errors().len(), ERRORS_MAX);
        journal.note(Kind::CLUSTER, "a", Ok::<(), String>(()));
        assert_eq!(journal.errors().len(), ERRORS_MAX - 1);
        journal.heard_desired((1, 5));
        journal.heard_desired((1, 3));
        assert_eq!(journal.desired, (1, 5));
    }
}
