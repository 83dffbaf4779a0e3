//! Nodes whose clock is a day ahead, a day behind, or in 1970, one after the other of each kind, under load:
//! requests do not notice, deploys go on, and the node whose clock it is says so.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::clock::{at_time, faketime};
use atoll_testkit::{Load, Options, OwnNode, Platform, wait_until};
use atoll_tests::shop_manifest;
use rustix::process::Signal;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const SOON: Duration = Duration::from_secs(30);
const PER_SECOND: u32 = 40;
const WHOLE: [(&str, usize); 2] = [("fra", 1), ("was", 1)];
const DAY_MS: i64 = 86_400_000;

#[test]
fn a_wrong_clock_is_named_and_harms_nobody() {
    let Some(library) = faketime() else {
        println!("skipped: there is no libfaketime (Debian: faketime)");
        return;
    };
    let platform = Platform::start(Options::regions(&["fra", "was"]));
    platform.deploy(&platform.manifest("shop", &manifest("0")));
    platform.set("fra1-host", "host", "stop_instances_on_exit", "false");
    platform.restart("fra1-host", Signal::KILL);
    platform.wait_until_whole("shop", &WHOLE);

    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let since_1970 = i64::try_from(since_1970.as_millis()).unwrap();
    let clocks = [
        ("a day ahead", "+1d", DAY_MS),
        ("a day behind", "-1d", -DAY_MS),
        ("in 1970", "@1970-01-02 00:00:00", DAY_MS - since_1970),
    ];
    // Each runs on with a right clock, until all were tried.
    let mut nodes = Vec::new();
    for name in ["fra1-gateway", "fra1-edge", "fra1-host", "fra1-control"] {
        let mut node = platform.run_in_place_of(name, &[]);
        for (what, time, ahead_ms) in clocks {
            let began = Instant::now();
            let load = Load::start(platform.roaming_load_targets("shop", "/json"), PER_SECOND);
            load.wait_for_more(u64::from(PER_SECOND) / 2);
            node.again(&platform, &at_time(&library, time));
            it_says_so(&platform, &node, what, ahead_ms);
            it_takes_part(&platform, &mut node);
            if what == "in 1970" {
                // New instances, with their sidecars and certificates, while the clock is as wrong as it gets.
                platform.deploy(&platform.manifest("shop", &manifest(&format!("{name} {what}"))));
            }
            load.wait_for_more(u64::from(PER_SECOND) / 2);
            let report = load.stop();
            println!(
                "{name} {what}: {} sent, p99 {:?}, {:?}",
                report.sent,
                report.latency(99),
                began.elapsed()
            );
            report.expect_no_failure_without_head(&format!("{name} {what}"));
        }
        node.again(&platform, &[]);
        platform.wait_until_whole("shop", &WHOLE);
        nodes.push(node);
    }
}

fn manifest(value: &str) -> String {
    shop_manifest("shop", &[("fra", 1), ("was", 1)]) + &format!("\n[service.web.env]\nVALUE = \"{value}\"\n")
}

/// In its log, and where operators look.
fn it_says_so(platform: &Platform, node: &OwnNode, what: &str, ahead_ms: i64) {
    let name = &node.node().name;
    wait_until(&format!("{name} {what} says that its clock is wrong"), SOON, || {
        node.log().contains("this machine's clock is wrong")
    });
    let mut shown = 0;
    wait_until(&format!("`atoll nodes` shows that the clock of {name} is {what}"), SOON, || {
        let listed = platform.atoll().run(&["nodes", "-o", "json"]);
        if listed.code == 0 {
            let listed = listed.json();
            let row = listed.as_array().unwrap().iter().find(|row| row["name"] == name.as_str()).unwrap();
            shown = row["clock_correction_ms"].as_i64().unwrap_or(0);
        }
        // In 1970 each start begins at the same second.
        shown.abs_diff(-ahead_ms) < 10 * 60_000
    });
}

fn it_takes_part(platform: &Platform, node: &mut OwnNode) {
    let name = node.node().name.clone();
    platform.wait_until_ready_node(&name);
    wait_until(&format!("the others have {name} alive"), SOON, || {
        let listed = platform.atoll().run(&["nodes", "-o", "json"]);
        listed.code == 0 && listed.json().as_array().unwrap().iter().all(|row| row["alive"] == true)
    });
    assert!(node.runs(), "{}", node.log());
}
