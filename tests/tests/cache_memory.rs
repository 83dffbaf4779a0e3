//! The cache's memory in a real process: what it counts against what the kernel counts, and what it gives back.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

#[path = "caching/app.rs"]
mod app;

use app::{FRESH, SOON, by_name, is_hit, manifest};
use atoll_testkit::{Edge, Options, Platform, processes, wait_until};
use rustix::process::Signal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const MIB: u64 = 1 << 20;

#[test]
fn memory_is_bounded_and_given_back() {
    let platform = Platform::start(Options::regions(&["fra"]));
    platform.deploy(&manifest(&platform, ""));
    what_is_counted_is_what_it_takes(&platform);
    near_its_limit_it_gives_back_and_serves(&platform);
}

/// The edge, started again with these settings and warm.
fn edge_with(platform: &Platform, settings: &[(&str, u64)]) -> Edge {
    for (key, value) in settings {
        platform.set("fra1-edge", "edge", key, &value.to_string());
    }
    platform.restart("fra1-edge", Signal::TERM);
    let edge = || platform.edges().remove(0);
    wait_until("it answers", SOON, || by_name(platform, &edge(), "/ready", &[]).status == 200);
    // Connections, stacks and code that every fill needs.
    ask_for(platform, &edge(), "/warm", 20, MIB);
    let purge = ["cache", "purge", "--app", "counts", "--all"];
    let _purged = platform.atoll().run(&purge).expect_code(0);
    edge()
}

/// As many responses of that size, each of its own address.
fn ask_for(platform: &Platform, edge: &Edge, path: &str, count: u64, size: u64) {
    let path = format!("{path}/[1-{count}]?{FRESH}0&same=1&type=image%2Fpng&size={size}");
    let nowhere = ["--no-progress-meter", "-o", "/dev/null", "-w", "%{http_code}\\n"];
    let answer = by_name(platform, edge, &path, &nowhere);
    assert_eq!(answer.exit, 0, "{}", answer.stderr);
}

fn figure(platform: &Platform, name: &str) -> u64 {
    platform.metric(&platform.node_named("fra1-edge"), &format!("atoll_edge_cache_{name}")) as u64
}

fn what_is_counted_is_what_it_takes(platform: &Platform) {
    let bound = 32 * MIB;
    let edge = edge_with(platform, &[("cache_bytes_max", bound)]);
    let before = processes::memory(edge.pid).unwrap();
    // Four times what there is room for, large and small.
    ask_for(platform, &edge, "/large", 120, MIB);
    ask_for(platform, &edge, "/small", 4_000, 1_000);
    let grown = processes::memory(edge.pid).unwrap().saturating_sub(before);
    let (bytes, most) = (figure(platform, "bytes"), figure(platform, "bytes_max"));
    println!("of {most} bytes {bytes} are counted, and the process has grown by {grown}");
    assert!(bytes <= most && most <= bound && bytes > bound / 2, "{bytes} of {most}");
    // Beside it are buffers, and what the allocator keeps.
    assert!(grown <= bound + bound / 2 + 16 * MIB, "{grown} bytes");
}

fn near_its_limit_it_gives_back_and_serves(platform: &Platform) {
    let most = 256 * MIB;
    let edge = edge_with(platform, &[("cache_bytes_max", most), ("memory_limit_bytes", 0)]);
    let limit = processes::memory(edge.pid).unwrap() + 96 * MIB;
    let edge = edge_with(platform, &[("memory_limit_bytes", limit)]);
    let (stop, peak) = (AtomicBool::new(false), std::sync::atomic::AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                peak.fetch_max(processes::memory(edge.pid).unwrap_or(0), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(20));
            }
        });
        ask_for(platform, &edge, "/fills", 200, MIB);
        wait_until("it has less than it was given", SOON, || figure(platform, "bytes_max") < most);
        stop.store(true, Ordering::Relaxed);
    });
    let peak = peak.into_inner();
    println!("limit {limit}, most in use {peak}, the cache has {} of {most}", figure(platform, "bytes_max"));
    assert!(peak < limit, "{peak} of {limit}");
    let node = platform.node_named("fra1-edge");
    assert_eq!(node.pid, edge.pid, "it lives");
    // And caches.
    let path = format!("/after?{FRESH}");
    let answers = [0, 1].map(|_| by_name(platform, &edge, &path, &[]));
    assert!(is_hit(&answers[1]), "{answers:?}");
}
