//! Asking the origin on behalf of all who wait. It runs as a task of its own: whoever asked first may go away.

use super::encoding::accepted::Accepted;
use super::encoding::worth::worth;
use super::fill::{Fill, Progress, Reader};
use super::index::Lead;
use super::key::Key;
use super::object::{Head, Object, Resource};
use super::purge::Fate;
use super::rules::directives::{RequestDirectives, ResponseDirectives};
use super::rules::freshness::{Exchanged, Freshness};
use super::rules::storing::{Asked, NotStored, may_store, of_one_client, strip_unstored};
use super::rules::{conditional, policy, update, vary};
use super::{Cache, tags};
use atoll_model::{CacheRule, Hop, Reason};
use atoll_process::clock::unix_ms;
use atoll_proxy::Body;
use atoll_proxy::answer::InternalAnswer;
use atoll_proxy::headers::UNTIL_CLOSE;
use http::header::{CONTENT_LENGTH, HeaderMap, RANGE, SET_COOKIE};
use http::{Method, Response, StatusCode, request};
use http_body::Body as _;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// A length at which a body is worth compressing, where its kind is.
const COMPRESSIBLE_BYTES: u64 = 64 * 1024;
/// The rest of a response whose readers have all gone is fetched only if it is no longer than this, bytes.
const UNREAD_BYTES_MAX: u64 = 256 * 1024;

/// A body from which nothing came for so long is one that others who ask do not join.
const SILENCE_MAX: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 10_000 });

/// Where responses come from.
pub(crate) trait Origin: Clone + 'static {
    /// Sends a request without a body.
    fn fetch(&self, head: request::Parts) -> impl Future<Output = Result<Fetched, InternalAnswer>>;

    /// The same, of what is to be kept for all: another edge may have it. `purged` is the app's last purge that is known here: what
    /// that edge has must be no older.
    fn fetch_shared(
        &self,
        head: request::Parts,
        key: &Key,
        purged: u64,
    ) -> impl Future<Output = Result<Fetched, InternalAnswer>>;

    /// Learns whether what was asked for could be kept for all.
    fn learn(&self, shared: bool);
}

/// What the origin answered.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// As clients may see it.
    pub(crate) response: Response<Body>,
    /// Who made it, in the internal fields.
    pub(crate) who: HeaderMap,
    /// Another edge has answered from what it keeps, and this is the app's last purge that it knew when it asked the origin.
    pub(crate) asked_at: Option<u64>,
    /// Another edge has answered.
    pub(crate) of_edge: bool,
}

/// What becomes of the one who asked first.
#[derive(Debug)]
pub(crate) enum ForFirst {
    /// The answer is for it alone.
    Alone(Fetched, NotStored),
    /// It shares what is told to all; it reads what comes by this, where that is not all here yet.
    Shared(Own, Option<Reader>),
    /// What was stored is of no use: it is to ask anew.
    Again,
}

/// What the one who asked has before all who share the answer.
#[derive(Debug, Default)]
pub(crate) struct Own {
    /// Who made the answer, in the internal fields.
    pub(crate) who: HeaderMap,
    /// Fields that are not stored, because they are for one client.
    pub(crate) fields: HeaderMap,
}

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Wish {
    /// The request, as the client sent it but for what every hop changes.
    pub(crate) head: request::Parts,
    /// Of what.
    pub(crate) resource: Resource,
    /// The key of the resource, whatever variant is asked for.
    pub(crate) key: Key,
    /// What the app says of the path.
    pub(crate) rule: Option<Arc<CacheRule>>,
    /// Codings that may be answered with.
    pub(crate) accepted: Accepted,
    /// Another edge asks.
    pub(crate) is_edge: bool,
}

impl Wish {
    /// The same once more.
    pub(crate) fn again(&self) -> Self {
        let Self { resource, key, rule, .. } = self;
        let (resource, key, rule) = (resource.clone(), key.clone(), rule.clone());
        Self { head: self.copy(), resource, key, rule, ..*self }
    }

    /// The request once more. Extensions are left out: nothing of ours is in them.
    pub(crate) fn copy(&self) -> request::Parts {
        let (mut copy, ()) = http::Request::new(()).into_parts();
        copy.method = self.head.method.clone();
        copy.uri = self.head.uri.clone();
        copy.version = self.head.version;
        copy.headers = self.head.headers.clone();
        copy
    }
}

/// What is known here of what is asked for.
#[derive(Debug, Clone)]
pub(crate) enum Known {
    /// Nothing.
    Nothing,
    /// The last answer was not one to store; this one may be.
    NotStored,
    /// What is stored, which is to be validated.
    Stale(Arc<Object>),
}

/// Asks, tells all who wait, and stores what may be stored.
pub(crate) async fn fetch<O: Origin>(
    cache: Arc<Cache>,
    origin: O,
    lead: Lead,
    wish: Wish,
    known: Known,
    mut first: Option<oneshot::Sender<ForFirst>>,
) {
    let (stale, is_passed) = match known {
        Known::Nothing => (None, false),
        Known::NotStored => (None, true),
        Known::Stale(stale) => (Some(stale), false),
    };
    let mut head = wish.copy();
    head.method = Method::GET;
    head.headers.remove(RANGE);
    let validates = match &stale {
        Some(stale) => conditional::ask_whether_valid(&mut head.headers, &stale.head.headers),
        None => {
            conditional::strip(&mut head.headers);
            false
        }
    };
    let asked_at = cache.purges.load().last_of(&wish.resource.app);
    let asked_ms = unix_ms();
    let asking = async {
        // No other edge has what is not stored.
        match is_passed {
            true => origin.fetch(head).await,
            false => origin.fetch_shared(head, &wish.key, asked_at).await,
        }
    };
    let answered = tokio::select! {
        answered = asking => answered,
        () = nobody_waits(lead.fill(), first.as_mut()) => return,
    };
    let exchanged = Exchanged { asked_ms, answered_ms: unix_ms() };
    let directives = RequestDirectives::of(&wish.head.headers);
    let stands_in =
        stale.as_ref().filter(|stale| may_stand_in(&cache, stale, &wish, &directives, exchanged.answered_ms));
    let Fetched { response, who, asked_at: told_at, of_edge } = match (answered, stands_in) {
        (Ok(fetched), Some(stale)) if is_failure(fetched.response.status()) => {
            let own = Own { who: fetched.who, ..Own::default() };
            return tell_stored(&lead, first, Progress::StandsIn(Arc::clone(stale)), own);
        }
        (Ok(fetched), _) => fetched,
        (Err(_), Some(stale)) => {
            return tell_stored(&lead, first, Progress::StandsIn(Arc::clone(stale)), Own::default());
        }
        (Err(made), None) => return lead.fill().tell(Progress::Failed(made)),
    };
    // Another edge's may be from before purges that don't name it. It is not believed to be from after some that we are yet to hear of:
    // at worst those take away what is new, and no edge can say that its answer outlives all of them.
    let asked_at = told_at.map_or(asked_at, |told| told.min(cache.purges.load().last_of(&wish.resource.app)));
    if validates && response.status() == StatusCode::NOT_MODIFIED {
        origin.learn(true);
        let fetched = Fetched { response, who, asked_at: told_at, of_edge };
        return validated(&cache, &lead, first, &wish, stale, fetched, (exchanged, asked_at));
    }
    let asked = Asked { method: &Method::GET, headers: &wish.head.headers, directives: &directives };
    let said = ResponseDirectives::of(response.headers());
    let said = policy::ruled(said, response.status(), wish.rule.as_deref());
    let tag_field = policy::tag_field(wish.rule.as_deref());
    let verdict = may_store(asked, response.status(), response.headers(), &said).and_then(|()| {
        let fits = length_of(&response).is_none_or(|length| length <= cache.index.object_max());
        // Of one that ends where the connection does nobody can say whether it is whole.
        match (fits, who.contains_key(UNTIL_CLOSE)) {
            (false, _) => Err(NotStored::TooLarge),
            (true, true) => Err(NotStored::UntilClose),
            (true, false) if !tags::are_few(response.headers(), tag_field.as_ref(), of_edge) => {
                Err(NotStored::Tags)
            }
            (true, false) => Ok(()),
        }
    });
    if let Err(why) = verdict {
        not_stored(&cache, &lead, &wish, why, (response.status(), stale.is_some(), exchanged.answered_ms));
        // How one request was put says nothing of the others.
        if why.is_of_answer(response.status()) && !is_passed {
            origin.learn(false);
        }
        if let Some(first) = first {
            let fetched = Fetched { response, who, asked_at: told_at, of_edge };
            // Whoever asked may have gone.
            let _gone = first.send(ForFirst::Alone(fetched, why));
        }
        return;
    }
    origin.learn(true);
    let (parts, body) = response.into_parts();
    let own = of_one_client(&parts.headers, &said);
    let head = stored_head(&wish, (parts.status, parts.headers, of_edge), &said, exchanged, asked_at);
    let variant = vary::variant(&head.vary, &wish.head.headers).unwrap_or_default();
    let head = Arc::new(head);
    // Before the fetch goes on, so that it does not seem that nobody reads.
    let reader = first.as_ref().and_then(|_| lead.fill().reader());
    lead.fill().tell(Progress::Here(Arc::clone(&head), variant.into()));
    let behind_an_answer = first.is_none();
    if let Some(first) = first {
        let _gone = first.send(ForFirst::Shared(Own { who, fields: own }, reader));
    }
    if let Some(object) = receive(&lead, &head, body, behind_an_answer).await {
        lead.keep(&wish.head.headers, Arc::new(object));
    }
}

/// Says to all who wait that the answer is not one to store, and remembers that.
fn not_stored(
    cache: &Cache,
    lead: &Lead,
    wish: &Wish,
    why: NotStored,
    (status, was_stored, now_ms): (StatusCode, bool, u64),
) {
    if is_failure(status) {
        return lead.fill().tell(Progress::Failed(FAILED));
    }
    // What was stored is not what the origin says any more.
    if was_stored && why.is_of_answer(status) {
        cache.index.remove(&wish.key);
    }
    let passed = match why {
        NotStored::Authorization => Some(wish.key.with_authorization()),
        _ => cache.index.key_of(&wish.key, &wish.head.headers),
    };
    if let Some(key) = passed {
        cache.index.pass(&key, &wish.resource, now_ms);
    }
    lead.fill().tell(Progress::NotShared);
}

/// What those get who waited for an answer that says that the instance fails.
const FAILED: InternalAnswer = InternalAnswer { hop: Hop::Edge, reason: Reason::FetchFailed, sent: true };

/// Whether what is stored may be used where the origin fails.
fn may_stand_in(cache: &Cache, stored: &Object, wish: &Wish, asks: &RequestDirectives, now_ms: u64) -> bool {
    // An edge that wants it to be validated knows of a change: it may be of before that.
    if wish.is_edge && asks.no_cache {
        return false;
    }
    let freshness = &stored.head.freshness;
    let is_allowed = match stored.fate(&cache.purges.load()) {
        Fate::Gone => false,
        // It is stale, however long it would have been fresh.
        Fate::Stale => freshness.if_error_s > 0,
        Fate::Kept => true,
    };
    is_allowed && freshness.usable_on_error(now_ms)
}

/// Resolves when nobody would get the answer.
async fn nobody_waits(fill: &Fill, first: Option<&mut oneshot::Sender<ForFirst>>) {
    match first {
        Some(first) => first.closed().await,
        // Behind an answer that was given: to be stored, whoever waits.
        None => std::future::pending().await,
    }
    fill.abandoned().await;
}

fn tell_stored(lead: &Lead, first: Option<oneshot::Sender<ForFirst>>, news: Progress, own: Own) {
    lead.fill().tell(news);
    if let Some(first) = first {
        let _gone = first.send(ForFirst::Shared(own, None));
    }
}

/// The stored response holds: its fields are brought up to date.
fn validated(
    cache: &Cache,
    lead: &Lead,
    first: Option<oneshot::Sender<ForFirst>>,
    wish: &Wish,
    stale: Option<Arc<Object>>,
    fetched: Fetched,
    (exchanged, asked_at): (Exchanged, u64),
) {
    let Fetched { response, who, of_edge, .. } = fetched;
    let told = response.headers();
    let kept = stale.filter(|stale| update::is_about(told, &stale.head.headers)).and_then(|stale| {
        let headers = update::updated(&stale.head.headers, told);
        let said = policy::ruled(ResponseDirectives::of(&headers), stale.head.status, wish.rule.as_deref());
        // What it says now may be that it is not for all. Whoever asked was let in when it was stored.
        let (none, plain) = (HeaderMap::new(), RequestDirectives::default());
        let asked = Asked { method: &Method::GET, headers: &none, directives: &plain };
        may_store(asked, stale.head.status, &headers, &said).ok()?;
        let head = stored_head(wish, (stale.head.status, headers, of_edge), &said, exchanged, asked_at);
        // A 304 need not repeat them (RFC 9110, section 15.4.5).
        let tags = if head.tags.is_empty() { stale.head.tags.clone() } else { head.tags };
        Some(Arc::new(stale.with_head(Head { vary: Arc::clone(&stale.head.vary), tags, ..head })))
    });
    let Some(object) = kept else {
        // It is of something else that was stored once, or no longer for all: it goes, and who waits asks anew.
        cache.index.remove(&wish.key);
        lead.fill().tell(Progress::NotShared);
        if let Some(first) = first {
            let _gone = first.send(ForFirst::Again);
        }
        return;
    };
    lead.keep(&wish.head.headers, Arc::clone(&object));
    let mut fields = of_one_client(told, &ResponseDirectives::of(told));
    told.get_all(SET_COOKIE).iter().for_each(|cookie| {
        fields.append(SET_COOKIE, cookie.clone());
    });
    tell_stored(lead, first, Progress::Validated(object), Own { who, fields });
}

fn stored_head(
    wish: &Wish,
    (status, mut headers, of_edge): (StatusCode, HeaderMap, bool),
    said: &ResponseDirectives,
    exchanged: Exchanged,
    asked_at: u64,
) -> Head {
    let freshness = Freshness::of(status, &headers, said, exchanged);
    let rule = wish.rule.as_deref();
    let tags = tags::take(&mut headers, policy::tag_field(rule).as_ref(), of_edge);
    strip_unstored(&mut headers, said);
    policy::strip_forced(&mut headers, said);
    // Its length is looked at when it is here.
    let compressible = rule.is_none_or(|rule| rule.compress)
        && worth(status, &headers, COMPRESSIBLE_BYTES, said.no_transform);
    Head {
        resource: wish.resource.clone(),
        status,
        vary: vary::names(&headers).unwrap_or_default().into(),
        headers,
        freshness,
        tags,
        asked_at,
        compressible,
    }
}

/// Receives the body for all who read it; gives what is to be stored. What is asked for behind an answer needs no readers.
async fn receive(lead: &Lead, head: &Head, mut body: Body, behind_an_answer: bool) -> Option<Object> {
    let (fill, mut trailers) = (lead.fill(), None);
    loop {
        if !fill.room().await || (!behind_an_answer && fill.is_unread() && too_much_is_left(head, fill)) {
            fill.break_off();
            return None;
        }
        let frame = loop {
            let next = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
            match tokio::time::timeout(SILENCE_MAX, next).await {
                Ok(frame) => break frame,
                // Who comes now is not to wait for it; and what they get is newer.
                Err(_) => {
                    lead.leave();
                    fill.outdate();
                }
            }
            if fill.is_unread() {
                fill.break_off();
                return None;
            }
        };
        match frame {
            None => break,
            Some(Err(_)) => {
                fill.break_off();
                return None;
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => fill.push(data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            },
        }
    }
    let object = Object::new(head.clone(), fill.finish(trailers)?);
    // One whose length is not what it says is no whole one.
    told_length(&head.headers).is_none_or(|told| told == object.body.length).then_some(object)
}

/// Whether the rest is more than what is fetched for nobody.
fn too_much_is_left(head: &Head, fill: &Fill) -> bool {
    told_length(&head.headers).is_none_or(|length| length.saturating_sub(fill.received()) > UNREAD_BYTES_MAX)
}

fn told_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())
}

fn length_of(response: &Response<Body>) -> Option<u64> {
    told_length(response.headers()).or_else(|| response.body().size_hint().exact())
}

/// Answers for which a stored response may stand in (RFC 5861, section 4).
fn is_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}
