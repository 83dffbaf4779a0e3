//! Control stands still: health changes, failover and restarts of nodes go on from what is known. Then
//! the whole platform is stopped, and comes back with what was deployed.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::{Edge, Load, Options, Platform, processes, wait_until};
use atoll_tests::shop_manifest;
use rustix::process::Signal;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn traffic_does_not_wait_for_control() {
    let mut platform = Platform::start(Options::regions(&["fra", "was"]));
    platform.deploy(&platform.manifest("shop", &shop_manifest("shop", &[("fra", 1), ("was", 1)])));
    for (edge, region) in platform.edges().iter().zip(["fra", "was"]) {
        is_answered_from(&platform, edge, region);
    }

    let control = platform.node("fra1", "control").pid;
    processes::signal(control, Signal::STOP);
    let load = Load::start(platform.load_targets("shop", "/json"), 40);
    load.wait_for_more(40);
    health_changes_move_requests(&platform);
    a_dead_gateway_moves_requests(&platform);
    load.wait_for_more(40);
    load.stop().expect_no_failure_without_head("failover with control stopped");
    a_restarted_edge_serves(&platform);
    processes::signal(control, Signal::CONT);

    control_goes_on(&platform);
    a_restart_of_everything_brings_apps_back(&mut platform);
    a_killed_platform_is_cleared_away(&mut platform);
}

fn is_answered_from(platform: &Platform, edge: &Edge, region: &str) {
    wait_until(&format!("{} is answered from {region}", edge.site), SOON, || {
        let answer = platform.curl(edge, "shop", "/json").run();
        answer.status == 200 && answer.header("atoll-region") == Some(region)
    });
}

fn health_changes_move_requests(platform: &Platform) {
    let fra = &platform.edges()[0];
    let told = platform.curl(fra, "shop", "/control/unhealthy?for=12s").method("POST").run();
    assert_eq!(told.status, 200, "{told:?}");
    is_answered_from(platform, fra, "was");
    is_answered_from(platform, fra, "fra");
}

fn a_dead_gateway_moves_requests(platform: &Platform) {
    let fra = &platform.edges()[0];
    let gateway = platform.node("fra1", "gateway");
    // Stopped and not killed first: nobody tells the edge that it is gone.
    processes::signal(gateway.pid, Signal::STOP);
    is_answered_from(platform, fra, "was");
    processes::signal(gateway.pid, Signal::CONT);
    is_answered_from(platform, fra, "fra");
    processes::kill(gateway.pid);
    wait_until("the gateway is started again", SOON, || {
        let now = platform.node("fra1", "gateway").pid;
        now != gateway.pid && now != 0
    });
    is_answered_from(platform, fra, "fra");
}

fn a_restarted_edge_serves(platform: &Platform) {
    let edge = platform.edges()[0].clone();
    processes::kill(edge.pid);
    wait_until("the edge is started again", SOON, || {
        let now = platform.edges()[0].pid;
        now != edge.pid && now != 0
    });
    is_answered_from(platform, &edge, "fra");
}

fn control_goes_on(platform: &Platform) {
    wait_until("control answers", SOON, || platform.atoll().run(&["apps"]).code == 0);
    let text = shop_manifest("shop", &[("fra", 1), ("was", 1)]) + "\n[service.web.env]\nAFTER = \"1\"\n";
    platform.deploy(&platform.manifest("shop", &text));
}

fn a_restart_of_everything_brings_apps_back(platform: &mut Platform) {
    assert!(platform.stop().success());
    let left: Vec<String> = platform.processes().into_iter().map(processes::command_line).collect();
    assert!(left.is_empty(), "{left:?}");
    platform.start_again();
    for (edge, region) in platform.edges().iter().zip(["fra", "was"]) {
        is_answered_from(platform, edge, region);
    }
}

fn a_killed_platform_is_cleared_away(platform: &mut Platform) {
    platform.kill_dev();
    let left: Vec<(u32, Option<u64>)> =
        platform.processes().into_iter().map(|pid| (pid, processes::start_ticks(pid))).collect();
    assert!(left.len() > 5, "nodes outlive a killed `atoll dev`: {left:?}");
    platform.start_again();
    for (pid, started) in left {
        assert!(
            processes::start_ticks(pid) != started,
            "{pid} is still there: {}",
            processes::command_line(pid)
        );
    }
    is_answered_from(platform, &platform.edges()[0], "fra");
}
