//! Looking into the edges' caches: what was counted, and what each would do with a request.
//!
//! Each edge that is alive is asked, and says it in JSON of its own, so that edges of other versions may say more. Nothing is
//! kept here.

use super::apps::app_name;
use super::logs::too_many;
use super::{Api, Problem};
use crate::attach::Reading;
use crate::caller::Caller;
use crate::store::objects::{App, Domain, TokenRole};
use atoll_model::{NodeName, OrgName, Role};
use atoll_routing::hosts::{normalise_host, wildcard_of};
use atoll_wire::node::ask_cache::What;
use atoll_wire::node::{AskCache, CacheExplain, CacheField, CacheStats};
use axum::extract::{Query, State};
use axum::{Extension, Json};
use futures_util::{StreamExt, stream};
use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Uri};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Longest wait for an edge.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// Edges that are asked at the same time.
const ASKED_MAX: usize = 64;
/// Of all edges' answers, so many bytes are collected.
const ANSWERS_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Fields of a request that is asked about, and bytes of its URL.
const FIELDS_MAX: usize = 64;
const URL_BYTES_MAX: usize = 8 * 1024;
/// What is known of the whole edge, of which other organizations have their share.
const OF_WHOLE_EDGE: [&str; 3] = ["entries", "bytes", "bytes_max"];

/// Of which app.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Of {
    app: Option<String>,
}

/// What the edges' caches did for the organization's requests, since each edge began.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct CacheStatsView {
    /// Each edge that is alive.
    edges: Vec<EdgeCacheStats>,
    total: CacheTotal,
}

/// What one edge says.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct EdgeCacheStats {
    edge: String,
    site: String,
    /// `apps`, each with `app` and `requests` (how many, by what became of them); what is stored of the `organization`, `entries` and
    /// `bytes`. For operators also `entries`, `bytes` and `bytes_max` of the whole edge.
    #[schema(value_type = Option<Object>)]
    stats: Option<Value>,
    /// Why that is not known.
    why_not: Option<String>,
}

/// Over the edges that answered.
#[derive(Debug, Default, PartialEq, Serialize, utoipa::ToSchema)]
struct CacheTotal {
    /// How many requests, by what became of them: `hit`, `miss`, …
    requests: BTreeMap<String, u64>,
    /// The share of all requests that were hits; nothing where there were none.
    hit_ratio: Option<f64>,
}

/// What the edges would do with a request.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct CacheExplanation {
    /// Whose address it is.
    app: String,
    /// Each edge that is alive.
    edges: Vec<EdgeCacheExplanation>,
}

/// What one edge would do.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct EdgeCacheExplanation {
    edge: String,
    site: String,
    /// `would` (`hit`, `validate`, `miss`, `pass`, `bypass`, `refuse` or `unknown`) and `why`; where they are known also
    /// `cache_status`, the answer's `status`, `key`, and what is `stored`.
    #[schema(value_type = Option<Object>)]
    explanation: Option<Value>,
    /// Why that is not known.
    why_not: Option<String>,
}

#[utoipa::path(get, path = "/v1/cache/stats",
    params(("app" = Option<String>, Query, description = "only this app"),),
    responses((status = 200, body = CacheStatsView), (status = 404, body = Problem), (status = 422, body = Problem),
        (status = 429, body = Problem)))]
pub(super) async fn stats(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(of): Query<Of>,
) -> Result<Json<CacheStatsView>, Problem> {
    let app = match &of.app {
        None => String::new(),
        Some(name) => {
            let app = app_name(name)?;
            let known = api.store.get::<App>(&format!("{}/{app}", caller.org));
            known.ok_or_else(|| Problem::not_found(format!("there is no app `{app}`")))?;
            format!("{}/{app}", caller.org)
        }
    };
    let question = What::Stats(CacheStats { org: caller.org.to_string(), app });
    let answers = ask(&api, &caller.org, question).await?;
    let edges = answers.into_iter().map(|Answer { edge, site, said }| {
        let (mut stats, why_not) = either(said);
        if caller.role < TokenRole::Operator
            && let Some(Value::Object(stats)) = &mut stats
        {
            OF_WHOLE_EDGE.iter().for_each(|name| drop(stats.remove(*name)));
        }
        EdgeCacheStats { edge, site, stats, why_not }
    });
    let edges: Vec<EdgeCacheStats> = edges.collect();
    let total = total(edges.iter().filter_map(|edge| edge.stats.as_ref()));
    Ok(Json(CacheStatsView { edges, total }))
}

#[utoipa::path(get, path = "/v1/cache/explain",
    params(("url" = String, Query, description = "an address of an app: `https://shop.example.com/p?x=1`, with a port where clients have one"),
        ("header" = Option<Vec<String>>, Query, description = "a field of the request, `Name: value`; can be given more than once")),
    responses((status = 200, body = CacheExplanation), (status = 404, body = Problem), (status = 422, body = Problem),
        (status = 429, body = Problem)))]
pub(super) async fn explain(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Result<Json<CacheExplanation>, Problem> {
    let Asked { host, target, fields } = Asked::of(&parameters)?;
    let domain = domain_of(&api, &caller.org, &host)?;
    let app = domain.cluster.app.to_string();
    let question = What::Explain(CacheExplain { app: format!("{}/{app}", caller.org), host, target, fields });
    let answers = ask(&api, &caller.org, question).await?;
    let edges = answers.into_iter().map(|Answer { edge, site, said }| {
        let (explanation, why_not) = either(said);
        EdgeCacheExplanation { edge, site, explanation, why_not }
    });
    Ok(Json(CacheExplanation { app, edges: edges.collect() }))
}

/// A request that is asked about.
#[derive(Debug, PartialEq)]
struct Asked {
    /// As clients write it.
    host: String,
    target: String,
    fields: Vec<CacheField>,
}

impl Asked {
    /// Of the query's parameters, whose names are known.
    fn of(parameters: &[(String, String)]) -> Result<Self, Problem> {
        let mut urls = parameters.iter().filter(|(name, _)| name == "url").map(|(_, value)| value);
        let (Some(url), None) = (urls.next(), urls.next()) else {
            return Err(Problem::invalid("url", "give one address, such as https://shop.example.com/p"));
        };
        let (host, target) = of_url(url)?;
        let fields = parameters.iter().filter(|(name, _)| name == "header").map(|(_, value)| field(value));
        let fields: Vec<CacheField> = fields.collect::<Result<_, _>>()?;
        if fields.len() > FIELDS_MAX {
            return Err(Problem::invalid("header", format!("there may be at most {FIELDS_MAX}")));
        }
        Ok(Self { host, target, fields })
    }
}

/// The host as it was written, and path with query.
fn of_url(url: &str) -> Result<(String, String), Problem> {
    let wrong = || {
        let shown: String = url.escape_debug().take(100).collect();
        let detail = format!("`{shown}` is not an address such as https://shop.example.com/p?x=1");
        Problem::invalid("url", detail)
    };
    let uri: Uri = url.parse().ok().filter(|_| url.len() <= URL_BYTES_MAX).ok_or_else(wrong)?;
    let authority = uri.authority().filter(|_| uri.scheme() == Some(&Scheme::HTTPS)).ok_or_else(wrong)?;
    normalise_host(authority.as_str()).ok_or_else(wrong)?;
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    Ok((authority.to_string(), target.to_owned()))
}

/// A field as it is written in a request.
fn field(line: &str) -> Result<CacheField, Problem> {
    let read = || {
        let (name, value) = line.split_once(':')?;
        let (name, value) = (name.trim().parse::<HeaderName>().ok()?, value.trim());
        // Control passes on text.
        HeaderValue::from_str(value).ok()?.to_str().ok()?;
        Some(CacheField { name: name.to_string(), value: value.to_owned() })
    };
    read().ok_or_else(|| {
        let shown: String = line.escape_debug().take(100).collect();
        Problem::invalid("header", format!("`{shown}` is not a field such as `Accept-Language: de`"))
    })
}

/// The organization's domain that a host comes under.
fn domain_of(api: &Api, org: &OrgName, host: &str) -> Result<Domain, Problem> {
    let name = normalise_host(host).map(std::borrow::Cow::into_owned).unwrap_or_default();
    let names = [Some(name.clone()), wildcard_of(&name)];
    let domain = names.into_iter().flatten().find_map(|name| {
        api.store.get::<Domain>(&format!("{org}/{name}")).filter(|found| found.domain == name)
    });
    domain.ok_or_else(|| {
        Problem::not_found(format!("`{name}` is no domain of an app; `atoll domains` shows those there are"))
    })
}

/// What an edge said, or why it did not.
struct Answer {
    edge: String,
    site: String,
    said: Result<Value, String>,
}

/// Asks every edge that is alive, all at once.
async fn ask(api: &Api, org: &OrgName, what: What) -> Result<Vec<Answer>, Problem> {
    let _place = api.attached.place(Reading::Cache, org).ok_or_else(too_many)?;
    let world = api.world();
    let alive = world.alive_with(Role::Edge).map(|(name, seen)| (name.clone(), seen.facts.site.clone()));
    let alive: Vec<(NodeName, String)> = alive.collect();
    let collected = AtomicUsize::new(0);
    let asked = stream::iter(alive).map(|(edge, site)| {
        let question = AskCache { what: Some(what.clone()) };
        let collected = &collected;
        async move {
            let said = api.attached.ask_cache(&edge, question, ANSWER_WAIT).await;
            let said = said.map_err(|error| error.to_string()).and_then(|said| read(&said, collected));
            Answer { edge: edge.to_string(), site, said }
        }
    });
    let mut answers: Vec<Answer> = asked.buffer_unordered(ASKED_MAX).collect().await;
    answers.sort_by(|a, b| a.edge.cmp(&b.edge));
    Ok(answers)
}

/// What an edge says, if there is room for it.
fn read(said: &str, collected: &AtomicUsize) -> Result<Value, String> {
    if collected.fetch_add(said.len(), Ordering::Relaxed) + said.len() > ANSWERS_BYTES_MAX {
        let max = ANSWERS_BYTES_MAX >> 20;
        return Err(format!("the other edges' answers have {max} MiB already; ask for one app"));
    }
    match serde_json::from_str(said) {
        Ok(said @ Value::Object(_)) => Ok(said),
        Ok(_) | Err(_) => Err("the edge's answer can't be read".to_owned()),
    }
}

fn either(said: Result<Value, String>) -> (Option<Value>, Option<String>) {
    match said {
        Ok(said) => (Some(said), None),
        Err(why_not) => (None, Some(why_not)),
    }
}

/// The sum over edges and apps. What can't be read in an answer counts as nothing.
fn total<'a>(answers: impl Iterator<Item = &'a Value>) -> CacheTotal {
    let apps = answers.filter_map(|stats| stats["apps"].as_array()).flatten();
    let mut requests = BTreeMap::<String, u64>::new();
    for (word, count) in apps.filter_map(|app| app["requests"].as_object()).flatten() {
        let sum = requests.entry(word.clone()).or_default();
        *sum = sum.saturating_add(count.as_u64().unwrap_or(0));
    }
    let all = requests.values().fold(0u64, |all, count| all.saturating_add(*count));
    // Stale ones that may be used come from memory, too.
    let hits = ["hit", "stale"]
        .iter()
        .filter_map(|word| requests.get(*word))
        .fold(0u64, |all, count| all.saturating_add(*count));
    // In ten-thousandths, which is as exact as anybody reads.
    let hit_ratio = (all > 0).then(|| (hits as f64 / all as f64 * 10_000.0).round() / 10_000.0);
    CacheTotal { requests, hit_ratio }
}

#[cfg(test)]
mod tests;
