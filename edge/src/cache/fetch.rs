//! Asking the origin on behalf of all who wait. It runs as a task of its own: whoever asked first may go away.

use super::Cache;
use super::fill::{Fill, Progress, Reader};
use super::index::Lead;
use super::key::Key;
use super::object::{Head, Object, Resource};
use super::rules::conditional;
use super::rules::directives::{RequestDirectives, ResponseDirectives};
use super::rules::freshness::{Exchanged, Freshness};
use super::rules::storing::{Asked, NotStored, may_store, strip_unstored};
use super::rules::{update, vary};
use atoll_process::clock::unix_ms;
use atoll_proxy::Body;
use atoll_proxy::answer::InternalAnswer;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, RANGE};
use http::{Method, Response, StatusCode, request};
use http_body::Body as _;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Fields of a response by which it can be purged; clients don't see them.
const TAG_FIELDS: [HeaderName; 2] =
    [HeaderName::from_static("surrogate-key"), HeaderName::from_static("cache-tag")];
/// Most tags of one response, and the longest one, bytes; what is over is left out.
const TAGS_MAX: usize = 128;
const TAG_BYTES_MAX: usize = 256;
/// The rest of a response whose readers have all gone is fetched only if it is no longer than this, bytes.
const UNREAD_BYTES_MAX: u64 = 256 * 1024;

/// Where responses come from.
pub(crate) trait Origin: Clone + 'static {
    /// Sends a request without a body.
    fn fetch(&self, head: request::Parts) -> impl Future<Output = Result<Fetched, InternalAnswer>>;
}

/// What the origin answered.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// As clients may see it.
    pub(crate) response: Response<Body>,
    /// Who made it, in the internal fields.
    pub(crate) who: HeaderMap,
}

/// What becomes of the one who asked first.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one for each request, moved once")]
pub(crate) enum ForFirst {
    /// The answer is for it alone.
    Alone(Fetched, NotStored),
    /// It shares what is told to all; it reads what comes by this, where that is not all here yet.
    Shared(HeaderMap, Option<Reader>),
    /// What was stored is of no use: it is to ask anew.
    Again,
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
}

impl Wish {
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

/// Asks, tells all who wait, and stores what may be stored.
pub(crate) async fn fetch<O: Origin>(
    cache: Arc<Cache>,
    origin: O,
    lead: Lead,
    wish: Wish,
    stale: Option<Arc<Object>>,
    mut first: Option<oneshot::Sender<ForFirst>>,
) {
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
    let answered = tokio::select! {
        answered = origin.fetch(head) => answered,
        () = nobody_waits(lead.fill(), first.as_mut()) => return,
    };
    let exchanged = Exchanged { asked_ms, answered_ms: unix_ms() };
    let stands_in =
        stale.as_ref().filter(|stale| stale.head.freshness.usable_on_error(exchanged.answered_ms));
    let Fetched { response, who } = match (answered, stands_in) {
        (Ok(fetched), Some(stale)) if is_failure(fetched.response.status()) => {
            return tell_stored(&lead, first, Arc::clone(stale), fetched.who);
        }
        (Ok(fetched), _) => fetched,
        (Err(_), Some(stale)) => return tell_stored(&lead, first, Arc::clone(stale), HeaderMap::new()),
        (Err(made), None) => return lead.fill().tell(Progress::Failed(made)),
    };
    if validates && response.status() == StatusCode::NOT_MODIFIED {
        return validated(&cache, &lead, first, &wish, stale, &response, (who, exchanged, asked_at));
    }
    let directives = RequestDirectives::of(&wish.head.headers);
    let asked = Asked { method: &Method::GET, headers: &wish.head.headers, directives: &directives };
    let said = ResponseDirectives::of(response.headers());
    let verdict = may_store(asked, response.status(), response.headers(), &said).and_then(|()| {
        let fits = length_of(&response).is_none_or(|length| length <= cache.index.object_max());
        if fits { Ok(()) } else { Err(NotStored::TooLarge) }
    });
    if let Err(why) = verdict {
        // What was stored is not what the origin says any more.
        if stale.is_some() && !is_failure(response.status()) {
            cache.index.remove(&wish.key);
        }
        if let Some(key) = cache.index.key_of(&wish.key, &wish.head.headers) {
            cache.index.pass(&key, &wish.resource, exchanged.answered_ms);
        }
        lead.fill().tell(Progress::NotShared);
        if let Some(first) = first {
            // Whoever asked may have gone.
            let _gone = first.send(ForFirst::Alone(Fetched { response, who }, why));
        }
        return;
    }
    let (parts, body) = response.into_parts();
    let head = stored_head(&wish, parts.status, parts.headers, &said, exchanged, asked_at);
    let variant = vary::variant(&head.vary, &wish.head.headers).unwrap_or_default();
    let head = Arc::new(head);
    // Before the fetch goes on, so that it does not seem that nobody reads.
    let reader = first.as_ref().and_then(|_| lead.fill().reader());
    lead.fill().tell(Progress::Here(Arc::clone(&head), variant.into()));
    let behind_an_answer = first.is_none();
    if let Some(first) = first {
        let _gone = first.send(ForFirst::Shared(who, reader));
    }
    if let Some(object) = receive(lead.fill(), &head, body, behind_an_answer).await {
        cache.index.insert(&wish.key, &wish.head.headers, Arc::new(object));
    }
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

fn tell_stored(lead: &Lead, first: Option<oneshot::Sender<ForFirst>>, object: Arc<Object>, who: HeaderMap) {
    lead.fill().tell(Progress::Stored(object));
    if let Some(first) = first {
        let _gone = first.send(ForFirst::Shared(who, None));
    }
}

/// The stored response holds: its fields are brought up to date.
fn validated(
    cache: &Cache,
    lead: &Lead,
    first: Option<oneshot::Sender<ForFirst>>,
    wish: &Wish,
    stale: Option<Arc<Object>>,
    response: &Response<Body>,
    (who, exchanged, asked_at): (HeaderMap, Exchanged, u64),
) {
    let Some(stale) = stale.filter(|stale| update::is_about(response.headers(), &stale.head.headers)) else {
        // Of something else that was stored once: it goes, and who waits asks anew.
        cache.index.remove(&wish.key);
        lead.fill().tell(Progress::NotShared);
        if let Some(first) = first {
            let _gone = first.send(ForFirst::Again);
        }
        return;
    };
    let headers = update::updated(&stale.head.headers, response.headers());
    let said = ResponseDirectives::of(&headers);
    let head = stored_head(wish, stale.head.status, headers, &said, exchanged, asked_at);
    let object = Arc::new(stale.with_head(Head { vary: Arc::clone(&stale.head.vary), ..head }));
    cache.index.insert(&wish.key, &wish.head.headers, Arc::clone(&object));
    tell_stored(lead, first, object, who);
}

fn stored_head(
    wish: &Wish,
    status: StatusCode,
    mut headers: HeaderMap,
    said: &ResponseDirectives,
    exchanged: Exchanged,
    asked_at: u64,
) -> Head {
    let freshness = Freshness::of(status, &headers, said, exchanged);
    let tags = take_tags(&mut headers);
    strip_unstored(&mut headers, said);
    Head {
        resource: wish.resource.clone(),
        status,
        vary: vary::names(&headers).unwrap_or_default().into(),
        headers,
        freshness,
        tags,
        asked_at,
    }
}

/// Takes the tags out of a response's fields.
pub(crate) fn take_tags(headers: &mut HeaderMap) -> Box<[Box<str>]> {
    let mut tags: Vec<Box<str>> = Vec::new();
    for name in &TAG_FIELDS {
        for line in headers.get_all(name).iter().filter_map(|line| line.to_str().ok()) {
            let words = line.split([' ', ',', '\t']).filter(|word| (1..=TAG_BYTES_MAX).contains(&word.len()));
            tags.extend(words.take(TAGS_MAX - tags.len()).map(Box::from));
        }
        headers.remove(name);
    }
    tags.into()
}

/// Receives the body for all who read it; gives what is to be stored. What is asked for behind an answer needs no readers.
async fn receive(fill: &Fill, head: &Head, mut body: Body, behind_an_answer: bool) -> Option<Object> {
    let mut trailers = None;
    loop {
        if !fill.room().await || (!behind_an_answer && fill.is_unread() && too_much_is_left(head, fill)) {
            fill.break_off();
            return None;
        }
        match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
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
    told_length(&head.headers).is_none_or(|told| told == object.length).then_some(object)
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
