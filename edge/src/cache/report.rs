//! What the cache holds, and what it would do with a request: for people who ask, by the functions that requests go by. Looking changes
//! nothing, but that it counts as asking for what is looked at.
//!
//! What is said is JSON that control passes on: members may be added, so that edges of different versions get along.

use super::answer::{Asking, from_object};
use super::encoding::accepted::Accepted;
use super::index::Found;
use super::key::Key;
use super::object::Object;
use super::purge::Fate;
use super::rules::directives::RequestDirectives;
use super::rules::freshness::Use;
use super::rules::policy;
use super::serve::{usable, why_validate};
use super::status::{CacheStatus, Forwarded};
use super::{Cache, is_for_cache};
use crate::request::lets_cache;
use crate::serving::Serving;
use crate::views::Snapshot;
use atoll_model::{CacheRule, Reason};
use atoll_process::clock::unix_ms;
use atoll_proxy::{Body, headers};
use atoll_routing::hosts::normalise_host;
use atoll_routing::path::normalise;
use http::header::{ETAG, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Uri};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::Arc;

impl Serving {
    /// What was counted of an organization's requests, or of one app's (`org/app`): `apps`, each with `app` and `requests` (how many, by
    /// what became of them); what is stored of the `organization`: `entries` and `bytes`; and of the whole edge `entries`, `bytes` and
    /// `bytes_max`, which is 0 where nothing is cached.
    #[must_use]
    pub fn cache_stats(&self, org: &str, app: Option<&str>) -> Value {
        let Some(cache) = &self.shared.cache else {
            return json!({ "apps": [], "entries": 0, "bytes": 0, "bytes_max": 0 });
        };
        let counts = cache.counts.beginning(&format!("{org}/"));
        let meant = counts.iter().filter(|(name, _)| app.is_none_or(|app| **name == *app));
        let apps = meant.map(
            |(name, counts)| json!({ "app": &**name, "requests": counts.read().collect::<HashMap<_, _>>() }),
        );
        let organizations = cache.index.organizations();
        let own = organizations.iter().find(|owned| &*owned.owner == org);
        json!({
            "apps": apps.collect::<Vec<_>>(),
            "organization": {
                "entries": own.map_or(0, |own| own.entries),
                "bytes": own.map_or(0, |own| own.bytes),
            },
            "entries": cache.index.count(),
            "bytes": cache.index.bytes(),
            "bytes_max": cache.index.capacity(),
        })
    }

    /// What would become of a GET with these fields, and why. `host` is as clients write it, with a port where they do, `target` the path
    /// with query. Nothing is said of a host that is not of the app.
    ///
    /// `would` is `hit`, `validate`, `miss`, `pass` (as for a miss, and others don't wait for its answer), `bypass` (the cache is not asked),
    /// `refuse` (Atoll makes the answer: `reason`) or `unknown`; `cache_status` is what the client would read first; `stored` is what is
    /// there for such a request, whether it is used or not.
    #[must_use]
    pub fn cache_explain(&self, app: &str, host: &str, target: &str, fields: &[(String, String)]) -> Value {
        let Some(cache) = &self.shared.cache else {
            return said("pass", "this edge has no cache: `edge.cache_bytes_max` is 0");
        };
        match resource(&self.shared.views.load(), app, host, target) {
            Err(refused) => refused,
            Ok(asked) => {
                let key = Key::resource(&asked.id, host, &asked.target);
                let mut answer = explain(cache, &key, &asked, &as_forwarded(fields), unix_ms());
                answer["key"] = json!({ "virtual_host": asked.id, "host": host, "target": asked.target });
                if let Some(rule) = &asked.rule {
                    answer["rule"] = json!(**rule);
                }
                answer
            }
        }
    }
}

/// What is asked about.
struct Asked {
    /// The virtual host's.
    id: String,
    /// The host, without port.
    name: String,
    /// Path with query as the key has them.
    target: String,
    /// What the app says of the path.
    rule: Option<Arc<CacheRule>>,
}

/// What an address means; otherwise what is said of it.
fn resource(snapshot: &Snapshot, app: &str, host: &str, target: &str) -> Result<Asked, Value> {
    let name = normalise_host(host).ok_or_else(|| refused(Reason::BadRequest, "that is no host name"))?;
    let found = snapshot.hosts.find_normal(&name);
    let found = found.ok_or_else(|| refused(Reason::UnknownHost, "no virtual host has this name"))?;
    let uri: Uri = target.parse().map_err(|_| refused(Reason::BadRequest, "that is no path with query"))?;
    let path = normalise(uri.path()).map_err(|why| refused(Reason::AmbiguousPath, &why.to_string()))?;
    let route = found.route(path.as_str());
    let route = route.ok_or_else(|| refused(Reason::NoRoute, "no route matches the path"))?;
    if route.cluster.rsplit_once('/').map(|(of, _service)| of) != Some(app) {
        return Err(said("unknown", &format!("here the address is not of {app}, or not yet")));
    }
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let rule = found.cache_rule(&name, path.as_str()).cloned();
    let target = format!("{}{query}", path.as_str());
    let target = policy::target(&target, rule.as_deref()).into_owned();
    Ok(Asked { id: found.id.clone(), name: name.into_owned(), target, rule })
}

/// A request's fields as the cache sees them. What the edge adds by itself, such as the client's address, is not among them.
fn as_forwarded(fields: &[(String, String)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            // More than a map holds is more than a request may have.
            let _full = map.try_append(name, value).is_err();
        }
    }
    headers::strip_hop_by_hop(&mut map);
    headers::strip_internal(&mut map);
    headers::strip_forwarded(&mut map);
    map
}

/// What would be done with a GET of what the key names.
fn explain(cache: &Cache, key: &Key, asked: &Asked, fields: &HeaderMap, now_ms: u64) -> Value {
    let rule = asked.rule.as_deref();
    let request = request(&asked.target, fields);
    if !lets_cache(rule, &request, &asked.name) {
        let off = rule.is_some_and(|rule| rule.off);
        let why = if off {
            "the app's rule for the path is `off`"
        } else {
            "the condition of the rule's `bypass` holds"
        };
        return with_status(said("bypass", why), CacheStatus::forwarded(Forwarded::Bypass));
    }
    if !is_for_cache(&request) {
        let why = "a field of the request overrides its method, so that it may not be a GET";
        return with_status(said("bypass", why), CacheStatus::forwarded(Forwarded::Bypass));
    }
    let asks = RequestDirectives::of(fields);
    let found = cache.index.find(key, fields, now_ms);
    let mut answer = match &found {
        Found::Pass => {
            let why = "nothing is stored; the last answer was for one client alone, so that for some seconds nobody waits for another's";
            let status = CacheStatus { detail: Some("pass"), ..CacheStatus::forwarded(Forwarded::UriMiss) };
            with_status(said("pass", why), status)
        }
        Found::TooLong => {
            let why =
                "answers differ by fields of the request, and what it has in them is too long for a key";
            let status = CacheStatus {
                detail: Some("variant-too-long"),
                ..CacheStatus::forwarded(Forwarded::VaryMiss)
            };
            with_status(said("pass", why), status)
        }
        Found::Absent(missing) if missing == key => absent(Forwarded::UriMiss, "nothing is stored of it"),
        Found::Absent(_) => absent(
            Forwarded::VaryMiss,
            "answers differ by fields of the request, and none is stored for these",
        ),
        Found::Object(object) => stored(cache, object, (fields, rule), &asks, now_ms),
    };
    if asks.only_if_cached && answer["would"] != "hit" {
        answer = refused(
            Reason::NotCached,
            "the request says `only-if-cached`, and there is nothing that it can have",
        );
    }
    if let Found::Object(object) = &found {
        answer["stored"] = described(cache, object, key, now_ms);
    }
    answer
}

fn request(target: &str, fields: &HeaderMap) -> Request<Body> {
    let mut request = Request::new(Body::empty());
    *request.headers_mut() = fields.clone();
    *request.uri_mut() = target.parse().unwrap_or_default();
    request
}

fn absent(why: Forwarded, text: &str) -> Value {
    with_status(said("miss", text), CacheStatus::forwarded(why))
}

fn stored(
    cache: &Cache,
    object: &Arc<Object>,
    (fields, rule): (&HeaderMap, Option<&CacheRule>),
    asks: &RequestDirectives,
    now_ms: u64,
) -> Value {
    let freshness = &object.head.freshness;
    let ttl_s = freshness.ttl_s(now_ms);
    let used = usable(cache, object, asks, now_ms);
    let validate = |text: &str| {
        with_status(said("validate", text), CacheStatus::forwarded(why_validate(cache, object, now_ms)))
    };
    let why = match used {
        None => return absent(Forwarded::UriMiss, "what is stored was purged"),
        Some(Use::Validate) if object.fate(&cache.purges.load()) == Fate::Stale => {
            return validate("a soft purge names it");
        }
        Some(Use::Fresh) => format!("it is fresh for {ttl_s} s more"),
        Some(Use::WhileRevalidate) => {
            format!(
                "it is stale, and may be used while the instance is asked behind the answer ({} s in all)",
                freshness.while_revalidate_s
            )
        }
        Some(Use::Validate) if freshness.always_validate => {
            return validate("the answer said `no-cache`: it is validated each time");
        }
        Some(Use::Validate) if ttl_s > 0 => {
            return validate("it is fresh, but the request wants it newer");
        }
        Some(Use::Validate) => return validate(&format!("it is stale since {} s", -ttl_s)),
    };
    let accepted = Accepted::of(fields);
    let asking = Asking { method: &Method::GET, headers: fields, accepted, rule, is_edge: false, now_ms };
    match from_object(object, asking) {
        Some(response) => {
            let mut answer = with_status(said("hit", &why), CacheStatus::hit(ttl_s));
            answer["status"] = response.status().as_u16().into();
            answer
        }
        None => {
            let status =
                CacheStatus { detail: Some("condition"), ..CacheStatus::forwarded(Forwarded::Request) };
            with_status(said("pass", "the request has a condition that is the instance's to judge"), status)
        }
    }
}

/// What is stored, without its fields and its body: they are the app's, and may be large.
fn described(cache: &Cache, object: &Object, key: &Key, now_ms: u64) -> Value {
    let head = &object.head;
    let freshness = &head.freshness;
    json!({
        "status": head.status.as_u16(),
        "age_s": freshness.age_s(now_ms),
        "ttl_s": freshness.ttl_s(now_ms),
        "lifetime_s": freshness.lifetime_s,
        "lifetime_guessed": freshness.heuristic,
        "always_validated": freshness.always_validate,
        "stale_while_revalidate_s": freshness.while_revalidate_s,
        "stale_if_error_s": freshness.if_error_s,
        "vary": head.vary.iter().map(HeaderName::as_str).collect::<Vec<_>>(),
        "tags": head.tags,
        "fields": head.headers.len(),
        "etag": head.headers.get(ETAG).and_then(|tag| tag.to_str().ok()),
        "body_bytes": object.body.length,
        "encoded_bytes": object.codings().map(|(coding, bytes)| (coding.token(), bytes)).collect::<HashMap<_, _>>(),
        "bytes": object.weight(key.bytes()),
        "purged": match object.fate(&cache.purges.load()) {
            Fate::Kept => "no",
            Fate::Stale => "softly",
            Fate::Gone => "yes",
        },
    })
}

fn refused(reason: Reason, why: &str) -> Value {
    let mut answer = said("refuse", why);
    answer["reason"] = reason.code().into();
    answer
}

fn with_status(mut answer: Value, status: CacheStatus) -> Value {
    answer["cache_status"] = String::from_utf8_lossy(status.to_value(None).as_bytes()).into();
    answer
}

fn said(would: &str, why: &str) -> Value {
    let mut answer = Map::new();
    answer.insert("would".to_owned(), would.into());
    answer.insert("why".to_owned(), why.into());
    Value::Object(answer)
}

#[cfg(test)]
mod tests;
