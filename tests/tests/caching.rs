//! The cache through every hop, with an instance that counts what reaches it.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

#[path = "caching/app.rs"]
mod app;
#[path = "caching/attacks.rs"]
mod attacks;
#[path = "caching/rules.rs"]
mod rules;
#[path = "caching/standard.rs"]
mod standard;

use app::{FRESH, Rig, SOON, at, count, get, is_hit, manifest, status};
use atoll_testkit::{Options, Platform, wait_until};
use std::thread;

#[test]
fn edges_answer_from_memory_and_forget_when_told() {
    let platform = Platform::start(Options::regions(&["fra", "was"]));
    let folder = manifest(&platform, rules::RULES);
    platform.deploy(&folder);
    wait_until("it answers", SOON, || get(&platform, "/ready", &[]).status == 200);
    the_second_is_a_hit(&platform);
    each_edge_says_what_it_would_do(&platform);
    many_at_a_time_cost_one(&platform);
    standard::hold(&platform);
    what_comes_before_a_response_is_passed_on_and_not_kept(&platform);
    let first = &platform.edges()[0];
    attacks::hold(&Rig::new(&platform, first, first));
    purges_of_others(&platform);
    rules::hold(&platform);
    what_was_done_is_counted(&platform);
    purges_reach_every_edge(&platform);
    soft_purges_validate_and_hard_ones_fetch(&platform);
    a_purge_in_the_midst_of_a_fetch(&platform);
    tags_in_every_field_that_names_them(&platform);
    purges_are_quick(&platform);
    an_edge_that_was_away_hears_of_a_purge(&platform);
    what_breaks_off_is_not_kept(&platform);
    rules::change_with_a_deploy(&platform, &folder);
    a_restart_begins_empty(&platform);
}

fn the_second_is_a_hit(platform: &Platform) {
    let path = format!("/hit?{FRESH}");
    let first = get(platform, &path, &[]);
    assert_eq!(count(&first), 1);
    assert!(
        status(&first).contains("fwd=uri-miss") && status(&first).contains("stored"),
        "{}",
        status(&first)
    );
    let second = get(platform, &path, &[]);
    assert_eq!(count(&second), 1);
    assert!(status(&second).starts_with("Atoll; hit; ttl="), "{}", status(&second));
    assert!(second.header("age").is_some());
    assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
    let part = get(platform, &path, &["--range", "0-0"]);
    assert_eq!((part.status, part.text().as_str()), (206, "1"));
    assert_eq!(count(&get(platform, "/hit?cc=no-store", &[])), 2, "the query is in the key");
    assert_eq!(count(&at(platform, &platform.edges()[1], &path, &[])), 3, "each edge has its own memory");
}

/// Of what the first edge has stored, under the address with its port, and the other has not.
fn each_edge_says_what_it_would_do(platform: &Platform) {
    let path = format!("/explained?{FRESH}");
    assert_eq!(count(&get(platform, &path, &[])), 1);
    let first = &platform.edges()[0];
    let url = format!("https://counts.localhost:{}{path}", first.https.port());
    let explain = |fields: &[&str]| {
        let all = [&["-o", "json", "cache", "explain", &url], fields].concat();
        let answer = platform.atoll().run(&all).expect_code(0).json();
        let edges = answer["edges"].as_array().unwrap().clone();
        assert_eq!(edges.len(), 2, "{answer}");
        let (first, other): (Vec<_>, Vec<_>) = edges.into_iter().partition(|edge| edge["site"] == first.site);
        [first, other].map(|edges| edges[0]["explanation"]["would"].as_str().unwrap().to_owned())
    };
    assert_eq!(explain(&[]), ["hit", "miss"]);
    assert_eq!(explain(&["-H", "Cache-Control: no-cache"]), ["validate", "miss"]);
    assert_eq!(count(&get(platform, &path, &[])), 1, "nothing was asked of the instance");
    let shown = platform.atoll().run(&["cache", "explain", &url]).expect_code(0);
    assert!(shown.stdout.contains("answers from memory"), "{shown:?}");
    let stats =
        platform.atoll().run(&["-o", "json", "cache", "stats", "--app", "counts"]).expect_code(0).json();
    assert!(stats["edges"][1]["stats"]["bytes_max"].as_u64() > Some(0), "{stats}");
}

fn many_at_a_time_cost_one(platform: &Platform) {
    let path = format!("/slow?{FRESH}&wait=1");
    let counts: Vec<u64> = thread::scope(|scope| {
        let clients: Vec<_> = (0..20).map(|_| scope.spawn(|| count(&get(platform, &path, &[])))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert!(counts.iter().all(|count| *count == 1), "{counts:?}");
}

fn what_comes_before_a_response_is_passed_on_and_not_kept(platform: &Platform) {
    for (n, version) in ["--http1.1", "--http2"].into_iter().enumerate() {
        // With the response in the same moment, too.
        for pause in ["0", "0.2"] {
            let path = format!("/hints/{n}/{pause}?{FRESH}&hints={pause}");
            let first = get(platform, &path, &[version]);
            assert!(count(&first) == 1 && first.interim.len() == 1, "{first:?}");
            let early = first.interim[0].to_ascii_lowercase();
            assert!(early.contains(" 103") && early.contains("link: </style.css>; rel=preload"), "{early}");
            let second = get(platform, &path, &[version]);
            assert!(
                is_hit(&second) && second.interim.is_empty() && second.header("link").is_none(),
                "{second:?}"
            );
        }
    }
}

fn purges_reach_every_edge(platform: &Platform) {
    let edges = platform.edges();
    let paths = [format!("/red?{FRESH}&tag=red"), format!("/blue?{FRESH}&tag=blue"), format!("/p/1?{FRESH}")];
    let counts = || -> Vec<u64> {
        let each =
            edges.iter().flat_map(|edge| paths.iter().map(move |path| count(&at(platform, edge, path, &[]))));
        each.collect()
    };
    let before = counts();
    assert_eq!(counts(), before, "all from memory");
    let tagged = at(platform, &edges[0], &paths[0], &[]);
    assert!(tagged.header("cache-tag").is_none(), "tags are not for clients: {tagged:?}");
    let everywhere = |arguments: &[&str]| {
        let state = purge(platform, arguments);
        assert_eq!(state["everywhere"], true, "{state}");
        assert_eq!(state["edges"].as_array().unwrap().len(), 2, "{state}");
    };
    let step = |what: &str, arguments: &[&str], hit: [bool; 3]| {
        let before = counts();
        everywhere(arguments);
        let after = counts();
        for (n, (old, new)) in before.iter().zip(&after).enumerate() {
            assert_eq!(new > old, hit[n % 3], "{what}: entry {n}: {before:?} {after:?}");
        }
    };
    step("by tag", &["--tag", "red"], [true, false, false]);
    step("by prefix", &["--prefix", "/p/"], [false, false, true]);
    let url = format!("https://counts.localhost/blue?{FRESH}&tag=blue");
    step("by address", &["--url", &url], [false, true, false]);
    step("everything", &["--all"], [true, true, true]);
    step("softly, of what has no validator", &["--all", "--soft"], [true, true, true]);
    let refused = platform.atoll().run(&["cache", "purge", "--app", "nobody", "--all"]);
    assert_eq!(refused.code, 1, "{refused:?}");
}

fn purge(platform: &Platform, arguments: &[&str]) -> serde_json::Value {
    let all = [&["-o", "json", "cache", "purge", "--app", "counts"], arguments].concat();
    platform.atoll().run(&all).expect_code(0).json()
}

fn soft_purges_validate_and_hard_ones_fetch(platform: &Platform) {
    let path = format!("/purged?{FRESH}&etag=%22p%22&tag=purged&size=50");
    let first = count(&get(platform, &path, &[]));
    purge(platform, &["--tag", "purged", "--soft"]);
    let soft = get(platform, &path, &[]);
    assert!(status(&soft).contains("fwd=stale; fwd-status=304") && count(&soft) == first, "{soft:?}");
    assert!(is_hit(&get(platform, &path, &[])), "it holds again");
    // Its tags are still known, though the 304 need not repeat them.
    purge(platform, &["--tag", "purged"]);
    let hard = get(platform, &path, &[]);
    assert!(status(&hard).contains("fwd=uri-miss") && count(&hard) > first, "{hard:?}");
}

/// E09. What was asked for before it is not used after it.
fn a_purge_in_the_midst_of_a_fetch(platform: &Platform) {
    for edge in platform.edges() {
        let path = format!("/race/{}?{FRESH}&wait=2&tag=race", edge.name);
        let counter = format!("/race/{}", edge.name);
        thread::scope(|scope| {
            let early = scope.spawn(|| count(&at(platform, &edge, &path, &[])));
            wait_until("it has come to the instance", SOON, || app::asked(platform, &counter) == 1);
            purge(platform, &["--tag", "race"]);
            let late = scope.spawn(|| count(&at(platform, &edge, &path, &[])));
            assert_eq!((early.join().unwrap(), late.join().unwrap()), (1, 2));
        });
        let after = count(&at(platform, &edge, &path, &[]));
        assert!(after >= 2, "{after}");
        let again = at(platform, &edge, &path, &[]);
        assert!(is_hit(&again) && count(&again) >= 2, "{again:?}");
    }
}

fn tags_in_every_field_that_names_them(platform: &Platform) {
    let ask = |path: &str| {
        let want = "X-Want: cc=max-age%3D60&tag=c1%2Cc2&key=s1+s2&xtags=x1";
        count(&get(platform, path, &["-H", want]))
    };
    // The app's rule for the second names `X-Tags`, and lets clients see it.
    for (path, tag, named) in [
        ("/tagged", "c2", true),
        ("/tagged", "s2", true),
        ("/tagged", "x1", false),
        ("/r/key/tagged", "c2", false),
        ("/r/key/tagged", "x1", true),
    ] {
        let before = ask(path);
        assert_eq!(ask(path), before);
        purge(platform, &["--tag", tag]);
        assert_eq!(ask(path) > before, named, "{path}: {tag}");
    }
    let want = "X-Want: cc=max-age%3D60&xtags=x1+x2";
    for _ in 0..2 {
        let shown = get(platform, "/r/key/shown", &["-H", want]);
        assert_eq!(shown.header("x-tags"), Some("x1 x2"), "{shown:?}");
        assert!(get(platform, "/hidden", &["-H", want]).header("surrogate-key").is_none());
    }
    let many = (0..1_025).map(|n| n.to_string()).collect::<Vec<_>>().join("+");
    let field = format!("X-Want: cc=max-age%3D60&tag={many}");
    for _ in 0..2 {
        let answer = get(platform, "/many-tags", &["-H", &field]);
        assert!(status(&answer).contains("detail=too-many-tags"), "{answer:?}");
    }
}

/// How long they take is told, and said here.
fn purges_are_quick(platform: &Platform) {
    let slowest = |state: serde_json::Value| {
        state["edges"]
            .as_array()
            .unwrap()
            .iter()
            .map(|edge| edge["waited_ms"].as_u64().unwrap())
            .max()
            .unwrap()
    };
    let mut waited: Vec<u64> = (0..20).map(|_| slowest(purge(platform, &["--tag", "nothing"]))).collect();
    waited.sort_unstable();
    println!("20 purges: everywhere within {} ms (median), {} ms (slowest)", waited[10], waited[19]);
}

fn an_edge_that_was_away_hears_of_a_purge(platform: &Platform) {
    let path = format!("/away?{FRESH}&tag=away");
    let edge = &platform.edges()[1];
    let first = count(&at(platform, edge, &path, &[]));
    let node = platform.node(&edge.site, "edge");
    // It is stopped, not ended: its memory stays.
    atoll_testkit::processes::signal(node.pid, rustix::process::Signal::STOP);
    let purged = platform.atoll().run(&["cache", "purge", "--app", "counts", "--tag", "away"]);
    atoll_testkit::processes::signal(node.pid, rustix::process::Signal::CONT);
    assert!(
        purged.code == 5 && purged.stderr.contains(&node.name),
        "the edge is named as behind: {purged:?}"
    );
    // Whoever asks first already gets what is new.
    let back = std::time::Instant::now();
    let asked = count(&at(platform, edge, &path, &[]));
    assert!(asked > first, "{asked} after {:?}", back.elapsed());
    wait_until("the edge has heard of it", SOON, || is_hit(&at(platform, edge, &path, &[])));
    println!("an edge that stood still answers from memory again after {:?}", back.elapsed());
}

fn what_breaks_off_is_not_kept(platform: &Platform) {
    let path = format!("/breaks?{FRESH}&breaks=1");
    for _ in 0..2 {
        let answer = get(platform, &path, &[]);
        // Broken off, or an error where not even its head came through.
        assert!(answer.exit != 0 || answer.status == 502, "it does not look whole: {answer:?}");
        assert!(!status(&answer).contains("hit"), "{answer:?}");
    }
}

fn what_was_done_is_counted(platform: &Platform) {
    let stats =
        platform.atoll().run(&["-o", "json", "cache", "stats", "--app", "counts"]).expect_code(0).json();
    for word in ["hit", "miss", "stale", "collapsed", "revalidated", "pass", "bypass"] {
        let count = stats["total"]["requests"][word].as_u64().unwrap();
        assert!(count > 0, "{word}: {stats}");
    }
    assert!(stats["edges"][0]["stats"]["organization"]["bytes"].as_u64().unwrap() > 10_000, "{stats}");
    let nobodys = platform.atoll().run(&["cache", "explain", "https://nobody.localhost/"]);
    assert_eq!(nobodys.code, 1, "{nobodys:?}");
}

fn a_restart_begins_empty(platform: &Platform) {
    let path = format!("/restart?{FRESH}");
    let before = count(&get(platform, &path, &[]));
    let edge = platform.edges().remove(0);
    atoll_testkit::processes::kill(edge.pid);
    wait_until("the edge is back", SOON, || {
        platform.edges()[0].pid != edge.pid && get(platform, "/ready", &[]).status == 200
    });
    assert_eq!(count(&get(platform, &path, &[])), before + 1);
}

/// E09. Another organization's token purges nothing here.
fn purges_of_others(platform: &Platform) {
    let path = format!("/theirs?{FRESH}&tag=shared");
    get(platform, &path, &[]);
    let _created = platform.atoll().run(&["orgs", "create", "acme"]).expect_code(0);
    let made = platform
        .atoll()
        .run(&["-o", "json", "tokens", "api", "create", "purger", "--org", "acme", "--role", "deploy"])
        .expect_code(0)
        .json();
    let (token, api) =
        (made["token"].as_str().unwrap(), platform.dev_json()["api"].as_str().unwrap().to_owned());
    for what in [&["--all"][..], &["--tag", "shared"], &["--prefix", "/"], &["--prefix", "/*"]] {
        let purge = [&["cache", "purge", "--app", "counts"], what].concat();
        let refused = platform.anonymous().with_api(&api, token).run(&purge);
        assert_eq!(refused.code, 1, "{what:?}: {refused:?}");
    }
    let wild = platform.atoll().run(&["cache", "purge", "--app", "counts", "--tag", "*"]);
    assert_eq!(wild.code, 0, "a tag of that name, and no other: {wild:?}");
    assert!(is_hit(&get(platform, &path, &[])));
    assert!(at(platform, &platform.edges()[0], &path, &[]).header("cache-tag").is_none());
}
