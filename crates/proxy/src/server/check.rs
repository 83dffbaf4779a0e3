//! Bringing a request's head into one form, and refusing those that two readers could read
//! differently.

use crate::exchange::host_of;
use atoll_model::Reason;
use http::header::{self, HeaderValue};
use http::uri::{Authority, PathAndQuery, Uri};
use http::{Method, Version, request};

/// The longest target, in bytes.
pub const URI_BYTES_MAX: usize = 8 * 1024;
/// The longest method, in bytes; the longest that is registered has 17.
const METHOD_BYTES_MAX: usize = 32;

/// A request that is not handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// The connection can't be trusted with another request.
    pub close: bool,
}

const fn refuse(reason: Reason) -> Refusal {
    Refusal { reason, close: false }
}

const fn malformed() -> Refusal {
    Refusal { reason: Reason::BadRequest, close: true }
}

/// Checks the head; then its URI is path and query alone, and it has exactly one `Host`.
///
/// # Errors
/// What is to be answered instead.
pub fn normalize(head: &mut request::Parts) -> Result<(), Refusal> {
    if matches!(head.method, Method::CONNECT | Method::TRACE) || head.method.as_str().len() > METHOD_BYTES_MAX
    {
        return Err(refuse(Reason::MethodRefused));
    }
    let target = head.uri.path_and_query().map_or(0, |path| path.as_str().len());
    if target > URI_BYTES_MAX {
        return Err(refuse(Reason::UriTooLong));
    }
    check_framing(head)?;
    check_expect(head)?;
    let authority = authority(head)?;
    let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    if path.as_str() == "*" && head.method != Method::OPTIONS {
        return Err(malformed());
    }
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_invalid| malformed())?;
    head.headers.insert(header::HOST, host);
    join_cookies(head)?;
    head.uri = Uri::from(path);
    Ok(())
}

/// HTTP/2 may send cookies in pieces, which HTTP/1.1 does not know (RFC 9113, section 8.2.3).
fn join_cookies(head: &mut request::Parts) -> Result<(), Refusal> {
    let pieces: Vec<&[u8]> = head.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if pieces.len() > 1 {
        let joined = pieces.join(&b"; "[..]);
        let joined = HeaderValue::from_bytes(&joined).map_err(|_invalid| malformed())?;
        head.headers.insert(header::COOKIE, joined);
    }
    Ok(())
}

fn check_framing(head: &request::Parts) -> Result<(), Refusal> {
    let encodings: Vec<&HeaderValue> = head.headers.get_all(header::TRANSFER_ENCODING).iter().collect();
    let chunked = match encodings.as_slice() {
        [] => false,
        [one] if one.as_bytes().eq_ignore_ascii_case(b"chunked") => true,
        _ => return Err(malformed()),
    };
    if chunked && (head.version != Version::HTTP_11 || head.headers.contains_key(header::CONTENT_LENGTH)) {
        return Err(malformed());
    }
    Ok(())
}

/// Who waits for something that we don't know would wait for ever; two readers of an odd one might
/// not agree on whether a body follows (RFC 9110, section 10.1.1).
fn check_expect(head: &request::Parts) -> Result<(), Refusal> {
    let mut expected = head.headers.get_all(header::EXPECT).iter();
    match (expected.next(), expected.next()) {
        (None, _) => Ok(()),
        (Some(one), None) if one.as_bytes().eq_ignore_ascii_case(b"100-continue") => Ok(()),
        _ => Err(malformed()),
    }
}

/// The one authority that the request is for.
fn authority(head: &request::Parts) -> Result<Authority, Refusal> {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(host), None) => Some(checked(host.as_bytes())?),
        (Some(_), Some(_)) => return Err(malformed()),
    };
    let target = head.uri.authority().map(|target| checked(target.as_str().as_bytes())).transpose()?;
    match (host, target) {
        // RFC 9112 asks for Host also beside an absolute target.
        (None, Some(_)) if head.version < Version::HTTP_2 => Err(malformed()),
        (None, None) => Err(malformed()),
        (Some(host), Some(target)) if !host.as_str().eq_ignore_ascii_case(target.as_str()) => {
            Err(malformed())
        }
        (Some(authority), _) | (None, Some(authority)) => Ok(authority),
    }
}

/// A host name or an address, perhaps with a port: no userinfo, no path, nothing to be escaped.
fn checked(text: &[u8]) -> Result<Authority, Refusal> {
    let authority = Authority::try_from(text).map_err(|_invalid| malformed())?;
    let text = authority.as_str();
    let host = host_of(text);
    let port = &text[host.len()..];
    let name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    let host_ok = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.len() <= 255 && host.bytes().all(name),
    };
    let port_ok = match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok(),
        None => port.is_empty(),
    };
    if host_ok && port_ok { Ok(authority) } else { Err(malformed()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http::Request;

    fn head(version: Version, uri: &str, fields: &[(&str, &str)]) -> request::Parts {
        let mut builder = Request::builder().version(version).uri(uri);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn every_version_comes_to_one_form() {
        for mut head in [
            head(Version::HTTP_11, "/a?b", &[("host", "x.example:81")]),
            head(Version::HTTP_11, "http://x.example:81/a?b", &[("host", "X.example:81")]),
            head(Version::HTTP_2, "https://x.example:81/a?b", &[]),
            head(Version::HTTP_2, "https://x.example:81/a?b", &[("host", "x.example:81")]),
        ] {
            normalize(&mut head).unwrap();
            assert_eq!(head.uri.to_string(), "/a?b");
            assert!(head.headers["host"].to_str().unwrap().eq_ignore_ascii_case("x.example:81"));
        }
    }

    #[test]
    fn ambiguous_heads_are_refused() {
        type Head = (Version, &'static str, &'static [(&'static str, &'static str)]);
        let bad: &[Head] = &[
            (Version::HTTP_11, "/", &[]),
            (Version::HTTP_11, "/", &[("host", "a"), ("host", "a")]),
            (Version::HTTP_11, "/", &[("host", "user@a")]),
            (Version::HTTP_11, "/", &[("host", "a/b")]),
            (Version::HTTP_11, "/", &[("host", "")]),
            (Version::HTTP_11, "/", &[("host", "a b")]),
            (Version::HTTP_11, "/", &[("host", "a:b")]),
            (Version::HTTP_11, "/", &[("host", "a:99999")]),
            (Version::HTTP_11, "/", &[("host", "a,b")]),
            (Version::HTTP_11, "/", &[("host", "[::1")]),
            (Version::HTTP_11, "http://a/", &[("host", "b")]),
            (Version::HTTP_11, "http://a/", &[]),
            (Version::HTTP_2, "https://a/", &[("host", "b")]),
            (Version::HTTP_2, "https://u@a/", &[]),
            (Version::HTTP_11, "/", &[("host", "a"), ("transfer-encoding", "gzip, chunked")]),
            (Version::HTTP_11, "/", &[("host", "a"), ("transfer-encoding", "identity")]),
            (
                Version::HTTP_11,
                "/",
                &[("host", "a"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            ),
            (
                Version::HTTP_11,
                "/",
                &[("host", "a"), ("transfer-encoding", "chunked"), ("content-length", "1")],
            ),
            (Version::HTTP_2, "https://a/", &[("transfer-encoding", "chunked")]),
            (Version::HTTP_11, "/", &[("host", "a"), ("expect", "100-continue, x")]),
            (Version::HTTP_11, "/", &[("host", "a"), ("expect", "y")]),
            (Version::HTTP_11, "/", &[("host", "a"), ("expect", "100-continue"), ("expect", "100-continue")]),
        ];
        for (version, uri, fields) in bad {
            let refusal = normalize(&mut head(*version, uri, fields));
            assert_eq!(refusal, Err(malformed()), "{version:?} {uri} {fields:?}");
        }
    }

    #[test]
    fn some_methods_and_long_targets_are_refused() {
        for method in [Method::CONNECT, Method::TRACE, "M".repeat(33).parse().unwrap()] {
            let mut head = head(Version::HTTP_11, "/", &[("host", "a")]);
            head.method = method;
            assert_eq!(normalize(&mut head), Err(refuse(Reason::MethodRefused)));
        }
        let long = format!("/{}", "a".repeat(URI_BYTES_MAX));
        let mut head = head(Version::HTTP_11, &long, &[("host", "a")]);
        assert_eq!(normalize(&mut head), Err(refuse(Reason::UriTooLong)));
    }
}
