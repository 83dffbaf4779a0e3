//! API tokens: made, listed, revoked. A token's text is shown once; the store has its hash.

use super::auth::{ADMIN_NAME, hash, new_token};
use super::changes::{Request, change, decode};
use super::{Api, Problem, orgs};
use crate::caller::Caller;
use crate::store::objects::{ApiToken, TokenRole};
use crate::store::{Change, Store};
use atoll_model::OrgName;
use atoll_process::clock::unix_ms;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use axum::{Extension, Json};
use http::{HeaderMap, Method, StatusCode, Uri};
use serde::{Deserialize, Serialize};

/// Tokens of one organization.
const TOKENS_MAX: usize = 100;
const NAME_BYTES_MAX: usize = 64;
const TTL_MS_MIN: u64 = 1_000;
const TTL_MS_MAX: u64 = 10 * 365 * 24 * 3_600 * 1_000;
/// Tokens that have ended are shown this long.
const ENDED_KEPT_MS: u64 = 7 * 24 * 3_600 * 1_000;

/// What a new token is to be.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ApiTokenWish {
    /// Whose it is, as logs will name it; unique in the organization. Letters, digits, `.`, `_`, `-` and `@`.
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._@-]+$")]
    name: String,
    /// What it may do; `operator` only in the organization `default`.
    role: TokenRole,
    /// How long it lives, ms; without it, until it is revoked.
    ttl_ms: Option<u64>,
    /// The organization, if not the caller's own; only an operator can name another.
    #[schema(value_type = Option<String>)]
    org: Option<OrgName>,
}

/// A new token. Its text is shown this once.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct NewApiToken {
    id: String,
    name: String,
    org: String,
    role: TokenRole,
    token: String,
    expires_ms: Option<u64>,
}

/// A token, without its text.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ApiTokenView {
    id: String,
    name: String,
    org: String,
    role: TokenRole,
    created_ms: u64,
    /// The token that made it; empty for the first.
    by: String,
    expires_ms: Option<u64>,
    /// When it was last used, within the hour.
    used_ms: Option<u64>,
    /// `valid` or `expired`.
    state: &'static str,
}

/// A token that is worth nothing any more.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ApiTokenRevoked {
    id: String,
    name: String,
    revoked: bool,
}

/// Which organization's.
#[derive(Debug, Deserialize)]
pub(super) struct OfOrg {
    org: Option<OrgName>,
}

pub(super) fn tokens_of(store: &Store, org: &OrgName) -> Vec<ApiToken> {
    store.list::<ApiToken>(&format!("{org}/"))
}

/// The API tokens of the organization
#[utoipa::path(get, path = "/v1/tokens/api",
    params(("org" = Option<String>, Query, description = "another organization; for operators")),
    responses((status = 200, body = Vec<ApiTokenView>), (status = 404, body = Problem)))]
pub(super) async fn list(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(of): Query<OfOrg>,
) -> Result<Json<Vec<ApiTokenView>>, Problem> {
    let org = orgs::meant(&api.store, &caller, of.org)?;
    let now_ms = unix_ms();
    let view = |token: ApiToken| ApiTokenView {
        id: token.id().to_owned(),
        name: token.name,
        org: token.org.to_string(),
        role: token.role,
        created_ms: token.created_ms,
        by: token.by,
        expires_ms: token.expires_ms,
        used_ms: token.used_ms,
        state: if token.expires_ms.is_some_and(|at_ms| now_ms >= at_ms) { "expired" } else { "valid" },
    };
    let mut tokens = tokens_of(&api.store, &org);
    tokens.sort_by_key(|token| token.created_ms);
    Ok(Json(tokens.into_iter().map(view).collect()))
}

/// Makes an API token
#[utoipa::path(post, path = "/v1/tokens/api", request_body = ApiTokenWish,
    responses((status = 201, body = NewApiToken), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn create(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let wish: ApiTokenWish = decode(&body)?;
    check_name(&wish.name)?;
    if wish.ttl_ms.is_some_and(|ttl_ms| !(TTL_MS_MIN..=TTL_MS_MAX).contains(&ttl_ms)) {
        return Err(Problem::invalid("ttl_ms", "a token lives between a second and ten years"));
    }
    let org = orgs::meant(&api.store, &caller, wish.org.clone())?;
    if wish.role > caller.role {
        return Err(Problem::role_needed(wish.role, &caller.name, caller.role));
    }
    if wish.role == TokenRole::Operator && org != OrgName::default_org() {
        let detail = "operators are of the organization `default`: make it there, or give the role `admin`";
        return Err(Problem::invalid("role", detail));
    }
    let (asked, by) = (caller.asked.clone(), caller.name.clone());
    let request = Request { caller, headers: &headers, method: Method::POST, uri: &uri, body: &body };
    change(&api, request, move |change| {
        room_for(change, &org, &wish.name)?;
        let text = new_token(&org).map_err(|error| Problem::internal(error.to_string()))?;
        let now_ms = unix_ms();
        let token = ApiToken {
            hash: hash(text.as_bytes()),
            name: wish.name,
            role: wish.role,
            created_ms: now_ms,
            by,
            expires_ms: wish.ttl_ms.map(|ttl_ms| now_ms.saturating_add(ttl_ms)),
            used_ms: None,
            org,
        };
        change.put(&token)?;
        asked.concern(&token.org);
        asked.note(&format!("token {} with role {} in {}", token.id(), token.role.as_str(), token.org));
        tracing::info!(token = token.id(), name = token.name, org = %token.org, by = token.by, "API token made");
        let made = NewApiToken {
            id: token.id().to_owned(),
            name: token.name,
            org: token.org.to_string(),
            role: token.role,
            token: text,
            expires_ms: token.expires_ms,
        };
        Ok((StatusCode::CREATED, made))
    })
    .await
}

/// Revokes an API token: from this answer on it is worth nothing
#[utoipa::path(delete, path = "/v1/tokens/api/{id}",
    params(("id" = String, Path,), ("org" = Option<String>, Query, description = "another organization; for operators")),
    responses((status = 200, body = ApiTokenRevoked), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn remove(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Query(of): Query<OfOrg>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let org = orgs::meant(&api.store, &caller, of.org)?;
    let (asked, by, name, role) =
        (caller.asked.clone(), caller.name.clone(), caller.name.clone(), caller.role);
    let request = Request { caller, headers: &headers, method: Method::DELETE, uri: &uri, body: &[] };
    change(&api, request, move |change| {
        let of_org = change.list::<ApiToken>(&format!("{org}/"));
        let token = of_org.into_iter().find(|token| token.id() == id);
        let token = token
            .ok_or_else(|| Problem::not_found(format!("there is no API token `{}`", id.escape_debug())))?;
        if token.role > role {
            return Err(Problem::role_needed(token.role, &name, role));
        }
        if token.org == OrgName::default_org() && token.name == ADMIN_NAME {
            let detail = "it is in the file `admin-token` of control's data folder: remove the file and restart control";
            return Err(Problem::conflict("admin-token", "Not revocable", detail));
        }
        change.remove::<ApiToken>(&format!("{}/{}", token.org, token.hash));
        asked.concern(&token.org);
        asked.note(&format!("token {} of {}", token.name, token.org));
        tracing::info!(token = token.id(), name = token.name, org = %token.org, by, "API token revoked");
        Ok((StatusCode::OK, ApiTokenRevoked { id: token.id().to_owned(), name: token.name, revoked: true }))
    })
    .await
}

fn check_name(name: &str) -> Result<(), Problem> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._@-".contains(&b);
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(());
    }
    let detail = format!("a token's name has 1 to {NAME_BYTES_MAX} of the characters A-Z a-z 0-9 . _ @ -");
    Err(Problem::invalid("name", detail))
}

fn room_for(change: &Change<'_>, org: &OrgName, name: &str) -> Result<(), Problem> {
    if !orgs::exists(change, org) {
        return Err(orgs::no_such(org));
    }
    let tokens = change.list::<ApiToken>(&format!("{org}/"));
    if tokens.iter().any(|token| token.name == name) {
        let detail =
            format!("there is a token `{name}` in this organization: revoke it, or choose another name");
        return Err(Problem::conflict("name-taken", "The name is taken", detail));
    }
    if tokens.len() >= TOKENS_MAX {
        let detail = format!("an organization has at most {TOKENS_MAX} tokens: revoke what is not used");
        return Err(Problem::conflict("limit-reached", "There is no room", detail));
    }
    Ok(())
}

/// Forgets tokens that ended long ago.
pub(super) fn sweep(change: &mut Change<'_>, now_ms: u64) {
    let is_old = |at_ms: u64| now_ms.saturating_sub(at_ms) > ENDED_KEPT_MS;
    for token in change.list::<ApiToken>("").into_iter().filter(|token| token.expires_ms.is_some_and(is_old))
    {
        change.remove::<ApiToken>(&format!("{}/{}", token.org, token.hash));
    }
}
