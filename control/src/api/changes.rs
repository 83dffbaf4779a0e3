//! Changes: one store transaction each, together with the answer that is kept for its idempotency key, and
//! the entry of the audit log.

use super::auth::{hash, still_valid};
use super::{Api, Problem, audit};
use crate::apps::Caller;
use crate::store::objects::Idempotency;
use crate::store::{Change, StoreError};
use atoll_model::OrgName;
use atoll_process::clock::unix_ms;
use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

const KEY_HEADER: &str = "idempotency-key";
const KEY_BYTES_MAX: usize = 128;
const KEPT_MS: u64 = 24 * 3_600 * 1_000;
/// Answers that are kept at once; then the oldest go of who has most.
const KEPT_MAX: usize = 10_000;

/// A request that changes something, as far as its repetition is told by it.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) caller: Caller,
    pub(super) headers: &'a HeaderMap,
    pub(super) method: Method,
    pub(super) uri: &'a Uri,
    pub(super) body: &'a [u8],
}

/// Runs a change, or gives the answer that it got before.
pub(super) async fn change<T: Serialize>(
    api: &Api,
    request: Request<'_>,
    run: impl FnOnce(&mut Change<'_>) -> Result<(StatusCode, T), Problem> + Send + 'static,
) -> Result<Response, Problem> {
    let key = key(request.headers)?;
    let print = fingerprint(&request);
    let (sealer, caller) = (api.sealer.clone(), request.caller);
    let asked = caller.asked.clone();
    let done = api.store.change(move |change| {
        still_valid(change, &caller)?;
        let Some(key) = key else { return make(change, &caller, run) };
        let org = caller.org.clone();
        // An answer can hold a secret: it is for the token that asked, not for all of the organization.
        let key = format!("{}/{key}", caller.token);
        let purpose = format!("idempotency {org}/{key}");
        let now_ms = unix_ms();
        let kept = change.get::<Idempotency>(&format!("{org}/{key}")).filter(|kept| kept.expires_ms > now_ms);
        if let Some(kept) = kept {
            if kept.request != print {
                return Err(reused());
            }
            let body = sealer
                .unseal(&purpose, &kept.sealed_body)
                .map_err(|error| Problem::internal(error.to_string()))?;
            let status = StatusCode::from_u16(kept.status).unwrap_or(StatusCode::OK);
            return Ok((status, body));
        }
        let (status, body) = make(change, &caller, run)?;
        let sealed_body =
            sealer.seal(&purpose, &body).map_err(|error| Problem::internal(error.to_string()))?;
        make_room(change, now_ms);
        let (status_code, expires_ms) = (status.as_u16(), now_ms + KEPT_MS);
        change.put(&Idempotency {
            org,
            key,
            request: print,
            status: status_code,
            sealed_body,
            expires_ms,
        })?;
        Ok((status, body))
    });
    let ((status, body), _revision) = done.await.inspect_err(|problem| {
        if problem.status().is_server_error() {
            api.metrics.store_errors.inc();
        }
    })?;
    // The audit log has it: now, or since its first answer.
    asked.settle();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// Makes the change, and its entry in the audit log.
fn make<T: Serialize>(
    change: &mut Change<'_>,
    caller: &Caller,
    run: impl FnOnce(&mut Change<'_>) -> Result<(StatusCode, T), Problem>,
) -> Result<(StatusCode, Vec<u8>), Problem> {
    let (status, value) = run(change)?;
    let value = serde_json::to_value(&value).map_err(|error| StoreError::Damaged(error.to_string()))?;
    audit::of_call(change, caller, status, &value)?;
    Ok((status, value.to_string().into_bytes()))
}

/// Reads a JSON body; says where it is wrong.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Problem::invalid("body", error.to_string()),
        _ => Problem::bad_request(format!("the body is no JSON: {error}")),
    })
}

/// Forgets answers that are too old.
pub(super) fn sweep(change: &mut Change<'_>, now_ms: u64) {
    for kept in change.list::<Idempotency>("").into_iter().filter(|kept| kept.expires_ms <= now_ms) {
        change.remove::<Idempotency>(&format!("{}/{}", kept.org, kept.key));
    }
}

fn make_room(change: &mut Change<'_>, now_ms: u64) {
    if change.count::<Idempotency>() < KEPT_MAX {
        return;
    }
    sweep(change, now_ms);
    let all = change.list::<Idempotency>("");
    if all.len() < KEPT_MAX {
        return;
    }
    // Of the organization that has most: one that asks much must not make others' repetitions count anew.
    let mut by_org = BTreeMap::<&OrgName, Vec<&Idempotency>>::new();
    for kept in &all {
        by_org.entry(&kept.org).or_default().push(kept);
    }
    let mut most = by_org.into_values().max_by_key(Vec::len).unwrap_or_default();
    most.sort_by_key(|kept| kept.expires_ms);
    for kept in most.iter().take(KEPT_MAX / 10) {
        change.remove::<Idempotency>(&format!("{}/{}", kept.org, kept.key));
    }
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(KEY_HEADER) else { return Ok(None) };
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
    match value.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= KEY_BYTES_MAX && key.bytes().all(allowed) => {
            Ok(Some(key.to_owned()))
        }
        _ => Err(Problem::bad_request(format!(
            "an Idempotency-Key has 1 to {KEY_BYTES_MAX} of the characters A-Z a-z 0-9 - _ . :"
        ))),
    }
}

fn fingerprint(request: &Request<'_>) -> String {
    let head = format!("{} {}\n", request.method, request.uri);
    hash(&[head.as_bytes(), request.body].concat())
}

fn reused() -> Problem {
    Problem::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "idempotency-key-reused",
        "The idempotency key was used",
        "this Idempotency-Key came with another request before: use a new one for each change",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn who_asks_much_pushes_out_own_answers() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _feed) = Store::open(folder.path(), 1).unwrap();
        let kept = |org: &str, n: usize| Idempotency {
            org: org.parse().unwrap(),
            key: format!("token/{n:05}"),
            request: String::new(),
            status: 200,
            sealed_body: String::new(),
            expires_ms: 1_000 + n as u64,
        };
        let filled = store.change(move |change| {
            change.put(&kept("few", 0))?;
            (1..KEPT_MAX).try_for_each(|n| change.put(&kept("much", n)))?;
            make_room(change, 10);
            Ok::<_, StoreError>(())
        });
        filled.await.unwrap();
        assert_eq!(store.tails::<Idempotency>("few/").len(), 1, "it is the oldest of all");
        let much = store.tails::<Idempotency>("much/");
        assert_eq!((much.len(), much[0].as_str()), (KEPT_MAX - 1 - KEPT_MAX / 10, "much/token/01001"));
    }
}
