//! RFC 9111 once more, as plainly as it can be said, of responses that are described instead of parsed; the rules must say the same of the
//! fields that such a description has.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::date;
use super::directives::{RequestDirectives, ResponseDirectives};
use super::freshness::{Exchanged, Freshness, Use};
use super::storing::{Asked, may_store};
use http::header::{HeaderMap, HeaderName};
use http::{Method, StatusCode};
use proptest::prelude::*;

const NOW_S: u64 = 1_800_000_000;
const DAY_S: u64 = 86_400;

/// A response, and what it comes to.
#[derive(Debug, Clone)]
struct Described {
    status: u16,
    max_age: Option<u64>,
    s_maxage: Option<u64>,
    flags: Flags,
    stale_while_revalidate: Option<u64>,
    stale_if_error: Option<u64>,
    /// From when it came, s: `Expires`, `Date`, `Last-Modified`.
    expires: Option<i64>,
    date: Option<i64>,
    last_modified: Option<i64>,
    age: Option<u64>,
    etag: bool,
    set_cookie: bool,
    vary_all: bool,
}

#[derive(Debug, Clone, Copy)]
struct Flags {
    no_store: bool,
    no_cache: bool,
    private: bool,
    public: bool,
    must_revalidate: bool,
    proxy_revalidate: bool,
    must_understand: bool,
}

#[derive(Debug, Clone)]
struct Wanted {
    authorization: bool,
    no_store: bool,
    no_cache: bool,
    max_age: Option<u64>,
    min_fresh: Option<u64>,
    /// A cache of the origin's does not heed it.
    max_stale: bool,
}

fn maybe<T: Strategy>(inner: T) -> impl Strategy<Value = Option<T::Value>> {
    prop_oneof![2 => Just(()).prop_map(|()| None), 1 => inner.prop_map(Some)]
}

fn rarely() -> impl Strategy<Value = bool> {
    prop_oneof![5 => Just(false), 1 => Just(true)]
}

prop_compose! {
    fn flags()(no_store in rarely(), no_cache in rarely(), private in rarely(), public in rarely(), must_revalidate in rarely(),
        proxy_revalidate in rarely(), must_understand in rarely()) -> Flags {
        Flags { no_store, no_cache, private, public, must_revalidate, proxy_revalidate, must_understand }
    }
}

prop_compose! {
    fn described()(
        status in prop::sample::select(vec![200, 200, 200, 203, 204, 206, 301, 302, 304, 404, 410, 418, 500, 501, 503, 599]),
        max_age in maybe(0..200u64), s_maxage in maybe(0..200u64), flags in flags(),
        stale_while_revalidate in maybe(0..50u64), stale_if_error in maybe(0..50u64),
        expires in maybe(-100..200i64), date in maybe(-50..50i64), last_modified in maybe(-5000..10i64),
        age in maybe(0..100u64), (etag, set_cookie, vary_all) in (any::<bool>(), rarely(), rarely()),
    ) -> Described {
        Described { status, max_age, s_maxage, flags, stale_while_revalidate, stale_if_error, expires, date, last_modified, age, etag,
            set_cookie, vary_all }
    }
}

prop_compose! {
    fn wanted()(authorization in rarely(), no_store in rarely(), no_cache in rarely(), max_age in maybe(0..200u64),
        min_fresh in maybe(0..100u64), max_stale in rarely()) -> Wanted {
        Wanted { authorization, no_store, no_cache, max_age, min_fresh, max_stale }
    }
}

impl Described {
    fn fields(&self) -> HeaderMap {
        let mut words = Vec::new();
        let mut number = |name: &str, value: Option<u64>| words.extend(value.map(|n| format!("{name}={n}")));
        number("Max-Age", self.max_age);
        number("s-maxage", self.s_maxage);
        number("stale-while-revalidate", self.stale_while_revalidate);
        number("stale-if-error", self.stale_if_error);
        let Flags { no_store, no_cache, private, public, must_revalidate, proxy_revalidate, must_understand } =
            self.flags;
        let named = [
            (no_store, "no-store"),
            (no_cache, "NO-CACHE"),
            (private, "private"),
            (public, "public"),
            (must_revalidate, "must-revalidate"),
            (proxy_revalidate, "proxy-revalidate"),
            (must_understand, "must-understand"),
        ];
        words.extend(named.into_iter().filter(|(there, _)| *there).map(|(_, word)| word.to_owned()));
        let at = |offset: i64| date::format(NOW_S.saturating_add_signed(offset));
        let mut fields = HeaderMap::new();
        let mut add = |name: &'static str, value: Option<String>| {
            value.map(|value| fields.append(HeaderName::from_static(name), value.parse().unwrap()));
        };
        // Two lines, to be read as one.
        let (first, second) = words.split_at(words.len() / 2);
        add("cache-control", (!first.is_empty()).then(|| first.join(" , ")));
        add("cache-control", (!second.is_empty()).then(|| second.join(",")));
        add("expires", self.expires.map(at));
        add("date", self.date.map(at));
        add("last-modified", self.last_modified.map(at));
        add("age", self.age.map(|age| age.to_string()));
        add("etag", self.etag.then(|| "\"x\"".to_owned()));
        add("set-cookie", self.set_cookie.then(|| "a=b".to_owned()));
        add("vary", self.vary_all.then(|| "*".to_owned()));
        fields
    }

    /// Section 3, with what this cache leaves out by its own choice.
    fn storable(&self, wanted: &Wanted) -> bool {
        let flags = self.flags;
        let a_final_whole_answer = ![206, 304].contains(&self.status);
        let understood =
            (200..=206).contains(&self.status) || [301, 302, 404, 410, 500, 501, 503].contains(&self.status);
        let not_forbidden = (!flags.no_store || flags.must_understand) && !flags.private;
        let authorized =
            !wanted.authorization || flags.public || flags.must_revalidate || self.s_maxage.is_some();
        let explicit =
            flags.public || self.expires.is_some() || self.max_age.is_some() || self.s_maxage.is_some();
        let by_default = self.cacheable_by_default() && (self.etag || self.last_modified.is_some());
        let own_choice = !wanted.no_store && (!self.set_cookie || explicit) && !self.vary_all;
        a_final_whole_answer
            && (!flags.must_understand || understood)
            && not_forbidden
            && authorized
            && (explicit || by_default)
            && own_choice
    }

    fn cacheable_by_default(&self) -> bool {
        [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501].contains(&self.status)
    }

    /// Section 4.2.1 and 4.2.2.
    fn lifetime(&self, answered_s: u64) -> u64 {
        let made = self.date.map_or(answered_s, |offset| NOW_S.saturating_add_signed(offset));
        let since = |later: u64, earlier: u64| later.saturating_sub(earlier);
        match (self.s_maxage, self.max_age, self.expires) {
            (Some(shared), ..) => shared,
            (None, Some(max_age), _) => max_age,
            (None, None, Some(expires)) => since(NOW_S.saturating_add_signed(expires), made),
            (None, None, None) => match self.last_modified {
                Some(changed) if self.cacheable_by_default() || self.flags.public => {
                    (since(made, NOW_S.saturating_add_signed(changed)) / 10).min(DAY_S)
                }
                _ => 0,
            },
        }
    }

    /// Section 4.2.3.
    fn age_at(&self, asked_s: u64, answered_s: u64, now_s: u64) -> u64 {
        let apparent =
            self.date.map_or(0, |offset| answered_s.saturating_sub(NOW_S.saturating_add_signed(offset)));
        let corrected = self.age.unwrap_or(0) + (answered_s - asked_s);
        apparent.max(corrected) + (now_s - answered_s)
    }

    /// Section 4, 5.2.1 and RFC 5861.
    fn usable(&self, wanted: &Wanted, lifetime: u64, age: u64) -> Use {
        let flags = self.flags;
        let strict = flags.must_revalidate || flags.proxy_revalidate || flags.no_cache;
        let too_old = wanted.max_age.is_some_and(|most| age > most || most == 0);
        if flags.no_cache || wanted.no_cache || too_old {
            return Use::Validate;
        }
        let margin = wanted.min_fresh.unwrap_or(0);
        if age < lifetime && age + margin <= lifetime {
            return Use::Fresh;
        }
        let window = if strict { 0 } else { self.stale_while_revalidate.unwrap_or(0) };
        if margin == 0 && age < lifetime + window { Use::WhileRevalidate } else { Use::Validate }
    }

    fn usable_on_error(&self, lifetime: u64, age: u64) -> bool {
        let flags = self.flags;
        let strict = flags.must_revalidate || flags.proxy_revalidate || flags.no_cache;
        let window = if strict { 0 } else { self.stale_if_error.unwrap_or(0) };
        !flags.no_cache && age < lifetime + window
    }
}

impl Wanted {
    fn fields(&self) -> HeaderMap {
        let number = |name: &str, value: Option<u64>| value.map(|value| format!("{name}={value}"));
        let word = |there: bool, name: &str| there.then(|| name.to_owned());
        let words = [
            word(self.no_store, "no-store"),
            word(self.no_cache, "no-cache"),
            word(self.max_stale, "max-stale"),
            number("max-age", self.max_age),
            number("min-fresh", self.min_fresh),
        ];
        let words: Vec<String> = words.into_iter().flatten().collect();
        let mut fields = HeaderMap::new();
        if !words.is_empty() {
            fields.insert("cache-control", words.join(", ").parse().unwrap());
        }
        if self.authorization {
            fields.insert("authorization", "Bearer x".parse().unwrap());
        }
        fields
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn the_rules_say_what_the_standard_says(response in described(), request in wanted(), delay_s in 0..20u64, later_s in 0..300u64) {
        let (fields, asked_fields) = (response.fields(), request.fields());
        let said = ResponseDirectives::of(&fields);
        let directives = RequestDirectives::of(&asked_fields);
        let status = StatusCode::from_u16(response.status).unwrap();
        let asked = Asked { method: &Method::GET, headers: &asked_fields, directives: &directives };
        prop_assert_eq!(may_store(asked, status, &fields, &said).is_ok(), response.storable(&request));

        let (answered_s, now_s) = (NOW_S + delay_s, NOW_S + delay_s + later_s);
        let exchanged = Exchanged { asked_ms: NOW_S * 1000, answered_ms: answered_s * 1000 };
        let fresh = Freshness::of(status, &fields, &said, exchanged);
        let (lifetime, age) = (response.lifetime(answered_s), response.age_at(NOW_S, answered_s, now_s));
        prop_assert_eq!(fresh.lifetime_s, lifetime);
        prop_assert_eq!(fresh.age_s(now_s * 1000), age);
        prop_assert_eq!(fresh.usable(now_s * 1000, &directives), response.usable(&request, lifetime, age));
        prop_assert_eq!(fresh.usable_on_error(now_s * 1000), response.usable_on_error(lifetime, age));
    }

    /// Nothing that a response may say makes the rules fail, and no number grows out of bounds.
    #[test]
    fn whatever_is_said_is_survived(lines in proptest::collection::vec(("cache-control|expires|date|age|vary|last-modified|cdn-cache-control|etag|set-cookie", "[ -~]{0,40}"), 0..6), now_s in 0..u64::from(u32::MAX)) {
        let fields: HeaderMap = lines.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect();
        let said = ResponseDirectives::of(&fields);
        let exchanged = Exchanged { asked_ms: NOW_S * 1000, answered_ms: NOW_S * 1000 };
        let fresh = Freshness::of(StatusCode::OK, &fields, &said, exchanged);
        prop_assert!(fresh.age_s(now_s * 1000) <= super::directives::SECONDS_MAX);
        let _any = fresh.ttl_s(now_s * 1000);
    }
}
