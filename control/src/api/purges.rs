//! Purging what edges have stored of an app.
//!
//! A purge is a mark in the app's record, which gossip brings to the edges; an edge that was away finds it when it
//! comes back. Who waits for the edges asks each of them.

use super::apps::app_name;
use super::changes::{Request, change, decode};
use super::logs::too_many;
use super::{Api, Problem};
use crate::apps::domains;
use crate::attach::Reading;
use crate::caller::Caller;
use crate::store::Change;
use crate::store::objects::{App, AppPurges, Purged};
use atoll_model::{AppName, Kind, NodeName, OrgName, Role};
use atoll_process::clock::unix_ms;
use atoll_routing::hosts::{normalise_host, wildcard_of};
use atoll_routing::path::normalise;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::{Extension, Json};
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Method, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Things that one request names.
const NAMED_MAX: usize = 256;
/// Longest of their names, bytes.
const NAME_BYTES_MAX: usize = 256;
/// How long an edge that is alive may take, and how often it is asked.
const APPLIED_WAIT: Duration = Duration::from_secs(5);
const ASK_EVERY: Duration = Duration::from_millis(25);
/// Edges that are asked at the same time.
const ASKED_MAX: usize = 64;

/// What is to be purged: any of these, or `all`.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PurgeWish {
    /// Everything of the app.
    all: bool,
    /// Responses that carry one of these tags.
    tags: Vec<String>,
    /// Addresses: `https://shop.example.com/p?x=1`.
    urls: Vec<String>,
    /// Beginnings of paths, on each domain of the app.
    prefixes: Vec<String>,
    /// Stale, so that it is validated before it is used again, instead of gone.
    soft: bool,
}

/// A purge that was accepted.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct AcceptedPurge {
    /// Its place in the order of the app's purges.
    seq: u64,
}

/// How far a purge has come.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct PurgeState {
    /// Each edge that is alive.
    edges: Vec<EdgePurge>,
    /// Whether all of them have applied it.
    everywhere: bool,
}

/// How far an edge is.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct EdgePurge {
    #[schema(value_type = String)]
    edge: NodeName,
    /// It does not answer from what the purge names.
    applied: bool,
    /// How long it was waited for, ms.
    waited_ms: u64,
    /// Why it is not known to have applied it.
    why_not: Option<String>,
}

#[utoipa::path(post, path = "/v1/apps/{app}/purges",
    params(("app" = String, Path,), ("Idempotency-Key" = Option<String>, Header,)),
    request_body = PurgeWish,
    responses((status = 202, body = AcceptedPurge), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn create(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(app): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let app = app_name(&app)?;
    let wish: PurgeWish = decode(&body)?;
    let soft = wish.soft;
    let named = named(wish)?;
    let request =
        Request { caller: caller.clone(), headers: &headers, method: Method::POST, uri: &uri, body: &body };
    change(&api, request, move |change| {
        let tail = format!("{}/{app}", caller.org);
        change.get::<App>(&tail).ok_or_else(|| Problem::not_found(format!("there is no app `{app}`")))?;
        let none = || AppPurges { org: caller.org.clone(), app: app.clone(), floor: 0, marks: Vec::new() };
        let mut purges = change.get::<AppPurges>(&tail).unwrap_or_else(none);
        refuse_strange(change, &caller.org, &app, &named)?;
        let how = if soft { "purge softly" } else { "purge" };
        named.iter().for_each(|what| caller.asked.note(&format!("{how} {what}")));
        let seq = purges.add(named, soft, unix_ms());
        change.put(&purges)?;
        change.desire(Kind::PURGES, "", &tail, &purges.to_record());
        Ok((StatusCode::ACCEPTED, AcceptedPurge { seq }))
    })
    .await
}

#[utoipa::path(get, path = "/v1/apps/{app}/purges/{seq}",
    params(("app" = String, Path,), ("seq" = u64, Path,)),
    responses((status = 200, body = PurgeState), (status = 404, body = Problem), (status = 422, body = Problem),
        (status = 429, body = Problem)))]
pub(super) async fn show(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path((app, seq)): Path<(String, u64)>,
) -> Result<Json<PurgeState>, Problem> {
    let app = app_name(&app)?;
    let key = format!("{}/{app}", caller.org);
    let known = api.store.get::<AppPurges>(&key).is_some_and(|purges| purges.last() >= seq);
    if !known {
        return Err(Problem::not_found(format!("there is no purge {seq} of an app `{app}`")));
    }
    let _place = api.attached.place(Reading::Purges, &caller.org).ok_or_else(too_many)?;
    let alive: Vec<NodeName> = api.world().alive_with(Role::Edge).map(|(name, _)| name.clone()).collect();
    let asked = stream::iter(alive).map(|edge| ask(&api, edge, &key, seq)).buffer_unordered(ASKED_MAX);
    let mut edges: Vec<EdgePurge> = asked.collect().await;
    edges.sort_by(|a, b| a.edge.cmp(&b.edge));
    let everywhere = edges.iter().all(|edge| edge.applied);
    Ok(Json(PurgeState { edges, everywhere }))
}

/// Refuses addresses under which no edge has anything of the app: a slip must not look like a purge.
fn refuse_strange(
    change: &Change<'_>,
    org: &OrgName,
    app: &AppName,
    named: &[Purged],
) -> Result<(), Problem> {
    let known = domains::of_app(change, org, app);
    for what in named {
        let Purged::Url { host, .. } = what else { continue };
        let wildcard = wildcard_of(host);
        if !known.iter().any(|known| known.domain == *host || Some(&known.domain) == wildcard.as_ref()) {
            let detail = format!("`{host}` is no domain of {app}; `atoll domains list {app}` shows those");
            return Err(Problem::invalid("urls", detail));
        }
    }
    Ok(())
}

/// Waits for an edge for a while.
async fn ask(api: &Api, edge: NodeName, app: &str, seq: u64) -> EdgePurge {
    let started = Instant::now();
    loop {
        let left = APPLIED_WAIT.saturating_sub(started.elapsed());
        let why_not = match api.attached.has_purged(&edge, app, seq, left).await {
            Ok(()) => None,
            Err(error) => Some(error.to_string()),
        };
        if why_not.is_none() || started.elapsed() + ASK_EVERY >= APPLIED_WAIT {
            let waited_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            return EdgePurge { edge, applied: why_not.is_none(), waited_ms, why_not };
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// What a wish names, in its normal form.
fn named(wish: PurgeWish) -> Result<Vec<Purged>, Problem> {
    let PurgeWish { all, tags, urls, prefixes, soft: _ } = wish;
    let count = tags.len() + urls.len() + prefixes.len();
    if all != (count == 0) {
        return Err(Problem::invalid(
            "all",
            "name tags, urls or prefixes, or all of it; not both, and not nothing",
        ));
    }
    if count > NAMED_MAX {
        return Err(Problem::invalid(
            "tags",
            format!("one purge names at most {NAMED_MAX} things; this one has {count}"),
        ));
    }
    let mut named = Vec::new();
    for tag in tags {
        let is_word = tag.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',');
        if tag.is_empty() || tag.len() > NAME_BYTES_MAX || !is_word {
            return Err(Problem::invalid(
                "tags",
                "a tag is 1 to 256 visible ASCII characters without commas",
            ));
        }
        named.push(Purged::Tag(tag));
    }
    for url in urls {
        named.push(of_url(&url).ok_or_else(|| {
            let shown: String = url.escape_debug().take(100).collect();
            Problem::invalid(
                "urls",
                format!("`{shown}` is not an address such as https://shop.example.com/p?x=1"),
            )
        })?);
    }
    for prefix in prefixes {
        let normal =
            normalise(&prefix).ok().filter(|_| prefix.starts_with('/') && prefix.len() <= NAME_BYTES_MAX);
        let normal = normal.ok_or_else(|| {
            Problem::invalid("prefixes", "a prefix is a path such as /p/, of at most 256 bytes")
        })?;
        named.push(Purged::Prefix(normal.as_str().to_owned()));
    }
    if all {
        named.push(Purged::All);
    }
    Ok(named)
}

/// An address as edges store it: the domain, and path with query in their normal form.
fn of_url(url: &str) -> Option<Purged> {
    let uri: Uri = url.parse().ok().filter(|_| url.len() <= 2 * NAME_BYTES_MAX)?;
    let host = normalise_host(uri.authority()?.as_str())?.into_owned();
    let path = normalise(uri.path()).ok()?;
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    Some(Purged::Url { host, target: format!("{}{query}", path.as_str()) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn of(json: &str) -> Result<Vec<Purged>, Problem> {
        named(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn wishes_come_in_their_normal_form() {
        let named = of(
            r#"{"urls": ["https://Shop.Example.com:8443/a/../%62?c=%2f"], "tags": ["p-1"], "prefixes": ["/x/"]}"#,
        );
        let url = Purged::Url { host: "shop.example.com".to_owned(), target: "/b?c=%2f".to_owned() };
        assert_eq!(named.unwrap(), [Purged::Tag("p-1".to_owned()), url, Purged::Prefix("/x/".to_owned())]);
        assert_eq!(of(r#"{"all": true}"#).unwrap(), [Purged::All]);
        for wrong in [
            "{}",
            r#"{"all": true, "tags": ["a"]}"#,
            r#"{"tags": [""]}"#,
            r#"{"tags": ["a b"]}"#,
            r#"{"urls": ["/p"]}"#,
            r#"{"urls": ["https://user@shop.example.com/p"]}"#,
            r#"{"prefixes": ["p"]}"#,
            r#"{"prefixes": ["/../.."]}"#,
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_record_keeps_the_newest_that_fit() {
        use atoll_wire::Message;
        let (org, app) = (OrgName::default_org(), "shop".parse().unwrap());
        let mut purges = AppPurges { org, app, floor: 0, marks: Vec::new() };
        let tag = |name: String| Purged::Tag(name);
        let url = |target: String| Purged::Url { host: "h".repeat(250), target };
        let mut last = 0;
        for n in 0..40 {
            for named in [
                (0..NAMED_MAX).map(|n| tag(format!("\"{n}"))).collect::<Vec<_>>(),
                (0..NAMED_MAX).map(|n| url(format!("/{n}{}", "x".repeat(240)))).collect(),
            ] {
                let seq = purges.add(named, n % 2 == 0, 1_000);
                assert!(seq >= last + NAMED_MAX as u64, "each has a place of its own");
                last = seq;
                let bytes = purges.to_record().encoded_len();
                assert!((1..60 * 1024).contains(&bytes), "{bytes}");
                assert_eq!(purges.marks.last().unwrap().seq, seq);
            }
        }
        // What is left out is purged as a whole.
        assert_eq!(purges.floor + 1, purges.marks[0].seq);
    }

    #[tokio::test]
    async fn a_purge_is_logged_and_names_what_the_app_has() {
        use crate::testing::{Platform, shop};
        let platform = Platform::start().await;
        let purge = |body: serde_json::Value| {
            let platform = &platform;
            async move { platform.call(Method::POST, "/v1/apps/shop/purges", None, body).await }
        };
        let soft = serde_json::json!({ "tags": ["p-1"], "urls": ["https://shop.localhost/p"], "soft": true });
        assert_eq!(purge(soft.clone()).await.0, 404);
        assert_eq!(platform.call(Method::PUT, "/v1/apps/shop", None, shop(&[("fra", 1)])).await.0, 202);
        let strange = serde_json::json!({ "urls": ["https://shop.example.com/p"] });
        let (status, problem) = purge(strange).await;
        assert_eq!((status, problem["where"].as_str()), (422, Some("urls")), "{problem}");
        let (status, accepted) = purge(soft).await;
        assert_eq!(status, 202, "{accepted}");
        let log = platform.store.list::<crate::store::objects::AuditEntry>("default/");
        assert_eq!(
            log.last().unwrap().detail,
            "purge softly tag p-1; purge softly url https://shop.localhost/p"
        );
        let seq = accepted["seq"].as_u64().unwrap();
        let (status, state) = platform.get(&format!("/v1/apps/shop/purges/{seq}")).await;
        assert_eq!((status, &state["everywhere"]), (200, &true.into()), "{state}");
        assert_eq!(platform.get(&format!("/v1/apps/shop/purges/{}", seq + 1)).await.0, 404);
        assert_eq!(platform.get("/v1/apps/shop/purges/x").await.0, 400);
    }
}
