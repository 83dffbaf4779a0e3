//! Who calls: bearer tokens, of which the store has the SHA-256.

use super::{Api, Problem};
use crate::apps::Caller;
use crate::store::objects::ApiToken;
use crate::store::seal::random;
use crate::store::{Store, StoreError};
use atoll_model::OrgName;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use data_encoding::{BASE32_NOPAD, HEXLOWER};
use http::{StatusCode, header};
use std::io;
use std::path::Path;
use std::time::Duration;

/// The first token, in the data folder; mode 0600.
pub const ADMIN_TOKEN_FILE: &str = "admin-token";
/// Longest wait for a request's body and our answer's head.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(25);
const TOKEN_BYTES: usize = 32;
const TOKEN_TEXT_MAX: usize = 256;

/// SHA-256, hex.
pub(super) fn hash(bytes: &[u8]) -> String {
    HEXLOWER.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

/// Lets only callers with a valid token through, and says who they are.
pub(super) async fn require(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let Some(caller) = caller(&api.store, &request) else {
        api.metrics.unauthorized.inc();
        return Problem::unauthorized().into_response();
    };
    api.metrics.requests.inc();
    request.extensions_mut().insert(caller);
    // Streams answer their head at once; what follows it is not bounded here.
    match tokio::time::timeout(ANSWER_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_elapsed) => {
            let detail = "the request took too long: its body did not arrive, or the store is stuck";
            Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", "The request took too long", detail)
                .into_response()
        }
    }
}

fn caller(store: &Store, request: &Request) -> Option<Caller> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.len() > TOKEN_TEXT_MAX {
        return None;
    }
    // Compared by hash: the time that takes says nothing of the token.
    let stored = store.get::<ApiToken>(&format!("{}/{}", OrgName::default_org(), hash(token.as_bytes())))?;
    Some(Caller { org: stored.org, name: stored.name })
}

/// Makes sure that there is an admin token, in the file and in the store.
pub async fn admin_token(store: &Store, data_dir: &Path, now_ms: u64) -> io::Result<String> {
    let path = data_dir.join(ADMIN_TOKEN_FILE);
    let token = match std::fs::read_to_string(&path) {
        Ok(token) if !token.trim().is_empty() => token.trim().to_owned(),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(_) | Err(_) => {
            let mut bytes = [0; TOKEN_BYTES];
            random(&mut bytes)?;
            let token = format!("atoll_{}", BASE32_NOPAD.encode(&bytes).to_lowercase());
            atoll_process::files::write_atomic(&path, format!("{token}\n").as_bytes(), 0o600)?;
            tracing::info!(path = %path.display(), "made the admin token");
            token
        }
    };
    let stored = ApiToken {
        org: OrgName::default_org(),
        hash: hash(token.as_bytes()),
        name: "admin".to_owned(),
        created_ms: now_ms,
    };
    if store.get::<ApiToken>(&format!("{}/{}", stored.org, stored.hash)).is_none() {
        let kept = store.change(move |change| {
            // A new file means that the old token is not to work any more.
            for old in change.list::<ApiToken>("").into_iter().filter(|old| old.name == stored.name) {
                change.remove::<ApiToken>(&format!("{}/{}", old.org, old.hash));
            }
            change.put(&stored)
        });
        kept.await.map_err(|error: StoreError| io::Error::other(error))?;
    }
    Ok(token)
}
