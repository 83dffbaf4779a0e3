//! Header fields at a proxy: which end here, which are ours, which are passed on. Pure functions.

mod forwarded;
mod status;

pub use forwarded::{
    ClientFacts, LOOPS_MAX, LoopDetected, add_cdn_loop, keep_request_id, keep_trace_context, set_forwarded,
    strip_forwarded,
};
pub use status::{Hops, proxy_status};

use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};

/// `org/app/service`, toward gateway and sidecar.
pub const CLUSTER: HeaderName = HeaderName::from_static("atoll-cluster");
/// The SPIFFE id of the workload that calls, as a gateway has seen it in a certificate; toward gateway and
/// sidecar. Accepted from gateways alone.
pub const CALLER: HeaderName = HeaderName::from_static("atoll-caller");
/// `tcp` marks a stream of bytes: the bodies of a POST and of its answer; toward gateway and sidecar.
pub const PROTOCOL: HeaderName = HeaderName::from_static("atoll-protocol");
/// How many tries are left, this one counted; toward the gateway.
pub const TRIES: HeaderName = HeaderName::from_static("atoll-tries");
/// The edge's site, toward the instance.
pub const EDGE: HeaderName = HeaderName::from_static("atoll-edge");
/// The serving region, both ways.
pub const REGION: HeaderName = HeaderName::from_static("atoll-region");
/// The client's address, toward the instance.
pub const CLIENT_IP: HeaderName = HeaderName::from_static("atoll-client-ip");
/// `<hop>;<reason code>` on an answer that a hop made.
pub const REASON: HeaderName = HeaderName::from_static("atoll-reason");
/// Beside [`REASON`]: `0` when the request certainly reached no instance, else `1`.
pub const SENT: HeaderName = HeaderName::from_static("atoll-sent");
/// Tries that the gateway spent.
pub const TRIES_USED: HeaderName = HeaderName::from_static("atoll-tries-used");
/// Who answered.
pub const INSTANCE: HeaderName = HeaderName::from_static("atoll-instance");
/// The revision of who answered.
pub const REVISION: HeaderName = HeaderName::from_static("atoll-revision");
/// Between edges, on a request: as whom it is asked (`location`, `far`).
pub const TIER: HeaderName = HeaderName::from_static("atoll-tier");
/// Between edges: the app's last purge that the asking edge has applied; on the answer, the last one that was known when it was asked for
/// at the origin.
pub const PURGED: HeaderName = HeaderName::from_static("atoll-purged");
/// Between edges, on an answer: what the asked edge's cache did, as `Cache-Status` has it.
pub const CACHE: HeaderName = HeaderName::from_static("atoll-cache");
/// On an answer whose body the instance ends by closing the connection: one that breaks off looks whole (RFC 9112, section 8).
pub const UNTIL_CLOSE: HeaderName = HeaderName::from_static("atoll-until-close");
/// What an instance says to our caches alone (RFC 9213). The one `atoll-*` field of an instance's answer that passes the hops.
pub const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("atoll-cdn-cache-control");
/// Microseconds at each hop.
pub const HOPS: HeaderName = HeaderName::from_static("atoll-hops");

const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Fields that `Connection` can't take away: without them the message would mean something else.
const NEVER_NOMINATED: [&str; 4] = ["host", "content-length", "cache-control", "authorization"];

const NEVER_TRAILING: [&str; 20] = [
    "content-length",
    "content-encoding",
    "content-type",
    "content-range",
    "host",
    "trailer",
    "expect",
    "range",
    "max-forwards",
    "cache-control",
    "authorization",
    "www-authenticate",
    "cookie",
    "set-cookie",
    "location",
    "vary",
    "cdn-loop",
    "x-request-id",
    "traceparent",
    "tracestate",
];

/// Removes the fields that concern one connection alone, also those that `Connection` names, and
/// `Expect`, which the server answers by itself. `TE: trailers` stays: gRPC needs it at each hop.
/// `Trailer` stays, because trailers are passed on.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let keeps_trailers = headers.get_all(header::TE).iter().any(accepts_trailers);
    if headers.contains_key(header::CONNECTION) {
        for name in nominated(headers) {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(header::EXPECT);
    if keeps_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Fields whose values are never the same twice.
const NEVER_TWICE: [HeaderName; 4] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("cache-status"),
    HOPS,
];

/// Makes a head ready for HTTP/2. Removes what is not let through (RFC 9113, section 8.2.2): messages are stripped of it before, but one of
/// which something was forgotten would not be sent at all. And keeps both ends' tables (RFC 7541, section 2.3.2) free of what would only
/// push out what comes again.
pub(crate) fn ready_for_http2(headers: &mut HeaderMap) {
    for name in NEVER_TWICE {
        if let Entry::Occupied(mut values) = headers.entry(name) {
            values.iter_mut().for_each(|value| value.set_sensitive(true));
        }
    }
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection"] {
        headers.remove(name);
    }
    if headers.get(header::TE).is_some_and(|te| te != "trailers") {
        headers.remove(header::TE);
    }
}

fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|token| token.trim().parse::<HeaderName>().ok())
        .filter(|name| !NEVER_NOMINATED.contains(&name.as_str()))
        .collect()
}

fn accepts_trailers(value: &HeaderValue) -> bool {
    value.to_str().is_ok_and(|value| {
        value
            .split(',')
            .any(|token| token.split(';').next().is_some_and(|t| t.trim().eq_ignore_ascii_case("trailers")))
    })
}

/// Removes from trailers what must not come after the content, because a reader may merge it into the
/// head (RFC 9110, section 6.5.1): framing, routing, who asks, and what is ours.
pub fn strip_trailers(trailers: &mut HeaderMap) {
    for name in NEVER_TRAILING {
        trailers.remove(name);
    }
    for name in HOP_BY_HOP {
        trailers.remove(name);
    }
    strip_internal(trailers);
    strip_forwarded(trailers);
}

/// Removes every `atoll-*` field.
pub fn strip_internal(headers: &mut HeaderMap) {
    strip_prefixed(headers, &["atoll-"]);
}

/// Removes from an answer every `atoll-*` field but the one that an instance may say.
pub fn strip_internal_from_answer(headers: &mut HeaderMap) {
    let said: Vec<HeaderValue> = headers.get_all(CDN_CACHE_CONTROL).iter().cloned().collect();
    strip_internal(headers);
    for value in said {
        headers.append(CDN_CACHE_CONTROL, value);
    }
}

/// Removes every field whose name begins with one of `prefixes` (lower case). `_` counts as `-`: programs
/// that get fields as environment variables can't tell them apart.
pub(crate) fn strip_prefixed(headers: &mut HeaderMap, prefixes: &[&str]) {
    // Most messages have none, and then nothing is allocated.
    let found: Vec<HeaderName> = headers
        .keys()
        .filter(|name| prefixes.iter().any(|prefix| begins(name.as_str(), prefix)))
        .cloned()
        .collect();
    for name in found {
        headers.remove(name);
    }
}

fn begins(name: &str, prefix: &str) -> bool {
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte };
    name.len() >= prefix.len() && name.bytes().zip(prefix.bytes()).all(|(a, b)| plain(a) == b)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn hop_by_hop_fields_end_here() {
        let mut headers = map(&[
            ("connection", "close, X-Private"),
            ("connection", "host, content-length"),
            ("x-private", "1"),
            ("x-public", "1"),
            ("host", "a.example"),
            ("content-length", "3"),
            ("te", "gzip, Trailers;q=0.5"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("transfer-encoding", "chunked"),
        ]);
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "host", "te", "x-public"]);
        assert_eq!(headers["te"], "trailers");
    }

    #[test]
    fn trailers_say_nothing_that_belongs_in_the_head() {
        let mut trailers = map(&[
            ("content-length", "99"),
            ("host", "evil"),
            ("authorization", "x"),
            ("x-forwarded-for", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6"),
            ("atoll-client-ip", "6.6.6.6"),
            ("transfer-encoding", "chunked"),
            ("cookie", "a=b"),
            ("grpc-status", "0"),
            ("x-checksum", "1"),
        ]);
        strip_trailers(&mut trailers);
        let mut left: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["grpc-status", "x-checksum"]);
    }

    #[test]
    fn an_answer_may_speak_to_our_caches() {
        let mut headers = map(&[("atoll-region", "x"), ("atoll-cdn-cache-control", "max-age=1"), ("a", "b")]);
        strip_internal_from_answer(&mut headers);
        assert_eq!(headers, map(&[("a", "b"), ("atoll-cdn-cache-control", "max-age=1")]));
    }

    #[test]
    fn internal_fields_are_removed_whatever_their_case() {
        let mut headers = map(&[
            ("Atoll-Cluster", "x"),
            ("atoll-anything", "y"),
            ("Atoll_Client-Ip", "y"),
            ("atollo", "z"),
        ]);
        strip_internal(&mut headers);
        assert_eq!(headers.len(), 1);
        assert!(headers.contains_key("atollo"));
    }
}
