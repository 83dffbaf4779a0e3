//! What the platform costs with many objects: prints the figures of docs/performance.md. It is no test, since what
//! takes how long depends on the machine; that a change costs what it changes is tested beside the code.
//!
//! `cargo test --release -p atoll-tests --test scale -- --ignored --nocapture`; `ATOLL_SCALE_SERVICES` and
//! `ATOLL_SCALE_HOSTS` say how many (10000, 100000).
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for people")]

use atoll_testkit::{Options, Platform, processes, wait_for};
use atoll_tests::shop_manifest;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const SERVICES_OF_AN_APP: usize = 10;
/// Deploys under way at a time.
const CLIENTS: usize = 24;
const LONG: Duration = Duration::from_secs(600);

#[test]
#[ignore = "it measures; minutes long"]
fn figures() {
    let platform = Platform::start(Options::regions(&["fra"]));
    println!("empty platform: {}", memory(&platform));
    let services = number("ATOLL_SCALE_SERVICES", 10_000);
    seed(&platform, "private", services, false);
    println!("{services} private services: {}", memory(&platform));
    lists(&platform);
    deploys(&platform, "small");
    let hosts = number("ATOLL_SCALE_HOSTS", 100_000);
    seed(&platform, "public", hosts, true);
    println!("{hosts} virtual hosts more: {}", memory(&platform));
    lists(&platform);
    deploys(&platform, "large");
    one_more_host(&platform);
    restart(&platform, "edge");
    one_more_host(&platform);
    restart(&platform, "gateway");
    restart(&platform, "control");
    deploys(&platform, "again");
    println!("at the end: {}", memory(&platform));
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A connection to the API.
struct Client {
    stream: BufReader<TcpStream>,
    token: String,
}

impl Client {
    fn new(platform: &Platform) -> Self {
        let dev = platform.dev_json();
        let address = dev["api"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        Self { stream: BufReader::new(stream), token: dev["token"].as_str().unwrap().to_owned() }
    }

    fn call(&mut self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: control\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.token,
            body.len()
        );
        self.stream.get_mut().write_all(&[head.as_bytes(), body.as_bytes()].concat()).unwrap();
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut length = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line).unwrap();
            match line.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().unwrap();
                }
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    /// Deploys an app and waits until that is done; how long it took to be accepted, and in all.
    fn deploy(&mut self, app: &str, services: &Value) -> (Duration, Duration) {
        let began = Instant::now();
        let body = json!({ "app": app, "services": services }).to_string();
        let (status, answer) = self.call("PUT", &format!("/v1/apps/{app}"), &body);
        assert_eq!(status, 202, "{answer}");
        let accepted = began.elapsed();
        let path = format!("/v1/deploys/{}", answer["deploy"].as_str().unwrap());
        loop {
            let (_, deploy) = self.call("GET", &path, "");
            match deploy["state"].as_str() {
                Some("done") => return (accepted, began.elapsed()),
                Some("running" | "serving") => std::thread::sleep(Duration::from_millis(5)),
                _ => panic!("{deploy}"),
            }
        }
    }
}

/// A service that has no instances.
fn nowhere(public: bool) -> Value {
    json!({
        "run": ["./server", "--listen", "127.0.0.1:$PORT"], "working_dir": "/tmp", "env": {}, "labels": {},
        "protocol": "http", "public": public, "drain_ms": 5000, "checks": [],
        "regions": { "fra": { "min": 0, "max": 4 } },
    })
}

fn seed(platform: &Platform, kind: &str, services: usize, public: bool) {
    let (began, apps, next) = (Instant::now(), services.div_ceil(SERVICES_OF_AN_APP), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = Client::new(platform);
                let names = (0..SERVICES_OF_AN_APP).map(|n| (format!("s{n}"), nowhere(public)));
                let services: Value = names.collect::<serde_json::Map<_, _>>().into();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= apps {
                        return;
                    }
                    client.deploy(&format!("{kind}{n}"), &services);
                }
            });
        }
    });
    println!("{apps} apps of {SERVICES_OF_AN_APP} {kind} services deployed in {:.1?}", began.elapsed());
}

fn deploys(platform: &Platform, name: &str) {
    let mut client = Client::new(platform);
    for (kind, public) in [("private", false), ("public", true)] {
        let mut took: Vec<(Duration, Duration)> = (0..5)
            .map(|n| client.deploy(&format!("{name}-{kind}{n}"), &json!({ "web": nowhere(public) })))
            .collect();
        took.sort();
        let (accepted, done) = took[2];
        println!(
            "deploy of one more ({kind}, no instances): accepted after {accepted:.1?}, done after {done:.1?}"
        );
    }
}

fn lists(platform: &Platform) {
    let mut client = Client::new(platform);
    for path in ["/v1/apps", "/v1/services", "/v1/domains", "/v1/status/private1"] {
        let began = Instant::now();
        let (status, answer) = client.call("GET", path, "");
        assert_eq!(status, 200);
        let items = answer.as_array().map_or(1, Vec::len);
        println!("GET {path}: {items} in {:.1?}", began.elapsed());
    }
    for command in ["apps", "services"] {
        let began = Instant::now();
        let lines = platform.atoll().run(&[command]).expect_code(0).stdout.lines().count();
        println!("atoll {command}: {lines} lines in {:.1?}", began.elapsed());
    }
}

/// From the request to control until the edge answers for a new host: one with no instances (a 503 of the
/// edge's own, over TLS with the host's certificate), and one with an instance.
fn one_more_host(platform: &Platform) {
    let edge = &platform.edges()[0];
    let mut client = Client::new(platform);
    let mut took = Vec::new();
    for n in 0..5 {
        let app = format!("more{}x{n}", processes_started());
        let began = Instant::now();
        let body = json!({ "app": app, "services": { "web": nowhere(true) } }).to_string();
        let (status, answer) = client.call("PUT", &format!("/v1/apps/{app}"), &body);
        assert_eq!(status, 202, "{answer}");
        wait_for("the edge answers for the new host", LONG, || {
            let answer = platform.curl(edge, &app, "/").run();
            (answer.status == 503).then_some(())
        });
        took.push(began.elapsed());
    }
    took.sort();
    println!("one more virtual host is served after {:.1?} (slowest of 5: {:.1?})", took[2], took[4]);
    let app = format!("real{}", processes_started());
    let folder = platform.manifest(&app, &shop_manifest(&app, &[("fra", 1)]));
    let began = Instant::now();
    let deploy = std::thread::scope(|scope| {
        let deploy = scope.spawn(|| {
            let began = Instant::now();
            platform.deploy(&folder);
            began.elapsed()
        });
        wait_for("the new app answers", LONG, || {
            (platform.curl(edge, &app, "/json").run().status == 200).then_some(())
        });
        println!("a new app with an instance answers through the edge after {:.1?}", began.elapsed());
        deploy.join().unwrap()
    });
    println!("its `atoll deploy` ended after {deploy:.1?}");
}

/// A number that is not used twice.
fn processes_started() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Kills a node; from its next process' begin until it is ready.
fn restart(platform: &Platform, role: &str) {
    let before = platform.node("fra1", role);
    processes::signal(before.pid, Signal::KILL);
    let after = wait_for("the node is started again", LONG, || {
        let node = platform.nodes().into_iter().find(|node| node.name == before.name)?;
        (node.pid != before.pid && node.pid != 0).then_some(node)
    });
    let began = Instant::now();
    wait_for("it is ready", LONG, || {
        let node = platform.nodes().into_iter().find(|node| node.name == before.name)?;
        let answer = atoll_testkit::Curl::new(format!("http://{}/readyz", node.admin)).run();
        (answer.status == 200).then_some(())
    });
    println!("{role} killed: ready {:.1?} after it was started again; {}", began.elapsed(), of(after.pid));
}

fn memory(platform: &Platform) -> String {
    let of_node = |node: &atoll_testkit::Node| format!("{} {}", node.name, of(node.pid));
    platform.nodes().iter().map(of_node).collect::<Vec<_>>().join("; ")
}

/// Resident memory of a process, now and at most.
fn of(pid: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mib = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()).unwrap_or(0) / 1024
    };
    format!("{} MiB (at most {})", mib("VmRSS:"), mib("VmHWM:"))
}
