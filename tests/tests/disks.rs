//! Disks that are full, read-only or slow, under load, on every kind of node: requests do not notice, changes
//! fail loudly or wait, and all goes on without a restart once the disk is good again. Then nodes are killed
//! in the middle of their writes, and every file is whole.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::{Disk, Disks, Load, Options, Platform, processes, wait_until};
use atoll_tests::shop_manifest;
use rustix::process::Signal;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(30);
/// Of certificates, so that each node renews while its disk is full.
const LIFE: Duration = Duration::from_secs(12);
const PER_SECOND: u32 = 40;
const NODES: [&str; 4] = ["fra1-edge", "fra1-gateway", "fra1-host", "fra1-control"];
const WHOLE: [(&str, usize); 1] = [("fra", 2)];

#[test]
fn a_bad_disk_harms_no_request_and_no_file() {
    let life = format!("{}s", LIFE.as_secs());
    let arguments = ["--node-certificate-life", &life, "--workload-certificate-life", &life];
    let mut platform = Platform::prepare(Options::regions(&["fra"]).arguments(&arguments));
    Disks::under(&mut platform);
    platform.start_again();
    deploy(&platform, "0");
    platform.set("fra1-host", "host", "stop_instances_on_exit", "false");
    platform.restart("fra1-host", Signal::KILL);
    platform.wait_until_whole("shop", &WHOLE);
    let running: Vec<u32> = platform.nodes().iter().map(|node| node.pid).collect();

    let load = Load::start(platform.load_targets("shop", "/json"), PER_SECOND);
    let began = Instant::now();
    for step in [full_for_longer_than_certificates_live, full_at_control, read_only, slow] {
        step(&platform);
        println!("{:?}", began.elapsed());
    }
    let report = load.stop();
    println!("{} sent, p50 {:?}, p99 {:?}", report.sent, report.latency(50), report.latency(99));
    report.expect_no_failure("full, read-only and slow disks");
    let now: Vec<u32> = platform.nodes().iter().map(|node| node.pid).collect();
    assert_eq!(now, running, "no node was restarted");

    killed_while_writing(&platform);
    println!("{:?}", began.elapsed());
    files_are_whole(&platform);
    assert!(platform.stop().success());
    platform.start_again();
    platform.wait_until_whole("shop", &WHOLE);
}

fn manifest(platform: &Platform, app: &str, value: &str) -> std::path::PathBuf {
    let text = shop_manifest(app, &[("fra", if app == "shop" { 2 } else { 1 })]);
    platform.manifest(app, &format!("{text}\n[service.web.env]\nVALUE = \"{value}\"\n"))
}

fn deploy(platform: &Platform, value: &str) {
    platform.deploy(&manifest(platform, "shop", value));
}

fn disks(platform: &Platform, nodes: &[&str], disk: Disk) {
    nodes.iter().for_each(|node| platform.disk(node, disk));
}

/// Certificates are renewed and used though they can't be kept; new work is refused with the reason.
fn full_for_longer_than_certificates_live(platform: &Platform) {
    let full = &NODES[..3];
    disks(platform, full, Disk::Full);
    let kept: Vec<String> = full.iter().map(|node| certificate_on_disk(platform, node)).collect();
    let began = Instant::now();
    let refused = platform.atoll().run_in(&manifest(platform, "more", "1"), &["deploy"]);
    assert_ne!(refused.code, 0, "a host without room takes no instance: {refused:?}");
    assert!(refused.stderr.contains("No space left"), "and says so: {refused:?}");
    println!("refused after {:?}: {}", began.elapsed(), refused.stderr.trim());
    wait_until("certificates have come to their end", LIFE * 2, || began.elapsed() > LIFE + LIFE / 4);
    for name in full {
        let node = platform.node_named(name);
        let complaints = platform.metric(&node, "atoll_node_certificate_disk_errors_total");
        assert!(complaints > 0.0, "{name} counts what it could not keep");
        let complaints = platform.metric(&node, "atoll_gossip_disk_errors_total");
        assert!(complaints > 0.0, "{name} counts records that it could not keep");
    }
    let now: Vec<String> = full.iter().map(|node| certificate_on_disk(platform, node)).collect();
    assert_eq!(now, kept, "a disk that takes nothing keeps what it had, whole");
    disks(platform, full, Disk::Good);
    wait_until("certificates are kept again", SOON, || {
        full.iter().zip(&kept).all(|(node, before)| certificate_on_disk(platform, node) != *before)
    });
    platform.deploy(&manifest(platform, "more", "2"));
}

fn certificate_on_disk(platform: &Platform, node: &str) -> String {
    let path = platform.data().join("nodes").join(node).join("identity/identity.pem");
    fs::read_to_string(path).unwrap_or_default()
}

fn full_at_control(platform: &Platform) {
    disks(platform, &["fra1-control"], Disk::Full);
    let refused = platform.atoll().run_in(&manifest(platform, "shop", "2"), &["deploy"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("disk is full"), "{refused:?}");
    println!("full: {}", refused.stderr.trim());
    let listed = platform.atoll().run(&["apps"]).expect_code(0);
    assert!(listed.stdout.contains("shop"), "what is known is shown: {listed:?}");
    disks(platform, &["fra1-control"], Disk::Good);
    deploy(platform, "3");
}

fn read_only(platform: &Platform) {
    disks(platform, &NODES, Disk::ReadOnly);
    let refused = platform.atoll().run_in(&manifest(platform, "shop", "4"), &["deploy"]);
    assert!([1, 6].contains(&refused.code), "{refused:?}");
    println!("read-only: {}", refused.stderr.trim());
    assert!(refused.stderr.contains("cannot be written"), "{refused:?}");
    disks(platform, &NODES, Disk::Good);
    deploy(platform, "5");
}

fn slow(platform: &Platform) {
    disks(platform, &NODES, Disk::Slow);
    let began = Instant::now();
    deploy(platform, "6");
    println!("a deploy with slow disks took {:?}", began.elapsed());
    disks(platform, &NODES, Disk::Good);
}

/// Slow disks, so that a kill finds a write under way.
fn killed_while_writing(platform: &Platform) {
    for round in 0..2 {
        disks(platform, &NODES, Disk::Slow);
        let folder = manifest(platform, "shop", &format!("killed {round}"));
        let mut deploy = platform.atoll().start(&folder, &["deploy"]);
        let started = Instant::now();
        // Another moment of the deploy in each round.
        let moment = Duration::from_millis(700) * (round + 1);
        wait_until("the moment has come", SOON, || started.elapsed() >= moment);
        let killed: Vec<(&str, u32)> =
            NODES.iter().map(|node| (*node, platform.node_named(node).pid)).collect();
        killed.iter().for_each(|(_, pid)| processes::kill(*pid));
        disks(platform, &NODES, Disk::Good);
        for (node, pid) in killed {
            wait_until(&format!("{node} is started again"), SOON, || {
                let now = platform.node_named(node).pid;
                now != 0 && now != pid
            });
        }
        let _ended = deploy.wait();
        wait_until("a deploy is taken again", SOON * 2, || {
            platform.atoll().run_in(&folder, &["deploy"]).code == 0
        });
        platform.wait_until_whole("shop", &WHOLE);
    }
}

/// Everything that nodes keep as text can be read, and nothing is empty.
fn files_are_whole(platform: &Platform) {
    let mut seen = 0;
    for_each_file(&platform.data().join("nodes"), &mut |path| {
        let bytes = fs::read(path).unwrap_or_default();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.ends_with(".json") {
            seen += 1;
            let parsed = serde_json::from_slice::<serde_json::Value>(&bytes);
            assert!(parsed.is_ok(), "{}: {:?}", path.display(), String::from_utf8_lossy(&bytes));
        }
        if name.ends_with(".pem") {
            seen += 1;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let (begun, ended) = (text.matches("-----BEGIN").count(), text.matches("-----END").count());
            assert!(begun > 0 && begun == ended && text.ends_with('\n'), "{}: {text}", path.display());
        }
        assert!(!name.contains("damaged"), "{}", path.display());
        if name.ends_with(".key") || name.ends_with(".sealed") {
            seen += 1;
            assert!(bytes.len() >= 32, "{}", path.display());
        }
    });
    assert!(seen > 10, "{seen}");
}

fn for_each_file(folder: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => for_each_file(&entry.path(), visit),
            Ok(kind) if kind.is_file() => visit(&entry.path()),
            Ok(_) | Err(_) => {}
        }
    }
}
