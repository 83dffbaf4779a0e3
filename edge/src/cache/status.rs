//! `Cache-Status` (RFC 9211): what the cache did for a request.

use super::key::Key;
use http::header::HeaderValue;
use std::fmt::Write as _;

/// Why a request went on (RFC 9211, section 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarded {
    /// It was not for the cache.
    Bypass,
    /// Its method is not one that is answered from it.
    Method,
    /// Nothing is stored of that.
    UriMiss,
    /// Nothing is stored that fits it.
    VaryMiss,
    /// What is stored has to be validated.
    Stale,
    /// The request asked for it.
    Request,
}

impl Forwarded {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Stale => "stale",
            Self::Request => "request",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheStatus {
    /// It went on, and why; nothing: it was answered from the store.
    pub forwarded: Option<Forwarded>,
    /// What came back.
    pub forwarded_status: Option<u16>,
    /// How long the answer is fresh yet, s.
    pub ttl_s: Option<i64>,
    /// It is being stored.
    pub stored: bool,
    /// It shares another request's answer.
    pub collapsed: bool,
    /// Why it was not stored, or why a stale one was used.
    pub detail: Option<&'static str>,
}

impl CacheStatus {
    /// Answered from the store.
    #[must_use]
    pub const fn hit(ttl_s: i64) -> Self {
        Self {
            forwarded: None,
            forwarded_status: None,
            ttl_s: Some(ttl_s),
            stored: false,
            collapsed: false,
            detail: None,
        }
    }

    /// It went on.
    #[must_use]
    pub const fn forwarded(why: Forwarded) -> Self {
        Self { forwarded: Some(why), ttl_s: None, ..Self::hit(0) }
    }

    /// The field's value.
    #[must_use]
    pub fn to_value(self, key: Option<&Key>) -> HeaderValue {
        self.to_value_of("Atoll", key)
    }

    /// The same by a cache of that name, with what the response is found by.
    #[must_use]
    pub fn to_value_of(self, name: &str, key: Option<&Key>) -> HeaderValue {
        let mut text = String::with_capacity(96);
        text.push_str(name);
        match self.forwarded {
            None => text.push_str("; hit"),
            Some(why) => {
                text.push_str("; fwd=");
                text.push_str(why.as_str());
            }
        }
        // Writing to a string does not fail.
        if let Some(status) = self.forwarded_status {
            let _ = write!(text, "; fwd-status={status}");
        }
        if let Some(ttl_s) = self.ttl_s {
            let _ = write!(text, "; ttl={ttl_s}");
        }
        if self.stored {
            text.push_str("; stored");
        }
        if self.collapsed {
            text.push_str("; collapsed");
        }
        if let Some(detail) = self.detail {
            let _ = write!(text, "; detail={detail}");
        }
        if let Some(key) = key {
            let _ = write!(text, "; key=\"{}\"", key.to_text().replace('\\', "\\\\").replace('"', "\\\""));
        }
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("Atoll"))
    }

    /// One word for the access log and metrics.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self.forwarded {
            None if self.ttl_s.is_some_and(|ttl| ttl <= 0) => "stale",
            None => "hit",
            Some(Forwarded::Bypass | Forwarded::Method) => "bypass",
            Some(Forwarded::Stale) if matches!(self.forwarded_status, Some(304)) => "revalidated",
            Some(Forwarded::Stale) => "expired",
            Some(_) if self.collapsed => "collapsed",
            Some(_) if self.stored => "miss",
            Some(_) => "pass",
        }
    }
}

/// The field's value where the answer is Atoll's own: neither a hit nor what came back.
#[must_use]
pub fn made_here(reason: &'static str) -> HeaderValue {
    HeaderValue::try_from(format!("Atoll; detail={reason}")).unwrap_or(HeaderValue::from_static("Atoll"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_structured_fields() {
        let miss = CacheStatus {
            forwarded_status: Some(200),
            stored: true,
            collapsed: true,
            detail: Some("x"),
            ..CacheStatus::forwarded(Forwarded::UriMiss)
        };
        assert_eq!(miss.to_value(None), "Atoll; fwd=uri-miss; fwd-status=200; stored; collapsed; detail=x");
        assert_eq!(CacheStatus::hit(-3).to_value(None), "Atoll; hit; ttl=-3");
        let key = Key::resource("h", "a.example", "/\"\\");
        let keyed = CacheStatus::hit(1).to_value(Some(&key));
        assert_eq!(keyed, "Atoll; hit; ttl=1; key=\"h a.example /\\\"\\\\\"");
        let words = [miss, CacheStatus::hit(1), CacheStatus::hit(0)].map(|status| status.word());
        assert_eq!(words, ["collapsed", "hit", "stale"]);
    }
}
