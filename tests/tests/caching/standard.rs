//! What RFC 9111, 5861 and 8246 say, through every hop.

use super::app::{FRESH, SOON, asked, at, count, get, is_hit, status};
use atoll_testkit::{CurlAnswer, Platform, wait_until};
use std::thread;

pub fn hold(platform: &Platform) {
    head_is_answered_by_what_get_has_stored(platform);
    a_date_validates(platform);
    directives_of_requests(platform);
    fields_of_one_client(platform);
    changes_and_what_is_none(platform);
    an_old_one_is_sent_while_it_is_asked(platform);
    all_read_it_as_it_comes(platform);
    every_answer_says_what_the_cache_did(platform);
    nothing_torn_is_kept(platform);
}

fn head_is_answered_by_what_get_has_stored(platform: &Platform) {
    let path = format!("/head?{FRESH}&size=1000");
    let head = || get(platform, &path, &["--head"]);
    let length = |answer: &CurlAnswer| answer.header("content-length").map(str::to_owned);
    for now in [1, 2] {
        let answer = head();
        assert!(answer.status == 200 && !is_hit(&answer), "HEAD stores nothing: {answer:?}");
        assert_eq!(asked(platform, "/head"), now);
    }
    assert_eq!(count(&get(platform, &path, &[])), 3);
    let answer = head();
    assert!(is_hit(&answer), "{answer:?}");
    assert_eq!(length(&answer), Some("1000".to_owned()));
}

fn a_date_validates(platform: &Platform) {
    let path = "/dated?cc=max-age%3D0&lm=1&size=100";
    let first = get(platform, path, &[]);
    let second = get(platform, path, &[]);
    assert_eq!(first.body, second.body, "{second:?}");
    assert!(status(&second).contains("fwd=stale; fwd-status=304"), "{}", status(&second));
    let unchanged = get(platform, path, &["-H", "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT"]);
    assert_eq!((unchanged.status, unchanged.body.len()), (304, 0), "{unchanged:?}");
}

fn directives_of_requests(platform: &Platform) {
    let path = "/asks?cc=max-age%3D600%2C+immutable";
    let asks = |directive: &str| get(platform, path, &["-H", &format!("Cache-Control: {directive}")]);
    let refused = asks("only-if-cached");
    assert_eq!(refused.status, 504, "{refused:?}");
    assert_eq!(status(&refused), "Atoll; detail=not-cached");
    assert_eq!(count(&asks("no-store")), 1, "and is not kept");
    assert_eq!(count(&get(platform, path, &[])), 2);
    for (directive, now) in
        [("only-if-cached", 2), ("max-age=500", 2), ("min-fresh=599", 2), ("max-stale", 2)]
    {
        let answer = asks(directive);
        assert!(count(&answer) == now && is_hit(&answer), "{directive}: {answer:?}");
    }
    // `immutable` is for browsers: who asks for it anew gets it anew.
    assert_eq!(
        (count(&asks("no-cache")), count(&asks("max-age=0")), count(&asks("min-fresh=700"))),
        (3, 4, 5)
    );
    assert_eq!(count(&get(platform, path, &[])), 5);
}

fn fields_of_one_client(platform: &Platform) {
    let path = "/own?cookie=1&cc=max-age%3D60%2C+private%3D%22set-cookie%22";
    let first = get(platform, path, &[]);
    assert_eq!((count(&first), first.header("set-cookie")), (1, Some("a=b")), "{first:?}");
    let second = get(platform, path, &[]);
    assert!(is_hit(&second) && second.header("set-cookie").is_none(), "{second:?}");
    // Nor does a 304 give one client's cookie to others.
    let (path, plain) = ("/own/304", "X-Want: cc=max-age%3D0&etag=%22a%22&same=1&size=9");
    assert_eq!(get(platform, path, &["-H", plain]).body.len(), 9);
    let renewed = get(platform, path, &["-H", "X-Want: cc=max-age%3D60&etag=%22a%22&cookie=1"]);
    assert!(renewed.header("set-cookie").is_some() && renewed.body.len() == 9, "{renewed:?}");
    let next = get(platform, path, &["-H", plain]);
    assert!(is_hit(&next) && next.header("set-cookie").is_none(), "{next:?}");
}

fn changes_and_what_is_none(platform: &Platform) {
    let stored = format!("/kept?{FRESH}");
    let query = FRESH.replace('%', "%25").replace('=', "%3D");
    let change = |path: &str| get(platform, path, &["-X", "POST", "-d", "x"]);
    for (request, forgets) in [
        (format!("/kept?{FRESH}"), true),
        (format!("/kept?{FRESH}&status=400"), false),
        (format!("/elsewhere?cloc=%2Fkept%3F{query}"), true),
        // As a request for it would be brought into its normal form.
        (format!("/elsewhere?location=%2Fa%2F..%2Fkept%3F{query}"), true),
        (format!("/elsewhere?status=500&location=%2Fkept%3F{query}"), false),
    ] {
        get(platform, &stored, &[]);
        let before = count(&get(platform, &stored, &[]));
        change(&request);
        let after = count(&get(platform, &stored, &[]));
        assert_eq!(after > before, forgets, "{request}: {before} {after}");
    }
}

/// RFC 5861.
fn an_old_one_is_sent_while_it_is_asked(platform: &Platform) {
    let path = "/swr?age=5&cc=max-age%3D1%2C+stale-while-revalidate%3D60&wait=0.5";
    assert_eq!(count(&get(platform, path, &[])), 1);
    let old = get(platform, path, &[]);
    assert!(count(&old) == 1 && status(&old).contains("Atoll; hit; ttl=-"), "at once: {old:?}");
    wait_until("it was asked behind that answer", SOON, || count(&get(platform, path, &[])) > 1);
    let path = "/sie?age=5&cc=max-age%3D1%2C+stale-if-error%3D60&fail=1";
    assert_eq!(count(&get(platform, path, &[])), 1);
    let old = get(platform, path, &[]);
    assert!(count(&old) == 1 && status(&old).contains("detail=stale-if-error"), "{old:?}");
    // Purged softly it stands in as long as the app lets it; one that the app says nothing of does not, however fresh.
    let fresh = format!("/soft?{FRESH}&fail=1&tag=soft");
    assert_eq!(count(&get(platform, &fresh, &[])), 1);
    let purge = ["cache", "purge", "--app", "counts", "--tag", "soft", "--soft"];
    let _purged = platform.atoll().run(&purge).expect_code(0);
    assert_eq!(get(platform, &fresh, &[]).status, 503);
}

/// The start of a body is there long before its end, for late ones too, and who asked first may go.
fn all_read_it_as_it_comes(platform: &Platform) {
    let path = format!("/drip?{FRESH}&drip=20");
    let part = || get(platform, &path, &["--max-time", "1.5"]);
    thread::scope(|scope| {
        let first = scope.spawn(part);
        wait_until("it has been asked for", SOON, || asked(platform, "/drip") == 1);
        let whole = scope.spawn(|| get(platform, &path, &[]));
        let first = first.join().unwrap();
        let late = part();
        for early in [first, late] {
            let text = early.text();
            assert!(early.exit == 28 && text.starts_with("1\nline\n"), "the start, in time: {early:?}");
            assert!(early.body.len() < 100, "{early:?}");
        }
        let whole = whole.join().unwrap();
        assert_eq!((count(&whole), whole.body.len()), (1, 2 + 20 * 5), "{whole:?}");
    });
    assert!(is_hit(&get(platform, &path, &[])));
    assert_eq!(asked(platform, "/drip"), 1);
}

/// RFC 9211. Also where the answer is none of an instance.
fn every_answer_says_what_the_cache_did(platform: &Platform) {
    let edge = &platform.edges()[0];
    for (host, says) in [("counts.localhost:1", "fwd="), ("other.localhost", "detail=misdirected")] {
        let answer = at(platform, edge, "/said?cc=no-store", &["-H", &format!("Host: {host}")]);
        assert!(status(&answer).starts_with("Atoll; ") && status(&answer).contains(says), "{answer:?}");
    }
    let ambiguous = get(platform, "/a%00b", &[]);
    assert_eq!((ambiguous.status, status(&ambiguous).as_str()), (400, "Atoll; detail=ambiguous-path"));
}

/// Whatever way a body ends too early, and whoever reads it: at every edge the next is whole.
fn nothing_torn_is_kept(platform: &Platform) {
    let closing = format!("/torn/close?{FRESH}&close=1&size=100");
    for now in [1, 2] {
        let answer = get(platform, &closing, &[]);
        assert!(count(&answer) == now && status(&answer).contains("detail=until-close"), "{answer:?}");
    }
    for (n, torn) in ["breaks=1&size=3000", "breaks=1&chunks=1&size=3000"].into_iter().enumerate() {
        let path = format!("/torn/{n}");
        for edge in platform.edges() {
            let want = format!("X-Want: cc=max-age%3D60&{torn}");
            let answer = at(platform, &edge, &path, &["-H", &want]);
            assert!(answer.exit != 0 || answer.status == 502, "it does not look whole: {answer:?}");
        }
        for edge in platform.edges() {
            let whole = ["-H", "X-Want: cc=max-age%3D60&size=3000"];
            let answer = at(platform, &edge, &path, &whole);
            assert!(!is_hit(&answer) && answer.body.len() == 3_000, "{answer:?}");
            assert!(is_hit(&at(platform, &edge, &path, &whole)));
        }
    }
    let chunked = format!("/chunked?{FRESH}&chunks=1&size=5000");
    for _ in 0..2 {
        let answer = get(platform, &chunked, &[]);
        assert_eq!((count(&answer), answer.body.len()), (1, 5_000));
    }
}
