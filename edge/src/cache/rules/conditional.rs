//! Conditional requests: a client's, answered from a stored response, and ours to the origin (RFC 9110, section 13; RFC 9111,
//! section 4.3).

use super::date;
use http::header::{
    DATE, ETAG, HeaderMap, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, LAST_MODIFIED,
};

/// Most entity tags of one `If-None-Match` that are looked at.
const TAGS_MAX: usize = 128;

/// What a client's condition makes of a stored response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It gets the response.
    Send,
    /// It has it: 304.
    NotModified,
    /// The condition (`If-Match`, `If-Unmodified-Since`) is for the origin to judge.
    Forward,
}

/// Judges a client's GET or HEAD against a stored 200 (RFC 9110, section 13.2.2). `answered_ms` is when that came.
#[must_use]
pub fn judge(request: &HeaderMap, stored: &HeaderMap, answered_ms: u64) -> Verdict {
    if request.contains_key(IF_MATCH) || request.contains_key(IF_UNMODIFIED_SINCE) {
        return Verdict::Forward;
    }
    if request.contains_key(IF_NONE_MATCH) {
        let not_modified = matches_any(request, stored.get(ETAG));
        return if not_modified { Verdict::NotModified } else { Verdict::Send };
    }
    let Some(since) = request.get(IF_MODIFIED_SINCE).and_then(|value| date::parse(value.as_bytes())) else {
        return Verdict::Send;
    };
    let dated = |name| stored.get(name).and_then(|value: &HeaderValue| date::parse(value.as_bytes()));
    // Without a time of the last change it is that of the response (RFC 9111, section 4.3.2).
    let changed = if stored.contains_key(LAST_MODIFIED) {
        dated(&LAST_MODIFIED)
    } else {
        dated(&DATE).or(Some(answered_ms / 1000))
    };
    if changed.is_some_and(|changed| changed <= since) { Verdict::NotModified } else { Verdict::Send }
}

fn matches_any(request: &HeaderMap, stored: Option<&HeaderValue>) -> bool {
    let mut left = TAGS_MAX;
    for line in request.get_all(IF_NONE_MATCH) {
        if line.as_bytes().trim_ascii() == b"*" {
            return true;
        }
        for tag in tags(line.as_bytes()) {
            if left == 0 {
                return false;
            }
            left -= 1;
            if stored.is_some_and(|stored| opaque(stored.as_bytes().trim_ascii()) == opaque(tag)) {
                return true;
            }
        }
    }
    false
}

/// The entity tags of a list; a comma in quotes is part of one.
fn tags(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    line.split(move |byte| {
        quoted ^= *byte == b'"';
        *byte == b',' && !quoted
    })
    .map(<[u8]>::trim_ascii)
    .filter(|tag| !tag.is_empty())
}

/// A tag without its weakness, for the weak comparison (RFC 9110, section 8.8.3.2).
fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Whether a tag can be compared strongly: quoted, and not weak.
#[must_use]
pub fn is_strong(tag: &HeaderValue) -> bool {
    let tag = tag.as_bytes();
    tag.len() >= 2 && tag.starts_with(b"\"") && tag.ends_with(b"\"")
}

/// Makes a request ask the origin whether the stored response still holds; the client's own conditions are taken out. Says
/// whether there is anything to ask by; else the request is as good as a first one.
pub fn ask_whether_valid(request: &mut HeaderMap, stored: &HeaderMap) -> bool {
    strip(request);
    let mut asks = false;
    if let Some(tag) = stored.get(ETAG) {
        request.insert(IF_NONE_MATCH, tag.clone());
        asks = true;
    }
    if let Some(changed) = stored.get(LAST_MODIFIED).filter(|value| date::parse(value.as_bytes()).is_some()) {
        request.insert(IF_MODIFIED_SINCE, changed.clone());
        asks = true;
    }
    asks
}

/// Takes a client's conditions out of a request whose whole answer is to be stored.
pub fn strip(request: &mut HeaderMap) {
    for name in [IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_RANGE] {
        request.remove(name);
    }
}

/// Whether a client's `If-Range` lets it have a part of the stored response; without one it does (RFC 9110, section 13.1.5).
#[must_use]
pub fn range_holds(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let Some(condition) = request.get(IF_RANGE) else { return true };
    let bytes = condition.as_bytes().trim_ascii();
    if bytes.starts_with(b"\"") || bytes.starts_with(b"W/") {
        return stored.get(ETAG).is_some_and(|tag| is_strong(tag) && tag.as_bytes() == bytes);
    }
    // A date holds only if it is the very one, and old enough to be a strong validator (RFC 9110, section 8.8.2.2).
    let dated = |name| stored.get(name).and_then(|value: &HeaderValue| date::parse(value.as_bytes()));
    match (date::parse(bytes), dated(&LAST_MODIFIED), dated(&DATE)) {
        (Some(asked), Some(changed), Some(made)) => asked == changed && made > changed,
        _ => false,
    }
}

/// Whether the request's `If-Range` is not a tag.
#[must_use]
pub fn is_dated(request: &HeaderMap) -> bool {
    let condition = request.get(IF_RANGE).map(|condition| condition.as_bytes().trim_ascii());
    condition.is_some_and(|condition| !(condition.starts_with(b"\"") || condition.starts_with(b"W/")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use http::header::HeaderName;

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const NEW: &str = "Mon, 07 Nov 1994 08:49:37 GMT";

    #[test]
    fn tags_go_before_dates() {
        let stored = headers(&[(ETAG, "\"a\""), (LAST_MODIFIED, OLD)]);
        let judged = |lines: &[(HeaderName, &str)]| judge(&headers(lines), &stored, 0);
        for tags in ["\"a\"", "W/\"a\"", "\"x\", \"a\", \"y\"", "\"x,\", \"a\"", "*"] {
            assert_eq!(judged(&[(IF_NONE_MATCH, tags)]), Verdict::NotModified, "{tags}");
        }
        for tags in ["\"b\"", "a", "\"x, \"a\"", ""] {
            assert_eq!(judged(&[(IF_NONE_MATCH, tags), (IF_MODIFIED_SINCE, NEW)]), Verdict::Send, "{tags}");
        }
        assert_eq!(judged(&[(IF_MODIFIED_SINCE, OLD)]), Verdict::NotModified);
        assert_eq!(judged(&[(IF_MODIFIED_SINCE, "Sunday, 06-Nov-94 08:49:37 GMT")]), Verdict::NotModified);
        assert_eq!(judged(&[(IF_MODIFIED_SINCE, "Sat, 05 Nov 1994 08:49:37 GMT")]), Verdict::Send);
        assert_eq!(judged(&[(IF_MODIFIED_SINCE, "yesterday")]), Verdict::Send);
        assert_eq!(judged(&[(IF_MATCH, "\"a\"")]), Verdict::Forward);
        assert_eq!(judged(&[]), Verdict::Send);
        let undated = headers(&[(DATE, OLD)]);
        assert_eq!(judge(&headers(&[(IF_MODIFIED_SINCE, NEW)]), &undated, 0), Verdict::NotModified);
    }

    #[test]
    fn ours_replace_the_clients() {
        let mut request = headers(&[(IF_NONE_MATCH, "\"client\""), (IF_RANGE, "\"client\"")]);
        assert!(ask_whether_valid(&mut request, &headers(&[(ETAG, "W/\"a\""), (LAST_MODIFIED, "never")])));
        assert_eq!(request.get(IF_NONE_MATCH).unwrap(), "W/\"a\"");
        assert!(!request.contains_key(IF_RANGE) && !request.contains_key(IF_MODIFIED_SINCE));
        assert!(!ask_whether_valid(&mut request, &headers(&[])));
        assert!(request.is_empty());
    }

    #[test]
    fn a_part_only_of_the_very_same() {
        let stored = headers(&[(ETAG, "\"a\""), (LAST_MODIFIED, OLD), (DATE, NEW)]);
        let holds = |condition: &str| range_holds(&headers(&[(IF_RANGE, condition)]), &stored);
        assert!(holds("\"a\"") && holds(OLD));
        assert!(!holds("W/\"a\"") && !holds("\"b\"") && !holds(NEW) && !holds("x"));
        assert!(range_holds(&HeaderMap::new(), &stored));
        let weak = headers(&[(ETAG, "W/\"a\"")]);
        assert!(!range_holds(&headers(&[(IF_RANGE, "W/\"a\"")]), &weak));
    }
}
