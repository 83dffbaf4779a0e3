//! A data folder that an earlier version wrote, stored in `tests/fixtures`, is opened by today's: what it holds is
//! served, shown and changed. How to store a new one: `tests/fixtures/README.md`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::clock::{at_time, faketime};
use atoll_testkit::{Options, Platform, processes, wait_until};
use rustix::process::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SOON: Duration = Duration::from_secs(30);
/// Answers with what its manifest says; needs nothing but Python.
const PROGRAM: &str = "import os,http.server as h\n\
    class A(h.BaseHTTPRequestHandler):\n\
    \x20def do_GET(s):\n\
    \x20 b=os.environ['VALUE'].encode()\n\
    \x20 s.send_response(200); s.send_header('content-length',str(len(b))); s.end_headers(); s.wfile.write(b)\n\
    \x20def log_message(*a): pass\n\
    h.ThreadingHTTPServer(('127.0.0.1',int(os.environ['PORT'])),A).serve_forever()";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn options() -> Options {
    Options::regions(&["fra"])
}

fn manifest(value: &str) -> String {
    format!(
        "manifest = 1\napp = \"kept\"\n\n[regions]\nfra = {{ min = 2 }}\n\n[service.web]\n\
         run = [\"python3\", \"-c\", {PROGRAM:?}]\npublic = true\ndrain = \"1s\"\n\n\
         [service.web.env]\nVALUE = \"{value}\"\n"
    )
}

/// Deploys from a folder that is the same everywhere, since the program is started in it.
fn deploy(platform: &Platform, value: &str) {
    let file = Path::new("/var/tmp").join(format!("atoll-old-data-{}.toml", std::process::id()));
    fs::write(&file, manifest(value)).unwrap();
    let done = platform.atoll().run(&["deploy", "-f", file.to_str().unwrap()]);
    fs::remove_file(&file).unwrap();
    assert_eq!(done.code, 0, "{}\n{}\n{}", done.stdout, done.stderr, platform.logs());
}

fn answers(platform: &Platform, value: &str) {
    let edge = &platform.edges()[0];
    wait_until(&format!("the app answers {value:?}"), SOON, || {
        // The certificate is of the platform's time, not of curl's.
        let answer = platform.curl(edge, "kept", "/").arguments(["--insecure"]).run();
        answer.status == 200 && answer.text() == value
    });
}

fn tar(arguments: &[&str]) {
    let done = Command::new("tar").args(arguments).output().unwrap();
    assert!(done.status.success(), "tar {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Every data folder that is stored.
fn stored() -> Vec<PathBuf> {
    let entries = fs::read_dir(fixtures()).unwrap().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> =
        entries.filter(|path| path.to_string_lossy().ends_with(".tar.gz")).collect();
    found.sort();
    assert!(!found.is_empty(), "no data folder is stored in {}", fixtures().display());
    found
}

#[test]
fn a_folder_of_an_earlier_version_is_opened() {
    let Some(library) = faketime() else {
        println!("skipped: there is no libfaketime (Debian: faketime)");
        return;
    };
    for archive in stored() {
        println!("{}", archive.display());
        opened(&archive, &library);
    }
}

/// A folder is opened a day after it was stored, whenever that was: its certificates live for a week.
fn a_day_after(archive: &Path) -> String {
    let date = archive.file_name().unwrap().to_string_lossy()[..10].to_owned();
    let asked =
        Command::new("date").args(["-u", "-d", &format!("{date} 12:00 + 1 day"), "+%s"]).output().unwrap();
    let then: i64 =
        String::from_utf8_lossy(&asked.stdout).trim().parse().expect("the name begins with a date");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    format!("{:+}", then - i64::try_from(now).unwrap())
}

fn opened(archive: &Path, library: &Path) {
    let mut platform = Platform::prepare(options());
    for (name, value) in at_time(library, &a_day_after(archive)) {
        platform.environment(name, value);
    }
    // Sidecars have their host's clock, here as on every machine.
    let of_the_clock = at_time(library, "").map(|(name, _)| name).join(",");
    platform.environment("ATOLL_SIDECAR_ENV", &of_the_clock);
    let parent = platform.data().parent().unwrap().to_owned();
    tar(&["-xzf", archive.to_str().unwrap(), "-C", parent.to_str().unwrap()]);
    let nodes = platform.data().join("nodes");
    let kept = [nodes.join("fra1-control/mesh-ca"), nodes.join("fra1-edge/identity")].map(|f| first_file(&f));
    let before: Vec<Vec<u8>> = kept.iter().map(|file| fs::read(file).unwrap()).collect();
    platform.start_again();
    answers(&platform, "kept two");

    let listed = platform.atoll().run(&["revisions", "kept", "-o", "json"]).expect_code(0).json();
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    let apps = platform.atoll().run(&["apps", "-o", "json"]).expect_code(0).json();
    assert_eq!(apps.as_array().unwrap().len(), 1, "{apps}");
    let tokens = platform.atoll().run(&["tokens", "list", "-o", "json"]).expect_code(0).json();
    assert!(!tokens.as_array().unwrap().is_empty(), "join tokens are kept");
    // The same platform, not a new one: roots and identities are those that were found.
    let after: Vec<Vec<u8>> = kept.iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(before == after, "the CA and the identities are the ones of the folder");

    deploy(&platform, "and changed");
    answers(&platform, "and changed");
    for node in ["fra1-host", "fra1-gateway", "fra1-edge", "fra1-control"] {
        platform.restart(node, Signal::KILL);
    }
    answers(&platform, "and changed");
    assert!(platform.stop().success());
    assert!(platform.processes().into_iter().all(|pid| !processes::is_alive(pid)));
}

/// The first by name, so that two looks see the same.
fn first_file(folder: &Path) -> PathBuf {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file()).map(|entry| entry.path());
    files.min().unwrap()
}

/// Stores a folder, as `ATOLL_OLD_DATA=NAME` names it. Not a test: run by hand, see `tests/fixtures/README.md`.
#[test]
#[ignore = "writes a new fixture"]
fn store_a_folder() {
    let name = std::env::var("ATOLL_OLD_DATA").expect("ATOLL_OLD_DATA names the fixture");
    let mut platform = Platform::start(options());
    deploy(&platform, "kept one");
    deploy(&platform, "kept two");
    let token = ["tokens", "create", "--role", "edge", "--site", "fra1", "--ttl", "72h"];
    let _token = platform.atoll().run(&token).expect_code(0);
    answers(&platform, "kept two");
    assert!(platform.stop().success());
    let parent = platform.data().parent().unwrap().to_owned();
    // Logs say nothing that is opened; locks and sockets are made anew.
    let archive = fixtures().join(format!("{name}.tar.gz"));
    let left_out =
        ["--exclude=*.log", "--exclude=*.sock", "--exclude=lock", "--exclude=logs", "--exclude=dev.json"];
    let arguments = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner"];
    let place = ["-czf", archive.to_str().unwrap(), "-C", parent.to_str().unwrap(), "data"];
    let all: Vec<&str> = left_out.iter().chain(&arguments).chain(&place).copied().collect();
    tar(&all);
    println!("{}: {} bytes", archive.display(), fs::metadata(&archive).unwrap().len());
}
