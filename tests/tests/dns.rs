//! DNS for the platform's zone, asked with `dig` (Debian's bind9-dnsutils) as resolvers ask it.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::{Options, Platform, processes, wait_for, wait_until};
use atoll_tests::shop_manifest;
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

/// What dig printed.
#[derive(Debug)]
struct Dig(String);

/// Asks the server; `question` is dig's arguments.
fn dig(server: SocketAddr, question: &str) -> Dig {
    let output = Command::new("dig")
        .arg(format!("@{}", server.ip()))
        .args(["-p", &server.port().to_string(), "+norecurse", "+tries=1", "+time=5"])
        .args(question.split(' '))
        .output()
        .expect("dig, of Debian's package bind9-dnsutils");
    Dig(String::from_utf8(output.stdout).unwrap())
}

impl Dig {
    fn status(&self) -> &str {
        let rest = self.0.split_once("status: ").map_or("", |(_, rest)| rest);
        rest.split(',').next().unwrap_or("")
    }

    fn has_flag(&self, flag: &str) -> bool {
        let flags = self.0.split_once(";; flags: ").and_then(|(_, rest)| rest.split(';').next());
        flags.is_some_and(|flags| flags.split(' ').any(|have| have == flag))
    }

    /// The records of a section, as words.
    fn section(&self, name: &str) -> Vec<Vec<&str>> {
        let lines = self.0.lines().skip_while(|line| *line != format!(";; {name} SECTION:")).skip(1);
        lines.take_while(|line| !line.is_empty()).map(|line| line.split_whitespace().collect()).collect()
    }

    /// The data of the answers of a type.
    fn answers(&self, kind: &str) -> Vec<&str> {
        let records = self.section("ANSWER").into_iter().filter(|words| words.get(3) == Some(&kind));
        records.filter_map(|words| words.last().copied()).collect()
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.answers("A").iter().map(|text| text.parse().unwrap()).collect()
    }
}

fn control_dns(platform: &Platform) -> SocketAddr {
    platform.dev_json()["dns"].as_str().expect("dev.json tells where").parse().unwrap()
}

fn edge_dns(platform: &Platform, site: &str) -> SocketAddr {
    let listen = platform.setting(&platform.node(site, "edge").name, "dns", "listen");
    listen.trim_matches(['[', ']', '"']).parse().unwrap()
}

#[test]
fn the_zone_is_answered_by_control_and_every_edge() {
    let platform = Platform::start(Options::regions(&["fra", "was", "sin"]));
    platform.deploy(&platform.manifest("shop", &shop_manifest("shop", &[("fra", 1)])));
    let control = control_dns(&platform);
    let sites = ["fra1", "was1", "sin1"];
    let edges: Vec<IpAddr> = platform.edges().iter().map(|edge| edge.https.ip()).collect();
    wait_until("every edge is in the answer", SOON, || {
        dig(control, "shop.localhost A").addresses().len() == edges.len()
    });

    the_app_has_the_edges_addresses(&platform, control, &sites, &edges);
    what_is_not_there_is_said_to_be_so(control);
    the_zone_says_who_answers(control);
    a_flood_is_sent_to_tcp(control);
    a_lost_edge_leaves_the_answer(&platform, control, &edges);
    with_all_edges_lost_the_answer_stays(&platform, control, &edges);
}

fn the_app_has_the_edges_addresses(
    platform: &Platform,
    control: SocketAddr,
    sites: &[&str],
    edges: &[IpAddr],
) {
    let found = dig(control, "shop.localhost A");
    assert_eq!(found.status(), "NOERROR", "{found:?}");
    assert!(found.has_flag("aa") && !found.has_flag("ra"), "{found:?}");
    assert_eq!(
        found.addresses(),
        [edges[0], edges[1], edges[2]],
        "by distance from control in fra: {found:?}"
    );
    assert!(found.section("ANSWER").iter().all(|words| words[1] == "30"), "{found:?}");
    assert!(found.0.contains("udp: 1232"), "OPT is answered: {found:?}");
    let all: BTreeSet<IpAddr> = edges.iter().copied().collect();
    for (site, own) in sites.iter().zip(edges) {
        let server = edge_dns(platform, site);
        let found = wait_for("the edge knows the app and the others", SOON, || {
            Some(dig(server, "shop.localhost A")).filter(|found| found.addresses().len() == all.len())
        });
        assert_eq!(found.addresses().first(), Some(own), "an edge puts itself first: {found:?}");
        assert_eq!(found.addresses().into_iter().collect::<BTreeSet<_>>(), all, "{found:?}");
    }
    let mixed = dig(control, "sHoP.LocalHost A");
    assert_eq!(mixed.addresses().len(), 3, "{mixed:?}");
    assert_eq!(mixed.section("QUESTION")[0][0], ";sHoP.LocalHost.", "{mixed:?}");
    assert_eq!(dig(control, "shop.localhost A +tcp").addresses(), edges);
    assert_eq!(dig(control, "shop.localhost A +noedns").addresses(), edges);
}

fn what_is_not_there_is_said_to_be_so(control: SocketAddr) {
    for (question, status) in [
        ("shop.localhost AAAA", "NOERROR"),
        ("shop.localhost MX", "NOERROR"),
        ("ns.localhost A", "NOERROR"),
        ("ship.localhost A", "NXDOMAIN"),
        ("a.shop.localhost A +tcp", "NXDOMAIN"),
    ] {
        let found = dig(control, question);
        assert_eq!((found.status(), found.has_flag("aa")), (status, true), "{found:?}");
        assert!(found.section("ANSWER").is_empty(), "{found:?}");
        let authority = found.section("AUTHORITY");
        assert_eq!(
            (authority[0][0], authority[0][1], authority[0][3]),
            ("localhost.", "30", "SOA"),
            "{found:?}"
        );
    }
    for question in ["example.com A", "localhost AXFR +noall +comments", "version.bind TXT CH"] {
        let found = dig(control, question);
        assert!(found.status() == "REFUSED" || found.0.contains("Transfer failed"), "{question}: {found:?}");
    }
    assert_eq!(dig(control, "shop.localhost A +opcode=notify").status(), "NOTIMP");
    assert_eq!(dig(control, "shop.localhost ANY +notcp").answers("HINFO").len(), 1);
}

fn the_zone_says_who_answers(control: SocketAddr) {
    let soa = dig(control, "localhost SOA");
    assert_eq!(soa.section("ANSWER").len(), 1, "{soa:?}");
    let servers = dig(control, "localhost NS");
    let names: BTreeSet<&str> = servers.answers("NS").into_iter().collect();
    let nodes =
        ["fra1-control", "fra1-edge", "sin1-edge", "was1-edge"].map(|node| format!("{node}.ns.localhost."));
    assert_eq!(names, nodes.iter().map(String::as_str).collect(), "{servers:?}");
    let glue = servers.section("ADDITIONAL").into_iter().filter(|words| words.get(3) == Some(&"A")).count();
    assert_eq!(glue, 4, "{servers:?}");
    let one = dig(control, "was1-edge.ns.localhost A");
    assert_eq!(one.addresses().len(), 1, "{one:?}");
}

/// A resolver whose network asks too much is told to use TCP, and does.
fn a_flood_is_sent_to_tcp(control: SocketAddr) {
    // `shop.localhost A`, as it is on the wire.
    let mut packet = b"\x12\x34\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04shop".to_vec();
    packet.extend(b"\x09localhost\x00\x00\x01\x00\x01");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(control).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let (mut answer, mut whole, mut truncated) = ([0; 2048], 0, 0);
    for _ in 0..400 {
        for _ in 0..50 {
            socket.send(&packet).unwrap();
        }
        for _ in 0..50 {
            let Ok(len) = socket.recv(&mut answer) else { break };
            let says_truncated = answer[2] & 2 != 0;
            assert!(!says_truncated || len == packet.len(), "nothing but the question: {len}");
            if says_truncated { truncated += 1 } else { whole += 1 }
        }
        if truncated > 0 {
            break;
        }
    }
    println!("{whole} whole answers, then {truncated} truncated ones");
    assert!(truncated > 0 && whole > 0);
    let followed = dig(control, "shop.localhost A +tcp");
    assert_eq!(followed.addresses().len(), 3, "{followed:?}");
}

fn a_lost_edge_leaves_the_answer(platform: &Platform, control: SocketAddr, edges: &[IpAddr]) {
    // Stopped, so that `atoll dev` does not start it again; the others see it as they would a dead one.
    let lost = platform.node("was1", "edge").pid;
    processes::signal(lost, Signal::STOP);
    let without: BTreeSet<IpAddr> = [edges[0], edges[2]].into();
    for server in [control, edge_dns(platform, "fra1"), edge_dns(platform, "sin1")] {
        wait_until("a lost edge leaves the answer", SOON, || {
            let found = dig(server, "shop.localhost A");
            found.addresses().into_iter().collect::<BTreeSet<_>>() == without
        });
    }
    processes::signal(lost, Signal::CONT);
    wait_until("it comes back", SOON, || dig(control, "shop.localhost A").addresses() == edges);
    // Killed: it is gone for as long as it takes to start again, and never is the answer without an address.
    processes::kill(platform.node("sin1", "edge").pid);
    wait_until("a killed edge is started again", SOON, || {
        let found = dig(control, "shop.localhost A");
        assert!(!found.addresses().is_empty(), "{found:?}");
        let pid = platform.node("sin1", "edge").pid;
        pid != 0 && dig(edge_dns(platform, "sin1"), "shop.localhost A").addresses().len() == edges.len()
    });
}

fn with_all_edges_lost_the_answer_stays(platform: &Platform, control: SocketAddr, edges: &[IpAddr]) {
    let stopped: Vec<u32> = platform.edges().iter().map(|edge| edge.pid).collect();
    for edge in &stopped {
        processes::signal(*edge, Signal::STOP);
    }
    let admin = platform.node("fra1", "control").admin;
    wait_until("control has lost every edge", SOON, || {
        let found = dig(control, "shop.localhost A");
        assert_eq!((found.status(), found.addresses().is_empty()), ("NOERROR", false), "{found:?}");
        assert!(
            found.section("ANSWER").iter().all(|words| words[1].parse::<u32>().unwrap() <= 30),
            "{found:?}"
        );
        let metrics = atoll_testkit::Curl::new(format!("http://{admin}/metrics")).run();
        metrics.text().lines().any(|line| line == "atoll_dns_failed_open 1")
    });
    let found = dig(control, "shop.localhost A");
    let given: BTreeSet<IpAddr> = found.addresses().into_iter().collect();
    assert_eq!(given, edges.iter().copied().collect(), "none is better than another: {found:?}");
    for edge in &stopped {
        processes::signal(*edge, Signal::CONT);
    }
    wait_until("the edges are back, nearest first", SOON, || {
        let metrics = atoll_testkit::Curl::new(format!("http://{admin}/metrics")).run();
        metrics.text().lines().any(|line| line == "atoll_dns_failed_open 0")
            && dig(control, "shop.localhost A").addresses() == edges
    });
}
