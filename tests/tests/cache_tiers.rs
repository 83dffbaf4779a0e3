//! Edges that share what they keep: two at each of two sites, an instance in one region.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

#[path = "caching/app.rs"]
mod app;
#[path = "caching/attacks.rs"]
mod attacks;

use app::{Rig, SOON, asked, by_name as at, count, get, is_hit, manifest, status};
use atoll_testkit::{Edge, Options, Platform, processes, wait_until};
use rustix::process::Signal;
use std::thread;

const FRESH: &str = "cc=max-age%3D600&tag=all";
const RULES: &str = "
[[host]]
[[host.cache]]
match = { path = \"/shield/**\" }
tier = \"regional\"
[[host.cache]]
match = { path = \"/alone/**\" }
tier = \"none\"
[[host.cache]]
match = { path = \"/named/**\" }
tags = \"Surrogate-Key\"
";

#[test]
fn instances_see_one_fetch_whichever_edge_is_asked() {
    let platform =
        Platform::start(Options::regions(&["fra", "sin"]).arguments(&["--edges", "2", "--workers", "2"]));
    platform.deploy(&manifest(&platform, RULES));
    for edge in platform.edges() {
        wait_until("it answers", SOON, || at(&platform, &edge, "/ready", &[]).status == 200);
    }
    the_edges_of_a_location_share(&platform);
    a_shield_stands_before_the_region(&platform);
    many_at_all_edges_cost_one(&platform);
    a_purge_holds_on_every_way(&platform);
    tags_of_a_named_field_reach_the_other_edge(&platform);
    variants_and_conditions_pass_between_edges(&platform);
    what_is_for_one_client_goes_no_detour(&platform);
    no_stranger_is_let_in(&platform);
    a_change_is_seen_where_it_was_made(&platform);
    attacks_hold_from_one_edge_to_the_other(&platform);
    an_edge_that_is_gone_holds_nobody_up(&platform);
}

fn of_site(platform: &Platform, site: &str) -> Vec<Edge> {
    let edges: Vec<Edge> = platform.edges().into_iter().filter(|edge| edge.site == site).collect();
    assert_eq!(edges.len(), 2);
    edges
}

fn the_edges_of_a_location_share(platform: &Platform) {
    let sin = of_site(platform, "sin1");
    let mut from_the_other = 0;
    for n in 0..12 {
        let path = format!("/local/{n}?{FRESH}");
        let first = at(platform, &sin[0], &path, &[]);
        let second = at(platform, &sin[1], &path, &[]);
        assert_eq!((count(&first), count(&second)), (1, 1), "{n}: {} | {}", status(&first), status(&second));
        from_the_other += usize::from(status(&second).contains("Atoll-Edge; hit"));
        // From its own memory from then on.
        for edge in &sin {
            let again = at(platform, edge, &path, &[]);
            assert!(is_hit(&again), "{}", status(&again));
            assert!(
                again.header("cache-tag").is_none() && again.header("atoll-purged").is_none(),
                "{again:?}"
            );
        }
    }
    // Of twelve each edge owns about six.
    assert!((1..12).contains(&from_the_other), "{from_the_other}");
    let path = format!("/alone/1?{FRESH}");
    let counts: Vec<u64> = sin.iter().map(|edge| count(&at(platform, edge, &path, &[]))).collect();
    assert_eq!(counts, [1, 2], "tier = none");
    let path = format!("/local/0?{FRESH}");
    let other_site: Vec<u64> =
        of_site(platform, "fra1").iter().map(|edge| count(&at(platform, edge, &path, &[]))).collect();
    assert_eq!(other_site, [2, 2], "each location has its own");
}

/// Whichever edge keeps it for the other.
fn a_change_is_seen_where_it_was_made(platform: &Platform) {
    let fra = of_site(platform, "fra1");
    for n in 0..12 {
        let path = format!("/changes/{n}?{FRESH}");
        let before = fra.iter().map(|edge| count(&at(platform, edge, &path, &[]))).max();
        let change = at(platform, &fra[0], &path, &["-X", "PUT", "-d", "x"]);
        assert_eq!(Some(count(&change)), before.map(|before| before + 1));
        let after = at(platform, &fra[0], &path, &[]);
        assert_eq!(count(&after), count(&change) + 1, "{n}: {}", status(&after));
        // Once, and from then on out of memory again.
        assert!(is_hit(&at(platform, &fra[0], &path, &[])));
        assert!(count(&at(platform, &fra[1], &path, &[])) <= count(&after));
    }
}

/// Group E once more: the attacker at one edge of a location, whom it could harm at the other.
fn attacks_hold_from_one_edge_to_the_other(platform: &Platform) {
    let fra = of_site(platform, "fra1");
    attacks::hold(&Rig::new(platform, &fra[0], &fra[1]));
}

fn a_shield_stands_before_the_region(platform: &Platform) {
    for n in 0..6 {
        let path = format!("/shield/{n}?{FRESH}");
        for edge in platform.edges().iter().rev() {
            let answer = at(platform, edge, &path, &[]);
            assert_eq!(count(&answer), 1, "{}: {}", edge.name, status(&answer));
        }
    }
}

fn many_at_all_edges_cost_one(platform: &Platform) {
    let path = format!("/shield/slow?{FRESH}&wait=1.5");
    let edges = platform.edges();
    let counts: Vec<u64> = thread::scope(|scope| {
        let ask = |edge: &Edge| count(&at(platform, edge, &path, &[]));
        let clients: Vec<_> =
            edges.iter().flat_map(|edge| (0..6).map(move |_| scope.spawn(move || ask(edge)))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert!(counts.iter().all(|count| *count == 1), "{counts:?}");
}

fn a_purge_holds_on_every_way(platform: &Platform) {
    let path = format!("/shield/0?{FRESH}");
    for round in 2..5 {
        let state = platform
            .atoll()
            .run(&["-o", "json", "cache", "purge", "--app", "counts", "--tag", "all"])
            .expect_code(0)
            .json();
        assert_eq!((&state["everywhere"], state["edges"].as_array().unwrap().len()), (&true.into(), 4));
        for edge in platform.edges() {
            assert_eq!(count(&at(platform, &edge, &path, &[])), round, "{}", edge.name);
        }
        assert_eq!(asked(platform, "/shield/0"), round);
    }
}

/// Whichever edge keeps it for the other, both know it by its tags.
fn tags_of_a_named_field_reach_the_other_edge(platform: &Platform) {
    let fra = of_site(platform, "fra1");
    let all = || -> Vec<u64> {
        let paths = (0..6).map(|n| format!("/named/{n}?cc=max-age%3D600&key=named+other"));
        paths.flat_map(|path| [0, 1].map(|edge| count(&at(platform, &fra[edge], &path, &[])))).collect()
    };
    assert_eq!((all(), all()), (vec![1; 12], vec![1; 12]));
    let purge = ["cache", "purge", "--app", "counts", "--tag", "named"];
    let _purged = platform.atoll().run(&purge).expect_code(0);
    assert_eq!(all(), [2; 12]);
}

fn variants_and_conditions_pass_between_edges(platform: &Platform) {
    let path = format!("/shield/vary?{FRESH}&vary=X-Lang&echo=1");
    for (language, fetches) in [("de", 1), ("en", 2)] {
        let field = format!("X-Lang: {language}");
        for edge in platform.edges() {
            let answer = at(platform, &edge, &path, &["-H", &field]);
            assert_eq!(count(&answer), fetches, "{}", edge.name);
            assert!(answer.text().contains(&format!("x-lang: {language}\n")), "{answer:?}");
        }
    }
    let path = "/shield/etag?cc=max-age%3D0&etag=%22a%22&same=1&size=10";
    for edge in platform.edges() {
        for _ in 0..2 {
            let answer = at(platform, &edge, path, &[]);
            assert_eq!((answer.status, answer.body.len()), (200, 10), "{answer:?}");
        }
        let unchanged = at(platform, &edge, path, &["-H", "If-None-Match: \"a\""]);
        assert_eq!(unchanged.status, 304, "{unchanged:?}");
    }
}

fn tier_requests(platform: &Platform, edge: &Edge) -> u64 {
    let node = platform.nodes().into_iter().find(|node| node.name == edge.name).unwrap();
    let metrics = atoll_testkit::Curl::new(format!("http://{}/metrics", node.admin)).run().text();
    let lines = metrics.lines().filter(|line| line.starts_with("atoll_edge_cache_tier_"));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

fn what_is_for_one_client_goes_no_detour(platform: &Platform) {
    let edge = &of_site(platform, "sin1")[0];
    let before = tier_requests(platform, edge);
    for n in 0..120 {
        assert_eq!(at(platform, edge, &format!("/mine/{n}?cc=private"), &[]).status, 200);
    }
    let detours = tier_requests(platform, edge) - before;
    assert!(detours < 60, "{detours} of 120");
}

fn no_stranger_is_let_in(platform: &Platform) {
    let address = platform.setting("fra1-edge", "edge", "peer_listen");
    let answer = atoll_testkit::Curl::new(format!("https://{address}/")).arguments(["--insecure"]).run();
    assert!(answer.status == 0 && answer.exit != 0, "no certificate, no answer: {answer:?}");
    // What edges say to each other means nothing in a client's request.
    let forged = ["-H", "Atoll-Tier: far", "-H", "Atoll-Purged: 0", "-H", "Atoll-Cluster: default/other/web"];
    let answer = get(platform, "/forged?echo=1&cc=no-store", &forged);
    assert!(answer.status == 200 && !answer.text().contains("atoll-tier"), "{answer:?}");
}

fn an_edge_that_is_gone_holds_nobody_up(platform: &Platform) {
    let sin = of_site(platform, "sin1");
    // Stopped, it takes connections and says nothing.
    processes::signal(sin[1].pid, Signal::STOP);
    for n in 0..6 {
        let answer = at(platform, &sin[0], &format!("/frozen/{n}?{FRESH}"), &["--max-time", "20"]);
        assert_eq!(count(&answer), 1, "{answer:?}");
    }
    processes::signal(sin[1].pid, Signal::CONT);
    processes::signal(sin[1].pid, Signal::KILL);
    for n in 0..6 {
        let answer = at(platform, &sin[0], &format!("/gone/{n}?{FRESH}"), &["--max-time", "20"]);
        assert_eq!(count(&answer), 1, "{answer:?}");
    }
    // It comes back and is asked again.
    wait_until("it is back", SOON, || {
        let back = &of_site(platform, "sin1")[1];
        back.pid != sin[1].pid && at(platform, back, "/ready", &[]).status == 200
    });
    let sin = of_site(platform, "sin1");
    let mut n = 0;
    wait_until("they share again", SOON, || {
        n += 1;
        let path = format!("/again/{n}?{FRESH}");
        let answers = [1, 0].map(|edge| at(platform, &sin[edge], &path, &[]));
        answers.iter().any(|answer| status(answer).contains("Atoll-Edge"))
    });
}
