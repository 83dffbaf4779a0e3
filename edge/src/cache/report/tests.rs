#![allow(clippy::unwrap_used, reason = "tests")]
use super::super::object::{Head, Resource, compact};
use super::super::rules::freshness::Freshness;
use super::*;
use atoll_routing::hosts::{Route, VirtualHost};
use atoll_wire::record;
use bytes::Bytes;
use http::StatusCode;

const NOW_MS: u64 = 1_000_000;

fn freshness() -> Freshness {
    Freshness {
        lifetime_s: 60,
        heuristic: false,
        initial_age_s: 0,
        answered_ms: NOW_MS,
        always_validate: false,
        while_revalidate_s: 30,
        if_error_s: 0,
    }
}

fn key() -> Key {
    Key::resource("id", "shop.example", "/p")
}

fn of_shop() -> Resource {
    let name = || Arc::<str>::from("shop.example");
    Resource { app: "o/shop".into(), host: name(), authority: name(), target: "/p".into() }
}

/// A cache with one response.
fn with(freshness: Freshness, vary: &[&'static str], stored_for: &HeaderMap) -> Arc<Cache> {
    let cache = Cache::new(1 << 20, 1 << 16, Arc::default());
    let mut headers = HeaderMap::new();
    headers.insert("etag", HeaderValue::from_static("\"one\""));
    let head = Head {
        resource: of_shop(),
        status: StatusCode::OK,
        headers,
        freshness,
        vary: vary.iter().map(|name| HeaderName::from_static(name)).collect(),
        tags: ["red".into()].into(),
        asked_at: 0,
        compressible: false,
    };
    let object = Object::new(head, compact([Bytes::from_static(b"body")], 4));
    cache.index.insert(&key(), stored_for, Arc::new(object));
    cache
}

fn fields(lines: &[(&str, &str)]) -> HeaderMap {
    as_forwarded(
        &lines.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>(),
    )
}

fn asked(rule: Option<CacheRule>) -> Asked {
    let (id, name, target) = ("id".to_owned(), "shop.example".to_owned(), "/p".to_owned());
    Asked { id, name, target, rule: rule.map(Arc::new) }
}

fn would(cache: &Cache, lines: &[(&str, &str)], after_s: u64) -> (String, Value) {
    let answer = explain(cache, &key(), &asked(None), &fields(lines), NOW_MS + after_s * 1000);
    (answer["would"].as_str().unwrap().to_owned(), answer)
}

#[test]
fn it_says_what_would_be_done() {
    let cache = with(freshness(), &[], &HeaderMap::new());
    let (hit, answer) = would(&cache, &[], 20);
    assert_eq!((hit.as_str(), &answer["cache_status"]), ("hit", &json!("Atoll; hit; ttl=40")), "{answer}");
    assert_eq!((&answer["status"], &answer["stored"]["tags"]), (&json!(200), &json!(["red"])), "{answer}");
    assert_eq!((&answer["stored"]["body_bytes"], &answer["stored"]["age_s"]), (&json!(4), &json!(20)));
    let (hit, answer) = would(&cache, &[("If-None-Match", "\"one\"")], 20);
    assert_eq!((hit.as_str(), &answer["status"]), ("hit", &json!(304)), "{answer}");
    assert_eq!(would(&cache, &[], 70).0, "hit", "while it is validated");
    let (stale, answer) = would(&cache, &[], 100);
    assert_eq!((stale.as_str(), &answer["why"]), ("validate", &json!("it is stale since 40 s")));
    assert_eq!(would(&cache, &[("Cache-Control", "no-cache")], 1).1["cache_status"], "Atoll; fwd=request");
    let (refuse, answer) = would(&cache, &[("Cache-Control", "only-if-cached")], 100);
    assert_eq!((refuse.as_str(), &answer["reason"]), ("refuse", &json!("not-cached")), "{answer}");
    assert_eq!(would(&cache, &[("X-HTTP-Method-Override", "DELETE")], 1).0, "bypass");
    cache.index.remove(&key());
    let (miss, answer) = would(&cache, &[], 1);
    assert_eq!((miss.as_str(), &answer["stored"]), ("miss", &Value::Null));
    cache.index.pass(&key(), &of_shop(), NOW_MS);
    assert_eq!(would(&cache, &[], 1).0, "pass");
}

#[test]
fn variants_and_purges_are_heeded() {
    let cache = with(freshness(), &["accept-language"], &fields(&[("accept-language", "de")]));
    assert_eq!(would(&cache, &[("Accept-Language", "de")], 1).0, "hit");
    let (miss, answer) = would(&cache, &[("Accept-Language", "fr")], 1);
    assert_eq!((miss.as_str(), &answer["cache_status"]), ("miss", &json!("Atoll; fwd=vary-miss")));
    let purge = |seq, soft| {
        let what = Some(record::purge::What::Tag("red".to_owned()));
        cache.purge(
            "o/shop",
            &record::Purges { floor: 0, marks: vec![record::Purge { seq, what, soft }] },
            |_, _| None,
        );
    };
    purge(1, true);
    let (validate, answer) = would(&cache, &[("Accept-Language", "de")], 1);
    assert_eq!((validate.as_str(), &answer["stored"]["purged"]), ("validate", &json!("softly")));
    purge(2, false);
    let (miss, answer) = would(&cache, &[("Accept-Language", "de")], 1);
    assert_eq!((miss.as_str(), &answer["stored"]["purged"]), ("miss", &json!("yes")), "{answer}");
}

#[test]
fn nothing_is_said_of_what_is_another_apps() {
    let mut snapshot = Snapshot::default();
    let route = Route { name: "all".to_owned(), path_prefix: "/".to_owned(), cluster: "o/shop/web".into() };
    snapshot.hosts.insert(VirtualHost::new("id", 1, ["shop.example"], [route]).unwrap());
    let of = |app, host, target| resource(&snapshot, app, host, target);
    let found = of("o/shop", "Shop.Example:8443", "/a/../p?x=%2f").unwrap();
    assert_eq!((found.id.as_str(), found.target.as_str()), ("id", "/p?x=%2f"));
    assert_eq!(of("o/other", "shop.example", "/p").err().unwrap()["would"], "unknown");
    assert_eq!(of("o/shop", "else.example", "/p").err().unwrap()["reason"], "unknown-host");
    assert_eq!(of("o/shop", "shop.example", "/..%2fp").err().unwrap()["reason"], "ambiguous-path");
}

#[test]
fn what_a_rule_keeps_out_is_said() {
    let cache = with(freshness(), &[], &HeaderMap::new());
    let of = |edit: &dyn Fn(&mut CacheRule), lines: &[(&str, &str)]| {
        let mut rule = CacheRule::new("/**".parse().unwrap());
        edit(&mut rule);
        explain(&cache, &key(), &asked(Some(rule)), &fields(lines), NOW_MS + 1)["would"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(of(&|rule| rule.off = true, &[]), "bypass");
    let session = |rule: &mut CacheRule| {
        rule.bypass = Some("request.cookies['session'] != ''".parse().unwrap());
    };
    assert_eq!(of(&session, &[("cookie", "session=x")]), "bypass");
    assert_eq!(of(&session, &[("cookie", "other=x")]), "hit");
}
