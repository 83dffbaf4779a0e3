//! The app of these tests: one instance, whichever edge asks, which counts what reaches it.

use atoll_testkit::{CurlAnswer, Edge, Platform};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

const PROGRAM: &str = include_str!("instance.py");

/// A folder with the app, in region `fra`, and with more in its manifest.
pub fn manifest(platform: &Platform, more: &str) -> PathBuf {
    manifest_of(platform, "counts", more)
}

/// The same of another name.
pub fn manifest_of(platform: &Platform, name: &str, more: &str) -> PathBuf {
    let output = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
    let python = String::from_utf8(output.stdout).unwrap();
    let text = format!(
        "manifest = 1\napp = {name:?}\n[regions]\nfra = {{ min = 1 }}\n[service.web]\nrun = [{:?}, \"instance.py\", \"$PORT\"]\npublic = true\n{more}",
        python.trim()
    );
    let folder = platform.manifest(name, &text);
    std::fs::write(folder.join("instance.py"), PROGRAM).unwrap();
    folder
}

pub fn at(platform: &Platform, edge: &Edge, path: &str, arguments: &[&str]) -> CurlAnswer {
    platform.curl(edge, "counts", path).arguments(arguments.iter().copied()).run()
}

/// Asks the first edge.
pub fn get(platform: &Platform, path: &str, arguments: &[&str]) -> CurlAnswer {
    at(platform, &platform.edges()[0], path, arguments)
}

/// How many requests for its path the instance had seen when it made this answer.
#[track_caller]
pub fn count(answer: &CurlAnswer) -> u64 {
    assert!(answer.status == 200, "{answer:?}");
    answer.text().lines().next().unwrap().parse().unwrap()
}

pub fn status(answer: &CurlAnswer) -> String {
    let lines = answer.headers.iter().filter(|(name, _)| name == "cache-status");
    lines.map(|(_, value)| value.as_str()).collect::<Vec<_>>().join(", ")
}

#[track_caller]
pub fn is_hit(answer: &CurlAnswer) -> bool {
    status(answer).contains("Atoll; hit")
}

/// How often the instance was asked for a path.
pub fn asked(platform: &Platform, path: &str) -> u64 {
    let counts: Value = get(platform, "/counts", &[]).json();
    counts[path].as_u64().unwrap_or(0)
}
