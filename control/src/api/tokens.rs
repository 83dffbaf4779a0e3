//! Join tokens.

use super::changes::{Request, change, decode};
use super::{Api, Problem};
use crate::apps::Caller;
use crate::store::objects::{JoinToken, Node};
use atoll_mesh_ca::token::{self, TokenGrant};
use atoll_model::{NodeName, RegionName, Roles, SiteName};
use atoll_process::clock::unix_ms;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::{Extension, Json};
use data_encoding::HEXLOWER;
use http::{HeaderMap, Method, StatusCode, Uri};
use serde::{Deserialize, Serialize};

const TTL_MS: u64 = 3_600 * 1_000;
const TTL_MS_MAX: u64 = 30 * 24 * 3_600 * 1_000;

/// What a new token is to allow.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenWish {
    /// The roles that the node gets.
    #[schema(value_type = Vec<String>)]
    roles: Roles,
    /// The site that it is at.
    #[schema(value_type = String)]
    site: SiteName,
    /// The site's region; not needed for a site that control knows.
    #[schema(value_type = Option<String>)]
    region: Option<RegionName>,
    /// The only name that may join with it.
    #[schema(value_type = Option<String>)]
    node: Option<NodeName>,
    /// How long it can be used, ms; an hour by default.
    ttl_ms: Option<u64>,
}

/// A new token. It is shown this once.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct NewToken {
    id: String,
    token: String,
    expires_ms: u64,
}

/// A token with which nothing joins any more.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct TokenRemoved {
    id: String,
    removed: bool,
}

/// A token, without its secret.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct TokenView {
    id: String,
    #[schema(value_type = Vec<String>)]
    roles: Roles,
    #[schema(value_type = String)]
    site: SiteName,
    #[schema(value_type = String)]
    region: RegionName,
    #[schema(value_type = Option<String>)]
    node: Option<NodeName>,
    created_ms: u64,
    expires_ms: u64,
    #[schema(value_type = Option<String>)]
    used_by: Option<NodeName>,
    /// `valid`, `used` or `expired`.
    state: &'static str,
}

/// The join tokens: which are valid, and who used the others
#[utoipa::path(get, path = "/v1/tokens/join", responses((status = 200, body = Vec<TokenView>)))]
pub(super) async fn list(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
) -> Json<Vec<TokenView>> {
    let now_ms = unix_ms();
    let view = |JoinToken { record, .. }: JoinToken| TokenView {
        state: match &record.used_by {
            Some(_) => "used",
            None if now_ms >= record.expires_ms => "expired",
            None => "valid",
        },
        id: record.id,
        roles: record.roles,
        site: record.site,
        region: record.region,
        node: record.node,
        created_ms: record.created_ms,
        expires_ms: record.expires_ms,
        used_by: record.used_by.map(|used| used.node),
    };
    Json(api.store.list::<JoinToken>(&format!("{}/", caller.org)).into_iter().map(view).collect())
}

/// Makes a single-use token with which a node joins
#[utoipa::path(post, path = "/v1/tokens/join", request_body = TokenWish,
    responses((status = 201, body = NewToken), (status = 422, body = Problem)))]
pub(super) async fn create(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let wish: TokenWish = decode(&body)?;
    if wish.roles.is_empty() {
        return Err(Problem::invalid("roles", "a token is for at least one role"));
    }
    let ttl_ms = wish.ttl_ms.unwrap_or(TTL_MS);
    if !(1_000..=TTL_MS_MAX).contains(&ttl_ms) {
        return Err(Problem::invalid("ttl_ms", "a token lives between a second and 30 days"));
    }
    let region = region(&api, &wish)?;
    let now_ms = unix_ms();
    let grant = TokenGrant {
        roles: wish.roles,
        site: wish.site,
        region,
        node: wish.node,
        expires_ms: now_ms + ttl_ms,
    };
    let fingerprint =
        HEXLOWER.decode(api.ca.fingerprint().as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
    let fingerprint = fingerprint.ok_or_else(|| Problem::internal("the CA's fingerprint is malformed"))?;
    let (org, by, asked) = (caller.org.clone(), caller.name.clone(), caller.asked.clone());
    let request = Request { caller, headers: &headers, method: Method::POST, uri: &uri, body: &body };
    change(&api, request, move |change| {
        let made = token::create(grant, fingerprint, now_ms).map_err(|error| Problem::internal(error.to_string()));
        let (token, record) = made?;
        let (id, expires_ms) = (record.id.clone(), record.expires_ms);
        asked.note(&format!("roles {}, site {}, region {}", record.roles, record.site, record.region));
        tracing::info!(token = id, roles = %record.roles, site = %record.site, node = ?record.node, by, "join token made");
        change.put(&JoinToken { org, record })?;
        Ok((StatusCode::CREATED, NewToken { id, token: token.to_string(), expires_ms }))
    })
    .await
}

/// The region asked for, or the one that the site is known to be in.
fn region(api: &Api, wish: &TokenWish) -> Result<RegionName, Problem> {
    let configured = api.config.sites.get(&wish.site).cloned();
    let known = configured.or_else(|| {
        let nodes = api.store.list::<Node>("");
        nodes.into_iter().find(|node| node.site == wish.site).map(|node| node.region)
    });
    let region = match (&wish.region, known) {
        (Some(asked), Some(known)) if *asked != known => {
            let detail = format!("site {} is in region {known}, not in {asked}", wish.site);
            return Err(Problem::invalid("region", detail));
        }
        (Some(asked), _) => asked.clone(),
        (None, Some(known)) => known,
        (None, None) => {
            let detail = format!("site {} is new: say which region it is in", wish.site);
            return Err(Problem::invalid("region", detail));
        }
    };
    let is_control = wish.roles.has(atoll_model::Role::Control);
    if !is_control && !api.config.regions.contains(&region) {
        return Err(Problem::invalid("region", format!("unknown region `{region}`")));
    }
    Ok(region)
}

/// Makes a join token unusable
#[utoipa::path(delete, path = "/v1/tokens/join/{id}",
    params(("id" = String, Path,)),
    responses((status = 200, body = TokenRemoved), (status = 404, body = Problem)))]
pub(super) async fn remove(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (org, by) = (caller.org.clone(), caller.name.clone());
    let request = Request { caller, headers: &headers, method: Method::DELETE, uri: &uri, body: &[] };
    change(&api, request, move |change| {
        let tail = format!("{org}/{id}");
        let missing = || Problem::not_found(format!("there is no join token `{}`", id.escape_debug()));
        change.get::<JoinToken>(&tail).ok_or_else(missing)?;
        change.remove::<JoinToken>(&tail);
        tracing::info!(token = id, by, "join token removed");
        Ok((StatusCode::OK, TokenRemoved { id, removed: true }))
    })
    .await
}
