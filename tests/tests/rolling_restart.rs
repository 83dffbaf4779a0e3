//! Every node of the platform is restarted, one after the other, under load: no request fails, and the
//! programs that run do not notice that their hosts were away.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::{Load, LoadReport, Options, Platform};
use atoll_tests::shop_manifest;
use rustix::process::Signal;
use std::time::Instant;

const WHOLE: [(&str, usize); 2] = [("fra", 2), ("was", 2)];
const PER_SECOND: u32 = 60;

#[test]
fn every_node_is_restarted_and_no_request_fails() {
    let platform = Platform::start(Options::regions(&["fra", "was"]));
    platform.deploy(&platform.manifest("shop", &shop_manifest("shop", &[("fra", 2), ("was", 2)])));
    instances_outlive_their_hosts(&platform);
    let running = platform.instance_processes("shop");
    assert_eq!(running.len(), 8, "four programs, each with a sidecar: {running:?}");

    for node in platform.nodes() {
        let began = Instant::now();
        let load = Load::start(platform.roaming_load_targets("shop", "/json"), PER_SECOND);
        load.wait_for_more(u64::from(PER_SECOND) / 2);
        platform.restart(&node.name, Signal::TERM);
        platform.wait_until_whole("shop", &WHOLE);
        load.wait_for_more(u64::from(PER_SECOND) / 2);
        let report = load.stop();
        tell(&node.name, &report, began);
        report.expect_no_failure(&format!("the restart of {}", node.name));
        if !node.roles.contains(&"edge".to_owned()) {
            assert_eq!(report.sent_again, 0, "clients do not notice the restart of {}", node.name);
        }
        let now = platform.instance_processes("shop");
        assert_eq!(now, running, "the restart of {} touches no instance and no sidecar", node.name);
    }
}

/// As on machines of their own. `atoll dev` has hosts end their instances, so that Ctrl-C leaves nothing.
fn instances_outlive_their_hosts(platform: &Platform) {
    for host in ["fra1-host", "was1-host"] {
        platform.set(host, "host", "stop_instances_on_exit", "false");
        platform.restart(host, Signal::KILL);
    }
    platform.wait_until_whole("shop", &WHOLE);
}

fn tell(node: &str, report: &LoadReport, began: Instant) {
    println!(
        "{node}: {:?}; {} sent, {} answered, {} sent again, p50 {:?}, p99 {:?}, max {:?}, by region {:?}, {} failures",
        began.elapsed(),
        report.sent,
        report.answered,
        report.sent_again,
        report.latency(50),
        report.latency(99),
        report.latency(100),
        report.by_region,
        report.failures.len()
    );
}
