//! Programs that nobody here wrote, and programs that behave badly.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::{CurlAnswer, Options, Platform, processes, wait_for, wait_until};
use atoll_tests::program_manifest;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

#[test]
fn any_program_runs_and_none_harms_the_platform() {
    let platform = Platform::start(Options::regions(&["fra"]));
    a_program_that_nobody_here_wrote(&platform);
    one_that_forks(&platform);
    one_that_ignores_sigterm(&platform);
    one_that_opens_its_port_late(&platform);
    one_that_lives_three_seconds(&platform);
    one_that_prints_a_gigabyte(&platform);
    one_that_fails_to_start(&platform);
    one_that_listens_elsewhere(&platform);
    nothing_is_left(platform);
}

/// The interpreter itself: a wrapper in the PATH may want an environment that instances don't get.
fn python() -> String {
    let output = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output();
    String::from_utf8(output.expect("python3 is installed").stdout).unwrap().trim().to_owned()
}

fn file_server() -> String {
    format!("{} -m http.server --bind 127.0.0.1 $PORT", python())
}

fn shell(platform: &Platform, app: &str, script: &str) -> PathBuf {
    platform.manifest(app, &program_manifest(app, "fra", &["/bin/sh", "-c", script]))
}

fn get(platform: &Platform, app: &str, path: &str) -> CurlAnswer {
    platform.curl(&platform.edges()[0], app, path).run()
}

fn is_served(platform: &Platform, app: &str) {
    wait_until(&format!("{app} answers"), SOON, || get(platform, app, "/").status == 200);
}

/// Removes the app and checks that no process of its folder is left.
fn remove(platform: &Platform, app: &str, folder: &Path) {
    let _removed = platform.atoll().run(&["delete", app]).expect_code(0);
    wait_until(&format!("{app}'s processes are gone"), SOON, || processes::of_folder(folder).is_empty());
}

fn a_program_that_nobody_here_wrote(platform: &Platform) {
    let run = [&python(), "-m", "http.server", "--bind", "127.0.0.1", "$PORT"].map(str::to_owned);
    let run: Vec<&str> = run.iter().map(String::as_str).collect();
    let folder = platform.manifest("files", &program_manifest("files", "fra", &run));
    fs::write(folder.join("hello.txt"), "hello\n").unwrap();
    platform.deploy(&folder);
    let answer = get(platform, "files", "/hello.txt");
    assert_eq!((answer.status, answer.text().as_str()), (200, "hello\n"), "{answer:?}");
    remove(platform, "files", &folder);
}

fn one_that_forks(platform: &Platform) {
    let folder = shell(platform, "forks", &format!("sleep 1000 & {} & wait", file_server()));
    platform.deploy(&folder);
    is_served(platform, "forks");
    assert!(processes::of_folder(&folder).len() >= 3, "the shell and its children run");
    remove(platform, "forks", &folder);
}

fn one_that_ignores_sigterm(platform: &Platform) {
    // What is ignored stays so in the program that takes the shell's place.
    let folder = shell(platform, "stubborn", &format!("trap '' TERM; exec {}", file_server()));
    platform.deploy(&folder);
    is_served(platform, "stubborn");
    remove(platform, "stubborn", &folder);
}

fn one_that_opens_its_port_late(platform: &Platform) {
    let began = Instant::now();
    let folder = shell(platform, "late", &format!("sleep 4; exec {}", file_server()));
    platform.deploy(&folder);
    assert!(began.elapsed() >= Duration::from_secs(4), "the deploy waits for the port");
    assert_eq!(get(platform, "late", "/").status, 200);
    remove(platform, "late", &folder);
}

fn one_that_lives_three_seconds(platform: &Platform) {
    let folder = shell(platform, "shortlived", &format!("{} & sleep 3; kill $$!; exit 9", file_server()));
    platform.deploy(&folder);
    let first = one_instance(platform, "shortlived");
    wait_for("it is started again after its end", SOON, || {
        let now = one_instance(platform, "shortlived");
        (now["restarts"].as_u64() > first["restarts"].as_u64()).then_some(())
    });
    is_served(platform, "shortlived");
    remove(platform, "shortlived", &folder);
}

fn one_instance(platform: &Platform, app: &str) -> serde_json::Value {
    let instances = platform.instances(app);
    assert_eq!(instances.len(), 1, "{instances:?}");
    instances[0].clone()
}

/// Serves at once, writes 1 GB meanwhile, and answers with how much it has written.
const TALKER: &str = r#"
import http.server, sys, threading
written = 0
def talk():
    global written
    line = b"x" * 1023 + b"\n"
    for _ in range(1000 * 1000):
        sys.stdout.buffer.write(line)
        written += len(line)
    sys.stdout.buffer.flush()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = str(written).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
threading.Thread(target=talk, daemon=True).start()
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;

fn one_that_prints_a_gigabyte(platform: &Platform) {
    let run = [&python(), "talker.py", "$PORT"].map(str::to_owned);
    let run: Vec<&str> = run.iter().map(String::as_str).collect();
    let folder = platform.manifest("talker", &program_manifest("talker", "fra", &run));
    fs::write(folder.join("talker.py"), TALKER).unwrap();
    let before = size(&platform.data());
    platform.deploy(&folder);
    let mut most = 0;
    wait_until("a gigabyte is written", Duration::from_secs(120), || {
        most = most.max(size(&platform.data()).saturating_sub(before));
        get(platform, "talker", "/").text().parse().unwrap_or(0) >= 1000 * 1000 * 1000
    });
    println!("most disk taken while a gigabyte was printed: {} MiB", most / MIB);
    assert!(most < 512 * MIB, "{} MiB", most / MIB);
    wait_until("what is kept of it is bounded", SOON, || {
        size(&platform.data()).saturating_sub(before) < 64 * MIB
    });
    let logs = platform.atoll().run(&["logs", "talker/web", "-n", "5"]).expect_code(0);
    assert!(logs.stdout.contains("xxxx"), "its last lines can be read");
    remove(platform, "talker", &folder);
}

/// What a folder takes on disk, bytes.
fn size(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(facts) if facts.is_dir() => size(&entry.path()),
        Ok(facts) => facts.blocks() * 512,
        Err(_) => 0,
    };
    entries.map(of).sum()
}

fn one_that_fails_to_start(platform: &Platform) {
    let folder = shell(platform, "changes", &format!("exec {}", file_server()));
    fs::write(folder.join("which"), "the first\n").unwrap();
    platform.deploy(&folder);
    let before = one_instance(platform, "changes")["revision"].clone();

    let folder = shell(platform, "changes", "echo it went boom >&2; exit 7");
    let began = Instant::now();
    let failed = platform.atoll().run_in(&folder, &["deploy"]).expect_code(3);
    assert!(
        began.elapsed() < SOON,
        "it fails once the starts have, not after a timeout: {:?}",
        began.elapsed()
    );
    for part in ["status 7", "it went boom", "fra"] {
        assert!(failed.stderr.contains(part), "no {part}: {}", failed.stderr);
    }
    let answer = get(platform, "changes", "/which");
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (200, "the first\n"),
        "the old revision serves: {answer:?}"
    );
    assert_eq!(one_instance(platform, "changes")["revision"], before);
    remove(platform, "changes", &folder);
}

/// A socket of a process outside the instance's group must not make the instance healthy.
fn one_that_listens_elsewhere(platform: &Platform) {
    let script = format!("setsid timeout 5 {} & sleep 3; echo never listened; exit 4", file_server());
    let folder = shell(platform, "absent", &script);
    let failed = platform.atoll().run_in(&folder, &["deploy"]);
    assert_eq!(failed.code, 3, "{failed:?}");
    assert!(failed.stderr.contains("never listened"), "{}", failed.stderr);
    // An app whose first deploy fails is not there, and leaves nothing.
    let _no_such_app = platform.atoll().run(&["delete", "absent"]).expect_code(1);
    wait_until("its processes are gone", SOON, || processes::of_folder(&folder).is_empty());
}

fn nothing_is_left(mut platform: Platform) {
    assert!(platform.stop().success());
    let left: Vec<String> = platform.processes().into_iter().map(processes::command_line).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!platform.data().join("dev.json").exists());
}
