//! Who asks something of the API, and what: what handlers scope by, and what the audit log keeps.

use crate::store::objects::TokenRole;
use atoll_model::OrgName;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Longest text of all notes of one request.
const NOTE_BYTES_MAX: usize = 1024;

/// Who asks, and for which organization.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The organization. Everything that a handler reads or changes is of this one.
    pub org: OrgName,
    /// The token's name.
    pub name: String,
    /// The token's id.
    pub token: String,
    /// The token's hash, by which the store has it.
    pub(crate) hash: String,
    /// What it may.
    pub role: TokenRole,
    /// The request.
    pub asked: Arc<Asked>,
}

/// What a caller asked for.
#[derive(Debug, Default)]
pub struct Asked {
    /// The request's id: the client's, or one of ours.
    pub request_id: String,
    /// The method.
    pub method: String,
    /// The path as the description has it: `/v1/apps/{app}`.
    pub template: String,
    /// What the template's parameters stand for, in order, with `/` between them.
    pub object: String,
    /// The app among them.
    pub app: Option<String>,
    notes: Mutex<String>,
    concerned: OnceLock<OrgName>,
    settled: AtomicBool,
}

impl Asked {
    /// A request that no one has answered yet.
    #[must_use]
    pub fn new(
        request_id: String,
        method: String,
        template: String,
        object: String,
        app: Option<String>,
    ) -> Self {
        Self { request_id, method, template, object, app, ..Self::default() }
    }

    /// Adds to what the audit log says of this change: what was before, what is after. Never a secret.
    pub fn note(&self, text: &str) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if !notes.is_empty() && notes.len() < NOTE_BYTES_MAX {
            notes.push_str("; ");
        }
        let room = NOTE_BYTES_MAX.saturating_sub(notes.len());
        notes.extend(text.chars().take(room));
    }

    /// Says that the change is about another organization than the caller's: it is in that one's log too.
    pub fn concern(&self, org: &OrgName) {
        let _first = self.concerned.set(org.clone()).is_ok();
    }

    pub(crate) fn concerned(&self) -> Option<OrgName> {
        self.concerned.get().cloned()
    }

    pub(crate) fn notes(&self) -> String {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The audit log has it, or there is nothing to have: a rehearsal, a repetition.
    pub fn settle(&self) {
        self.settled.store(true, Ordering::Release);
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }
}
