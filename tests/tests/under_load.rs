//! Constant load over both versions of HTTP, through every edge, while things are replaced and killed.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::{Load, LoadReport, Options, Platform, processes, wait_for, wait_until};
use atoll_tests::shop_manifest;
use std::time::Duration;

const REGIONS: [&str; 2] = ["fra", "was"];
const PER_SECOND: u32 = 60;
const WHOLE_AGAIN: Duration = Duration::from_secs(60);

#[test]
fn requests_do_not_notice() {
    let platform = Platform::start(Options::regions(&REGIONS));
    let folder = platform.manifest("shop", &shop_manifest("shop", &[("fra", 2), ("was", 2)]));
    platform.deploy(&folder);

    let report = under_load(&platform, || redeploy(&platform));
    report.expect_no_failure("a redeploy");
    let report = under_load(&platform, || kill_an_instance(&platform));
    report.expect_no_failure_without_head("kill -9 of an instance");
    let report = under_load(&platform, || kill_a_sidecar(&platform));
    report.expect_no_failure_without_head("kill -9 of a sidecar");
    let report = under_load(&platform, || kill_a_node(&platform, "gateway"));
    report.expect_no_failure_without_head("kill -9 of a gateway");
    let report = under_load(&platform, || kill_a_node(&platform, "control"));
    report.expect_no_failure("kill -9 of control");
    let report = under_load(&platform, || kill_a_node(&platform, "host"));
    report.expect_no_failure_without_head("kill -9 of a host");
}

/// Load before, during and after `work`; then the platform is whole again.
fn under_load(platform: &Platform, work: impl FnOnce()) -> LoadReport {
    let load = Load::start(platform.load_targets("shop", "/json"), PER_SECOND);
    load.wait_for_more(u64::from(PER_SECOND));
    work();
    platform.wait_until_whole("shop", &REGIONS.map(|region| (region, 2)));
    load.wait_for_more(u64::from(PER_SECOND) * 2);
    let report = load.stop();
    println!(
        "{} sent, {} answered, p50 {:?}, p99 {:?}, by region {:?}, {} failures",
        report.sent,
        report.answered,
        report.latency(50),
        report.latency(99),
        report.by_region,
        report.failures.len()
    );
    report
}

fn redeploy(platform: &Platform) {
    let before: Vec<u64> = instance_pids(platform);
    let text = shop_manifest("shop", &[("fra", 2), ("was", 2)]) + "\n[service.web.env]\nCHANGED = \"1\"\n";
    platform.deploy(&platform.manifest("shop", &text));
    wait_until("the old instances are gone", WHOLE_AGAIN, || {
        let now = instance_pids(platform);
        now.len() == 4 && before.iter().all(|pid| !now.contains(pid))
    });
}

/// Pids of the app's processes, as `/proc` has them.
fn instance_pids(platform: &Platform) -> Vec<u64> {
    let pids = platform.processes();
    let is_shop = |pid: &u32| processes::command_line(*pid).contains("atoll-shop web");
    pids.into_iter().filter(is_shop).map(u64::from).collect()
}

fn kill_an_instance(platform: &Platform) {
    let pid = answering_pid(platform);
    processes::kill(pid);
    wait_until("a new process stands in for the killed one", WHOLE_AGAIN, || {
        let now = instance_pids(platform);
        now.len() == 4 && !now.contains(&u64::from(pid))
    });
}

fn answering_pid(platform: &Platform) -> u32 {
    let answer = platform.answer(&platform.edges()[0], "shop").json();
    u32::try_from(answer["pid"].as_u64().unwrap()).unwrap()
}

fn kill_a_sidecar(platform: &Platform) {
    let answer = platform.answer(&platform.edges()[0], "shop").json();
    let instance = answer["instance"].as_str().unwrap();
    let is_its_sidecar = |pid: &u32| {
        let line = processes::command_line(*pid);
        line.contains(" sidecar ") && line.contains(instance)
    };
    let sidecar = platform.processes().into_iter().find(is_its_sidecar).expect("each instance has a sidecar");
    processes::kill(sidecar);
    wait_for("a new sidecar stands in for the killed one", WHOLE_AGAIN, || {
        let count = platform
            .processes()
            .iter()
            .filter(|pid| processes::command_line(**pid).contains(" sidecar "))
            .count();
        (count == 4 && !processes::is_alive(sidecar)).then_some(())
    });
}

fn kill_a_node(platform: &Platform, role: &str) {
    let killed = platform.node("fra1", role);
    processes::kill(killed.pid);
    wait_until(&format!("the {role} is started again"), WHOLE_AGAIN, || {
        let now = platform.node("fra1", role).pid;
        now != killed.pid && now != 0
    });
    let (_, said) = platform.said();
    assert!(said.contains(&killed.name), "atoll dev says that {} was started again: {said}", killed.name);
}
