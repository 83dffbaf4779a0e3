//! Tags: words in a response by which it can be purged.

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// As Cloudflare has it; between edges, too.
pub(crate) const CACHE_TAG: HeaderName = HeaderName::from_static("cache-tag");
/// As Fastly and Varnish have it.
const SURROGATE_KEY: HeaderName = HeaderName::from_static("surrogate-key");
/// Most tags of one response, and the longest one, bytes; what is over is left out.
const TAGS_MAX: usize = 128;
const TAG_BYTES_MAX: usize = 256;

/// Takes the tags out of a response's fields: of the one that the app names, else of both usual ones. Clients see neither unless the app
/// says so.
pub(crate) fn take(headers: &mut HeaderMap, named: Option<&HeaderName>) -> Box<[Box<str>]> {
    let usual = [SURROGATE_KEY, CACHE_TAG];
    let read = named.map_or(&usual[..], std::slice::from_ref);
    let mut tags: Vec<Box<str>> = Vec::new();
    for line in read.iter().flat_map(|name| headers.get_all(name)).filter_map(|line| line.to_str().ok()) {
        let words = line.split([' ', ',', '\t']).filter(|word| (1..=TAG_BYTES_MAX).contains(&word.len()));
        tags.extend(words.take(TAGS_MAX - tags.len()).map(Box::from));
    }
    strip(headers, named);
    tags.into()
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
        assert_eq!(take(&mut all, None).join("|"), "a|b|c|d");
        assert_eq!(all.len(), 2);
        let (mut all, own) = (headers(), HeaderName::from_static("x-tags"));
        let tags = take(&mut all, Some(&own));
        assert_eq!((tags.join("|"), all.len()), ("e|f".to_owned(), 1));
        tell(&mut all, &own, &tags);
        assert_eq!(all[own], "e f");
        let mut many = HeaderMap::new();
        many.insert(CACHE_TAG, "t ".repeat(1000).parse().unwrap());
        many.append(CACHE_TAG, "u".parse().unwrap());
        assert_eq!(take(&mut many, None).len(), TAGS_MAX);
    }
}
