//! How old a stored response is, how long it is fresh, and whether it may be used now (RFC 9111, section 4.2; RFC 5861).

use super::date;
use super::directives::{RequestDirectives, ResponseDirectives, SECONDS_MAX, seconds};
use http::StatusCode;
use http::header::{AGE, DATE, EXPIRES, HeaderMap, HeaderName, LAST_MODIFIED};

/// Share of the time since the last change for which a response without a lifetime of its own is fresh (RFC 9111, section 4.2.2).
const HEURISTIC_SHARE: u64 = 10;
/// Longest lifetime that is guessed, s.
const HEURISTIC_MAX_S: u64 = 24 * 3600;

/// When a request left and its response came, ms since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchanged {
    /// The request left.
    pub asked_ms: u64,
    /// The response's head was here.
    pub answered_ms: u64,
}

/// What is known of a stored response's freshness; all that a hit needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    /// How long it is fresh from when the origin made it, s.
    pub lifetime_s: u64,
    /// The lifetime was guessed.
    pub heuristic: bool,
    /// Its age when it came, s.
    pub initial_age_s: u64,
    /// When it came, ms since 1970.
    pub answered_ms: u64,
    /// It is never used without asking the origin (`no-cache`).
    pub always_validate: bool,
    /// For how long it may be used while it is validated behind the answer, s after its lifetime.
    pub while_revalidate_s: u64,
    /// For how long it may be used where the origin fails, s after its lifetime.
    pub if_error_s: u64,
}

/// What to do with a stored response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Answer with it.
    Fresh,
    /// Answer with it, and ask the origin behind that.
    WhileRevalidate,
    /// Ask the origin first.
    Validate,
}

impl Freshness {
    /// Of a response that came just now.
    #[must_use]
    pub fn of(
        status: StatusCode,
        headers: &HeaderMap,
        directives: &ResponseDirectives,
        exchanged: Exchanged,
    ) -> Self {
        let (lifetime_s, heuristic) = lifetime(status, headers, directives, exchanged);
        // Said by the origin: neither by itself nor where it fails may it be used stale.
        let strict = directives.must_revalidate || directives.proxy_revalidate || directives.no_cache.whole();
        let unless_strict = |window: Option<u64>| if strict { 0 } else { window.unwrap_or(0) };
        Self {
            lifetime_s,
            heuristic,
            initial_age_s: initial_age(headers, exchanged),
            answered_ms: exchanged.answered_ms,
            always_validate: directives.no_cache.whole(),
            while_revalidate_s: unless_strict(directives.stale_while_revalidate),
            if_error_s: unless_strict(directives.stale_if_error),
        }
    }

    /// Its age, s (RFC 9111, section 4.2.3). A clock that went back counts as standing still.
    #[must_use]
    pub fn age_s(&self, now_ms: u64) -> u64 {
        let here_s = now_ms.saturating_sub(self.answered_ms) / 1000;
        self.initial_age_s.saturating_add(here_s).min(SECONDS_MAX)
    }

    /// How long it is fresh yet, s; below 0 it is stale, as `ttl` of RFC 9211 has it.
    #[must_use]
    pub fn ttl_s(&self, now_ms: u64) -> i64 {
        let signed = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
        signed(self.lifetime_s).saturating_sub(signed(self.age_s(now_ms)))
    }

    /// Whether it may be used for a request, now.
    #[must_use]
    pub fn usable(&self, now_ms: u64, request: &RequestDirectives) -> Use {
        let age_s = self.age_s(now_ms);
        if self.always_validate
            || request.no_cache
            || request.max_age.is_some_and(|most| most == 0 || age_s > most)
        {
            return Use::Validate;
        }
        let fresh_for_s = self.lifetime_s.saturating_sub(age_s);
        let wanted_s = request.min_fresh.unwrap_or(0);
        if fresh_for_s > 0 && fresh_for_s >= wanted_s {
            return Use::Fresh;
        }
        let within = age_s < self.lifetime_s.saturating_add(self.while_revalidate_s);
        if within && wanted_s == 0 { Use::WhileRevalidate } else { Use::Validate }
    }

    /// Whether it may stand in for an origin that fails (RFC 5861, section 4). So may one that is fresh, where a client would rather have had
    /// it validated (RFC 9111, section 5.2.1.4).
    #[must_use]
    pub fn usable_on_error(&self, now_ms: u64) -> bool {
        let age_s = self.age_s(now_ms);
        !self.always_validate && age_s < self.lifetime_s.saturating_add(self.if_error_s)
    }
}

fn lifetime(
    status: StatusCode,
    headers: &HeaderMap,
    directives: &ResponseDirectives,
    exchanged: Exchanged,
) -> (u64, bool) {
    if let Some(explicit) = directives.ruled_lifetime.or(directives.s_maxage).or(directives.max_age) {
        return (explicit, false);
    }
    let made_s = made(headers).unwrap_or(exchanged.answered_ms / 1000);
    if !directives.targeted && headers.contains_key(EXPIRES) {
        // What is no date, or two of them, is in the past (RFC 9111, section 5.3).
        let until_s = only(headers, &EXPIRES).and_then(date::parse).unwrap_or(0);
        return (until_s.saturating_sub(made_s).min(SECONDS_MAX), false);
    }
    if !(directives.public || is_heuristically_cacheable(status)) {
        return (0, false);
    }
    let changed_s = only(headers, &LAST_MODIFIED).and_then(date::parse);
    let guess = changed_s.map_or(0, |changed| made_s.saturating_sub(changed) / HEURISTIC_SHARE);
    (guess.min(HEURISTIC_MAX_S), true)
}

/// Statuses whose responses may be stored without a word about it (RFC 9110, section 15.1). 206 is one too, but parts are not stored.
#[must_use]
pub fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

fn made(headers: &HeaderMap) -> Option<u64> {
    only(headers, &DATE).and_then(date::parse)
}

/// A field's value, if it has just one.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Some(value.as_bytes()),
        _ => None,
    }
}

fn initial_age(headers: &HeaderMap, exchanged: Exchanged) -> u64 {
    let answered_s = exchanged.answered_ms / 1000;
    let apparent = made(headers).map_or(0, |made| answered_s.saturating_sub(made));
    // Of several values the first counts; what is no number is not there (RFC 9111, section 5.1).
    let told = headers.get(AGE).and_then(|value| value.to_str().ok());
    let told = told.and_then(|text| seconds(text.split(',').next()?.trim())).unwrap_or(0);
    let delay = exchanged.answered_ms.saturating_sub(exchanged.asked_ms) / 1000;
    apparent.max(told.saturating_add(delay)).min(SECONDS_MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_800_000_000_000;

    fn freshness(lines: &[(&'static str, String)]) -> Freshness {
        let headers: HeaderMap = lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        let exchanged = Exchanged { asked_ms: NOW, answered_ms: NOW };
        Freshness::of(StatusCode::OK, &headers, &ResponseDirectives::of(&headers), exchanged)
    }

    fn at(offset_s: i64) -> String {
        date::format((NOW / 1000).saturating_add_signed(offset_s))
    }

    #[test]
    fn what_says_how_long() {
        let cc = |text: &str| ("cache-control", text.to_owned());
        let life = |lines: &[(&'static str, String)]| freshness(lines).lifetime_s;
        assert_eq!(life(&[cc("max-age=10, s-maxage=20")]), 20);
        assert_eq!(life(&[cc("max-age=10"), ("expires", at(500))]), 10);
        assert_eq!(life(&[("expires", at(500)), ("date", at(0))]), 500);
        assert_eq!(life(&[("expires", at(500))]), 500, "without a date it is the time that it came");
        assert_eq!(life(&[("expires", at(500)), ("expires", at(500))]), 0);
        assert_eq!(life(&[("expires", "0".to_owned())]), 0);
        assert_eq!(life(&[("last-modified", at(-1000)), ("date", at(0))]), 100);
        assert_eq!(life(&[("last-modified", at(-100_000_000)), ("date", at(0))]), HEURISTIC_MAX_S);
        assert_eq!(life(&[("cdn-cache-control", "must-revalidate".to_owned()), ("expires", at(500))]), 0);
        assert_eq!(life(&[]), 0);
    }

    #[test]
    fn how_old_it_is() {
        let age = |lines: &[(&'static str, String)]| freshness(lines).age_s(NOW);
        let told = |text: &str| age(&[("age", text.to_owned())]);
        assert_eq!((told("7"), told("7, 0"), told("0, 7")), (7, 7, 0));
        assert_eq!((told("abc"), told("-7200"), told("7200.0"), told("7200;a=b")), (0, 0, 0, 0));
        assert_eq!(told("99999999999999999999"), SECONDS_MAX);
        assert_eq!(age(&[("date", at(-30))]), 30);
        assert_eq!(age(&[("date", at(31_536_000))]), 0, "a date of next year");
        assert_eq!(age(&[("date", at(-30)), ("age", "50".to_owned())]), 50);
        assert_eq!(freshness(&[]).age_s(NOW + 2_500), 2);
        assert_eq!(freshness(&[]).age_s(NOW - 10_000), 0, "the clock went back");
    }

    #[test]
    fn stale_only_where_the_origin_lets_it() {
        let plain = RequestDirectives::default();
        let after = |text: &str, s: u64| {
            let fresh = freshness(&[("cache-control", text.to_owned())]);
            (fresh.usable(NOW + s * 1000, &plain), fresh.usable_on_error(NOW + s * 1000))
        };
        assert_eq!(after("max-age=10", 9), (Use::Fresh, true));
        assert_eq!(after("max-age=10", 10), (Use::Validate, false));
        assert_eq!(after("max-age=10, stale-while-revalidate=5", 14), (Use::WhileRevalidate, false));
        assert_eq!(after("max-age=10, stale-while-revalidate=5", 15), (Use::Validate, false));
        assert_eq!(after("max-age=10, stale-if-error=5", 14), (Use::Validate, true));
        for strict in ["must-revalidate", "proxy-revalidate"] {
            let text = format!("max-age=10, stale-while-revalidate=5, stale-if-error=5, {strict}");
            assert_eq!(after(&text, 12), (Use::Validate, false), "{strict}");
        }
        assert_eq!(after("max-age=10, no-cache", 1), (Use::Validate, false));
        assert_eq!(after("max-age=10, no-cache=\"set-cookie\"", 1), (Use::Fresh, true));
    }

    #[test]
    fn what_a_request_may_ask_for() {
        let fresh = freshness(&[("cache-control", "max-age=100, stale-while-revalidate=100".to_owned())]);
        let usable = |request: RequestDirectives, s: u64| fresh.usable(NOW + s * 1000, &request);
        let none = RequestDirectives::default;
        assert_eq!(usable(RequestDirectives { no_cache: true, ..none() }, 0), Use::Validate);
        assert_eq!(usable(RequestDirectives { max_age: Some(0), ..none() }, 0), Use::Validate);
        assert_eq!(usable(RequestDirectives { max_age: Some(50), ..none() }, 50), Use::Fresh);
        assert_eq!(usable(RequestDirectives { max_age: Some(50), ..none() }, 51), Use::Validate);
        assert_eq!(usable(RequestDirectives { min_fresh: Some(50), ..none() }, 50), Use::Fresh);
        assert_eq!(usable(RequestDirectives { min_fresh: Some(50), ..none() }, 51), Use::Validate);
    }

    proptest! {
        /// What is fresh stays within its life, whatever is claimed.
        #[test]
        fn fresh_means_younger_than_its_life(life in 0u64..10_000, age in 0u64..20_000, later in 0u64..20_000, swr in 0u64..5_000) {
            let text = format!("max-age={life}, stale-while-revalidate={swr}");
            let fresh = freshness(&[("cache-control", text), ("age", age.to_string())]);
            let total = age + later;
            let expected = match () {
                () if total < life => Use::Fresh,
                () if total < life + swr => Use::WhileRevalidate,
                () => Use::Validate,
            };
            prop_assert_eq!(fresh.usable(NOW + later * 1000, &RequestDirectives::default()), expected);
            prop_assert_eq!(fresh.ttl_s(NOW + later * 1000), life as i64 - total as i64);
        }
    }
}
