//! Which stored variant fits a request (RFC 9111, section 4.1).

use http::header::{HeaderMap, HeaderName, VARY};

/// Most names in one `Vary`; with more the response fits nobody.
const NAMES_MAX: usize = 32;
/// Longest part of a variant's key that comes from the request, bytes; a request with more fits none.
const KEY_BYTES_MAX: usize = 8 * 1024;

/// The names in `Vary`: in lower case, sorted, each once. Nothing where it fits no request: `*`, no name, or too many.
#[must_use]
pub fn names(response: &HeaderMap) -> Option<Vec<HeaderName>> {
    let mut names = Vec::new();
    for line in response.get_all(VARY) {
        for name in line.to_str().ok()?.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            if name == "*" {
                return None;
            }
            names.push(name.parse::<HeaderName>().ok()?);
        }
    }
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    (names.len() <= NAMES_MAX).then_some(names)
}

/// What a request has in those fields, as one text that is equal for requests that fit the same variant: values of a field joined,
/// white space around commas gone. Nothing for a request with more than 8 KiB in them.
#[must_use]
pub fn variant(names: &[HeaderName], request: &HeaderMap) -> Option<Box<[u8]>> {
    let mut key = Vec::new();
    for name in names {
        key.extend_from_slice(name.as_str().as_bytes());
        // That a field is not there differs from an empty one.
        let mut lines = request.get_all(name).iter();
        match lines.next() {
            None => key.push(0),
            Some(first) => {
                key.push(b'=');
                push_normal(&mut key, first.as_bytes());
                for line in lines {
                    key.push(b',');
                    push_normal(&mut key, line.as_bytes());
                }
            }
        }
        key.push(b'\n');
        if key.len() > KEY_BYTES_MAX {
            return None;
        }
    }
    Some(key.into_boxed_slice())
}

fn push_normal(key: &mut Vec<u8>, value: &[u8]) {
    for (n, part) in value.split(|byte| *byte == b',').enumerate() {
        if n > 0 {
            key.push(b',');
        }
        key.extend_from_slice(part.trim_ascii());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_star_anywhere_fits_nobody() {
        for lines in [
            vec!["*"],
            vec!["*, *"],
            vec!["*", "*"],
            vec![", *"],
            vec!["", "*"],
            vec!["*, Foo"],
            vec!["Foo, *"],
        ] {
            let lines: Vec<_> = lines.into_iter().map(|line| ("vary", line)).collect();
            assert_eq!(names(&headers(&lines)), None, "{lines:?}");
        }
        let many = (0..100).map(|n| format!("x-{n}")).collect::<Vec<_>>().join(",");
        assert_eq!(names(&headers(&[("vary", &many)])), None);
        assert_eq!(names(&headers(&[])).unwrap(), Vec::<HeaderName>::new());
        assert_eq!(names(&headers(&[("vary", "B, a"), ("vary", "A")])).unwrap(), ["a", "b"]);
    }

    #[test]
    fn equal_requests_have_equal_keys() {
        let by = [HeaderName::from_static("a"), HeaderName::from_static("b")];
        let key = |lines: &[(&'static str, &str)]| variant(&by, &headers(lines)).unwrap();
        assert_eq!(key(&[("a", "1,  2")]), key(&[("a", "1"), ("a", " 2")]));
        assert_eq!(key(&[("c", "1")]), key(&[]));
        assert_ne!(key(&[("a", "1")]), key(&[("b", "1")]));
        assert_ne!(key(&[("a", "")]), key(&[]));
        assert_ne!(key(&[("a", "x\tb=")]), key(&[("a", "x"), ("b", "")]));
        assert_eq!(variant(&by, &headers(&[("a", &"x".repeat(9000))])), None);
    }
}
