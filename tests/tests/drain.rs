//! Nodes and regions are drained under load: what they served others do, and it holds over restarts.
#![allow(clippy::print_stderr, clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::{CliOutput, Curl, Load, LoadReport, Options, Platform, processes, wait_until};
use atoll_tests::shop_manifest;
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);
const PER_SECOND: u32 = 60;

/// A second host at a site, run by the test.
struct ExtraHost {
    child: Child,
    log: PathBuf,
}

impl ExtraHost {
    fn join(platform: &Platform, name: &str) -> Self {
        let create = ["tokens", "create", "--role", "host", "--site", "fra1", "--node", name];
        let token = platform.atoll().run(&create).expect_code(0).stdout;
        let folder = platform.scratch(name);
        fs::write(folder.join("token"), token.trim()).unwrap();
        let control = platform.setting("fra1-control", "control", "node_plane_listen");
        let seed = platform.setting("fra1-control", "gossip", "listen");
        let text = format!(
            "name = {name:?}\nsite = \"fra1\"\nregion = \"fra\"\nroles = [\"host\"]\ndata_dir = {:?}\n\
             [join]\ncontrol = [{control:?}]\ntoken_file = {:?}\n[gossip]\nseeds = [{seed:?}]\n\
             [host]\nstop_instances_on_exit = true\n",
            folder.join("data"),
            folder.join("token")
        );
        fs::write(folder.join("node.toml"), text).unwrap();
        let log = folder.join("log");
        let output = fs::File::create(&log).unwrap();
        let mut command = platform.anonymous().command();
        command.arg("node").arg("--config").arg(folder.join("node.toml"));
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let host = Self { child: command.spawn().unwrap(), log };
        wait_until(&format!("{name} has joined"), SOON, || state(platform, name) == "alive");
        host
    }
}

impl Drop for ExtraHost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), fs::read_to_string(&self.log).unwrap_or_default());
        }
        // Gently, so that its instances end with it.
        processes::signal(self.child.id(), Signal::TERM);
        let _reaped = self.child.wait();
    }
}

fn atoll(platform: &Platform, arguments: &[&str]) -> CliOutput {
    platform.atoll().run(arguments)
}

/// A node's state in the list; empty where there is no answer or no such node.
fn state(platform: &Platform, name: &str) -> String {
    let listed = atoll(platform, &["nodes", "-o", "json"]);
    if listed.code != 0 {
        return String::new();
    }
    let nodes = listed.json();
    let node = nodes.as_array().unwrap().iter().find(|node| node["name"] == name);
    node.map_or_else(String::new, |node| node["state"].as_str().unwrap().to_owned())
}

/// How many instances run on a host, those that are on their way out left aside.
fn instances_on(platform: &Platform, host: &str) -> usize {
    let all = platform.instances("shop");
    let here = |instance: &&Value| instance["host"] == host && instance["draining"] == false;
    all.iter().filter(here).count()
}

fn under_load(platform: &Platform, work: impl FnOnce()) -> LoadReport {
    let load = Load::start(platform.load_targets("shop", "/json"), PER_SECOND);
    load.wait_for_more(u64::from(PER_SECOND));
    work();
    load.wait_for_more(u64::from(PER_SECOND));
    let report = load.stop();
    println!("{} sent, p99 {:?}, by region {:?}", report.sent, report.latency(99), report.by_region);
    report
}

/// Waits until requests at an edge are answered from a region.
fn answered_from(platform: &Platform, edge: usize, region: &str) {
    let edge = &platform.edges()[edge];
    wait_until(&format!("{} is answered from {region}", edge.site), SOON, || {
        platform.curl(edge, "shop", "/json").run().header("atoll-region") == Some(region)
    });
}

/// The addresses that control's DNS gives for the app.
fn addresses(platform: &Platform) -> Vec<String> {
    let dns = platform.dev_json()["dns"].as_str().unwrap().to_owned();
    let (ip, port) = dns.rsplit_once(':').unwrap();
    let asked = Command::new("dig")
        .args([&format!("@{ip}"), "-p", port, "+short", "+tries=1", "+time=5", "shop.localhost", "A"])
        .output()
        .expect("dig, of Debian's package bind9-dnsutils");
    String::from_utf8(asked.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_drain_costs_no_request_and_holds() {
    let platform = Platform::start(Options::regions(&["fra", "was"]));
    platform.deploy(&platform.manifest("shop", &shop_manifest("shop", &[("fra", 2), ("was", 1)])));
    let extra = ExtraHost::join(&platform, "fra1-extra");
    instances_move_to_the_other_host(&platform);
    it_holds_over_restarts_of_the_node_and_of_control(&platform);
    a_deploy_places_nothing_there(&platform);
    it_serves_again(&platform);
    drop(extra);
    wait_until("the other host is gone", SOON, || state(&platform, "fra1-extra") != "alive");
    let _removed = atoll(&platform, &["nodes", "remove", "fra1-extra", "--yes"]).expect_code(0);
    edges_leave_a_drained_gateway(&platform);
    a_region_is_left_and_can_be_stopped(&platform);
    what_cannot_be_drained_is_said(&platform);
}

fn instances_move_to_the_other_host(platform: &Platform) {
    // Its instances are the first host's: the other one came later.
    assert_eq!(instances_on(platform, "fra1-host"), 2);
    let report = under_load(platform, || {
        let drained = atoll(platform, &["drain", "fra1-host"]).expect_code(0);
        assert!(
            drained.stderr.contains("move to another host") || drained.stderr.contains("move to other hosts"),
            "{}",
            drained.stderr
        );
        assert!(drained.stderr.contains("fra1-host  can be stopped"), "{}", drained.stderr);
        assert_eq!((instances_on(platform, "fra1-host"), instances_on(platform, "fra1-extra")), (0, 2));
    });
    report.expect_no_failure("the drain of a host");
    assert_eq!(state(platform, "fra1-host"), "drained");
    let admin = platform.node("fra1", "host").admin;
    let ready = Curl::new(format!("http://{admin}/readyz")).run();
    assert_eq!(ready.status, 503, "{ready:?}");
    let sites = atoll(platform, &["sites", "-o", "json"]).expect_code(0).json();
    assert_eq!((&sites[0]["site"], &sites[0]["health"]), (&"fra1".into(), &"degraded".into()));
}

fn it_holds_over_restarts_of_the_node_and_of_control(platform: &Platform) {
    let before = platform.node("fra1", "host");
    let held = platform.hold_down("fra1-control", Signal::KILL);
    processes::signal(before.pid, Signal::TERM);
    wait_until("the host is started again", SOON, || {
        let now = platform.node("fra1", "host");
        now.pid != 0 && now.pid != before.pid
    });
    wait_until("it knows that it is drained, without control", SOON, || {
        let admin = platform.node("fra1", "host").admin;
        Curl::new(format!("http://{admin}/readyz")).run().text().contains("operator has drained")
    });
    drop(held);
    wait_until("control knows it, too", SOON, || state(platform, "fra1-host") == "drained");
}

fn a_deploy_places_nothing_there(platform: &Platform) {
    let text = shop_manifest("shop", &[("fra", 3), ("was", 1)]);
    platform.deploy(&platform.manifest("shop", &text));
    assert_eq!((instances_on(platform, "fra1-host"), instances_on(platform, "fra1-extra")), (0, 3));
}

fn it_serves_again(platform: &Platform) {
    let report = under_load(platform, || {
        let _off = atoll(platform, &["drain", "fra1-host", "--off"]).expect_code(0);
        wait_until("it takes instances again", SOON, || state(platform, "fra1-host") == "alive");
        // Now the other way round: the extra host is to go.
        let _drained = atoll(platform, &["drain", "fra1-extra"]).expect_code(0);
        assert_eq!((instances_on(platform, "fra1-host"), instances_on(platform, "fra1-extra")), (3, 0));
    });
    report.expect_no_failure("a drain that ends, and another one");
}

fn edges_leave_a_drained_gateway(platform: &Platform) {
    let report = under_load(platform, || {
        let _drained = atoll(platform, &["drain", "fra1-gateway"]).expect_code(0);
        answered_from(platform, 0, "was");
        // It is safe now: stopping it is not noticed.
        platform_stop_node(platform, "fra1-gateway");
        let _off = atoll(platform, &["drain", "fra1-gateway", "--off"]).expect_code(0);
        answered_from(platform, 0, "fra");
    });
    report.expect_no_failure("the drain and the restart of a gateway");
}

/// SIGTERM; `atoll dev` starts it again.
fn platform_stop_node(platform: &Platform, name: &str) {
    let before = platform.node_named(name);
    processes::signal(before.pid, Signal::TERM);
    wait_until(&format!("{name} is started again"), SOON, || {
        let now = platform.node_named(name);
        now.pid != 0 && now.pid != before.pid
    });
    wait_until(&format!("{name} is heard again"), SOON, || state(platform, name) == "drained");
}

fn a_region_is_left_and_can_be_stopped(platform: &Platform) {
    wait_until("DNS names both edges", SOON, || addresses(platform).len() == 2);
    let report = under_load(platform, || {
        let drained = atoll(platform, &["drain", "was", "-o", "json"]).expect_code(0);
        assert!(drained.stderr.contains("1 instance stays"), "{}", drained.stderr);
        assert!(!drained.stderr.contains("WARNING"), "it runs in fra, too: {}", drained.stderr);
        let nodes = drained.json()["nodes"].as_array().unwrap().clone();
        assert_eq!(nodes.len(), 3, "{nodes:?}");
        assert!(nodes.iter().all(|node| node["safe"] == true), "{nodes:?}");
        answered_from(platform, 1, "fra");
        let fra = platform.edges()[0].https.ip().to_string();
        wait_until("DNS names the drained edge no more", SOON, || addresses(platform) == [fra.clone()]);
        platform_stop_node(platform, "was1-gateway");
        platform_stop_node(platform, "was1-host");
        let sites = atoll(platform, &["sites", "-o", "json"]).expect_code(0).json();
        let was = sites.as_array().unwrap().iter().find(|site| site["site"] == "was1").unwrap().clone();
        assert_eq!(was["health"], "drained", "{was}");
    });
    report.expect_no_failure("the drain of a region, and its nodes stopped");
    let list = atoll(platform, &["drain"]).expect_code(0);
    assert!(list.stdout.contains("region was"), "{}", list.stdout);
    let _off = atoll(platform, &["drain", "was", "--off"]).expect_code(0);
    answered_from(platform, 1, "was");
    wait_until("DNS names both edges again", SOON, || addresses(platform).len() == 2);
}

fn what_cannot_be_drained_is_said(platform: &Platform) {
    for (arguments, code, says) in [
        (&["drain", "mars"][..], 1, "no node or region `mars`"),
        (&["drain", "fra1-control"], 1, "the control node"),
        (&["drain", "--off"], 2, "NODE|REGION"),
        (&["nodes", "remove", "was1-host"], 2, "--yes"),
        (&["nodes", "remove", "mars", "--yes"], 1, "no node `mars`"),
    ] {
        let refused = atoll(platform, arguments).expect_code(code);
        assert!(refused.stderr.contains(says), "{arguments:?}: {}", refused.stderr);
    }
    // Where an app runs nowhere else, that is said before anything is stopped.
    let text = shop_manifest("alone", &[("fra", 1)]);
    platform.deploy(&platform.manifest("alone", &text));
    let drained = atoll(platform, &["drain", "fra1-host"]).expect_code(0);
    assert!(drained.stderr.contains("default/alone/web runs nowhere else"), "{}", drained.stderr);
    let _off = atoll(platform, &["drain", "fra1-host", "--off"]).expect_code(0);
}
