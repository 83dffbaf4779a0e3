//! Organizations, the platform's tenants; and who the caller is.

use super::api_tokens::tokens_of;
use super::changes::{Request, change, decode};
use super::{Api, Problem};
use crate::apps::object_id;
use crate::caller::Caller;
use crate::store::objects::{
    ApiToken, App, AuditEntry, AuditHead, Deploy, Domain, Idempotency, Org, TokenRole,
};
use crate::store::{Change, Store};
use atoll_model::{NameError, OrgName};
use atoll_process::clock::unix_ms;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::{Extension, Json};
use http::{HeaderMap, Method, StatusCode, Uri};
use serde::{Deserialize, Serialize};

/// Organizations beside the first. What is looked up in each of them is bounded by it.
const ORGS_MAX: usize = 1_000;

/// The caller, as the API sees it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Whoami {
    /// The organization.
    org: String,
    /// The token's id.
    token: String,
    /// The token's name.
    name: String,
    role: TokenRole,
    /// When the token ends, if it does.
    expires_ms: Option<u64>,
}

/// A new organization.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OrgWish {
    /// Its name: a letter, then letters, digits and single dashes.
    #[schema(value_type = String)]
    name: OrgName,
}

/// An organization.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct OrgView {
    /// Not for the first one, which was never made.
    id: Option<String>,
    name: String,
    created_ms: Option<u64>,
    apps: usize,
    tokens: usize,
}

/// An organization that was removed.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct OrgRemoved {
    name: String,
    removed: bool,
    /// Tokens that ended with it.
    tokens: usize,
}

/// The caller's token: whose it is, and what it may do
#[utoipa::path(get, path = "/v1/whoami", responses((status = 200, body = Whoami)))]
pub(super) async fn whoami(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Whoami>, Problem> {
    let stored = api.store.get::<ApiToken>(&format!("{}/{}", caller.org, caller.hash));
    let stored = stored.ok_or_else(Problem::unauthorized)?;
    Ok(Json(Whoami {
        org: caller.org.to_string(),
        token: caller.token,
        name: stored.name,
        role: stored.role,
        expires_ms: stored.expires_ms,
    }))
}

/// All organizations
#[utoipa::path(get, path = "/v1/orgs", responses((status = 200, body = Vec<OrgView>)))]
pub(super) async fn list(State(api): State<Api>) -> Json<Vec<OrgView>> {
    let view = |id: Option<String>, org: &OrgName, created_ms| OrgView {
        id,
        name: org.to_string(),
        created_ms,
        apps: api.store.tails::<App>(&format!("{org}/")).len(),
        tokens: tokens_of(&api.store, org).len(),
    };
    let first = view(None, &OrgName::default_org(), None);
    let others = api.store.list::<Org>("").into_iter();
    let others = others.map(|org| view(Some(org.id.to_string()), &org.org, Some(org.created_ms)));
    Json([first].into_iter().chain(others).collect())
}

/// Makes an organization
#[utoipa::path(post, path = "/v1/orgs", request_body = OrgWish,
    responses((status = 201, body = OrgView), (status = 409, body = Problem)))]
pub(super) async fn create(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let OrgWish { name } = decode(&body)?;
    let (bundles, by) = (api.bundles.clone(), caller.name.clone());
    let request = Request { caller, headers: &headers, method: Method::POST, uri: &uri, body: &body };
    change(&api, request, move |change| {
        if exists(change, &name) {
            let detail = format!("there is an organization `{name}` already");
            return Err(Problem::conflict("name-taken", "The name is taken", detail));
        }
        if change.count::<Org>() >= ORGS_MAX {
            let detail = format!("a platform has at most {ORGS_MAX} organizations");
            return Err(Problem::conflict("limit-reached", "There is no room", detail));
        }
        super::bundles::set_aside(&bundles, &name)?;
        let now_ms = unix_ms();
        let org = Org { id: object_id(now_ms), org: name, created_ms: now_ms, by };
        change.put(&org)?;
        tracing::info!(org = %org.org, by = org.by, "organization made");
        let view = OrgView {
            id: Some(org.id.to_string()),
            name: org.org.to_string(),
            created_ms: Some(now_ms),
            apps: 0,
            tokens: 0,
        };
        Ok((StatusCode::CREATED, view))
    })
    .await
}

/// Removes an organization that has no apps; its tokens end, its audit log goes
#[utoipa::path(delete, path = "/v1/orgs/{org}",
    params(("org" = String, Path,)),
    responses((status = 200, body = OrgRemoved), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn remove(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(org): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let org: OrgName = org.parse().map_err(|error: NameError| Problem::invalid("org", error.to_string()))?;
    let (bundles, by) = (api.bundles.clone(), caller.name.clone());
    let request = Request { caller, headers: &headers, method: Method::DELETE, uri: &uri, body: &[] };
    let removed = change(&api, request, move |change| {
        if org == OrgName::default_org() {
            let detail = "the first organization owns the nodes: it stays";
            return Err(Problem::conflict("not-removable", "Not removable", detail));
        }
        if !exists(change, &org) {
            return Err(no_such(&org));
        }
        let apps = change.list::<App>(&format!("{org}/"));
        if let Some(first) = apps.first() {
            let detail = format!(
                "organization `{org}` has {} apps, such as `{}`: delete them first",
                apps.len(),
                first.app
            );
            return Err(Problem::conflict("not-empty", "The organization is not empty", detail));
        }
        super::bundles::set_aside(&bundles, &org)?;
        let tokens = forget(change, &org);
        tracing::warn!(%org, tokens, by, "organization removed");
        Ok((StatusCode::OK, OrgRemoved { name: org.to_string(), removed: true, tokens }))
    })
    .await?;
    super::bundles::clear(&api).await;
    Ok(removed)
}

/// Removes all that an organization without apps can have: one of that name that comes later must find nothing.
fn forget(change: &mut Change<'_>, org: &OrgName) -> usize {
    let prefix = format!("{org}/");
    let tokens = change.list::<ApiToken>(&prefix);
    for token in &tokens {
        change.remove::<ApiToken>(&format!("{org}/{}", token.hash));
    }
    for deploy in change.list::<Deploy>(&prefix) {
        change.remove::<Deploy>(&format!("{org}/{}", deploy.id));
    }
    for kept in change.list::<Idempotency>(&prefix) {
        change.remove::<Idempotency>(&format!("{org}/{}", kept.key));
    }
    for domain in change.list::<Domain>(&prefix) {
        change.remove::<Domain>(&format!("{org}/{}", domain.domain));
    }
    for entry in change.list::<AuditEntry>(&prefix) {
        change.remove::<AuditEntry>(&AuditEntry::tail(org.as_str(), entry.seq));
    }
    change.remove::<AuditHead>(org.as_str());
    change.remove::<Org>(org.as_str());
    tokens.len()
}

/// Whether there is that organization.
pub(super) fn exists(change: &Change<'_>, org: &OrgName) -> bool {
    *org == OrgName::default_org() || change.get::<Org>(org.as_str()).is_some()
}

pub(super) fn no_such(org: &OrgName) -> Problem {
    Problem::not_found(format!("there is no organization `{org}`"))
}

/// The organization that a request is about: the caller's own, or the one that an operator names.
pub(super) fn meant(store: &Store, caller: &Caller, named: Option<OrgName>) -> Result<OrgName, Problem> {
    let Some(named) = named.filter(|named| *named != caller.org) else { return Ok(caller.org.clone()) };
    // The same answer whether there is such an organization or not.
    if caller.role < TokenRole::Operator {
        return Err(Problem::role_needed(TokenRole::Operator, &caller.name, caller.role));
    }
    let is_there = named == OrgName::default_org() || store.get::<Org>(named.as_str()).is_some();
    is_there.then_some(named.clone()).ok_or_else(|| no_such(&named))
}
