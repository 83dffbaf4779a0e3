//! What is worth compressing.

use http::StatusCode;
use http::header::{CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderMap};
use std::ops::RangeInclusive;

/// Shorter ones fit into a packet as they are, longer ones would hold a thread for a second.
const LENGTHS: RangeInclusive<u64> = 256..=8 * 1024 * 1024;

/// Types that are text in all but name, or numbers in a row. Those that end in `+json`, `+xml` or `+text`, and `text/*`, are
/// not listed. Images, sound, films, archives and web fonts are compressed already.
const TYPES: [&str; 30] = [
    "application/ecmascript",
    "application/javascript",
    "application/json",
    "application/json5",
    "application/json-seq",
    "application/jsonlines",
    "application/graphql",
    "application/rtf",
    "application/sql",
    "application/toml",
    "application/vnd.apple.mpegurl",
    "application/vnd.ms-fontobject",
    "application/wasm",
    "application/x-font-opentype",
    "application/x-font-otf",
    "application/x-font-truetype",
    "application/x-font-ttf",
    "application/x-javascript",
    "application/x-mpegurl",
    "application/x-ndjson",
    "application/x-yaml",
    "application/xml",
    "application/xml-dtd",
    "application/yaml",
    "font/collection",
    "font/otf",
    "font/ttf",
    "image/bmp",
    "image/vnd.microsoft.icon",
    "image/x-icon",
];
const SUFFIXES: [&str; 3] = ["+json", "+xml", "+text"];
/// Events are to come one by one.
const STREAM: &str = "text/event-stream";

/// Whether a stored answer of this length, bytes, is to be compressed: a whole one that is not encoded yet, of a type that
/// shrinks, and that nobody forbade to change (`no_transform`; RFC 9111, section 5.2.2.6).
#[must_use]
pub fn worth(status: StatusCode, headers: &HeaderMap, length: u64, no_transform: bool) -> bool {
    status == StatusCode::OK
        && !no_transform
        && LENGTHS.contains(&length)
        && !headers.contains_key(CONTENT_RANGE)
        && is_plain(headers)
        && is_compressible(headers)
}

/// Whether no coding was applied to it yet.
fn is_plain(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(CONTENT_ENCODING).iter();
    codings.all(|coding| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}

fn is_compressible(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(CONTENT_TYPE).iter();
    // With two of them nobody knows what it is.
    let (Some(line), None) = (lines.next(), lines.next()) else { return false };
    let essence = line.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let is = |name: &&str| essence.eq_ignore_ascii_case(name.as_bytes());
    let begins = |text: &str| {
        essence.get(..text.len()).is_some_and(|start| start.eq_ignore_ascii_case(text.as_bytes()))
    };
    let ends = |text: &&str| {
        let start = essence.len().checked_sub(text.len());
        start.is_some_and(|start| essence[start..].eq_ignore_ascii_case(text.as_bytes()))
    };
    (begins("text/") && !is(&STREAM)) || TYPES.iter().any(is) || SUFFIXES.iter().any(ends)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use http::header::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    fn of_type(text: &str) -> bool {
        worth(StatusCode::OK, &headers(&[(CONTENT_TYPE, text)]), 1000, false)
    }

    #[test]
    fn types_that_shrink() {
        for text in [
            "text/html",
            "text/plain; charset=utf-8",
            "TEXT/CSS ;x=y",
            "application/json",
            "application/problem+json; charset=utf-8",
            "Application/JavaScript",
            "application/rss+XML",
            "image/svg+xml",
            "application/wasm",
            "font/ttf",
            "application/vnd.ms-fontobject",
        ] {
            assert!(of_type(text), "{text}");
        }
        for text in [
            "",
            "image/png",
            "font/woff2",
            "text/event-stream",
            "Text/Event-Stream; charset=utf-8",
            "application/octet-stream",
            "application/zip",
            "application/x; y=\"+json\"",
            "textual/x",
            "+jso",
            "html",
        ] {
            assert!(!of_type(text), "{text}");
        }
        assert!(!worth(StatusCode::OK, &HeaderMap::new(), 1000, false));
        assert!(!worth(StatusCode::OK, &two_types(), 1000, false));
    }

    fn two_types() -> HeaderMap {
        let mut two = headers(&[(CONTENT_TYPE, "text/html")]);
        two.append(CONTENT_TYPE, HeaderValue::from_static("text/html"));
        two
    }

    #[test]
    fn whole_plain_answers_that_may_be_changed() {
        let html = headers(&[(CONTENT_TYPE, "text/html")]);
        assert!(worth(StatusCode::OK, &html, 256, false) && worth(StatusCode::OK, &html, 8 << 20, false));
        assert!(
            !worth(StatusCode::OK, &html, 255, false) && !worth(StatusCode::OK, &html, (8 << 20) + 1, false)
        );
        assert!(!worth(StatusCode::OK, &html, 1000, true));
        for status in [StatusCode::PARTIAL_CONTENT, StatusCode::NOT_FOUND, StatusCode::NO_CONTENT] {
            assert!(!worth(status, &html, 1000, false));
        }
        let with = |name: HeaderName, value: &str| {
            worth(StatusCode::OK, &headers(&[(CONTENT_TYPE, "text/html"), (name, value)]), 1000, false)
        };
        assert!(with(CONTENT_ENCODING, "Identity"));
        for coding in ["gzip", "br", "", "identity, gzip", "unknown"] {
            assert!(!with(CONTENT_ENCODING, coding), "{coding:?}");
        }
        assert!(!with(CONTENT_RANGE, "bytes 0-1/2"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(text in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(value) = HeaderValue::from_bytes(&text) {
                let headers = [(CONTENT_TYPE, value.clone()), (CONTENT_ENCODING, value)].into_iter().collect();
                let _ = worth(StatusCode::OK, &headers, 1000, false);
            }
        }
    }
}
