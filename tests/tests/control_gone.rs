//! Control is away for most of the time that certificates leave it: meanwhile every other node is
//! restarted. No request fails, and when control is back all renew, not at once, and changes go on.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::{Load, Options, Platform, processes, wait_until};
use atoll_tests::shop_manifest;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

/// Lives are shortened for the test by the same factor: as a day is half of a workload certificate's two
/// days, so are fifteen seconds of thirty.
const LIFE: Duration = Duration::from_secs(30);
/// What a certificate has at least when control goes: it is renewed at half of its life at the latest.
const AWAY: Duration = Duration::from_secs(13);
const PER_SECOND: u32 = 40;
const WHOLE: [(&str, usize); 2] = [("fra", 1), ("was", 1)];

#[test]
fn nothing_waits_for_control() {
    let life = format!("{}s", LIFE.as_secs());
    let arguments = ["--node-certificate-life", &life, "--workload-certificate-life", &life];
    let platform = Platform::start(Options::regions(&["fra", "was"]).arguments(&arguments));
    platform.deploy(&platform.manifest("shop", &shop_manifest("shop", &[("fra", 1), ("was", 1)])));
    for host in ["fra1-host", "was1-host"] {
        platform.set(host, "host", "stop_instances_on_exit", "false");
        platform.restart(host, Signal::KILL);
    }
    platform.wait_until_whole("shop", &WHOLE);
    let running = platform.instance_processes("shop");

    let load = Load::start(platform.roaming_load_targets("shop", "/json"), PER_SECOND);
    let went = Instant::now();
    let held = platform.hold_down("fra1-control", Signal::KILL);
    let others: Vec<String> =
        platform.nodes().into_iter().map(|node| node.name).filter(|name| name != "fra1-control").collect();
    for (n, node) in others.iter().enumerate() {
        // In turn, as an operator restarts one, and as one crashes.
        platform.restart(node, if n % 2 == 0 { Signal::TERM } else { Signal::KILL });
        println!("{node} is back after {:?} without control", went.elapsed());
    }
    wait_until("control was away for long enough", AWAY, || went.elapsed() >= AWAY);
    edges_serve_from_their_regions(&platform);
    assert!(running.iter().all(|pid| processes::is_alive(*pid)), "instances and sidecars are untouched");

    let before = certificates(&platform, &others);
    drop(held);
    all_is_well_again(&platform, &others, &before);
    let now = platform.instance_processes("shop");
    assert_eq!(now, running, "nothing was started anew while control was away, nor when it came back");
    let report = load.stop();
    println!(
        "{} sent, {} sent again, p50 {:?}, p99 {:?}, by region {:?}",
        report.sent,
        report.sent_again,
        report.latency(50),
        report.latency(99),
        report.by_region
    );
    report.expect_no_failure_without_head("control away, and every other node restarted meanwhile");
    let text = shop_manifest("shop", &[("fra", 1), ("was", 1)]) + "\n[service.web.env]\nAFTER = \"1\"\n";
    platform.deploy(&platform.manifest("shop", &text));
}

fn edges_serve_from_their_regions(platform: &Platform) {
    for edge in platform.edges() {
        let region = edge.site.trim_end_matches('1');
        wait_until(&format!("{} is answered from {region}", edge.site), Duration::from_secs(10), || {
            platform.curl(&edge, "shop", "/json").run().header("atoll-region") == Some(region)
        });
    }
}

fn certificates(platform: &Platform, nodes: &[String]) -> BTreeMap<String, String> {
    let read = |node: &String| {
        let file = platform.data().join("nodes").join(node).join("identity/identity.pem");
        (node.clone(), fs::read_to_string(file).unwrap_or_default())
    };
    nodes.iter().map(read).collect()
}

/// Each node has a new certificate before its old one ended; how far apart they came is told.
fn all_is_well_again(platform: &Platform, nodes: &[String], before: &BTreeMap<String, String>) {
    wait_until("control answers", LIFE, || platform.atoll().run(&["nodes"]).code == 0);
    let back = Instant::now();
    let mut renewed: BTreeMap<String, Duration> = BTreeMap::new();
    wait_until("every node has renewed its certificate", LIFE, || {
        for (node, pem) in certificates(platform, nodes) {
            if before.get(&node) != Some(&pem) {
                renewed.entry(node).or_insert_with(|| back.elapsed());
            }
        }
        renewed.len() == nodes.len()
    });
    println!("renewed after control's return: {renewed:?}");
    platform.wait_until_whole("shop", &WHOLE);
}
