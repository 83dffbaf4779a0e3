//! A client's answer from what is stored, or on its way.

use super::fill::{Piece, Reader};
use super::object::{Head, Object};
use super::rules::conditional::{self, Verdict};
use super::rules::range::{self, Wanted};
use atoll_proxy::{Body, BodyError, Side};
use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_RANGE, CONTENT_TYPE, DATE,
    ETAG, EXPIRES, HeaderMap, HeaderName, HeaderValue, LAST_MODIFIED, RANGE, VARY,
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

/// Answers from a stored response. Nothing where the request's condition is for the origin to judge.
pub(crate) fn from_object(
    object: &Arc<Object>,
    method: &Method,
    request: &HeaderMap,
    now_ms: u64,
) -> Option<Response<Body>> {
    let head = &object.head;
    if let Some(short) = judged(head, request, now_ms)? {
        return Some(short);
    }
    let mut response = with_fields(head);
    response.headers_mut().insert(AGE, HeaderValue::from(head.freshness.age_s(now_ms)));
    let whole = head.status == StatusCode::OK;
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(object.length));
    if whole && !response.headers().contains_key(ACCEPT_RANGES) {
        response.headers_mut().insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    }
    let part = (whole && *method == Method::GET).then(|| request.get(RANGE)).flatten();
    let part = part.filter(|_| conditional::range_holds(request, &head.headers));
    let wanted = part.map_or(Wanted::Whole, |range| range::wanted(range.as_bytes(), object.length));
    Some(match wanted {
        Wanted::Whole => response.map(|_| whole_body(object)),
        Wanted::Unsatisfiable => unsatisfiable(response, object.length),
        Wanted::Parts(parts) => in_parts(response, object, &parts),
    })
}

/// Answers from a response as it comes. A client's range is served where it is one, of a length that is known.
pub(crate) fn from_fill(
    head: &Head,
    reader: Reader,
    request: &HeaderMap,
    now_ms: u64,
) -> Option<Response<Body>> {
    if let Some(short) = judged(head, request, now_ms)? {
        return Some(short);
    }
    let mut response = with_fields(head);
    let age_s = head.freshness.age_s(now_ms);
    if age_s > 0 {
        response.headers_mut().insert(AGE, HeaderValue::from(age_s));
    }
    let length = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
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
fn judged(head: &Head, request: &HeaderMap, now_ms: u64) -> Option<Option<Response<Body>>> {
    if head.status != StatusCode::OK {
        return Some(None);
    }
    match conditional::judge(request, &head.headers, head.freshness.answered_ms) {
        Verdict::Send => Some(None),
        Verdict::Forward => None,
        Verdict::NotModified => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            for name in &IN_NOT_MODIFIED {
                for value in head.headers.get_all(name) {
                    response.headers_mut().append(name, value.clone());
                }
            }
            response.headers_mut().insert(AGE, HeaderValue::from(head.freshness.age_s(now_ms)));
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

fn in_parts(mut response: Response<Body>, object: &Object, parts: &[(u64, u64)]) -> Response<Body> {
    if let [part] = parts {
        mark_part(&mut response, *part, object.length);
        let pieces = slices(&object.body, *part).collect();
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
            format!("Content-Range: bytes {first}-{last}/{}\r\n\r\n", object.length).as_bytes(),
        );
        pieces.push_back(Bytes::from(before));
        pieces.extend(slices(&object.body, (*first, *last)));
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

fn whole_body(object: &Arc<Object>) -> Body {
    match &*object.body {
        [] => Body::empty(),
        [only] => Body::full(only.clone()),
        _ => Body::boxed(Whole { object: Arc::clone(object), next: 0, left: object.length }),
    }
}

/// A stored body, piece after piece.
struct Whole {
    object: Arc<Object>,
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
        let Some(piece) = this.object.body.get(this.next).cloned() else { return Poll::Ready(None) };
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
