//! Whether a response may be stored by a shared cache, and which of its fields (RFC 9111, section 3).

use super::directives::{RequestDirectives, ResponseDirectives};
use super::freshness::is_heuristically_cacheable;
use super::vary;
use http::header::{
    AUTHORIZATION, CONNECTION, ETAG, EXPIRES, HeaderMap, HeaderName, LAST_MODIFIED, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, StatusCode};

/// Fields that are between two ends of one connection, or for one client (RFC 9111, section 3.1).
static NEVER_STORED: [HeaderName; 11] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-authentication-info"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("alt-svc"),
];

/// Why a response is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotStored {
    /// Only answers to GET are.
    Method,
    /// Not final, a part, a 304, or one whose caching we don't understand though we must.
    Status,
    /// The request said `no-store`.
    RequestNoStore,
    /// The response said `no-store`.
    NoStore,
    /// The response said `private`.
    Private,
    /// The request had `Authorization`, and the response does not say that it is for all.
    Authorization,
    /// It sets a cookie, and does not say that it may be stored.
    SetCookie,
    /// It varies by what no request repeats.
    VaryAll,
    /// It has neither a lifetime nor a validator.
    NoUse,
    /// Its body is larger than what is stored.
    TooLarge,
    /// Its body ends where the connection does: nobody can say whether it is whole.
    UntilClose,
    /// It has more tags than are kept: purges would miss it.
    Tags,
}

impl NotStored {
    /// Whether the answer is why, and not how this one request was put: others may get one that is stored.
    #[must_use]
    pub fn is_of_answer(self, status: StatusCode) -> bool {
        match self {
            Self::RequestNoStore | Self::Authorization => false,
            Self::Status => !is_about_the_request(status),
            _ => true,
        }
    }

    /// As `Cache-Status` and logs have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Status => "status",
            Self::RequestNoStore => "request-no-store",
            Self::NoStore => "no-store",
            Self::Private => "private",
            Self::Authorization => "authorization",
            Self::SetCookie => "set-cookie",
            Self::VaryAll => "vary-all",
            Self::NoUse => "no-freshness",
            Self::TooLarge => "too-large",
            Self::UntilClose => "until-close",
            Self::Tags => "too-many-tags",
        }
    }
}

/// What is asked, as far as storing depends on it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The method.
    pub method: &'a Method,
    /// The request's fields.
    pub headers: &'a HeaderMap,
    /// What its `Cache-Control` says.
    pub directives: &'a RequestDirectives,
}

/// Whether the response may be stored.
///
/// # Errors
/// Why not.
pub fn may_store(
    asked: Asked<'_>,
    status: StatusCode,
    headers: &HeaderMap,
    directives: &ResponseDirectives,
) -> Result<(), NotStored> {
    if *asked.method != Method::GET {
        return Err(NotStored::Method);
    }
    let understood = is_understood(status);
    if status.is_informational()
        || matches!(status.as_u16(), 206 | 304)
        || is_about_the_request(status)
        || (directives.must_understand && !understood)
    {
        return Err(NotStored::Status);
    }
    if asked.directives.no_store {
        return Err(NotStored::RequestNoStore);
    }
    // With must-understand, no-store is for those that don't (RFC 9111, section 5.2.2.3).
    if directives.no_store && !directives.must_understand {
        return Err(NotStored::NoStore);
    }
    if directives.private.whole() {
        return Err(NotStored::Private);
    }
    let for_all = directives.public || directives.s_maxage.is_some();
    if asked.headers.contains_key(AUTHORIZATION) && !(for_all || directives.must_revalidate) {
        return Err(NotStored::Authorization);
    }
    let cookie_kept = headers.contains_key(SET_COOKIE)
        && !directives.forced
        && !directives.private.fields().contains(&SET_COOKIE)
        && !directives.no_cache.fields().contains(&SET_COOKIE);
    // A rule's word is for the path, not for this answer, which may be one client's.
    if cookie_kept && (directives.ruled_lifetime.is_some() || !is_explicit(headers, directives)) {
        return Err(NotStored::SetCookie);
    }
    if vary::names(headers).is_none() {
        return Err(NotStored::VaryAll);
    }
    if directives.ruled_lifetime.is_some() {
        return Ok(());
    }
    let has_validator = headers.contains_key(ETAG) || headers.contains_key(LAST_MODIFIED);
    let guessed = is_heuristically_cacheable(status) && has_validator;
    if is_explicit(headers, directives) || guessed { Ok(()) } else { Err(NotStored::NoUse) }
}

/// Errors for how a request was put, in fields that are in no key: one client's must not be another's answer (cache-poisoned denial of
/// service). 404, 405, 410 and 414 are about what the key has.
fn is_about_the_request(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 401 | 406..=409 | 411..=413 | 415..=417 | 421..=429 | 431)
}

/// Whether the response itself says that it may be stored.
fn is_explicit(headers: &HeaderMap, directives: &ResponseDirectives) -> bool {
    directives.public
        || directives.max_age.is_some()
        || directives.s_maxage.is_some()
        || (!directives.targeted && headers.contains_key(EXPIRES))
}

/// Statuses whose meaning for caches this one knows: all that RFC 9110 defines, and 308, 421 to 451 of others.
fn is_understood(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200..=205 | 300..=303 | 305 | 307 | 308 | 400..=417 | 421..=426 | 428 | 429 | 431 | 451 | 500..=508 | 511)
}

/// The fields that the response says are for the client who asked alone (RFC 9111, sections 5.2.2.4 and 5.2.2.7).
pub fn of_one_client(headers: &HeaderMap, directives: &ResponseDirectives) -> HeaderMap {
    let mut own = HeaderMap::new();
    for name in directives.private.fields().iter().chain(directives.no_cache.fields()) {
        if !own.contains_key(name) {
            headers.get_all(name).iter().for_each(|value| {
                own.append(name, value.clone());
            });
        }
    }
    own
}

/// Takes away what is not stored: of the connection, of one client, and what `private` and `no-cache` name.
pub fn strip_unstored(headers: &mut HeaderMap, directives: &ResponseDirectives) {
    let listed: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(',').filter_map(|name| name.trim().parse().ok()))
        .collect();
    let named = directives.private.fields().iter().chain(directives.no_cache.fields());
    for name in listed.iter().chain(&NEVER_STORED).chain(named) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn headers(text: &str) -> HeaderMap {
        let lines = text.lines().filter_map(|line| line.split_once(": "));
        lines.map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    fn verdict(method: &str, request: &str, status: u16, response: &str) -> Result<(), NotStored> {
        let (request, response) = (headers(request), headers(response));
        let directives = RequestDirectives::of(&request);
        let asked = Asked { method: &method.parse().unwrap(), headers: &request, directives: &directives };
        let status = StatusCode::from_u16(status).unwrap();
        may_store(asked, status, &response, &ResponseDirectives::of(&response))
    }

    #[test]
    fn what_is_stored_and_what_is_not() {
        let get = |request, response| verdict("GET", request, 200, response);
        for (request, response) in [
            ("", "Cache-Control: max-age=1"),
            ("", "Cache-Control: public"),
            ("", "Expires: 0"),
            ("", "ETag: \"a\""),
            ("", "Last-Modified: x"),
            ("", "Cache-Control: no-cache\nETag: \"a\""),
            ("", "Cache-Control: max-age=1, private=\"x\""),
            ("", "Cache-Control: no-store, must-understand, max-age=1"),
            ("Authorization: x", "Cache-Control: s-maxage=1"),
            ("Authorization: x", "Cache-Control: public, max-age=1"),
            ("Authorization: x", "Cache-Control: must-revalidate, max-age=1"),
            ("", "Set-Cookie: a=b\nCache-Control: public, max-age=1"),
            ("", "Set-Cookie: a=b\nCache-Control: private=\"set-cookie\", max-age=1"),
            ("Cookie: a=b", "Cache-Control: max-age=1"),
            ("", "Vary: accept, x\nCache-Control: max-age=1"),
            ("", "Cache-Control: no-store\nCDN-Cache-Control: max-age=10"),
        ] {
            assert_eq!(get(request, response), Ok(()), "{request} / {response}");
        }
        for (request, response, why) in [
            ("", "", NotStored::NoUse),
            ("", "Set-Cookie: a=b\nETag: \"a\"", NotStored::SetCookie),
            ("", "Set-Cookie: a=b\nLast-Modified: x", NotStored::SetCookie),
            ("", "Cache-Control: no-store, max-age=1", NotStored::NoStore),
            ("", "Cache-Control: private, max-age=1", NotStored::Private),
            ("", "Cache-Control: max-age=1\nCDN-Cache-Control: private", NotStored::Private),
            ("Authorization: x", "Cache-Control: max-age=1", NotStored::Authorization),
            ("Cache-Control: no-store", "Cache-Control: max-age=1", NotStored::RequestNoStore),
            ("", "Cache-Control: max-age=1\nVary: *", NotStored::VaryAll),
            ("", "Cache-Control: max-age=1\nVary: Foo, *", NotStored::VaryAll),
        ] {
            assert_eq!(get(request, response), Err(why), "{request} / {response}");
        }
        let explicit = "Cache-Control: max-age=1";
        assert_eq!(verdict("POST", "", 200, explicit), Err(NotStored::Method));
        assert_eq!(verdict("GET", "", 206, explicit), Err(NotStored::Status));
        assert_eq!(verdict("GET", "", 304, explicit), Err(NotStored::Status));
        assert_eq!(verdict("GET", "", 599, explicit), Ok(()));
        let must = "Cache-Control: max-age=1, no-store, must-understand";
        assert_eq!(verdict("GET", "", 599, must), Err(NotStored::Status));
        assert_eq!(verdict("GET", "", 500, "ETag: \"a\""), Err(NotStored::NoUse), "not by itself");
    }

    #[test]
    fn fields_of_one_connection_or_client_are_left_out() {
        let mut fields = headers(
            "Connection: x-a, close\nX-A: 1\nKeep-Alive: 1\nProxy-Authenticate: x\nX-B: 1\nX-C: 1\nX-D: 1\n\
             Cache-Control: private=\"x-b\", no-cache=\"x-c\"",
        );
        let directives = ResponseDirectives::of(&fields);
        strip_unstored(&mut fields, &directives);
        let mut left: Vec<&str> = fields.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["cache-control", "x-d"]);
    }
}
