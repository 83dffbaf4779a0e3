//! A stored response after its validation (RFC 9111, sections 3.2 and 4.3.4).

use super::conditional::is_strong;
use super::directives::ResponseDirectives;
use super::storing::strip_unstored;
use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, LAST_MODIFIED, SET_COOKIE,
    VARY,
};

/// What the stored body depends on: a 304 can't change it.
const KEPT: [HeaderName; 4] = [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_RANGE, VARY];

/// Whether a 304 is about this stored response: by its strong tag if it has one, else by what it has; one that says nothing is about
/// the one that was asked about.
#[must_use]
pub fn is_about(not_modified: &HeaderMap, stored: &HeaderMap) -> bool {
    if let Some(tag) = not_modified.get(ETAG) {
        let Some(known) = stored.get(ETAG) else { return false };
        let weak = |tag: &[u8]| tag.strip_prefix(b"W/").map(<[u8]>::to_vec).unwrap_or_else(|| tag.to_vec());
        return if is_strong(tag) { tag == known } else { weak(tag.as_bytes()) == weak(known.as_bytes()) };
    }
    match (not_modified.get(LAST_MODIFIED), stored.get(LAST_MODIFIED)) {
        (Some(told), Some(known)) => told == known,
        // Some say it only now, or no more.
        _ => true,
    }
}

/// The stored fields with those of the 304 in their place.
#[must_use]
pub fn updated(stored: &HeaderMap, not_modified: &HeaderMap) -> HeaderMap {
    let mut fresh = not_modified.clone();
    strip_unstored(&mut fresh, &ResponseDirectives::of(not_modified));
    // It is for the one whose request it answers.
    fresh.remove(SET_COOKIE);
    for name in &KEPT {
        fresh.remove(name);
    }
    let mut updated = stored.clone();
    for name in fresh.keys() {
        updated.remove(name);
    }
    // What the response once was of age is no more.
    updated.remove(http::header::AGE);
    updated.extend(fresh);
    updated
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn headers(text: &str) -> HeaderMap {
        let lines = text.lines().filter_map(|line| line.split_once(": "));
        lines.map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_304_is_about_the_one_with_its_tag() {
        let stored = headers("ETag: \"a\"\nLast-Modified: x");
        assert!(is_about(&headers("ETag: \"a\""), &stored));
        assert!(is_about(&headers("ETag: W/\"a\""), &stored));
        assert!(!is_about(&headers("ETag: \"b\""), &stored));
        assert!(!is_about(&headers("ETag: \"a\""), &headers("ETag: W/\"a\"")));
        assert!(is_about(&headers("Last-Modified: x"), &stored));
        assert!(!is_about(&headers("Last-Modified: y"), &stored));
        assert!(is_about(&headers(""), &stored));
    }

    #[test]
    fn new_fields_replace_old_ones() {
        let stored = headers("A: 1\nA: 2\nB: 3\nContent-Length: 10\nAge: 7\nContent-Type: text/plain");
        let told = headers(
            "A: 9\nC: 4\nContent-Length: 0\nConnection: c\nContent-Type: text/html\nSet-Cookie: x\nCache-Control: private=\"b\"\nB: 4",
        );
        let now = updated(&stored, &told);
        let of = |name: &str| now.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!((of("a"), of("b"), of("c")), (vec!["9"], vec!["3"], vec![]));
        assert_eq!((of("content-length"), of("content-type")), (vec!["10"], vec!["text/html"]));
        assert!(of("age").is_empty() && of("set-cookie").is_empty() && of("connection").is_empty());
    }
}
