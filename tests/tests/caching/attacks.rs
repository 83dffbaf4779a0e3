//! Cache poisoning and deception: each case that is known from the literature, through every hop (group E of the attack cases).

use super::app::{FRESH, Rig, SOON, count, manifest_of, status};
use atoll_testkit::{Edge, wait_until};
use std::process::Command;
use std::thread;

/// Every row with this rig, and once more after a purge.
pub fn hold(rig: &Rig<'_>) {
    for _ in 0..2 {
        each_holds(rig);
        rig.purge();
    }
}

fn each_holds(rig: &Rig<'_>) {
    fields_that_no_key_has(rig);
    what_is_for_one_client_stays_with_it(rig);
    requests_that_are_not_what_they_look(rig);
    host_and_port(rig);
    paths_that_deceive(rig);
    errors_that_one_client_makes(rig);
    apps_share_nothing(rig);
    variants(rig);
    parts(rig);
    validators(rig);
    lies_about_time(rig);
    a_herd_at_a_cold_key(rig);
}

/// E02. What programs are known to build addresses from is ours or gone, whoever asks first.
fn fields_that_no_key_has(rig: &Rig<'_>) {
    for (n, field) in [
        "X-Forwarded-Host: evil.example",
        "X-Forwarded-Scheme: http",
        "X-Forwarded-Proto: http",
        "X-Forwarded-Port: 1",
        "X-Forwarded-Server: evil.example",
        "X-Forwarded-Prefix: /evil.example",
        "X-Forwarded-For: evil.example",
        "Forwarded: host=evil.example",
        "X-Host: evil.example",
        "X-HTTP-Host-Override: evil.example",
        "X-Original-Host: evil.example",
        "X-Original-URL: /admin",
        "X-Rewrite-URL: /admin",
        "X_Forwarded_Host: evil.example",
        "X-Real-IP: evil.example",
        "True-Client-IP: evil.example",
        "CF-Connecting-IP: evil.example",
        "Atoll-Region: evil.example",
        "Atoll-CDN-Cache-Control: evil.example",
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/poison/{n}?{FRESH}&echo=1");
        let poisoned = rig.attack(&path, &["-H", field]);
        let innocent = rig.get(&path, &[]);
        assert!(rig.is_hit(&innocent), "{field}: {}", status(&innocent));
        for answer in [&poisoned, &innocent] {
            let text = answer.text();
            assert!(!text.contains("evil.example") && !text.contains("/admin"), "{field}: {answer:?}");
            assert!(text.contains("x-forwarded-proto: https\n"), "{answer:?}");
        }
    }
}

/// E03, E04. What one client got is another's only where the answer says that it may be.
fn what_is_for_one_client_stays_with_it(rig: &Rig<'_>) {
    let who = ["-H", "Authorization: Bearer victim"];
    for (n, (want, fields, shared)) in [
        ("cc=private%2Cmax-age%3D60", &[][..], false),
        ("cc=no-store", &[], false),
        ("cookie=1&lm=1", &[], false),
        ("cookie=1&cc=max-age%3D60", &[], true),
        ("", &[], false),
        ("cc=max-age%3D60", &who, false),
        ("expires=Fri%2C+31+Dec+2100+23%3A59%3A59+GMT&lm=1", &who, false),
        ("cc=public%2Cmax-age%3D60", &who, true),
        ("cc=s-maxage%3D60", &who, true),
        ("cc=max-age%3D60%2Cmust-revalidate", &who, true),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/one-client/{n}?{want}&echo=1");
        let own = rig.get(&path, fields);
        assert_eq!(own.status, 200, "{own:?}");
        let attacker = rig.attack(&path, &[]);
        assert_eq!(rig.is_hit(&attacker), shared, "{want} {fields:?}: {}", status(&attacker));
        assert_eq!(attacker.text().contains("victim"), shared && !fields.is_empty(), "{attacker:?}");
        if shared {
            let again = rig.get(&path, fields);
            assert!(rig.is_hit(&again), "{want} {fields:?}: {}", status(&again));
        }
    }
}

/// Fat GET, method override, a body that looks like a request (A08).
fn requests_that_are_not_what_they_look(rig: &Rig<'_>) {
    let path = format!("/override?{FRESH}");
    for field in ["X-HTTP-Method-Override: DELETE", "X-HTTP-Method: PUT", "X-Method-Override: POST"] {
        let seen = rig.asked("/override");
        assert_eq!(count(&rig.attack(&path, &["-H", field])), seen + 1, "{field}");
        assert_eq!(count(&rig.get(&path, &["-H", field])), seen + 2, "{field}");
    }
    let fat = ["-X", "GET", "-d", "fat"];
    assert_eq!(count(&rig.attack(&path, &fat)), 7);
    assert_eq!(count(&rig.get(&path, &[])), 8);
    assert_eq!(count(&rig.attack(&path, &fat)), 9);
    assert_eq!(count(&rig.get(&path, &[])), 8, "still what was stored");
    let smuggled =
        ["--http1.1", "-X", "GET", "-d", "GET /evil-by-body HTTP/1.1\r\nHost: counts.localhost\r\n\r\n"];
    assert_eq!(count(&rig.attack(&path, &smuggled)), 10);
    assert_eq!(rig.asked("/evil-by-body"), 0);
    // A change makes what is stored unusable, also where it points; not on other hosts.
    let query = FRESH.replace('%', "%25").replace('=', "%3D");
    for (method, location, same) in [
        ("POST", "/changed", true),
        ("PUT", "https%3A%2F%2Fcounts.localhost%2Fchanged", true),
        ("PUT", "https%3A%2F%2Fcounts.localhost%3A1%2Fchanged", false),
    ] {
        let stored = format!("/changed?{FRESH}");
        rig.attack(&stored, &[]);
        let before = count(&rig.get(&stored, &[]));
        rig.get(&format!("/change?location={location}%3F{query}"), &["-X", method, "-d", "x=1"]);
        let after = count(&rig.get(&stored, &[]));
        assert_eq!(after > before, same, "{method} {location}");
    }
}

/// The instance sees the host as it was written: with another port or in capitals it is another entry.
fn host_and_port(rig: &Rig<'_>) {
    let path = format!("/port?{FRESH}&echo=1");
    let own = rig.attack(&path, &[]);
    for host in ["counts.localhost:1", "COUNTS.localhost", "counts.localhost."] {
        let field = format!("Host: {host}");
        let other = rig.attack(&path, &["-H", &field]);
        assert!(other.text().contains(&format!("host: {host}\n")) && !rig.is_hit(&other), "{other:?}");
    }
    let again = rig.get(&path, &[]);
    assert!(rig.is_hit(&again) && again.body == own.body, "{again:?}");
}

/// Web cache deception: a private page under a name that looks like a file is stored only if it says so itself.
fn paths_that_deceive(rig: &Rig<'_>) {
    for (n, path) in [
        "/account/x.css",
        "/account;x.css",
        "/account%3Bx.css",
        "/account%00x.css",
        "/account%0Ax.css",
        "/account%23x.css",
        "/account%3Fx.css",
        "/account/..%2Fx.css",
        "/static/..%2faccount",
        "/static/%2e%2e/account",
        "/account/.css",
        "/account$x.css",
        "/account!x.css",
        "/account~x.css",
    ]
    .into_iter()
    .enumerate()
    {
        let private = format!("{path}?n={n}&cookie=1");
        let own = rig.get(&private, &["--path-as-is", "-H", "Cookie: session=victim"]);
        for answer in [own, rig.attack(&private, &["--path-as-is"])] {
            assert!([200, 400].contains(&answer.status), "{path}: {answer:?}");
            assert!(!rig.is_hit(&answer), "{path}: {}", status(&answer));
        }
    }
    // The path decides what is stored only in its normal form.
    assert_eq!(count(&rig.get("/a/../private/x.css?cc=private", &["--path-as-is"])), 1);
    assert_eq!(count(&rig.attack("/private/x.css?cc=private", &[])), 2);
    // Encoded and plain are one where they mean the same, and two where they don't.
    let plain = format!("/one~two?{FRESH}");
    assert_eq!(count(&rig.attack(&plain, &[])), 1);
    assert!(rig.is_hit(&rig.get(&format!("/one%7Etwo?{FRESH}"), &[])));
    assert!(!rig.is_hit(&rig.get(&format!("/one~two%3F{FRESH}"), &[])));
    assert!(!rig.is_hit(&rig.get(&format!("/one~two/?{FRESH}"), &[])));
    assert!(!rig.is_hit(&rig.get(&format!("/ONE~TWO?{FRESH}"), &[])));
}

/// E05. A client can't make its own error everybody's.
fn errors_that_one_client_makes(rig: &Rig<'_>) {
    let long = format!("X-Oversized: {}", "x".repeat(70_000));
    let many: Vec<String> = (0..120).map(|n| format!("X-Many-{n}: y")).collect();
    let many: Vec<&str> = many.iter().flat_map(|field| ["-H", field.as_str()]).collect();
    for (n, arguments) in [vec!["-H", long.as_str()], many].into_iter().enumerate() {
        let path = format!("/cpdos/{n}?{FRESH}");
        let refused = rig.attack(&path, &[&["--http1.1"], &arguments[..]].concat());
        assert!(refused.status >= 400 || refused.exit != 0, "{refused:?}");
        assert_eq!(count(&rig.get(&path, &[])), 1);
        assert!(rig.is_hit(&rig.get(&path, &[])));
    }
    // An instance that answers an odd field with an error, and says that the error may be stored.
    for (n, error) in ["400", "413", "431", "417", "429", "405"].into_iter().enumerate() {
        let path = format!("/cpdos/own/{n}?{FRESH}");
        let field = format!("X-Want: cc=max-age%3D60&status={error}");
        let made = rig.attack(&path, &["-H", &field]);
        assert_eq!(made.status.to_string(), error);
        let innocent = rig.get(&path, &[]);
        // 405 is about method and path, which the key has: the standard lets it be stored.
        assert_eq!(innocent.status, if error == "405" { 405 } else { 200 }, "{error}: {innocent:?}");
    }
    for error in ["500", "502", "503", "504"] {
        let path = format!("/cpdos/fails/{error}");
        for _ in 0..2 {
            let field = format!("X-Want: status={error}");
            assert_eq!(rig.attack(&path, &["-H", &field]).status.to_string(), error);
        }
        assert_eq!(rig.get(&path, &[]).status, 200, "what fails is not remembered");
    }
}

/// E01. The same path of another app is another entry.
fn apps_share_nothing(rig: &Rig<'_>) {
    let folder = manifest_of(rig.platform, "other", "");
    rig.platform.deploy(&folder);
    let path = format!("/same/path?{FRESH}&echo=1");
    let ours = rig.attack(&path, &[]);
    let [_, edge] = rig.edges();
    let theirs = || rig.platform.curl(edge, "other", &path).run();
    wait_until("the other app answers", SOON, || theirs().status == 200);
    assert!(theirs().text().contains("host: other.localhost"), "{:?}", theirs());
    assert!(ours.text().contains("host: counts.localhost"), "{ours:?}");
    // On the connection of one app the other can't be asked for.
    let crossed = rig.get(&path, &["-H", "Host: other.localhost"]);
    assert_eq!(crossed.status, 421, "{crossed:?}");
    // A purge of one leaves the other's.
    let _purged = rig.platform.atoll().run(&["cache", "purge", "--app", "other", "--all"]).expect_code(0);
    assert!(rig.is_hit(&rig.get(&path, &[])) && !rig.is_hit(&theirs()));
    let refused = rig.platform.atoll().run(&[
        "cache",
        "purge",
        "--app",
        "other",
        "--url",
        "https://counts.localhost/same/path",
    ]);
    assert_eq!(refused.code, 2, "{refused:?}");
}

/// E06.
fn variants(rig: &Rig<'_>) {
    let path = format!("/vary?{FRESH}&vary=Accept-Encoding%2C+Origin&echo=1");
    let fields =
        |origin: &str, coding: &str| [format!("Origin: {origin}"), format!("Accept-Encoding: {coding}")];
    let ask_first = |origin: &str, coding: &str| {
        let fields = fields(origin, coding);
        rig.attack(&path, &["-H", &fields[0], "-H", &fields[1]])
    };
    let ask = |origin: &str, coding: &str| {
        let fields = fields(origin, coding);
        rig.get(&path, &["-H", &fields[0], "-H", &fields[1]])
    };
    for (origin, coding, now) in [("https://a", "gzip", 1), ("https://b", "gzip", 2), ("https://a", "br", 3)]
    {
        assert_eq!(count(&ask_first(origin, coding)), now);
    }
    for (origin, coding, now) in [("https://a", "gzip", 1), ("https://b", "gzip", 2), ("https://a", "br", 3)]
    {
        let answer = ask(origin, coding);
        assert!(rig.is_hit(&answer) && answer.text().contains(&format!("origin: {origin}\n")), "{answer:?}");
        assert_eq!(count(&answer), now);
    }
    let names = (0..100).map(|n| format!("X-{n}")).collect::<Vec<_>>().join("%2C");
    for vary in ["*", "Accept%2C+*", &names] {
        let path = format!("/vary/{}?{FRESH}&vary={vary}", vary.len());
        assert_eq!(count(&rig.attack(&path, &[])), 1, "{vary}");
        assert_eq!(count(&rig.get(&path, &[])), 2, "{vary}");
    }
}

/// E07.
fn parts(rig: &Rig<'_>) {
    let path = format!("/parts?{FRESH}&size=1000&etag=%22p%22");
    assert_eq!(rig.attack(&path, &["--range", "0-0"]).status, 206);
    let whole = rig.get(&path, &[]);
    assert_eq!((whole.status, whole.body.len()), (200, 1000));
    let one = rig.get(&path, &["--range", "0-0"]);
    assert_eq!((one.status, one.body.len(), one.header("content-range")), (206, 1, Some("bytes 0-0/1000")));
    let overlapping = vec!["0-"; 1000].join(",");
    let many = rig.get(&path, &["--range", &overlapping]);
    assert_eq!((many.status, many.body.len()), (200, 1000), "no more than the whole");
    let apart = (0..17).map(|n| format!("{0}-{0}", n * 3)).collect::<Vec<_>>().join(",");
    assert!(rig.get(&path, &["--range", &apart]).body.len() <= 1000);
    let two = rig.get(&path, &["--range", "0-0,999-999"]);
    assert!(two.status == 206 && two.text().contains("Content-Range: bytes 999-999/1000"), "{two:?}");
    assert_eq!(rig.get(&path, &["--range", "0-0", "-H", "If-Range: \"other\""]).status, 200);
    assert_eq!(rig.get(&path, &["--range", "0-0", "-H", "If-Range: \"p\""]).status, 206);
    assert_eq!(rig.get(&path, &["--range", "5000-"]).status, 416);
    // A part that an instance sends is never taken for the whole.
    let path = format!("/parts/only?{FRESH}&status=206&size=10");
    for _ in 0..2 {
        assert!(!rig.is_hit(&rig.attack(&path, &["--range", "0-9"])));
    }
    assert!(!rig.is_hit(&rig.get(&path, &[])));
}

/// E10.
fn validators(rig: &Rig<'_>) {
    let ask = |language: &str, want: &str| {
        let fields =
            [format!("X-Lang: {language}"), format!("X-Want: vary=X-Lang&cc=max-age%3D0&echo=1&{want}")];
        rig.get("/validators", &["-H", &fields[0], "-H", &fields[1]])
    };
    let german = ask("de", "etag=%22same%22");
    let english = ask("en", "etag=W%2F%22same%22");
    let again = ask("de", "etag=%22same%22&location=%2Fnew");
    assert!(again.body == german.body && status(&again).contains("fwd=stale; fwd-status=304"), "{again:?}");
    assert_eq!(again.header("location"), Some("/new"), "the fields of a 304 are taken");
    let other = ask("en", "etag=W%2F%22same%22");
    assert!(other.body == english.body && other.text().contains("x-lang: en\n"), "{other:?}");
    assert_eq!(other.header("location"), None, "and of no other variant's");
}

/// E11.
fn lies_about_time(rig: &Rig<'_>) {
    for (n, (says, hit)) in [
        ("cc=max-age%3D60&date=Fri%2C+31+Dec+2100+23%3A59%3A59+GMT", true),
        ("cc=max-age%3D60&age=99999999999", false),
        ("cc=max-age%3D-1", false),
        ("cc=max-age%3D60%2C+max-age%3D0", false),
        ("cc=max-age%3D0%2C+max-age%3D60", false),
        ("cc=max-age%3D60.5", false),
        ("cc=max-age%3D99999999999999999999", true),
        ("expires=0", false),
        ("expires=Fri%2C+31+Dec+2100+23%3A59%3A59+GMT", true),
        ("cc=max-age%3D60&age=-1", true),
        ("cc=max-age%3D60&date=yesterday", true),
        ("cc=%2C%2C%3D%3B%22max-age%3D60", false),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/time/{n}");
        let field = format!("X-Want: {says}");
        let answers = [rig.attack(&path, &["-H", &field]), rig.get(&path, &["-H", &field])];
        assert_eq!(answers[1].status, 200);
        assert_eq!(rig.is_hit(&answers[1]), hit, "{says}: {}", status(&answers[1]));
    }
}

/// As many requests at once, over 100 connections, by h2load; within two minutes.
fn herd(edge: &Edge, path: &str, requests: u64) -> (u64, u64) {
    let url = format!("https://counts.localhost:{}{path}", edge.https.port());
    let connect = format!("--connect-to={}", edge.https);
    let (all, each) = (requests.to_string(), (requests / 100).to_string());
    let output = Command::new("timeout")
        .args(["120", "h2load", "-n", &all, "-c", "100", "-m", &each, "-t", "1", &connect, &url])
        .args(["-H", ":authority: counts.localhost"])
        .output()
        .expect("h2load is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let codes = text.lines().find(|line| line.starts_with("status codes:")).unwrap_or_default();
    let of = |class: &str| {
        let part = codes.split([',', ':']).find(|part| part.trim().ends_with(class));
        part.and_then(|part| part.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    assert_eq!(of("2xx") + of("5xx"), requests, "{text}");
    (of("2xx"), of("5xx"))
}

/// E08. Half of the clients at each edge.
fn a_herd_at_a_cold_key(rig: &Rig<'_>) {
    let herds = |path: &str, requests: u64| {
        let [first, second] = rig.edges();
        thread::scope(|scope| {
            let other = scope.spawn(|| herd(second, path, requests / 2));
            let (own, other) = (herd(first, path, requests / 2), other.join().unwrap());
            (own.0 + other.0, own.1 + other.1)
        })
    };
    assert_eq!(herds("/herd/ok?cc=max-age%3D600&wait=2", 10_000).0, 10_000);
    assert_eq!(rig.asked("/herd/ok"), 1);
    // Where it fails, not all fall upon it: an edge asks twice for all who wait, and for 64 of them at a time.
    let (_, failed) = herds("/herd/fails?status=503&wait=1", 10_000);
    let fetched = rig.asked("/herd/fails");
    println!("{fetched} fetches for {failed} requests");
    assert!(failed == 10_000 && fetched * 10 <= failed, "{fetched} of {failed}");
    // What is for one client is asked for by each at once: one after the other would take ten minutes.
    let (served, _) = herds("/herd/mine?cc=private&wait=1", 600);
    assert_eq!((served, rig.asked("/herd/mine")), (600, 600));
}
