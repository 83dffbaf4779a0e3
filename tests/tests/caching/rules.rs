//! `[[host.cache]]`, and what edges compress.

use super::app::{FRESH, SOON, at, count, get, is_hit, manifest, status};
use atoll_testkit::{CurlAnswer, Platform, wait_until};
use std::path::Path;

pub const RULES: &str = r#"
[[host]]
[[host.cache]]
match = { path = "/r/ttl/**" }
ttl = "1h"
browser_ttl = "30s"

[[host.cache]]
match = { path = "/r/force/**" }
ttl = "1h"
force = true

[[host.cache]]
match = { path = "/r/off/**" }
off = true

[[host.cache]]
match = { path = "/r/key/**" }
key = { query = ["v", "cc", "echo"], sort_query = true }
tags = { field = "X-Tags", show = true }

[[host.cache]]
match = { path = "/r/ignore/**" }
ttl = "1h"
key = { ignore_query = ["utm_*"] }

[[host.cache]]
match = { path = "/r/none/**" }
ttl = "1h"
key = { query = "none" }

[[host.cache]]
match = { path = "/r/origin/**" }
ttl = "origin"
browser_ttl = "5s"

[[host.cache]]
match = { path = "/r/bypass/**" }
bypass = 'request.cookies["session"] != "" || request.headers["x-debug"] == "1"'

[[host.cache]]
match = { path = "/r/stale/**" }
stale_if_error = "1h"
compress = false
"#;

pub fn hold(platform: &Platform) {
    a_ttl_is_ours_and_the_browsers_its_own(platform);
    force_goes_over_what_is_said_but_not_over_who_asks(platform);
    what_is_off_passes(platform);
    a_rule_is_for_the_path_that_the_instance_sees(platform);
    the_key_has_what_it_names_and_the_instance_sees_no_more(platform);
    keys_without_some_parameters_or_any(platform);
    who_has_a_session_is_kept_out(platform);
    a_failing_instance_is_stood_in_for(platform);
    targeted_fields_reach_the_edge(platform);
    bodies_are_compressed_once(platform);
}

fn want<'a>(platform: &Platform, path: &str, want: &'a str, more: &[&'a str]) -> CurlAnswer {
    let field = format!("X-Want: {want}");
    get(platform, path, &[&["-H", field.as_str()], more].concat())
}

fn a_ttl_is_ours_and_the_browsers_its_own(platform: &Platform) {
    let first = want(platform, "/r/ttl/a", "", &[]);
    let second = want(platform, "/r/ttl/a", "", &[]);
    assert_eq!((count(&first), count(&second)), (1, 1));
    let status = status(&second);
    let ttl: i64 = status.rsplit_once("ttl=").unwrap().1.parse().unwrap();
    assert!((3_500..=3_600).contains(&ttl), "{status}");
    for answer in [&first, &second] {
        assert_eq!(answer.header("cache-control"), Some("max-age=30"), "{answer:?}");
        assert!(answer.header("age").is_none() && answer.header("date").is_some(), "{answer:?}");
    }
    for (path, says) in [
        ("/r/ttl/b", "cc=no-store"),
        ("/r/ttl/c", "cc=private"),
        ("/r/ttl/d", "cookie=1"),
        ("/r/ttl/e", "cc=max-age%3D9&cookie=1"),
    ] {
        assert_eq!(count(&want(platform, path, says, &[])), 1, "{path}");
        assert_eq!(count(&want(platform, path, says, &[])), 2, "{path}: not without force");
    }
    let missing = ["/r/ttl/none", "/r/ttl/none"].map(|path| want(platform, path, "status=404", &[]));
    assert!(
        !is_hit(&missing[1]) && missing[1].text().starts_with('2'),
        "errors keep what they say: {missing:?}"
    );
}

fn force_goes_over_what_is_said_but_not_over_who_asks(platform: &Platform) {
    for (n, says) in
        ["cc=no-store", "cc=private%2C+must-revalidate", "cookie=1", "cc=no-cache"].iter().enumerate()
    {
        let path = format!("/r/force/{n}");
        for _ in 0..2 {
            let answer = want(platform, &path, says, &[]);
            assert_eq!(count(&answer), 1, "{says}: {}", status(&answer));
            assert!(answer.header("set-cookie").is_none(), "{answer:?}");
        }
    }
    for count_now in [1, 2] {
        let answer = want(platform, "/r/force/who", "", &["-H", "Authorization: Bearer x"]);
        assert_eq!(count(&answer), count_now, "{}", status(&answer));
        let answer = want(platform, "/r/force/all", "vary=%2A", &[]);
        assert_eq!(count(&answer), count_now, "{}", status(&answer));
    }
}

fn what_is_off_passes(platform: &Platform) {
    for now in [1, 2] {
        let answer = get(platform, &format!("/r/off/a?{FRESH}"), &[]);
        assert_eq!(count(&answer), now);
        assert!(status(&answer).contains("fwd=bypass"), "{}", status(&answer));
    }
}

/// Deception by a rule: a page that is for one client, under a path that looks like one that the rule is for.
fn a_rule_is_for_the_path_that_the_instance_sees(platform: &Platform) {
    for path in [
        "/r/ttl/..%2faccount",
        "/r/ttl/..%2f..%2faccount",
        "/r/ttl/../../account",
        "/r/ttl/%2e%2e/%2e%2e/account",
        "/r/ttl/..;/account",
        "/account/..%2fr%2fttl/x.css",
        "/account%2f..%2fr/ttl/x.css",
        "/account%00/r/ttl/x.css",
        "/account\\..\\r/ttl/x.css",
        "//r/ttl/x.css",
        "/account;/r/ttl/x.css",
        "/R/TTL/x.css",
        "/r/ttl%2fx.css",
        "/r%2fttl/x.css",
    ] {
        let own = format!("{path}?echo=1");
        let victim = get(platform, &own, &["--path-as-is", "-H", "Cookie: session=victim"]);
        let attacker = get(platform, &own, &["--path-as-is"]);
        for answer in [&victim, &attacker] {
            assert!([200, 400].contains(&answer.status), "{path}: {answer:?}");
            assert!(!is_hit(answer) && !status(answer).contains("stored"), "{path}: {answer:?}");
        }
        assert!(!attacker.text().contains("victim"), "{path}: {attacker:?}");
    }
    // The instance sees the path that the rule was found for.
    let into = get(platform, "/account/../r/ttl/into?echo=1", &["--path-as-is"]);
    assert!(into.text().contains("GET /r/ttl/into?echo=1 "), "{into:?}");
}

fn the_key_has_what_it_names_and_the_instance_sees_no_more(platform: &Platform) {
    let of = |query: &str, more: &[&str]| get(platform, &format!("/r/key/a?{query}"), more);
    let first = of("v=1&utm_source=evil&cc=max-age%3D60&echo=1", &[]);
    assert!(first.text().contains("GET /r/key/a?cc=max-age%3D60&echo=1&v=1 HTTP/1.1\n"), "{first:?}");
    for query in ["echo=1&v=1&cc=max-age%3D60", "cc=max-age%3D60&echo=1&v=1&v2=9&fbclid=1"] {
        let answer = of(query, &[]);
        assert!(is_hit(&answer) && !answer.text().contains("evil"), "{query}: {answer:?}");
    }
    assert_eq!(count(&of("v=2&cc=max-age%3D60&echo=1", &[])), 2);
    // Parameter cloaking: `;` separates nothing here, and the instance gets what the key has.
    let cloaked = of("v=1&x=y;v=evil&cc=max-age%3D60&echo=1", &[]);
    assert!(is_hit(&cloaked) && !cloaked.text().contains("evil"), "{cloaked:?}");
    // What is not answered from the cache goes as it came.
    let posted = of("v=1&utm_source=x&echo=1", &["-X", "POST", "-d", "a=b"]);
    assert!(posted.text().contains("utm_source=x"), "{posted:?}");
    // A purge by address means the same response.
    let before = count(&of("v=5&cc=max-age%3D60&echo=1", &[]));
    let url = "https://counts.localhost/r/key/a?utm=7&v=5&cc=max-age%3D60&echo=1";
    let _purged = platform.atoll().run(&["cache", "purge", "--app", "counts", "--url", url]).expect_code(0);
    assert!(count(&of("v=5&cc=max-age%3D60&echo=1", &[])) > before);
}

fn keys_without_some_parameters_or_any(platform: &Platform) {
    let of = |path: &str| get(platform, path, &[]);
    let ignored =
        ["a=1&utm_x=1", "utm_y=2&a=1", "a=2"].map(|query| count(&of(&format!("/r/ignore/a?{query}"))));
    assert_eq!(ignored, [1, 1, 2]);
    assert_eq!(["x=1", "y=2"].map(|query| count(&of(&format!("/r/none/a?{query}")))), [1, 1]);
    for (path, then) in [("/r/origin/a?cc=max-age%3D60", 1), ("/r/origin/b", 2)] {
        assert_eq!((count(&of(path)), count(&of(path))), (1, then), "{path}: as the answer says");
    }
    assert_eq!(of("/r/origin/a?cc=max-age%3D60").header("cache-control"), Some("max-age=5"));
}

fn who_has_a_session_is_kept_out(platform: &Platform) {
    let path = format!("/r/bypass/a?{FRESH}");
    assert_eq!(count(&get(platform, &path, &["-H", "Cookie: a=1; session=abc"])), 1);
    assert_eq!(count(&get(platform, &path, &[])), 2, "nothing of that was kept");
    assert_eq!(count(&get(platform, &path, &["-H", "Cookie: a=1; session="])), 2);
    assert_eq!(count(&get(platform, &path, &["-H", "X-Debug: 1"])), 3);
    assert_eq!(count(&get(platform, &path, &["-H", "Cookie: session=x", "-H", "Cookie: a=b"])), 4);
    assert_eq!(count(&get(platform, &path, &[])), 2);
}

fn a_failing_instance_is_stood_in_for(platform: &Platform) {
    let path = "/r/stale/a?cc=max-age%3D0&fail=1";
    for _ in 0..3 {
        assert_eq!(count(&get(platform, path, &[])), 1, "the last good one");
    }
    let without = "/stale/b?cc=max-age%3D0&fail=1";
    assert_eq!(count(&get(platform, without, &[])), 1);
    assert_eq!(get(platform, without, &[]).status, 503);
}

/// RFC 9213: ours before that for all CDNs, and that before the one for everybody.
fn targeted_fields_reach_the_edge(platform: &Platform) {
    for (path, says, stored) in [
        ("/targeted/1", "ours=max-age%3D60&cdn=no-store&cc=no-store", true),
        ("/targeted/2", "cdn=max-age%3D60&cc=no-store", true),
        ("/targeted/3", "ours=no-store&cdn=max-age%3D60&cc=max-age%3D60", false),
    ] {
        let answers = [0, 1].map(|_| want(platform, path, says, &[]));
        assert_eq!(is_hit(&answers[1]), stored, "{says}: {}", status(&answers[1]));
        for answer in &answers {
            assert!(answer.header("atoll-cdn-cache-control").is_none(), "{answer:?}");
        }
    }
}

fn bodies_are_compressed_once(platform: &Platform) {
    let path = format!("/text?{FRESH}&size=200000&etag=%22t%22");
    let plain = get(platform, &path, &[]);
    assert_eq!((plain.body.len(), plain.header("content-encoding")), (200_000, None));
    assert_eq!(plain.header("etag"), Some("\"t\""));
    let vary = |answer: &CurlAnswer| answer.header("vary").unwrap_or_default().to_ascii_lowercase();
    assert!(vary(&plain).contains("accept-encoding"), "{plain:?}");
    for coding in ["gzip", "br", "zstd"] {
        let accept = format!("Accept-Encoding: {coding}");
        let raw = || get(platform, &path, &["-H", &accept]);
        wait_until("it is compressed", SOON, || raw().header("content-encoding") == Some(coding));
        let answer = raw();
        assert!(is_hit(&answer) && answer.body.len() < 20_000, "{coding}: {} bytes", answer.body.len());
        assert_eq!(answer.header("etag"), Some("W/\"t\""));
        assert_eq!(answer.header("content-length"), Some(answer.body.len().to_string().as_str()));
        assert!(vary(&answer).contains("accept-encoding"), "{answer:?}");
        let unchanged = get(platform, &path, &["-H", &accept, "-H", "If-None-Match: W/\"t\""]);
        assert_eq!((unchanged.status, unchanged.body.len()), (304, 0), "{unchanged:?}");
        // A part is one of the body as it is.
        let part = get(platform, &path, &["-H", &accept, "--range", "0-1"]);
        assert_eq!((part.status, part.text().as_str()), (206, "1\n"), "{part:?}");
        let strong = get(platform, &path, &["-H", &accept, "--range", "0-1", "-H", "If-Range: W/\"t\""]);
        assert_eq!(strong.status, 200, "a weak tag names no bytes: {strong:?}");
    }
    // curl decodes gzip by itself: what comes out is what went in.
    let decoded = get(platform, &path, &["--compressed"]);
    assert_eq!(decoded.body, plain.body);
    assert_eq!(super::app::asked(platform, "/text"), 1);
    for (path, type_of) in
        [("/image", "image/png"), ("/no-transform", "text/plain"), ("/r/stale/text", "text/plain")]
    {
        let cc = if path == "/no-transform" { "max-age%3D60%2C+no-transform" } else { "max-age%3D60" };
        let path = format!("{path}?cc={cc}&size=50000&type={}", type_of.replace('/', "%2F"));
        for _ in 0..4 {
            let answer = get(platform, &path, &["-H", "Accept-Encoding: gzip"]);
            assert_eq!((answer.body.len(), answer.header("content-encoding")), (50_000, None), "{path}");
        }
        assert!(!vary(&get(platform, &path, &[])).contains("accept-encoding"), "{path}");
    }
    // The instance's own variants: clients that accept the same are one, however they say it.
    let path = format!("/own-coding?{FRESH}&vary=Accept-Encoding&echo=1&size=400&type=image%2Fpng");
    let first = get(platform, &path, &["-H", "Accept-Encoding: gzip;q=1.0, deflate, BR"]);
    assert!(first.text().contains("accept-encoding: br, gzip\n"), "{first:?}");
    assert!(is_hit(&get(platform, &path, &["-H", "Accept-Encoding: br, gzip, deflate;q=0.1"])));
    assert_eq!(count(&get(platform, &path, &["-H", "Accept-Encoding: deflate"])), 2);
}

/// A deploy of other rules.
pub fn change_with_a_deploy(platform: &Platform, folder: &Path) {
    let planned = {
        manifest(platform, "[[host]]\n[[host.cache]]\nmatch = { path = \"/r/off/**\" }\nttl = \"1h\"\n");
        platform.atoll().run_in(folder, &["plan"]).expect_code(0)
    };
    assert!(planned.stdout.contains("host"), "{planned:?}");
    platform.deploy(folder);
    let edges = platform.edges();
    wait_until("the new rules hold", SOON, || {
        edges.iter().all(|edge| {
            let _stored = at(platform, edge, "/r/off/b", &[]);
            is_hit(&at(platform, edge, "/r/off/b", &[]))
        })
    });
    assert!(
        !is_hit(&get(platform, "/r/force/0", &[])),
        "what has no rule any more is as the standard has it"
    );
}
