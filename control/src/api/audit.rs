//! The audit log: every change, who made it, and when. An entry is written in the transaction of its change, so
//! that there is none without the other. Each organization has its own.

use super::{Api, Problem, orgs};
use crate::caller::Caller;
use crate::store::objects::{AuditEntry, AuditHead};
use crate::store::{Change, StoreError};
use atoll_model::OrgName;
use atoll_process::clock::unix_ms;
use axum::Extension;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::Value;

/// Entries that an organization keeps; about 500 bytes each.
const KEPT_MAX: u64 = 10_000;
/// How long an entry is kept.
const KEPT_MS: u64 = 90 * 24 * 3_600 * 1_000;
/// Old entries that go with a new one, so that no change pays for many.
const DROPPED_AT_ONCE: u64 = 4;
/// Old entries of an organization that go with one sweep.
const SWEPT_AT_ONCE: u64 = 1_000;

/// Entries in one answer: by default, at most.
const PAGE: usize = 1_000;
const PAGE_MAX: usize = 10_000;
const JSON_LINES: &str = "application/x-ndjson";

/// Which entries.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Which {
    org: Option<OrgName>,
    app: Option<String>,
    since_ms: Option<u64>,
    after: Option<u64>,
    limit: Option<usize>,
    tail: Option<usize>,
}

impl Which {
    fn wants(&self, entry: &AuditEntry) -> bool {
        let of_app = self.app.as_ref().is_none_or(|app| entry.app.as_ref() == Some(app));
        of_app && self.since_ms.is_none_or(|since_ms| entry.at_ms >= since_ms)
    }
}

/// The audit log of the organization: one JSON object a line, oldest first
#[utoipa::path(get, path = "/v1/audit",
    params(("org" = Option<String>, Query, description = "another organization; for operators"),
        ("app" = Option<String>, Query, description = "only what was about this app"),
        ("since_ms" = Option<u64>, Query, description = "only what is not older, ms since 1970"),
        ("after" = Option<u64>, Query, description = "only entries with a greater `seq`"),
        ("limit" = Option<u64>, Query, description = "how many at most; 1000 by default, at most 10000"),
        ("tail" = Option<u64>, Query, description = "only the newest ones, this many")),
    responses((status = 200, body = AuditEntry, content_type = "application/x-ndjson", description =
        "where there is more, the field `Link` names the next page (`rel=\"next\"`)"),
        (status = 403, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn list(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(which): Query<Which>,
) -> Result<Response, Problem> {
    let org = orgs::meant(&api.store, &caller, which.org.clone())?;
    let limit = which.limit.unwrap_or(PAGE);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(Problem::invalid("limit", format!("a page has between 1 and {PAGE_MAX} entries")));
    }
    let Page { entries, next } = page(&api, &org, &which, limit);
    let mut text = String::new();
    for entry in &entries {
        let line = serde_json::to_string(entry).map_err(|error| Problem::internal(error.to_string()))?;
        text.push_str(&line);
        text.push('\n');
    }
    let mut response = ([(header::CONTENT_TYPE, JSON_LINES)], text).into_response();
    if let Some(next) = next {
        let mut link = format!("</v1/audit?after={next}&limit={limit}");
        let mut add = |name: &str, value: Option<String>| {
            value.into_iter().for_each(|value| link.push_str(&format!("&{name}={value}")));
        };
        add("since_ms", which.since_ms.map(|ms| ms.to_string()));
        add("org", which.org.map(|org| org.to_string()));
        // What is no app's name finds nothing, and then there is no next page.
        add("app", which.app);
        link.push_str(">; rel=\"next\"");
        if let Ok(link) = HeaderValue::from_str(&link) {
            response.headers_mut().insert(header::LINK, link);
        }
    }
    Ok(response)
}

struct Page {
    entries: Vec<AuditEntry>,
    /// The last entry that was looked at, if there are more.
    next: Option<u64>,
}

fn page(api: &Api, org: &OrgName, which: &Which, limit: usize) -> Page {
    let nothing = Page { entries: Vec::new(), next: None };
    let Some(head) = api.store.get::<AuditHead>(org.as_str()) else { return nothing };
    let entry = |seq: u64| api.store.get::<AuditEntry>(&AuditEntry::tail(org.as_str(), seq));
    let first = which.after.map_or(head.first, |after| head.first.max(after.saturating_add(1)));
    if let Some(tail) = which.tail {
        let newest = (first..head.next).rev().filter_map(entry).filter(|entry| which.wants(entry));
        let mut entries: Vec<AuditEntry> = newest.take(tail.min(limit)).collect();
        entries.reverse();
        return Page { entries, next: None };
    }
    let mut wanted = (first..head.next).filter_map(entry).filter(|entry| which.wants(entry));
    let entries: Vec<AuditEntry> = wanted.by_ref().take(limit).collect();
    let next = wanted.next().and_then(|_more| entries.last().map(|entry| entry.seq));
    Page { entries, next }
}

/// What a node did at the node plane.
#[derive(Debug)]
pub(crate) struct Deed<'a> {
    /// The node.
    pub(crate) node: &'a str,
    /// What: `join`, `recover`.
    pub(crate) call: &'static str,
    /// The join token that it used.
    pub(crate) token: &'a str,
    /// More, for people.
    pub(crate) detail: String,
}

/// Writes down what a node did. Nodes are of the first organization.
pub(crate) fn record(change: &mut Change<'_>, deed: Deed<'_>, now_ms: u64) -> Result<(), StoreError> {
    let org = OrgName::default_org();
    let entry = AuditEntry {
        at_ms: now_ms,
        by: deed.node.to_owned(),
        token: deed.token.to_owned(),
        by_org: org.to_string(),
        role: "node".to_owned(),
        method: deed.call.to_owned(),
        object: deed.node.to_owned(),
        status: StatusCode::OK.as_u16(),
        detail: deed.detail,
        ..AuditEntry::default()
    };
    append(change, &org, entry)
}

/// Writes down a call of the API that changed something.
pub(super) fn of_call(
    change: &mut Change<'_>,
    caller: &Caller,
    status: StatusCode,
    answer: &Value,
) -> Result<(), StoreError> {
    let asked = &caller.asked;
    // What was made has its name in the answer.
    let made = || ["name", "id"].iter().find_map(|key| answer[*key].as_str().map(str::to_owned));
    let object = if asked.object.is_empty() { made().unwrap_or_default() } else { asked.object.clone() };
    let entry = AuditEntry {
        at_ms: unix_ms(),
        by: caller.name.clone(),
        token: caller.token.clone(),
        by_org: caller.org.to_string(),
        role: caller.role.as_str().to_owned(),
        method: asked.method.clone(),
        path: asked.template.clone(),
        object,
        app: asked.app.clone(),
        status: status.as_u16(),
        request_id: asked.request_id.clone(),
        detail: asked.notes(),
        ..AuditEntry::default()
    };
    if let Some(other) = asked.concerned().filter(|other| *other != caller.org) {
        append(change, &other, entry.clone())?;
    }
    append(change, &caller.org, entry)
}

/// Writes down a call that changed something without a store transaction of its own.
pub(super) async fn unless_settled(api: &Api, caller: &Caller, status: StatusCode) {
    if caller.asked.is_settled() {
        return;
    }
    let caller = caller.clone();
    let written = api.store.change(move |change| of_call(change, &caller, status, &Value::Null));
    if let Err(error) = written.await {
        tracing::error!(%error, "a change that was made is missing in the audit log");
    }
}

fn append(change: &mut Change<'_>, org: &OrgName, mut entry: AuditEntry) -> Result<(), StoreError> {
    let head = change.get::<AuditHead>(org.as_str());
    let mut head = head.unwrap_or_else(|| AuditHead { org: org.clone(), first: 1, next: 1 });
    entry.org = org.to_string();
    entry.seq = head.next;
    head.next += 1;
    drop_old(change, &mut head, entry.at_ms, DROPPED_AT_ONCE);
    change.put(&entry)?;
    change.put(&head)
}

fn drop_old(change: &mut Change<'_>, head: &mut AuditHead, now_ms: u64, most: u64) -> bool {
    let before = head.first;
    while head.first < head.next && head.first - before < most {
        let tail = AuditEntry::tail(head.org.as_str(), head.first);
        let is_old = |entry: AuditEntry| now_ms.saturating_sub(entry.at_ms) > KEPT_MS;
        let goes = head.next - head.first > KEPT_MAX || change.get::<AuditEntry>(&tail).is_none_or(is_old);
        // The entry that is being written is not there yet.
        if !goes || head.first + 1 == head.next {
            break;
        }
        change.remove::<AuditEntry>(&tail);
        head.first += 1;
    }
    head.first > before
}

/// Forgets entries that are too old.
pub(super) fn sweep(change: &mut Change<'_>, now_ms: u64) -> Result<(), StoreError> {
    for mut head in change.list::<AuditHead>("") {
        if drop_old(change, &mut head, now_ms, SWEPT_AT_ONCE) {
            change.put(&head)?;
        }
    }
    Ok(())
}
