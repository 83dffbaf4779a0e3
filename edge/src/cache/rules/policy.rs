//! What an app's rule (`[[host.cache]]`) changes: the key's query, and what a response says of its life.

use super::directives::{Applies, ResponseDirectives};
use atoll_model::{CacheRule, QueryKey};
use http::StatusCode;
use http::header::{CACHE_CONTROL, EXPIRES, HeaderMap, HeaderName, HeaderValue, PRAGMA, SET_COOKIE};
use std::borrow::Cow;

/// Most parameters of a query that are sorted or chosen from; one with more is taken as it is, as a key of its own.
const PARAMETERS_MAX: usize = 256;

/// Path and query as the rule has them in the key, and as the instance is asked for them: what is not in the key must not reach who
/// answers. Parameters are separated by `&` alone and compared as they are written.
#[must_use]
pub fn target<'t>(target: &'t str, rule: Option<&CacheRule>) -> Cow<'t, str> {
    let Some(rule) = rule.filter(|rule| rule.sort_query || rule.query != QueryKey::All) else {
        return target.into();
    };
    let Some((path, query)) = target.split_once('?') else { return target.into() };
    if query.split('&').nth(PARAMETERS_MAX).is_some() {
        return target.into();
    }
    let name = |parameter: &str| parameter.split('=').next().map_or(0, str::len);
    let keeps = |parameter: &&str| !parameter.is_empty() && rule.query.keeps(&parameter[..name(parameter)]);
    let mut kept: Vec<&str> = query.split('&').filter(keeps).collect();
    if rule.sort_query {
        // By name alone, and stable: the order of values of one name may mean something.
        kept.sort_by(|a, b| a[..name(a)].cmp(&b[..name(b)]));
    }
    match kept.is_empty() {
        true => path.to_owned().into(),
        false => format!("{path}?{}", kept.join("&")).into(),
    }
}

/// A response's directives with what the rule puts in their place.
#[must_use]
pub fn ruled(said: ResponseDirectives, status: StatusCode, rule: Option<&CacheRule>) -> ResponseDirectives {
    let Some(rule) = rule else { return said };
    let mut ruled = said;
    if rule.ttl_s.is_some() && takes_ttl(status) {
        ruled.ruled_lifetime = rule.ttl_s;
        if rule.force {
            ruled.forced = true;
            (ruled.no_store, ruled.must_understand) = (false, false);
            (ruled.must_revalidate, ruled.proxy_revalidate) = (false, false);
            (ruled.private, ruled.no_cache) = (Applies::No, Applies::No);
        }
    }
    ruled.stale_while_revalidate = rule.stale_while_revalidate_s.or(ruled.stale_while_revalidate);
    ruled.stale_if_error = rule.stale_if_error_s.or(ruled.stale_if_error);
    ruled
}

/// Answers whose life a rule may set: what was asked for, or where it is for good. Not errors: one bad moment of an instance must not
/// last for a day.
fn takes_ttl(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 301 | 308)
}

/// Takes away what a forced response must not say to all.
pub fn strip_forced(headers: &mut HeaderMap, directives: &ResponseDirectives) {
    if directives.forced {
        headers.remove(SET_COOKIE);
    }
}

/// Tells a client for how long its own cache may keep the answer, in place of what the origin says. The answer is as if made now: what it
/// was of age here does not count there.
pub fn tell_browser(headers: &mut HeaderMap, rule: Option<&CacheRule>) {
    let Some(seconds) = rule.and_then(|rule| rule.browser_ttl_s) else { return };
    let Ok(value) = HeaderValue::try_from(format!("max-age={seconds}")) else { return };
    for name in [EXPIRES, PRAGMA, http::header::AGE, http::header::DATE] {
        headers.remove(name);
    }
    headers.insert(CACHE_CONTROL, value);
}

/// The field that the rule names for tags, if it names one.
#[must_use]
pub fn tag_field(rule: Option<&CacheRule>) -> Option<HeaderName> {
    rule?.tags.as_deref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn rule(query: QueryKey, sort_query: bool) -> CacheRule {
        CacheRule { query, sort_query, ..CacheRule::new("/**".parse().unwrap()) }
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_query_is_what_the_rule_keeps() {
        let all = "/p?b=2&utm_source=x&a=1&b=1&v";
        let of = |query: QueryKey, sort: bool| target(all, Some(&rule(query, sort))).into_owned();
        assert_eq!(of(QueryKey::All, false), all);
        assert_eq!(of(QueryKey::All, true), "/p?a=1&b=2&b=1&utm_source=x&v");
        assert_eq!(of(QueryKey::Only(names(&["v", "a"])), false), "/p?a=1&v");
        assert_eq!(of(QueryKey::Only(Vec::new()), false), "/p");
        assert_eq!(of(QueryKey::AllBut(names(&["utm_*", "v"])), false), "/p?b=2&a=1&b=1");
        assert_eq!(target("/p", Some(&rule(QueryKey::Only(Vec::new()), true))), "/p");
        assert_eq!(target("/p?&&", Some(&rule(QueryKey::All, true))), "/p");
        // What some programs read as two parameters is one here, in the key and on the way to the instance alike.
        let cloaked =
            target("/p?v=1&utm=a;v=2", Some(&rule(QueryKey::Only(names(&["v"])), false))).into_owned();
        assert_eq!(cloaked, "/p?v=1");
    }

    proptest! {
        /// What is asked for by its key has the same key, and nothing is made up.
        #[test]
        fn keys_are_stable(query in "[a-c=&;%0-9]{0,40}", sort: bool, which in 0..3) {
            let key = match which { 0 => QueryKey::All, 1 => QueryKey::Only(names(&["a"])), _ => QueryKey::AllBut(names(&["a*"])) };
            let rule = rule(key, sort);
            let whole = format!("/p?{query}");
            let once = target(&whole, Some(&rule)).into_owned();
            prop_assert_eq!(target(&once, Some(&rule)).into_owned(), once.clone());
            let had: Vec<&str> = query.split('&').collect();
            prop_assert!(once.split_once('?').is_none_or(|(_, kept)| kept.split('&').all(|p| had.contains(&p))));
        }
    }

    #[test]
    fn a_ttl_is_for_good_answers_and_force_for_what_says_no() {
        let said = |text: &'static str| {
            let headers: HeaderMap = [(CACHE_CONTROL, HeaderValue::from_static(text))].into_iter().collect();
            ResponseDirectives::of(&headers)
        };
        let day = CacheRule { ttl_s: Some(86_400), ..rule(QueryKey::All, false) };
        let forced = CacheRule { force: true, ..day.clone() };
        let plain = ruled(said("no-store, max-age=1"), StatusCode::OK, Some(&day));
        assert!(plain.no_store && plain.ruled_lifetime == Some(86_400) && !plain.forced);
        let over = ruled(said("private, no-store, must-revalidate"), StatusCode::OK, Some(&forced));
        assert!(!over.no_store && !over.private.whole() && !over.must_revalidate && over.forced);
        for status in [404, 500, 302] {
            let status = StatusCode::from_u16(status).unwrap();
            let kept = ruled(said("no-store"), status, Some(&forced));
            assert!(kept.no_store && kept.ruled_lifetime.is_none(), "{status}");
        }
    }
}
