//! The path of a request through the cache: look → use, or join those who ask → answer.

use super::Cache;
use super::answer::{Asking, from_fill, from_object};
use super::compressing::compress_behind;
use super::fetch::{Fetched, ForFirst, Known, Origin, Own, Wish, fetch};
use super::fill::{Fill, Progress, Reader};
use super::index::{Found, Place};
use super::key::Key;
use super::object::Object;
use super::purge::Fate;
use super::rules::directives::RequestDirectives;
use super::rules::freshness::Use;
use super::rules::storing::NotStored;
use super::rules::vary;
use super::status::{CacheStatus, Forwarded};
use atoll_model::{Hop, Reason};
use atoll_process::clock::unix_ms;
use atoll_proxy::answer::InternalAnswer;
use atoll_proxy::workers::spawn_task;
use atoll_proxy::{Body, ProxyMetrics};
use http::header::{
    AUTHORIZATION, HeaderMap, HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE,
    RANGE,
};
use http::{Method, Response};
use std::sync::Arc;
use tokio::sync::oneshot;

/// How often a request joins those who ask, where the one who asked failed.
const ROUNDS_MAX: usize = 2;

/// An answer, and how it came about.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) response: Response<Body>,
    /// Who made it, where it was asked for by this request.
    pub(crate) who: HeaderMap,
    pub(crate) status: CacheStatus,
}

/// Answers a GET or HEAD without a body.
pub(crate) async fn respond<O: Origin>(
    cache: &Arc<Cache>,
    origin: &O,
    wish: Wish,
    metrics: &ProxyMetrics,
) -> Result<Answered, InternalAnswer> {
    let asks = RequestDirectives::of(&wish.head.headers);
    let serving = Serving { cache, origin, wish: &wish, metrics, asks };
    let mut failed = None;
    for _ in 0..ROUNDS_MAX {
        match serving.round().await {
            Round::Answered(answered) => return Ok(answered),
            Round::Direct(why, detail) => return serving.direct(why, detail).await,
            Round::Refused(made) => return Err(made),
            Round::Failed(made) => failed = Some(made),
        }
    }
    let failed = failed.unwrap_or(NOT_CACHED);
    // Who asked for all may have been why it failed: some may ask for themselves, but not all at once.
    if failed.reason == Reason::FetchFailed
        && let Ok(_place) = cache.alone.try_acquire()
    {
        return serving.direct(Forwarded::UriMiss, Some(Reason::FetchFailed.code())).await;
    }
    Err(failed)
}

/// What may be done with what is stored; nothing where it was purged.
pub(crate) fn usable(cache: &Cache, object: &Object, asks: &RequestDirectives, now_ms: u64) -> Option<Use> {
    match cache.fate(object) {
        Fate::Gone => None,
        Fate::Stale => Some(Use::Validate),
        Fate::Kept => Some(object.head.freshness.usable(now_ms, asks)),
    }
}

/// Why what is stored is not used as it is.
pub(crate) fn why_validate(cache: &Cache, object: &Object, now_ms: u64) -> Forwarded {
    let freshness = &object.head.freshness;
    let purged = cache.fate(object) != Fate::Kept;
    let stale = purged || freshness.always_validate || freshness.ttl_s(now_ms) <= 0;
    if stale { Forwarded::Stale } else { Forwarded::Request }
}

/// Answers from what is stored without a look at what only others of its kind need: one response for all, fresh, unless the request or a
/// purge says otherwise. Nothing is lost where there is none: [`respond`] looks again.
pub(crate) fn quick(cache: &Arc<Cache>, key: &Key, asking: Asking<'_>) -> Option<Answered> {
    let object = cache.index.find_plain(key)?;
    if cache.fate(&object) != Fate::Kept {
        return None;
    }
    let usable = object.head.freshness.usable(asking.now_ms, &RequestDirectives::of(asking.headers));
    if usable != Use::Fresh {
        return None;
    }
    let response = from_object(&object, asking)?;
    compress_behind(cache, key, &object, asking);
    let status = CacheStatus::hit(object.head.freshness.ttl_s(asking.now_ms));
    Some(Answered { response, who: HeaderMap::new(), status })
}

const NOT_CACHED: InternalAnswer = InternalAnswer { hop: Hop::Edge, reason: Reason::NotCached, sent: false };

#[expect(clippy::large_enum_variant, reason = "one for each request, moved once")]
enum Round {
    Answered(Answered),
    /// The request goes to the origin as it is.
    Direct(Forwarded, Option<&'static str>),
    Refused(InternalAnswer),
    /// Another one asked, and got nothing: there may be another round.
    Failed(InternalAnswer),
}

struct Serving<'a, O> {
    cache: &'a Arc<Cache>,
    origin: &'a O,
    wish: &'a Wish,
    metrics: &'a ProxyMetrics,
    asks: RequestDirectives,
}

impl<O: Origin> Serving<'_, O> {
    async fn round(&self) -> Round {
        let Wish { head, key, .. } = self.wish;
        let now_ms = unix_ms();
        let (why, known) = match self.cache.index.find(key, &head.headers, now_ms) {
            Found::Pass => (Forwarded::UriMiss, Known::NotStored),
            Found::TooLong => return Round::Direct(Forwarded::VaryMiss, Some("variant-too-long")),
            Found::Absent(missing) if missing == *key => (Forwarded::UriMiss, Known::Nothing),
            Found::Absent(_) => (Forwarded::VaryMiss, Known::Nothing),
            Found::Object(object) => match usable(self.cache, &object, &self.asks, now_ms) {
                Some(Use::Fresh) => return self.hit(&object, now_ms),
                Some(Use::WhileRevalidate) => {
                    self.refresh(&object);
                    return self.hit(&object, now_ms);
                }
                Some(Use::Validate) => (why_validate(self.cache, &object, now_ms), Known::Stale(object)),
                None => (Forwarded::UriMiss, Known::Nothing),
            },
        };
        if self.asks.only_if_cached {
            return Round::Refused(NOT_CACHED);
        }
        if head.method == Method::HEAD {
            return Round::Direct(why, None);
        }
        if let Some(detail) = self.goes_alone(&known, now_ms) {
            return Round::Direct(why, Some(detail));
        }
        let Some(shared) = self.cache.index.key_of(key, &head.headers) else {
            return Round::Direct(why, Some("variant-too-long"));
        };
        match self.cache.index.join(key, &shared) {
            // One of those whose answers were not shared may find that now they are; the others don't wait for it.
            Place::Follow(_) if matches!(known, Known::NotStored) => Round::Direct(why, Some("pass")),
            // It began before the change that the other edge knows of.
            Place::Follow(_) if self.wish.is_edge && self.asks.no_cache => {
                Round::Direct(why, Some("no-cache"))
            }
            Place::Follow(fill) => self.follow(&fill, why).await,
            Place::Lead(lead) => {
                let (first, outcome) = oneshot::channel();
                let fill = Arc::clone(lead.fill());
                let task = fetch(
                    Arc::clone(self.cache),
                    self.origin.clone(),
                    lead,
                    self.wish.again(),
                    known,
                    Some(first),
                );
                spawn_task("cache fetch", self.metrics, task);
                match outcome.await {
                    Ok(ForFirst::Alone(fetched, reason)) => self.alone(fetched, reason, why),
                    Ok(ForFirst::Shared(own, reader)) => self.shared(&fill, why, Some(own), reader).await,
                    Ok(ForFirst::Again) => Round::Failed(NOT_CACHED),
                    Err(_) => match fill.head().await {
                        Progress::Failed(made) => Round::Refused(made),
                        _ => Round::Failed(NOT_CACHED),
                    },
                }
            }
        }
    }

    /// Why nobody is to share what comes back, and it is not to be stored: by how the request is put.
    fn goes_alone(&self, known: &Known, now_ms: u64) -> Option<&'static str> {
        let Wish { head, key, .. } = self.wish;
        let has = |name: HeaderName| head.headers.contains_key(name);
        if self.asks.no_store {
            return Some("request-no-store");
        }
        if has(IF_MATCH) || has(IF_UNMODIFIED_SINCE) {
            return Some("condition");
        }
        // Who asks for a part, or whether there is anything new, is to get no more than that of what is likely not to be stored.
        let asks_for_less = [RANGE, IF_NONE_MATCH, IF_MODIFIED_SINCE].into_iter().any(has);
        let passed = (matches!(known, Known::NotStored) && asks_for_less)
            || (has(AUTHORIZATION) && self.cache.index.passes(&key.with_authorization(), now_ms));
        passed.then_some("pass")
    }

    fn hit(&self, object: &Arc<Object>, now_ms: u64) -> Round {
        let asking = self.asking(now_ms);
        let Some(response) = from_object(object, asking) else {
            return Round::Direct(Forwarded::Request, Some("condition"));
        };
        compress_behind(self.cache, &self.wish.key, object, asking);
        let status = CacheStatus::hit(object.head.freshness.ttl_s(now_ms));
        Round::Answered(Answered { response, who: HeaderMap::new(), status })
    }

    fn asking(&self, now_ms: u64) -> Asking<'_> {
        let Wish { head, rule, accepted, is_edge, .. } = self.wish;
        Asking {
            method: &head.method,
            headers: &head.headers,
            accepted: *accepted,
            rule: rule.as_deref(),
            is_edge: *is_edge,
            now_ms,
        }
    }

    /// Asks the origin behind an answer that was given, unless someone does already.
    fn refresh(&self, object: &Arc<Object>) {
        let Wish { head, key, .. } = self.wish;
        let known = Known::Stale(Arc::clone(object));
        if self.goes_alone(&known, unix_ms()).is_some() {
            return;
        }
        let Some(shared) = self.cache.index.key_of(key, &head.headers) else { return };
        if let Place::Lead(lead) = self.cache.index.join(key, &shared) {
            let task =
                fetch(Arc::clone(self.cache), self.origin.clone(), lead, self.wish.again(), known, None);
            spawn_task("cache refresh", self.metrics, task);
        }
    }

    async fn follow(&self, fill: &Arc<Fill>, why: Forwarded) -> Round {
        match fill.head().await {
            Progress::Asking | Progress::NotShared => Round::Direct(why, Some("not-shared")),
            Progress::Failed(made) => Round::Failed(made),
            Progress::Here(..) | Progress::Validated(_) | Progress::StandsIn(_) => {
                self.shared(fill, why, None, None).await
            }
        }
    }

    /// Answers from what was told to all; `own` is there for the one who asked.
    async fn shared(
        &self,
        fill: &Arc<Fill>,
        why: Forwarded,
        own: Option<Own>,
        reader: Option<Reader>,
    ) -> Round {
        let Wish { head, .. } = self.wish;
        let now_ms = unix_ms();
        let collapsed = own.is_none();
        let own = own.unwrap_or_default();
        // What others wait for was asked for before a purge that names it, which this request came after.
        let fate = |entry| if collapsed { self.cache.purges.load().fate(entry) } else { Fate::Kept };
        let status = CacheStatus { collapsed, ..CacheStatus::forwarded(why) };
        match fill.head().await {
            Progress::Here(stored, variant) => {
                if fate(stored.for_purges()) != Fate::Kept {
                    return Round::Direct(why, Some("purged"));
                }
                if vary::variant(&stored.vary, &head.headers).as_deref() != Some(&*variant) {
                    return Round::Direct(Forwarded::VaryMiss, None);
                }
                let Some(reader) = reader.or_else(|| fill.reader()) else {
                    return Round::Direct(why, Some("late"));
                };
                let Some(mut response) = from_fill(&stored, reader, self.asking(now_ms)) else {
                    return Round::Direct(why, Some("condition"));
                };
                response.headers_mut().extend(own.fields);
                let status = CacheStatus {
                    forwarded_status: Some(stored.status.as_u16()),
                    ttl_s: Some(stored.freshness.ttl_s(now_ms)),
                    stored: true,
                    ..status
                };
                Round::Answered(Answered { response, who: own.who, status })
            }
            Progress::Validated(object) if fate(object.head.for_purges()) != Fate::Kept => {
                Round::Direct(why, Some("purged"))
            }
            // One that was purged softly may.
            Progress::StandsIn(object) if fate(object.head.for_purges()) == Fate::Gone => {
                Round::Direct(why, Some("purged"))
            }
            Progress::Validated(object) => {
                let status = CacheStatus { forwarded_status: Some(304), stored: true, ..status };
                self.stored(&object, why, own, status)
            }
            Progress::StandsIn(object) => {
                let status = CacheStatus { detail: Some("stale-if-error"), ..status };
                self.stored(&object, why, own, status)
            }
            Progress::Failed(made) => Round::Failed(made),
            Progress::Asking | Progress::NotShared => Round::Direct(why, Some("not-shared")),
        }
    }

    fn stored(&self, object: &Arc<Object>, why: Forwarded, own: Own, status: CacheStatus) -> Round {
        let now_ms = unix_ms();
        let Some(mut response) = from_object(object, self.asking(now_ms)) else {
            return Round::Direct(why, Some("condition"));
        };
        response.headers_mut().extend(own.fields);
        let status = CacheStatus { ttl_s: Some(object.head.freshness.ttl_s(now_ms)), ..status };
        Round::Answered(Answered { response, who: own.who, status })
    }

    fn alone(&self, fetched: Fetched, reason: NotStored, why: Forwarded) -> Round {
        // It asked for a part, and the whole was fetched to be stored, which it is not.
        if self.wish.head.headers.contains_key(RANGE) {
            return Round::Direct(why, Some(reason.as_str()));
        }
        let status = CacheStatus {
            forwarded_status: Some(fetched.response.status().as_u16()),
            detail: Some(reason.as_str()),
            ..CacheStatus::forwarded(why)
        };
        Round::Answered(Answered { response: fetched.response, who: fetched.who, status })
    }

    async fn direct(&self, why: Forwarded, detail: Option<&'static str>) -> Result<Answered, InternalAnswer> {
        let fetched = self.origin.fetch(self.wish.copy()).await?;
        let status = CacheStatus {
            forwarded_status: Some(fetched.response.status().as_u16()),
            detail,
            ..CacheStatus::forwarded(why)
        };
        Ok(Answered { response: fetched.response, who: fetched.who, status })
    }
}

#[cfg(test)]
mod tests;
