//! Fields that tell the instance about the client.

use super::strip_prefixed;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use std::net::IpAddr;

const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const CDN_ID: &str = "atoll";
const REQUEST_ID_BYTES_MAX: usize = 128;
const TRACESTATE_BYTES_MAX: usize = 512;

/// How often a request may pass this platform.
pub const LOOPS_MAX: usize = 8;

/// The request has passed this platform [`LOOPS_MAX`] times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request has passed this platform {LOOPS_MAX} times")]
pub struct LoopDetected;

/// What the edge knows of the client.
#[derive(Debug, Clone, Copy)]
pub struct ClientFacts<'a> {
    /// Its address.
    pub ip: IpAddr,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The authority that it asked for.
    pub authority: &'a str,
}

/// Fields, by how they begin, in which proxies tell who the client is, and which programs believe.
const CLIENT_FIELDS: [&str; 8] = [
    "x-forwarded",
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
];

/// Fields by which some programs take another host or path than the request's: what is stored under the request's own would be
/// another's answer (cache poisoning).
const OVERRIDES: [HeaderName; 5] = [
    HeaderName::from_static("x-host"),
    HeaderName::from_static("x-http-host-override"),
    HeaderName::from_static("x-original-host"),
    HeaderName::from_static("x-original-url"),
    HeaderName::from_static("x-rewrite-url"),
];

/// Removes what the client says about itself, `X-Forwarded-*`, `Forwarded`, `X-Real-Ip` and their like, and what it says its request
/// were in truth.
pub fn strip_forwarded(headers: &mut HeaderMap) {
    strip_prefixed(headers, &CLIENT_FIELDS);
    for name in &OVERRIDES {
        headers.remove(name);
    }
}

/// Says who the client is: `X-Forwarded-For`, `-Proto`, `-Host` and `Forwarded` (RFC 7239).
pub fn set_forwarded(headers: &mut HeaderMap, client: ClientFacts<'_>) {
    let node = match client.ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("\"[{ip}]\""),
    };
    // A checked authority has no quote and no backslash; one that isn't a valid value is left out.
    let forwarded = format!("for={node};proto={};host=\"{}\"", client.scheme, client.authority);
    let fields = [
        ("x-forwarded-for", client.ip.to_string()),
        ("x-forwarded-proto", client.scheme.to_owned()),
        ("x-forwarded-host", client.authority.to_owned()),
        ("forwarded", forwarded),
    ];
    for (name, value) in fields {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

/// Keeps the client's request id where it is one, else sets one made of `random`; returns it.
pub fn keep_request_id(headers: &mut HeaderMap, random: u128) -> String {
    let mut given = headers.get_all(&REQUEST_ID).iter();
    if let (Some(id), None) = (given.next(), given.next())
        && let Ok(id) = id.to_str()
        && is_request_id(id)
    {
        return id.to_owned();
    }
    let id = format!("{random:032x}");
    let value = HeaderValue::try_from(id.as_str()).expect("hexadecimal digits are a valid value");
    headers.insert(REQUEST_ID, value);
    id
}

fn is_request_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= REQUEST_ID_BYTES_MAX
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Keeps `traceparent` and `tracestate` if they are valid (W3C Trace Context), else removes both.
pub fn keep_trace_context(headers: &mut HeaderMap) {
    let mut parents = headers.get_all(&TRACEPARENT).iter();
    let valid = match (parents.next(), parents.next()) {
        (Some(parent), None) => is_traceparent(parent.as_bytes()),
        _ => false,
    };
    if !valid {
        headers.remove(&TRACEPARENT);
    }
    let state_bytes: usize = headers.get_all(&TRACESTATE).iter().map(HeaderValue::len).sum();
    if !valid || state_bytes > TRACESTATE_BYTES_MAX {
        headers.remove(&TRACESTATE);
    }
}

fn is_traceparent(value: &[u8]) -> bool {
    let hex = |part: &[u8]| part.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
    let some = |part: &[u8]| part.iter().any(|b| *b != b'0');
    let Some(head) = value.get(..55) else {
        return false;
    };
    let (version, trace, parent, flags) = (&head[..2], &head[3..35], &head[36..52], &head[53..55]);
    let dashes = head[2] == b'-' && head[35] == b'-' && head[52] == b'-';
    // A later version may add fields behind a dash; version 0 has none.
    let tail = match value.get(55) {
        None => true,
        Some(next) => version != b"00" && *next == b'-',
    };
    let shape = [version, trace, parent, flags].into_iter().all(hex) && version != b"ff";
    dashes && tail && shape && some(trace) && some(parent)
}

/// Notes in `CDN-Loop` (RFC 8586) that the request passes here.
///
/// # Errors
/// When it has passed [`LOOPS_MAX`] times.
pub fn add_cdn_loop(headers: &mut HeaderMap) -> Result<(), LoopDetected> {
    let passed = headers
        .get_all(&CDN_LOOP)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter(|entry| entry.split(';').next().is_some_and(|id| id.trim().eq_ignore_ascii_case(CDN_ID)))
        .count();
    if passed >= LOOPS_MAX {
        return Err(LoopDetected);
    }
    headers.append(CDN_LOOP, HeaderValue::from_static(CDN_ID));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_the_client_says_of_itself_is_replaced() {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "6.6.6.6".parse().unwrap());
        headers.insert("x-forwarded-anything", "x".parse().unwrap());
        headers.insert("forwarded", "for=6.6.6.6".parse().unwrap());
        for name in ["x-real-ip", "x_forwarded_for", "X_Real-IP", "true-client-ip", "cf-connecting-ip"] {
            headers.insert(name.parse::<HeaderName>().unwrap(), "6.6.6.6".parse().unwrap());
        }
        strip_forwarded(&mut headers);
        assert!(headers.is_empty());
        let ip = "2001:db8::1".parse().unwrap();
        set_forwarded(&mut headers, ClientFacts { ip, scheme: "https", authority: "a.b:8443" });
        assert_eq!(headers["x-forwarded-for"], "2001:db8::1");
        assert_eq!(headers["forwarded"], "for=\"[2001:db8::1]\";proto=https;host=\"a.b:8443\"");
    }

    #[test]
    fn request_ids_are_kept_only_when_they_are_well_formed() {
        for (given, kept) in [("abc-1.2_Z", true), ("", false), ("a b", false), ("a\"b", false)] {
            let mut headers = HeaderMap::new();
            headers.insert("x-request-id", given.parse().unwrap());
            let id = keep_request_id(&mut headers, 7);
            assert_eq!(id == given, kept, "{given}");
            assert_eq!(headers["x-request-id"], id);
        }
        let mut headers = HeaderMap::new();
        headers.insert("x-request-id", "a".repeat(129).parse().unwrap());
        assert_eq!(keep_request_id(&mut headers, 7), format!("{:032x}", 7));
    }

    #[test]
    fn trace_context_is_kept_only_when_valid() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let more = format!("01{}-extra", &good[2..]);
        let bad = [
            "".to_owned(),
            good.to_uppercase(),
            format!("{good}-x"),
            format!("ff{}", &good[2..]),
            good.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            good[..54].to_owned(),
        ];
        for (value, kept) in
            [(good.to_owned(), true), (more, true)].into_iter().chain(bad.map(|v| (v, false)))
        {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", value.parse().unwrap());
            headers.insert("tracestate", "a=b".parse().unwrap());
            keep_trace_context(&mut headers);
            assert_eq!(headers.len(), if kept { 2 } else { 0 }, "{value}");
        }
    }

    #[test]
    fn a_loop_is_found_also_in_one_line() {
        let mut headers = HeaderMap::new();
        headers.insert("cdn-loop", "other, ATOLL; v=1, atoll".parse().unwrap());
        for _ in 2..LOOPS_MAX {
            assert_eq!(add_cdn_loop(&mut headers), Ok(()));
        }
        assert_eq!(add_cdn_loop(&mut headers), Err(LoopDetected));
    }
}
