//! Who calls, and whether it may: bearer tokens, of which the store has the SHA-256.

use super::routes::Operation;
use super::{Api, Problem, audit, bundles};
use crate::caller::{Asked, Caller};
use crate::store::objects::{ApiToken, TokenRole};
use crate::store::seal::random;
use crate::store::{Change, Store, StoreError};
use atoll_model::OrgName;
use atoll_process::clock::unix_ms;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use data_encoding::{BASE32_NOPAD, HEXLOWER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The first token, in the data folder; mode 0600.
pub const ADMIN_TOKEN_FILE: &str = "admin-token";
/// Longest wait for all but uploads.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(25);
const TOKEN_BYTES: usize = 32;
const TOKEN_TEXT_MAX: usize = 256;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_BYTES_MAX: usize = 128;
/// Of the object's name in logs.
const OBJECT_BYTES_MAX: usize = 256;

/// SHA-256, hex.
pub(super) fn hash(bytes: &[u8]) -> String {
    HEXLOWER.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

/// Stands before every handler: lets only those through who may, with parameters that the operation has, and
/// says who they are.
pub(super) async fn guard(
    State((api, operation)): State<(Api, Arc<Operation>)>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = request_id(request.headers());
    let mut response = match admit(&api, &operation, &request, &id) {
        Ok(None) => next.run(request).await,
        Ok(Some(caller)) => {
            request.extensions_mut().insert(caller.clone());
            let response = answer(request, next, longest(&operation)).await;
            // Some depends on what is asked for: another organization, a token of a higher role.
            if response.status() == StatusCode::FORBIDDEN {
                forbidden(&api, &operation, &caller);
            }
            if operation.method != Method::GET && response.status().is_success() {
                audit::unless_settled(&api, &caller, response.status()).await;
            }
            response
        }
        Err(refused) => refused.into_response(),
    };
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

fn admit(api: &Api, operation: &Operation, request: &Request, id: &str) -> Result<Option<Caller>, Problem> {
    let caller = match operation.least.role() {
        None => None,
        Some(role) => {
            let caller = caller(api, operation, request, id).ok_or_else(|| {
                api.metrics.unauthorized.inc();
                Problem::unauthorized()
            })?;
            if caller.role < role {
                forbidden(api, operation, &caller);
                return Err(Problem::role_needed(role, &caller.name, caller.role));
            }
            Some(caller)
        }
    };
    api.metrics.requests.inc();
    known_parameters(operation, request.uri().query().unwrap_or_default())?;
    Ok(caller)
}

fn forbidden(api: &Api, operation: &Operation, caller: &Caller) {
    api.metrics.forbidden.inc();
    let (method, path) = (&operation.method, &operation.template);
    let (by, token, object) = (&caller.name, &caller.token, &caller.asked.object);
    let (role, least, request_id) =
        (caller.role.as_str(), operation.least.as_str(), &caller.asked.request_id);
    tracing::warn!(
        %method, path, object, org = %caller.org, by, token, role, least, request_id,
        "a request was refused: the token's role may not do it"
    );
}

/// A parameter that nobody reads is a mistake that the caller should hear of.
fn known_parameters(operation: &Operation, query: &str) -> Result<(), Problem> {
    let names = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split('=').next());
    for name in names.flatten() {
        if operation.query.iter().any(|known| known == name) {
            continue;
        }
        let known = match operation.query.as_slice() {
            [] => "there are none here".to_owned(),
            known => format!("there are {}", known.join(", ")),
        };
        let name: String = name.chars().take(64).collect();
        let detail = format!("there is no query parameter `{}`; {known}", name.escape_debug());
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "unknown-parameter",
            "Unknown query parameter",
            detail,
        ));
    }
    Ok(())
}

/// Longest wait for a request's body and our answer's head. A content of a bundle takes as long as its bytes do;
/// who sends none of them is given up by its handler.
fn longest(operation: &Operation) -> Duration {
    if operation.template == bundles::CONTENT_PATH { bundles::UPLOAD_TIMEOUT } else { ANSWER_TIMEOUT }
}

/// Streams answer their head at once; what follows it is not bounded here.
async fn answer(request: Request, next: Next, longest: Duration) -> Response {
    match tokio::time::timeout(longest, next.run(request)).await {
        Ok(response) => response,
        Err(_elapsed) => {
            let detail = "the request took too long: its body did not arrive, or the store is stuck";
            Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", "The request took too long", detail)
                .into_response()
        }
    }
}

fn caller(api: &Api, operation: &Operation, request: &Request, id: &str) -> Option<Caller> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, text) = value.split_once(' ')?;
    let text = text.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || text.len() > TOKEN_TEXT_MAX {
        return None;
    }
    // Compared by hash: the time that takes says nothing of the token.
    let stored = api.store.get::<ApiToken>(&format!("{}/{}", org_of(text)?, hash(text.as_bytes())))?;
    let now_ms = unix_ms();
    if has_ended(&stored, now_ms) {
        return None;
    }
    api.uses.note(&api.store, &stored, now_ms);
    let (object, app) = named(&operation.template, request.uri().path());
    let asked =
        Asked::new(id.to_owned(), operation.method.to_string(), operation.template.clone(), object, app);
    Some(Caller {
        token: stored.id().to_owned(),
        org: stored.org,
        name: stored.name,
        hash: stored.hash,
        role: stored.role,
        asked: Arc::new(asked),
    })
}

/// `atoll_<organization>_<secret>`; the first tokens were of the first organization, and did not say so.
fn org_of(token: &str) -> Option<OrgName> {
    match token.strip_prefix("atoll_").and_then(|rest| rest.split_once('_')) {
        Some((org, _secret)) => org.parse().ok(),
        None => Some(OrgName::default_org()),
    }
}

/// What stands where the template has parameters, and which of it is an app.
fn named(template: &str, path: &str) -> (String, Option<String>) {
    let (mut object, mut app) = (String::new(), None);
    for (pattern, segment) in template.split('/').zip(path.split('/')) {
        let Some(name) = pattern.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else { continue };
        let segment: String = segment.chars().take(OBJECT_BYTES_MAX).collect();
        if !object.is_empty() {
            object.push('/');
        }
        object.push_str(&segment);
        if name == "app" {
            app = Some(segment);
        }
    }
    (object, app)
}

fn request_id(headers: &HeaderMap) -> String {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let own = headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let good = |id: &&str| (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(allowed);
    own.filter(good).map_or_else(|| HEXLOWER.encode(&rand::random::<[u8; 16]>()), str::to_owned)
}

fn has_ended(token: &ApiToken, now_ms: u64) -> bool {
    token.expires_ms.is_some_and(|expires_ms| now_ms >= expires_ms)
}

/// Whether a caller's token is still good. Streams ask again and again: a token can be revoked while they run, and
/// what has its organization's name can be another's by then.
pub(super) fn is_good(store: &Store, caller: &Caller) -> bool {
    let stored = store.get::<ApiToken>(&format!("{}/{}", caller.org, caller.hash));
    stored.is_some_and(|token| !has_ended(&token, unix_ms()))
}

/// Whether a caller may still act, inside the change that it asks for: its token may have been revoked since.
pub(super) fn still_valid(change: &Change<'_>, caller: &Caller) -> Result<(), Problem> {
    let stored = change.get::<ApiToken>(&format!("{}/{}", caller.org, caller.hash));
    match stored.filter(|token| !has_ended(token, unix_ms())) {
        Some(_) => Ok(()),
        None => Err(Problem::unauthorized()),
    }
}

/// A new token's text. The organization is in it, so that its hash can be looked up among those of one.
pub(super) fn new_token(org: &OrgName) -> io::Result<String> {
    let mut bytes = [0; TOKEN_BYTES];
    random(&mut bytes)?;
    Ok(format!("atoll_{org}_{}", BASE32_NOPAD.encode(&bytes).to_lowercase()))
}

/// Makes sure that there is an admin token, in the file and in the store.
pub async fn admin_token(store: &Store, data_dir: &Path, now_ms: u64) -> io::Result<String> {
    let path = data_dir.join(ADMIN_TOKEN_FILE);
    let token = match std::fs::read_to_string(&path) {
        Ok(token) if !token.trim().is_empty() => token.trim().to_owned(),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(_) | Err(_) => {
            let token = new_token(&OrgName::default_org())?;
            atoll_process::files::write_atomic(&path, format!("{token}\n").as_bytes(), 0o600)?;
            tracing::info!(path = %path.display(), "made the admin token");
            token
        }
    };
    let stored = ApiToken {
        org: OrgName::default_org(),
        hash: hash(token.as_bytes()),
        name: ADMIN_NAME.to_owned(),
        role: TokenRole::Operator,
        created_ms: now_ms,
        by: String::new(),
        expires_ms: None,
        used_ms: None,
    };
    if store.get::<ApiToken>(&format!("{}/{}", stored.org, stored.hash)).is_none() {
        let kept = store.change(move |change| {
            // A new file means that the old token is not to work any more.
            let prefix = format!("{}/", stored.org);
            for old in change.list::<ApiToken>(&prefix).into_iter().filter(|old| old.name == ADMIN_NAME) {
                change.remove::<ApiToken>(&format!("{}/{}", old.org, old.hash));
            }
            change.put(&stored)
        });
        kept.await.map_err(|error: StoreError| io::Error::other(error))?;
    }
    Ok(token)
}

/// The name of the token in the file; no other gets it.
pub(super) const ADMIN_NAME: &str = "admin";
