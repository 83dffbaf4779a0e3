//! Simulated distances (`atoll dev --wan`): each edge is served by its own region, then by the next
//! nearest, and by its own again.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::{Edge, Load, Options, Platform, processes, wait_until};
use atoll_tests::shop_manifest;
use rustix::process::Signal;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(30);
/// The simulated round trip between fra and was, of which the test asks no more than that it is felt.
const FRA_WAS: Duration = Duration::from_millis(90);

#[test]
fn the_nearest_region_serves() {
    let platform = Platform::start(Options::regions(&["fra", "was", "sin"]).arguments(&["--wan"]));
    let everywhere = [("fra", 1), ("was", 1), ("sin", 1)];
    platform.deploy(&platform.manifest("shop", &shop_manifest("shop", &everywhere)));
    let edges = platform.edges();
    for (edge, region) in edges.iter().zip(["fra", "was", "sin"]) {
        is_answered_from(&platform, edge, region);
    }
    let fra = &edges[0];
    let load = Load::start(platform.load_targets("shop", "/json"), 30);
    load.wait_for_more(30);
    unhealthy_instances_move_requests_to_the_next_nearest(&platform, fra);
    a_silent_gateway_moves_requests_to_the_next_nearest(&platform, fra);
    load.wait_for_more(30);
    load.stop().expect_no_failure_without_head("failover over distances");
    an_app_that_is_elsewhere_is_reached_there(&platform, fra);
}

fn is_answered_from(platform: &Platform, edge: &Edge, region: &str) {
    wait_until(&format!("{} is answered from {region}", edge.site), SOON, || {
        let answer = platform.curl(edge, "shop", "/json").run();
        answer.status == 200 && answer.header("atoll-region") == Some(region)
    });
}

fn unhealthy_instances_move_requests_to_the_next_nearest(platform: &Platform, fra: &Edge) {
    let told = platform.curl(fra, "shop", "/control/unhealthy?for=12s").method("POST").run();
    assert_eq!(told.status, 200, "{told:?}");
    is_answered_from(platform, fra, "was");
    let asked = Instant::now();
    let answer = platform.curl(fra, "shop", "/json").run();
    let took = asked.elapsed();
    if answer.header("atoll-region") == Some("was") {
        assert!(took >= FRA_WAS, "the distance to was is felt: {took:?}");
    }
    is_answered_from(platform, fra, "fra");
}

fn a_silent_gateway_moves_requests_to_the_next_nearest(platform: &Platform, fra: &Edge) {
    let gateway = platform.node("fra1", "gateway").pid;
    processes::signal(gateway, Signal::STOP);
    is_answered_from(platform, fra, "was");
    processes::signal(gateway, Signal::CONT);
    is_answered_from(platform, fra, "fra");
}

fn an_app_that_is_elsewhere_is_reached_there(platform: &Platform, fra: &Edge) {
    platform.deploy(&platform.manifest("far", &shop_manifest("far", &[("sin", 1)])));
    let answer = platform.curl(fra, "far", "/json").run();
    assert_eq!((answer.status, answer.header("atoll-region")), (200, Some("sin")), "{answer:?}");
}
