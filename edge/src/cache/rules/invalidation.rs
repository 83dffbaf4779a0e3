//! What a change at the origin makes unusable (RFC 9111, section 4.4).

use http::header::{CONTENT_LOCATION, HeaderMap, LOCATION};
use http::{Method, StatusCode, Uri};

/// Paths with queries, on the same host, whose stored responses are of no use any more. Empty where the answer says that nothing
/// was changed.
#[must_use]
pub fn invalidated(
    method: &Method,
    scheme: &str,
    authority: &str,
    target: &str,
    status: StatusCode,
    response: &HeaderMap,
) -> Vec<String> {
    let safe = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE].contains(method);
    if safe || !(status.is_success() || status.is_redirection()) {
        return Vec::new();
    }
    let mut targets = vec![target.to_owned()];
    for name in [LOCATION, CONTENT_LOCATION] {
        let told = response.get(name).and_then(|value| value.to_str().ok());
        let resolved = told.and_then(|reference| resolve(scheme, authority, target, reference));
        targets.extend(resolved.filter(|new| !targets.contains(new)));
    }
    targets
}

/// A reference as path and query, if it is on the same origin: one host can't invalidate what is another's.
fn resolve(scheme: &str, authority: &str, target: &str, reference: &str) -> Option<String> {
    let reference = reference.split('#').next()?;
    let (path, query) = match reference.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (reference, None),
    };
    let with_query = |path: String| match query {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    if reference.starts_with("//") || path.contains(':') && !path.starts_with('/') {
        let absolute =
            if reference.starts_with("//") { format!("{scheme}:{reference}") } else { reference.to_owned() };
        let uri: Uri = absolute.parse().ok()?;
        let same = uri.scheme_str()?.eq_ignore_ascii_case(scheme)
            && uri.authority()?.as_str().eq_ignore_ascii_case(authority);
        return same.then(|| uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string));
    }
    if path.starts_with('/') {
        return Some(with_query(path.to_owned()));
    }
    let base = target.split('?').next()?;
    if path.is_empty() {
        return Some(with_query(base.to_owned()));
    }
    let folder = &base[..=base.rfind('/')?];
    Some(with_query(merged(folder, path)))
}

/// A relative path below a folder, without dot segments (RFC 3986, section 5.2.4).
fn merged(folder: &str, path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let whole = format!("{folder}{path}");
    for segment in whole.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    if path.ends_with("/.") || path.ends_with("/..") || path == "." || path == ".." {
        segments.push("");
    }
    format!("/{}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn of(method: &str, status: u16, response: &[(&'static str, &str)]) -> Vec<String> {
        let headers = response
            .iter()
            .map(|(name, value)| (http::header::HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        let status = StatusCode::from_u16(status).unwrap();
        invalidated(&method.parse().unwrap(), "https", "a.example", "/x/y?z=1", status, &headers)
    }

    #[test]
    fn only_changes_that_were_made() {
        assert_eq!(of("POST", 200, &[]), ["/x/y?z=1"]);
        assert_eq!(of("M-SEARCH", 303, &[]), ["/x/y?z=1"], "a method that is not known may change things");
        for (method, status) in [("GET", 200), ("HEAD", 200), ("OPTIONS", 200), ("POST", 404), ("PUT", 500)] {
            assert!(of(method, status, &[]).is_empty(), "{method} {status}");
        }
    }

    #[test]
    fn named_places_on_the_same_origin() {
        for (reference, target) in [
            ("/a", Some("/a")),
            ("/a?b#c", Some("/a?b")),
            ("b", Some("/x/b")),
            ("../b?q", Some("/b?q")),
            ("../../../b/./c", Some("/b/c")),
            ("?q", Some("/x/y?q")),
            ("https://A.example/p", Some("/p")),
            ("//a.example", Some("/")),
            ("https://b.example/p", None),
            ("http://a.example/p", None),
            ("//b.example/p", None),
            ("mailto:x", None),
            ("https://a.example@b.example/", None),
        ] {
            let named = of("DELETE", 200, &[("location", reference)]);
            assert_eq!(named.get(1).map(String::as_str), target, "{reference}");
        }
        assert_eq!(of("PUT", 201, &[("location", "/a"), ("content-location", "/a")]).len(), 2);
    }
}
