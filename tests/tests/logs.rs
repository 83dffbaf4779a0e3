//! What developers see of what runs: `atoll logs` over instances, regions, deploys and a restart of control;
//! `atoll top`; and that nothing but data is in a pipe.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::{Curl, Load, Options, Platform, processes, wait_until};
use atoll_tests::shop_manifest;
use rustix::process::Signal;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

/// Says a line at each beat, and more where it is asked to: `/say/TEXT`, `/burst/COUNT`, `/raw`.
const PROGRAM: &str = r#"
import http.server, os, sys, threading, time, urllib.parse
def beat():
    number = 0
    while True:
        number += 1
        print(f"beat {number}", flush=True)
        time.sleep(0.2)
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        word, _, rest = self.path[1:].partition("/")
        if word == "say": print(urllib.parse.unquote(rest), flush=True)
        if word == "burst":
            for number in range(int(rest)): print(f"burst {number:07} {'.' * 200}")
            sys.stdout.flush()
        if word == "raw": os.write(1, b"raw \xff\x1b[31m " + b"x" * 20000 + b"\nafter raw\n")
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
threading.Thread(target=beat, daemon=True).start()
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

#[test]
fn what_runs_can_be_watched() {
    let platform = Platform::start(Options::regions(&["fra", "was"]));
    let talker = manifest("fra = { min = 2, max = 2 }\nwas = { min = 1, max = 1 }");
    platform.deploy(&platform.manifest("talk", &talker));
    lines_are_chosen_and_in_order(&platform);
    awkward_lines_are_shown_safely(&platform);
    json_lines_are_for_programs(&platform);
    pipes_and_interrupts_end_it_quietly(&platform);
    a_slow_reader_is_told_what_it_missed(&platform);
    a_host_that_is_away_is_named(&platform);
    following_goes_on_over_a_restart_of_control_without_doubles(&platform);
    following_goes_on_over_a_deploy(&platform);
    top_shows_what_was_measured(&platform);
    nothing_but_text_is_in_a_pipe(&platform);
}

fn manifest(regions: &str) -> String {
    format!(
        "manifest = 1\napp = \"talk\"\n\n[regions]\n{regions}\n\n[service.web]\n\
         run = [\"python3\", \"-c\", {PROGRAM:?}]\npublic = true\ndrain = \"1s\"\n"
    )
}

/// Asks one instance directly.
fn tell(instance: &Value, path: &str) {
    let answer = Curl::new(format!("http://127.0.0.1:{}{path}", instance["port"])).run();
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn in_region(platform: &Platform, region: &str) -> Vec<Value> {
    let all = platform.instances("talk");
    all.into_iter()
        .filter(|instance| instance["region"] == region && instance["state"] == "healthy")
        .collect()
}

fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn lines_are_chosen_and_in_order(platform: &Platform) {
    let fra = in_region(platform, "fra");
    for (number, instance) in fra.iter().chain(&in_region(platform, "was")).enumerate() {
        tell(instance, &format!("/say/needle%20{number}"));
    }
    let found = || platform.atoll().run(&["logs", "talk", "--grep", "needle", "-o", "json"]).expect_code(0);
    wait_until("all three are written", SOON, || found().stdout.lines().count() == 3);
    let found = objects(&found().stdout);
    let times: Vec<u64> = found.iter().map(|line| line["at_ms"].as_u64().unwrap()).collect();
    assert!(times.is_sorted(), "{found:?}");
    let texts: BTreeSet<&str> = found.iter().map(|line| line["line"].as_str().unwrap()).collect();
    assert_eq!(texts, ["needle 0", "needle 1", "needle 2"].into());
    let lines = |arguments: &[&str]| {
        let arguments: Vec<&str> = ["logs"].iter().chain(arguments).copied().collect();
        platform.atoll().run(&arguments).expect_code(0).stdout
    };
    assert_eq!(lines(&["talk/web", "--region", "was", "--grep", "needle"]).lines().count(), 1);
    let (first, id) = (&fra[0], fra[0]["id"].as_str().unwrap());
    assert_eq!(lines(&[id, "--grep", "needle"]), "needle 0\n", "one instance has no label");
    assert!((3..=4).contains(&lines(&["--instance", id, "-n", "3"]).lines().count()));
    // Two of each instance, and what one says just then.
    let two = lines(&["talk", "-n", "2", "--region", "fra"]).lines().count();
    assert!((4..=6).contains(&two), "{two}");
    // Later than times are exact.
    wait_until("beats follow", SOON, || {
        lines(&[id, "-n", "1000"]).lines().skip_while(|line| *line != "needle 0").count() > 10
    });
    tell(first, "/say/late");
    wait_until("the late line is written", SOON, || !lines(&[id, "--grep", "late"]).is_empty());
    let since = objects(&lines(&[id, "--grep", "late", "-o", "json"]))[0]["at_ms"].as_u64().unwrap();
    let date = |ms: u64| {
        Command::new("date")
            .args(["-u", "+%Y-%m-%dT%H:%M:%S.%3NZ", "-d", &format!("@{}.{:03}", ms / 1000, ms % 1000)])
            .output()
            .unwrap()
    };
    let date = String::from_utf8(date(since).stdout).unwrap();
    let later = lines(&[id, "--since", date.trim(), "-n", "1000"]);
    assert!(later.contains("late") && !later.contains("needle"), "{later}");
    for (arguments, what) in
        [(["logs", "none"], "no app `none`"), (["logs", "talk/none"], "no service `none`")]
    {
        let refused = platform.atoll().run(&arguments).expect_code(1);
        assert!(refused.stderr.contains(what), "{}", refused.stderr);
    }
    let _refused = platform.atoll().run(&["logs", "talk", "--since", "yesterday"]).expect_code(2);
}

fn awkward_lines_are_shown_safely(platform: &Platform) {
    let instance = &in_region(platform, "was")[0];
    tell(instance, "/raw");
    let id = instance["id"].as_str().unwrap();
    let show = || platform.atoll().run(&["logs", id, "--grep", "raw"]).expect_code(0).stdout;
    wait_until("it is written", SOON, || show().contains("after raw"));
    let text = show();
    assert!(text.starts_with("raw \u{fffd}\\u{1b}[31m xxx"), "{}", &text[..60]);
    let long = text.lines().next().unwrap();
    assert!(long.ends_with("x [… the line was longer]") && long.len() < 17_000, "{}", long.len());
    assert_eq!(text.lines().nth(1), Some("after raw"), "the next line is whole");
}

fn json_lines_are_for_programs(platform: &Platform) {
    let output = platform.atoll().run(&["logs", "talk", "-n", "3", "-o", "json"]).expect_code(0);
    let lines = objects(&output.stdout);
    // Three of each instance, and what it says just then.
    assert!((9..=12).contains(&lines.len()), "{}", lines.len());
    for line in &lines {
        assert_eq!((&line["app"], &line["service"]), (&"talk".into(), &"web".into()), "{line}");
        assert!(line["at_ms"].is_u64() && line["position"].is_u64() && line["region"].is_string(), "{line}");
    }
    let times: Vec<u64> = lines.iter().map(|line| line["at_ms"].as_u64().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
}

fn pipes_and_interrupts_end_it_quietly(platform: &Platform) {
    let mut command = platform.atoll().command();
    let mut logs =
        command.args(["logs", "talk", "-f"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(logs.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("beat"));
    drop(lines);
    let mut said = String::new();
    logs.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((logs.wait().unwrap().code(), said.as_str()), (Some(0), ""), "a closed pipe is no error");
    let mut follower = Follower::start(platform, &["logs", "talk", "-f"]);
    wait_until("lines come", SOON, || follower.count() > 5);
    assert_eq!(follower.interrupt(), Some(130));
}

/// Keeps all that a following command prints.
struct Follower {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Follower {
    fn start(platform: &Platform, arguments: &[&str]) -> Self {
        let mut command = platform.atoll().command();
        let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                kept.lock().unwrap().push(line);
            }
        });
        Self { child, lines }
    }

    fn count(&self) -> usize {
        self.lines.lock().unwrap().len()
    }

    /// Positions by instance, in the order in which they came.
    fn positions(&self) -> BTreeMap<String, Vec<u64>> {
        let mut positions = BTreeMap::<String, Vec<u64>>::new();
        for line in objects(&self.lines.lock().unwrap().join("\n")) {
            let instance = line["instance"].as_str().unwrap().to_owned();
            positions.entry(instance).or_default().push(line["position"].as_u64().unwrap());
        }
        positions
    }

    fn interrupt(&mut self) -> Option<i32> {
        processes::signal(self.child.id(), Signal::INT);
        self.child.wait().unwrap().code()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It has most often ended already.
        let _ended = self.child.kill().is_err();
        let _status = self.child.wait().unwrap();
    }
}

const BURSTS: u64 = 12;

/// One who asks the API and then reads nothing, while far more is written than is kept.
fn a_slow_reader_is_told_what_it_missed(platform: &Platform) {
    let instance = in_region(platform, "was")[0].clone();
    let id = instance["id"].as_str().unwrap();
    let dev = platform.dev_json();
    let (api, token) = (dev["api"].as_str().unwrap(), dev["token"].as_str().unwrap());
    let mut curl = Command::new("curl")
        .args(["-sN", "-H", &format!("authorization: Bearer {token}")])
        .arg(format!("{api}/v1/logs?instance={id}&tail=1&follow=true"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(curl.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.find(|line| line.contains("beat")).unwrap();
    processes::signal(curl.id(), Signal::STOP);
    // 8 MiB are kept; this is three times that.
    for _ in 0..BURSTS {
        tell(&instance, "/burst/10000");
    }
    tell(&instance, "/say/the%20end");
    processes::signal(curl.id(), Signal::CONT);
    let (mut dropped, mut gaps, mut burst, mut beats) = (0, 0, 0, 0);
    let mut ended = false;
    for line in lines {
        burst += u64::from(line.contains("burst "));
        beats += u64::from(line.contains("beat "));
        if let Some((_, count)) = line.split_once("\"count\":") {
            gaps += 1;
            dropped += count.split([',', '}']).next().unwrap().parse::<u64>().unwrap();
        }
        ended = line.contains("the end");
        // Beats go on for ever: without its end the stream must not keep us.
        if ended || beats > 1_000 {
            break;
        }
    }
    curl.kill().unwrap();
    curl.wait().unwrap();
    println!("a slow reader got {burst} lines and was told of {dropped} that it missed");
    assert!(ended, "what was written last is kept: {burst} {dropped} {beats}");
    assert!(dropped > 10_000 && burst > 10_000, "{burst} {dropped}");
    // After each gap may come the end of a line whose beginning is lost. Beats are among the dropped.
    let told = dropped + burst + gaps;
    assert!((BURSTS * 10_000..BURSTS * 10_000 + 1_000).contains(&told), "{burst} {dropped} {gaps}");
}

fn a_host_that_is_away_is_named(platform: &Platform) {
    let host = platform.node("was1", "host");
    processes::signal(host.pid, Signal::STOP);
    let output = platform.atoll().run(&["logs", "talk", "-n", "1", "-o", "json"]).expect_code(1);
    processes::signal(host.pid, Signal::CONT);
    let shown = objects(&output.stdout).len();
    assert!((2..=4).contains(&shown), "the others are shown: {}", output.stdout);
    assert!(output.stderr.contains(&host.name) && output.stderr.contains("in time"), "{}", output.stderr);
    let whole = || platform.atoll().run(&["logs", "talk", "-n", "1", "-o", "json"]);
    wait_until("it is back", SOON, || whole().code == 0);
}

fn following_goes_on_over_a_restart_of_control_without_doubles(platform: &Platform) {
    let follower = Follower::start(platform, &["logs", "talk", "-f", "-n", "1", "-o", "json"]);
    wait_until("lines come", SOON, || follower.count() > 20);
    let control = platform.node("fra1", "control").pid;
    processes::kill(control);
    wait_until("control is back", SOON, || {
        let now = platform.node("fra1", "control").pid;
        now != control && now != 0
    });
    let before = follower.count();
    wait_until("lines come again", SOON, || follower.count() > before + 30);
    let ids: Vec<String> = platform
        .instances("talk")
        .iter()
        .map(|instance| instance["id"].as_str().unwrap().to_owned())
        .collect();
    let positions = follower.positions();
    for id in ids {
        let positions = &positions[&id];
        assert!(positions.is_sorted_by(|a, b| a < b), "each line once, in order: {id} {positions:?}");
        // A beat is some 9 bytes: none is missing where they are this near to each other.
        assert!(positions.windows(2).all(|pair| pair[1] - pair[0] < 20), "{id} {positions:?}");
    }
}

fn following_goes_on_over_a_deploy(platform: &Platform) {
    let follower = Follower::start(platform, &["logs", "talk/web", "-f", "-n", "0", "-o", "json"]);
    wait_until("lines come", SOON, || follower.count() > 5);
    let talker = manifest("fra = { min = 1, max = 2 }") + "\n[service.web.env]\nNEW = \"1\"\n";
    platform.deploy(&platform.manifest("talk", &talker));
    let new =
        platform.instances("talk").iter().map(|new| new["id"].as_str().unwrap().to_owned()).next().unwrap();
    let first = || follower.lines.lock().unwrap().iter().find(|line| line.contains(&new)).cloned();
    wait_until("the new instance joins", SOON, || first().is_some());
    assert!(first().unwrap().contains("beat 1\""), "from its first line: {first:?}", first = first());
}

fn top_shows_what_was_measured(platform: &Platform) {
    let shop = platform.manifest("shop", &shop_manifest("shop", &[("fra", 2)]));
    platform.deploy(&shop);
    let load = Load::start(platform.load_targets("shop", "/json"), 50);
    let service = |app: &str| {
        let turn = platform.atoll().run(&["top", app, "--once", "-o", "json"]).expect_code(0).json();
        assert!(turn["services"].as_array().unwrap().iter().all(|service| service["app"] == app), "{turn}");
        turn["services"][0].clone()
    };
    wait_until("the load is seen", SOON, || {
        let rate = service("shop")["requests_per_s"].as_f64().unwrap_or(0.0);
        (25.0..100.0).contains(&rate)
    });
    let shop = service("shop");
    let number = |key: &str| shop[key].as_f64().unwrap_or_else(|| panic!("{key} is measured: {shop}"));
    assert_eq!((number("instances"), number("healthy"), number("failures_per_s")), (2.0, 2.0, 0.0), "{shop}");
    assert!(number("p50_ms") > 0.0 && number("p50_ms") <= number("p99_ms"), "{shop}");
    assert!(number("memory_bytes") > 1e6, "{shop}");
    let talk = service("talk");
    assert_eq!((&talk["requests_per_s"], &talk["p50_ms"]), (&0.0.into(), &Value::Null), "no request: {talk}");
    let text = platform.atoll().run(&["top", "--once"]).expect_code(0).stdout;
    for word in ["REQ/S", "shop", "talk", "fra1-gateway"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let _report = load.stop();
}

/// Commands that print data, each with its own way.
fn nothing_but_text_is_in_a_pipe(platform: &Platform) {
    let commands: &[&[&str]] = &[
        &["logs", "talk", "-n", "5"],
        &["status", "shop"],
        &["apps"],
        &["services"],
        &["instances"],
        &["revisions"],
        &["nodes"],
        &["top", "--once"],
        &["help"],
        &["help", "codes"],
        &["help", "no-instance"],
        &["status", "--help"],
        &["logs", "none"],
        &["nonsense"],
        &["completions", "bash"],
    ];
    for arguments in commands {
        let output = platform.atoll().run(arguments);
        let text = output.stdout + &output.stderr;
        assert!(!text.contains('\x1b'), "{arguments:?}: {text:?}");
    }
    let painted = platform.atoll().run(&["logs", "talk", "-n", "1", "--color", "always"]).expect_code(0);
    assert!(painted.stdout.contains("\x1b[3") || painted.stdout.contains("\x1b[9"), "{}", painted.stdout);
}
