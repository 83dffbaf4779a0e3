//! Tags: words in a response by which it can be purged.

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// As Cloudflare has it; between edges, too.
pub(crate) const CACHE_TAG: HeaderName = HeaderName::from_static("cache-tag");
/// As Fastly and Varnish have it.
const SURROGATE_KEY: HeaderName = HeaderName::from_static("surrogate-key");
/// Most tags of one response. One with more is not stored: purges would miss it.
const TAGS_MAX: usize = 1024;
/// The longest tag, bytes; a purge can't name a longer one.
const TAG_BYTES_MAX: usize = 256;

/// Takes the tags out of a response's fields: of the one that the app names, else of both usual ones; and of that in which another edge tells
/// them. Clients see none of them unless the app says so.
pub(crate) fn take(headers: &mut HeaderMap, named: Option<&HeaderName>, of_edge: bool) -> Box<[Box<str>]> {
    let tags = words(headers, named, of_edge).take(TAGS_MAX).map(Box::from).collect();
    strip(headers, named);
    tags
}

/// Whether there are no more of them than are kept.
pub(crate) fn are_few(headers: &HeaderMap, named: Option<&HeaderName>, of_edge: bool) -> bool {
    words(headers, named, of_edge).nth(TAGS_MAX).is_none()
}

fn words<'h>(
    headers: &'h HeaderMap,
    named: Option<&'h HeaderName>,
    of_edge: bool,
) -> impl Iterator<Item = &'h str> {
    static USUAL: [HeaderName; 2] = [SURROGATE_KEY, CACHE_TAG];
    let read = named.map_or(&USUAL[..], std::slice::from_ref);
    let told = (of_edge && !read.contains(&CACHE_TAG)).then_some(&USUAL[1]);
    let lines = read.iter().chain(told).flat_map(|name| headers.get_all(name));
    let words = lines.flat_map(|line| line.as_bytes().split(|byte| b" ,\t".contains(byte)));
    // What is no text no purge can name.
    words
        .filter(|word| (1..=TAG_BYTES_MAX).contains(&word.len()))
        .filter_map(|word| str::from_utf8(word).ok())
}

/// Takes away the fields that tags stand in.
pub(crate) fn strip(headers: &mut HeaderMap, named: Option<&HeaderName>) {
    for name in [&SURROGATE_KEY, &CACHE_TAG].into_iter().chain(named) {
        headers.remove(name);
    }
}

/// Puts tags into a field.
pub(crate) fn tell(headers: &mut HeaderMap, name: &HeaderName, tags: &[Box<str>]) {
    if tags.is_empty() {
        return;
    }
    if let Ok(value) = HeaderValue::try_from(tags.join(" ")) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn headers() -> HeaderMap {
        let lines = [("surrogate-key", "a b"), ("cache-tag", "c,d"), ("x-tags", "e  f"), ("x", "y")];
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn tags_are_taken_out_and_can_be_told_again() {
        let mut all = headers();
        assert_eq!(take(&mut all, None, false).join("|"), "a|b|c|d");
        assert_eq!(all.len(), 2);
        let (mut all, own) = (headers(), HeaderName::from_static("x-tags"));
        let tags = take(&mut all, Some(&own), false);
        assert_eq!((tags.join("|"), all.len()), ("e|f".to_owned(), 1));
        tell(&mut all, &own, &tags);
        assert_eq!(all[&own], "e f");
        let mut of_edge = HeaderMap::new();
        tell(&mut of_edge, &CACHE_TAG, &tags);
        assert_eq!(take(&mut of_edge, Some(&own), true).join("|"), "e|f", "as another edge tells them");
        let mut many = HeaderMap::new();
        many.insert(CACHE_TAG, "t ".repeat(TAGS_MAX).parse().unwrap());
        assert!(are_few(&many, None, false));
        many.append(CACHE_TAG, "u".parse().unwrap());
        assert!(!are_few(&many, None, false));
        let mut odd = HeaderMap::new();
        odd.insert(CACHE_TAG, HeaderValue::from_bytes(b"a \xff b").unwrap());
        assert_eq!(
            take(&mut odd, None, false).join("|"),
            "a|b",
            "one that is no text does not hide the others"
        );
    }
}
