//! An answer, for a client or another edge, from what is stored or on its way.

use super::encoding::accepted::Accepted;
use super::encoding::{self, Coding};
use super::fill::{Piece, Reader};
use super::object::{self, Head, Object};
use super::rules::conditional::{self, Verdict};
use super::rules::policy;
use super::rules::range::{self, Wanted};
use super::tags;
use atoll_model::CacheRule;
use atoll_proxy::headers::{CDN_CACHE_CONTROL, PURGED};
use atoll_proxy::{Body, BodyError, Side};
use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, AGE, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_RANGE,
    CONTENT_TYPE, DATE, ETAG, EXPIRES, HeaderMap, HeaderName, HeaderValue, LAST_MODIFIED, RANGE, VARY,
};
use http::{Method, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// What a 304 has of the stored fields (RFC 9110, section 15.4.5).
const IN_NOT_MODIFIED: [HeaderName; 7] =
    [CACHE_CONTROL, CONTENT_LOCATION, DATE, ETAG, EXPIRES, VARY, LAST_MODIFIED];

/// Who asks, and how they take it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asking<'a> {
    /// GET or HEAD.
    pub(crate) method: &'a Method,
    /// The request's fields.
    pub(crate) headers: &'a HeaderMap,
    /// The codings that may be answered with; none toward other edges, which make their own.
    pub(crate) accepted: Accepted,
    /// What the app says of the path.
    pub(crate) rule: Option<&'a CacheRule>,
    /// It is another edge, which is told what it needs to keep the answer as we do.
    pub(crate) is_edge: bool,
    /// ms since 1970.
    pub(crate) now_ms: u64,
}

/// Answers from a stored response. Nothing where the request's condition is for the origin to judge.
pub(crate) fn from_object(object: &Arc<Object>, asking: Asking<'_>) -> Option<Response<Body>> {
    let head = &object.head;
    let has_range = head.status == StatusCode::OK && asking.headers.contains_key(RANGE);
    // A part is one of the body as it came: lengths of others differ from edge to edge.
    let encoded = if has_range { None } else { object.encoded_for(asking.accepted) };
    let varies = object.is_worth_compressing();
    if let Some(short) = judged(head, asking, (varies, encoded.is_some()))? {
        return Some(short);
    }
    let mut response = with_fields(head);
    response.headers_mut().insert(AGE, HeaderValue::from(head.freshness.age_s(asking.now_ms)));
    finish(response.headers_mut(), head, asking, varies);
    if let Some((coding, body)) = encoded {
        mark_encoded(response.headers_mut(), coding, body.length);
        return Some(response.map(|_| body_of(body)));
    }
    let length = object.body.length;
    let part = (has_range && *asking.method == Method::GET).then(|| asking.headers.get(RANGE)).flatten();
    // Of one that is also answered compressed a date does not say which of the two the client has a part of.
    let part = part.filter(|_| {
        conditional::range_holds(asking.headers, &head.headers)
            && !(varies && conditional::is_dated(asking.headers))
    });
    let wanted = part.map_or(Wanted::Whole, |range| range::wanted(range.as_bytes(), length));
    Some(match wanted {
        Wanted::Whole => response.map(|_| body_of(&object.body)),
        Wanted::Unsatisfiable => unsatisfiable(response, length),
        Wanted::Parts(parts) => in_parts(response, &object.body, &parts),
    })
}

/// What a stored response says to this one who asks. `varies`: others may get it compressed.
fn finish(fields: &mut HeaderMap, head: &Head, asking: Asking<'_>, varies: bool) {
    if asking.is_edge {
        tags::tell(fields, &tags::CACHE_TAG, &head.tags);
        fields.insert(PURGED, HeaderValue::from(head.asked_at));
        return;
    }
    fields.remove(CDN_CACHE_CONTROL);
    if varies {
        encoding::add_vary(fields);
    }
    if let Some(rule) = asking.rule {
        policy::tell_browser(fields, Some(rule));
        if rule.show_tags {
            let field = policy::tag_field(Some(rule)).unwrap_or(tags::CACHE_TAG);
            tags::tell(fields, &field, &head.tags);
        }
    }
}

/// Another body than the one that came: its tag can't promise that each byte is the same (RFC 9110, section 8.8.1).
fn mark_encoded(fields: &mut HeaderMap, coding: Coding, length: u64) {
    fields.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.token()));
    fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
    // Parts are of the body as it came.
    fields.remove(ACCEPT_RANGES);
    if let Some(tag) = fields.get(ETAG).map(encoding::weakened) {
        fields.insert(ETAG, tag);
    }
}

/// Answers from a response as it comes. A client's range is served where it is one, of a length that is known.
pub(crate) fn from_fill(head: &Head, reader: Reader, asking: Asking<'_>) -> Option<Response<Body>> {
    let request = asking.headers;
    let length = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    // Of one whose length is not known yet it is not known either; without a word about it this answer is good for all.
    let varies = length.is_some_and(|length| head.is_worth_compressing(length));
    if let Some(short) = judged(head, asking, (varies, false))? {
        return Some(short);
    }
    let mut response = with_fields(head);
    let age_s = head.freshness.age_s(asking.now_ms);
    if age_s > 0 {
        response.headers_mut().insert(AGE, HeaderValue::from(age_s));
    }
    finish(response.headers_mut(), head, asking, varies);
    let range = request.get(RANGE).filter(|_| head.status == StatusCode::OK);
    let range = range.filter(|_| conditional::range_holds(request, &head.headers));
    let wanted = range.zip(length).map(|(range, length)| range::wanted(range.as_bytes(), length));
    let (skip, left) = match (wanted, length) {
        (Some(Wanted::Unsatisfiable), Some(length)) => return Some(unsatisfiable(response, length)),
        (Some(Wanted::Parts(parts)), Some(length)) if parts.len() == 1 => {
            let (first, last) = parts[0];
            mark_part(&mut response, (first, last), length);
            (first, Some(last - first + 1))
        }
        _ => (0, length),
    };
    Some(response.map(|_| Body::boxed(Coming { reader, skip, left, ended: false })))
}

/// 304, where the client has it; nothing inside where it gets the response; nothing at all where the origin is to judge.
fn judged(
    head: &Head,
    asking: Asking<'_>,
    (varies, encoded): (bool, bool),
) -> Option<Option<Response<Body>>> {
    if head.status != StatusCode::OK {
        return Some(None);
    }
    match conditional::judge(asking.headers, &head.headers, head.freshness.answered_ms) {
        Verdict::Send => Some(None),
        Verdict::Forward => None,
        Verdict::NotModified => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            if asking.is_edge {
                // It brings what it keeps up to date by this: also by what was not in its own copy.
                *response.headers_mut() = head.headers.clone();
                response.headers_mut().remove(CONTENT_LENGTH);
            } else {
                for name in &IN_NOT_MODIFIED {
                    for value in head.headers.get_all(name) {
                        response.headers_mut().append(name, value.clone());
                    }
                }
            }
            let fields = response.headers_mut();
            fields.insert(AGE, HeaderValue::from(head.freshness.age_s(asking.now_ms)));
            if let Some(tag) = fields.get(ETAG).filter(|_| encoded).map(encoding::weakened) {
                fields.insert(ETAG, tag);
            }
            finish(fields, head, asking, varies);
            Some(Some(response))
        }
    }
}

fn with_fields(head: &Head) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers.clone();
    response
}

fn unsatisfiable(mut response: Response<Body>, length: u64) -> Response<Body> {
    *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
    for name in [CONTENT_TYPE, ETAG, LAST_MODIFIED] {
        response.headers_mut().remove(name);
    }
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(0));
    set(response.headers_mut(), CONTENT_RANGE, &format!("bytes */{length}"));
    response
}

fn mark_part(response: &mut Response<Body>, (first, last): (u64, u64), length: u64) {
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    let fields = response.headers_mut();
    fields.insert(CONTENT_LENGTH, HeaderValue::from(last - first + 1));
    set(fields, CONTENT_RANGE, &format!("bytes {first}-{last}/{length}"));
}

fn in_parts(mut response: Response<Body>, body: &object::Pieces, parts: &[(u64, u64)]) -> Response<Body> {
    if let [part] = parts {
        mark_part(&mut response, *part, body.length);
        let pieces = slices(&body.bytes, *part).collect();
        return response.map(|_| Body::boxed(Pieces(pieces)));
    }
    let boundary = format!("{:032x}", rand::random::<u128>());
    let kind = response.headers_mut().remove(CONTENT_TYPE);
    let mut pieces = VecDeque::new();
    for (first, last) in parts {
        let mut before = format!("\r\n--{boundary}\r\n").into_bytes();
        if let Some(kind) = &kind {
            before.extend_from_slice(b"Content-Type: ");
            before.extend_from_slice(kind.as_bytes());
            before.extend_from_slice(b"\r\n");
        }
        before.extend_from_slice(
            format!("Content-Range: bytes {first}-{last}/{}\r\n\r\n", body.length).as_bytes(),
        );
        pieces.push_back(Bytes::from(before));
        pieces.extend(slices(&body.bytes, (*first, *last)));
    }
    pieces.push_back(Bytes::from(format!("\r\n--{boundary}--\r\n")));
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    let length: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    set(response.headers_mut(), CONTENT_TYPE, &format!("multipart/byteranges; boundary={boundary}"));
    response.map(|_| Body::boxed(Pieces(pieces)))
}

fn set(fields: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        fields.insert(name, value);
    }
}

/// The stored bytes from `first` to `last`; nothing is copied.
fn slices(body: &[Bytes], (first, last): (u64, u64)) -> impl Iterator<Item = Bytes> + '_ {
    let mut at = 0u64;
    body.iter().filter_map(move |piece| {
        let (begin, end) = (at, at + piece.len() as u64);
        at = end;
        let (from, to) = (first.max(begin), (last + 1).min(end));
        let within = |offset: u64| usize::try_from(offset - begin).unwrap_or(usize::MAX);
        (from < to).then(|| piece.slice(within(from)..within(to)))
    })
}

fn body_of(body: &object::Pieces) -> Body {
    match &*body.bytes {
        [] => Body::empty(),
        [only] => Body::full(only.clone()),
        _ => Body::boxed(Whole { bytes: Arc::clone(&body.bytes), next: 0, left: body.length }),
    }
}

/// A stored body, piece after piece.
struct Whole {
    bytes: Arc<[Bytes]>,
    next: usize,
    left: u64,
}

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(piece) = this.bytes.get(this.next).cloned() else { return Poll::Ready(None) };
        this.next += 1;
        this.left -= piece.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Some pieces.
struct Pieces(VecDeque<Bytes>);

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(self.get_mut().0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|piece| piece.len() as u64).sum())
    }
}

/// A body as it comes, or a part of it.
struct Coming {
    reader: Reader,
    /// Bytes that the client does not want, first.
    skip: u64,
    /// Bytes that it is yet to get, where that is known.
    left: Option<u64>,
    ended: bool,
}

impl HttpBody for Coming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            if this.ended || this.left == Some(0) {
                return Poll::Ready(None);
            }
            match ready!(this.reader.poll_piece(cx)) {
                Piece::Data(mut bytes) => {
                    let skipped = bytes.len().min(usize::try_from(this.skip).unwrap_or(usize::MAX));
                    this.skip -= skipped as u64;
                    let mut bytes = bytes.split_off(skipped);
                    if let Some(left) = &mut this.left {
                        bytes.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                        *left -= bytes.len() as u64;
                    }
                    if !bytes.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(bytes))));
                    }
                }
                Piece::End(trailers) => {
                    this.ended = true;
                    let short = this.left.is_some_and(|left| left > 0);
                    return Poll::Ready(match trailers {
                        _ if short => Some(Err(broken())),
                        Some(trailers) => Some(Ok(Frame::trailers(trailers))),
                        None => None,
                    });
                }
                Piece::Broken => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(broken())));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

fn broken() -> BodyError {
    BodyError::new(Side::Upstream, "the response broke off on its way to the cache", BodyError::CANCEL)
}
