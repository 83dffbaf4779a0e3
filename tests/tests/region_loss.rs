//! A region is gone, suddenly and silently: all its nodes, control among them, stand still and no packet
//! from or to them arrives, not even a reset. Clients elsewhere are answered by another region, and by
//! the lost one again once it is back.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::network::{self, BlackHole};
use atoll_testkit::{Load, LoadTarget, Options, Platform, processes, wait_until};
use atoll_tests::shop_manifest;
use rustix::process::Signal;
use std::time::{Duration, Instant};

const PER_SECOND: u32 = 60;
/// What a client may wait while a region is found to be lost.
const FAILOVER: Duration = Duration::from_secs(3);
const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_region_that_vanishes_is_left_and_taken_back() {
    if !network::inside_own("a_region_that_vanishes_is_left_and_taken_back") {
        return;
    }
    // Distances, so that the edge at was has a region that it prefers: fra is nearer than sin.
    let platform = Platform::start(Options::regions(&["fra", "was", "sin"]).arguments(&["--wan"]));
    platform.deploy(&platform.manifest("shop", &shop_manifest("shop", &[("fra", 2), ("sin", 2)])));
    answered_from(&platform, "was1", "fra");
    answered_from(&platform, "sin1", "sin");

    let lost = ports(&platform, "fra1");
    let elsewhere: Vec<LoadTarget> = targets(&platform, "fra1");
    for way in ["stands still, its packets vanish", "its packets vanish, it runs on", "stands still"] {
        let load = Load::start(elsewhere.clone(), PER_SECOND);
        load.wait_for_more(u64::from(PER_SECOND) * 2);
        let still = if way.contains("still") { of_region(&platform, "fra") } else { Vec::new() };
        let hole = way.contains("vanish").then(|| BlackHole::around(&lost));
        still.iter().for_each(|pid| processes::signal(*pid, Signal::STOP));
        let (gone, gone_at) = (load.elapsed(), Instant::now());

        answered_from(&platform, "was1", "sin");
        println!("{way}: asked anew, was1 is answered from sin after {:?}", gone_at.elapsed());
        load.wait_for_more(u64::from(PER_SECOND) * 4);
        still.iter().for_each(|pid| processes::signal(*pid, Signal::CONT));
        drop(hole);
        answered_from(&platform, "was1", "fra");
        let report = load.stop();

        let (p99, asked) = report.latency_between(gone, gone + Duration::from_secs(5), 99);
        let (longest, _) = report.latency_between(gone, gone + Duration::from_secs(5), 100);
        println!(
            "{way}: of {asked} requests within 5 s after, p99 {p99:?}, longest {longest:?}; {:?}",
            report.by_region
        );
        report.expect_no_failure(&format!("a region is lost ({way}) and comes back"));
        assert!(p99 < FAILOVER, "{way}: {p99:?}");
    }
    // Also what control does goes on.
    wait_until("control answers", SOON, || platform.atoll().run(&["apps"]).code == 0);
    platform.deploy(&platform.manifest("shop", &shop_manifest("shop", &[("fra", 1), ("sin", 1)])));
}

fn answered_from(platform: &Platform, site: &str, region: &str) {
    let edge = platform.edges().into_iter().find(|edge| edge.site == site).unwrap();
    wait_until(&format!("{site} is answered from {region}"), SOON, || {
        let answer = platform.curl(&edge, "shop", "/json").run();
        answer.status == 200 && answer.header("atoll-region") == Some(region)
    });
}

/// Clients of every edge but that one.
fn targets(platform: &Platform, lost: &str) -> Vec<LoadTarget> {
    let edge = platform.edges().into_iter().find(|edge| edge.site == lost).unwrap();
    let all = platform.load_targets("shop", "/json");
    all.into_iter().filter(|target| target.address != edge.https).collect()
}

/// Every port at which others reach the nodes of a site.
fn ports(platform: &Platform, site: &str) -> Vec<u16> {
    let port = |address: String| address.parse::<std::net::SocketAddr>().unwrap().port();
    let nodes = platform.nodes().into_iter().filter(|node| node.site == site);
    let mut ports: Vec<u16> =
        nodes.map(|node| port(platform.setting(&node.name, "gossip", "listen"))).collect();
    ports.push(port(platform.setting(&format!("{site}-gateway"), "gateway", "listen")));
    ports.push(port(platform.setting(&format!("{site}-control"), "control", "node_plane_listen")));
    let edge = platform.edges().into_iter().find(|edge| edge.site == site).unwrap();
    ports.extend([edge.https.port(), edge.http.port()]);
    ports
}

/// The processes of a region: its nodes, the instances there, and their sidecars.
fn of_region(platform: &Platform, region: &str) -> Vec<u32> {
    let site = format!("{region}1-");
    let is_there = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        processes::command_line(*pid).contains(&site)
            || String::from_utf8_lossy(&environment).contains(&format!("ATOLL_REGION={region}\0"))
    };
    let found: Vec<u32> = platform.processes().into_iter().filter(is_there).collect();
    // Control, edge, gateway, host, two instances and their sidecars.
    assert!(found.len() >= 8, "{found:?}");
    found
}
