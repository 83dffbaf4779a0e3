//! A service that speaks TCP: a real redis, called by address through the mesh, in the region and beyond.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::{Options, Platform, Ran, probe_words, processes, wait_until, write_probe};
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(30);

/// Fills a pipeline from both ends at once: what is asked and what is answered is more than any buffer holds.
const PIPELINE: &str = r#"
import hashlib, os, socket, sys, threading
from urllib.parse import urlparse
address = urlparse(os.environ[sys.argv[1]])
assert address.scheme == "tcp", address
stream = socket.create_connection((address.hostname, address.port))
value = os.urandom(1 << 20)
count = 24
def bulk(*parts):
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
def ask():
    for n in range(count):
        stream.sendall(bulk(b"SET", b"k%d" % n, value) + bulk(b"GET", b"k%d" % n))
threading.Thread(target=ask, daemon=True).start()
answers = stream.makefile("rb")
for n in range(count):
    assert answers.readline() == b"+OK\r\n"
    assert answers.readline() == b"$%d\r\n" % len(value)
    assert answers.read(len(value) + 2) == value + b"\r\n", n
print("whole", count * len(value))
"#;

/// Says how much it heard and what, once the other side has ended its half.
const HALVES: &str = r#"
import hashlib, os, socket, threading
server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
def serve(stream):
    stream.sendall(b"speak ")
    heard = hashlib.sha256()
    while piece := stream.recv(65536):
        heard.update(piece)
    stream.sendall(heard.hexdigest().encode())
    stream.close()
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"#;

const ASK_HALVES: &str = r#"
import hashlib, os, socket
from urllib.parse import urlparse
address = urlparse(os.environ["HALVES_URL"])
stream = socket.create_connection((address.hostname, address.port))
assert stream.recv(6) == b"speak ", "the called side speaks first"
sent = os.urandom(5 << 20)
stream.sendall(sent)
stream.shutdown(socket.SHUT_WR)
said = b""
while piece := stream.recv(65536):
    said += piece
assert said.decode() == hashlib.sha256(sent).hexdigest(), said
print("each half by itself")
"#;

/// Waits for a value that nobody pushes, and says how that ended.
const BLOCKED: &str = r#"
import os, socket, time
from urllib.parse import urlparse
address = urlparse(os.environ["CACHE_URL"])
stream = socket.create_connection((address.hostname, address.port))
stream.sendall(b"*3\r\n$5\r\nBLPOP\r\n$7\r\nnothing\r\n$1\r\n0\r\n")
open("blocked", "w").close()
try:
    end = "end" if stream.recv(1) == b"" else "an answer"
except ConnectionResetError:
    end = "reset"
open("ended", "w").write(end)
"#;

#[test]
fn a_real_redis_is_called() {
    let redis = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
    assert!(
        redis.is_ok_and(|status| status.success()),
        "redis-server is not installed: apt-get install redis-server"
    );
    let platform = Platform::start(Options::regions(&["fra", "was"]));
    deploy(&platform);
    commands_are_answered(&platform);
    a_long_pipeline_passes_whole(&platform);
    each_direction_ends_by_itself(&platform);
    a_killed_server_is_an_error_at_once_and_the_next_one_is_found(&platform);
    who_may_not_is_cut_off(&platform);
}

fn service(name: &str, run: &str, region: &str, more: &str) -> String {
    let other = if region == "fra" { "was" } else { "fra" };
    format!(
        "\n[service.{name}]\nrun = {run}\ndrain = \"1s\"\n{more}\n\
         regions = {{ {region} = {{ min = 1, max = 3 }}, {other} = {{ min = 0, max = 0 }} }}\n"
    )
}

fn manifest(rules: &str) -> String {
    let redis =
        r#"["redis-server", "--port", "$PORT", "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]"#;
    let python = probe_words().replace("probe.py", "halves.py");
    "manifest = 1\napp = \"store\"\n".to_owned()
        + &service(
            "web",
            &probe_words(),
            "fra",
            "public = true\ncalls = [\"cache\", \"distant\", \"halves\"]",
        )
        + &service("cache", redis, "fra", "protocol = \"tcp\"")
        + &service("distant", redis, "was", "protocol = \"tcp\"")
        + &service("halves", &python, "fra", "protocol = \"tcp\"")
        + rules
}

fn deploy(platform: &Platform) {
    redeploy(platform, "");
}

fn redeploy(platform: &Platform, rules: &str) {
    let folder = platform.manifest("store", &manifest(rules));
    write_probe(&folder);
    for (name, text) in [
        ("pipeline.py", PIPELINE),
        ("halves.py", HALVES),
        ("ask_halves.py", ASK_HALVES),
        ("blocked.py", BLOCKED),
    ] {
        fs::write(folder.join(name), text).unwrap();
    }
    platform.deploy(&folder);
}

fn run(platform: &Platform, line: &str) -> Ran {
    platform.run_in(&platform.edges()[0], "store", line)
}

fn redis(platform: &Platform, variable: &str, command: &str) -> Ran {
    let line = format!("at=${{{variable}#tcp://}}; redis-cli -h ${{at%:*}} -p ${{at#*:}} {command}");
    run(platform, &line)
}

fn commands_are_answered(platform: &Platform) {
    for variable in ["CACHE_URL", "DISTANT_URL"] {
        let set = redis(platform, variable, "SET greeting hello");
        assert_eq!(set.out.trim(), "OK", "{variable}: {set:?}");
        assert_eq!(redis(platform, variable, "GET greeting").out.trim(), "hello");
    }
    assert_eq!(redis(platform, "DISTANT_URL", "SET only there").out.trim(), "OK");
    assert_eq!(redis(platform, "CACHE_URL", "GET only").out.trim(), "", "they are two");
}

fn a_long_pipeline_passes_whole(platform: &Platform) {
    for variable in ["CACHE_URL", "DISTANT_URL"] {
        let began = Instant::now();
        let ran = run(platform, &format!("python3 pipeline.py {variable}"));
        assert_eq!(ran.out.trim(), format!("whole {}", 24 << 20), "{variable}: {ran:?}");
        println!("{variable}: 24 MiB each way in {:?}", began.elapsed());
    }
}

fn each_direction_ends_by_itself(platform: &Platform) {
    let ran = run(platform, "python3 ask_halves.py");
    assert_eq!(ran.out.trim(), "each half by itself", "{ran:?}");
}

fn a_killed_server_is_an_error_at_once_and_the_next_one_is_found(platform: &Platform) {
    let folder = platform.scratch("store");
    let begun = run(
        platform,
        "nohup python3 blocked.py >/dev/null 2>&1 & while [ ! -e blocked ]; do sleep 0.05; done",
    );
    assert_eq!(begun.code, 0, "{begun:?}");
    let instances = platform.instances("store");
    let cache = instances.iter().find(|i| i["service"] == "cache").unwrap();
    let killed = Instant::now();
    processes::kill(u32::try_from(cache["pid"].as_u64().unwrap()).unwrap());
    wait_until("the waiting client is told", Duration::from_secs(5), || folder.join("ended").exists());
    println!("told after {:?}", killed.elapsed());
    wait_until("how it ended is written", SOON, || {
        matches!(fs::read_to_string(folder.join("ended")).unwrap().as_str(), "end" | "reset")
    });
    wait_until("the restarted one is reached", SOON, || {
        redis(platform, "CACHE_URL", "PING").out.trim() == "PONG"
    });
}

fn who_may_not_is_cut_off(platform: &Platform) {
    redeploy(platform, "\n[[allow]]\nfrom = [\"halves\"]\nto = \"cache\"\n");
    wait_until("the rule holds", SOON, || redis(platform, "CACHE_URL", "PING").out.trim() != "PONG");
    let refused = redis(platform, "CACHE_URL", "PING");
    assert!(refused.err.contains("closed the connection") || refused.err.contains("reset"), "{refused:?}");
}
