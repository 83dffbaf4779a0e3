//! The app of these tests: one instance, whichever edge asks, which counts what reaches it.

use atoll_testkit::{CurlAnswer, Edge, Platform};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// The query that makes the instance's answer one for all, for a minute.
#[allow(dead_code, reason = "not every test that shares this file asks so")]
pub const FRESH: &str = "cc=max-age%3D60";
/// For what needs no measured time.
pub const SOON: Duration = Duration::from_secs(30);

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
#[allow(dead_code, reason = "not every test that shares this file counts")]
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

/// Who attacks, and at which edge whom it could harm asks.
#[derive(Debug)]
#[allow(dead_code, reason = "not every test that shares this file attacks")]
pub struct Rig<'a> {
    pub platform: &'a Platform,
    attacked: Edge,
    second: Edge,
}

#[allow(dead_code, reason = "not every test that shares this file attacks")]
impl<'a> Rig<'a> {
    pub fn new(platform: &'a Platform, attacked: &Edge, second: &Edge) -> Self {
        Self { platform, attacked: attacked.clone(), second: second.clone() }
    }

    /// The attacker, or whoever comes first, asks.
    pub fn attack(&self, path: &str, arguments: &[&str]) -> CurlAnswer {
        by_name(self.platform, &self.attacked, path, arguments)
    }

    /// Whom it could harm asks.
    pub fn get(&self, path: &str, arguments: &[&str]) -> CurlAnswer {
        by_name(self.platform, &self.second, path, arguments)
    }

    /// Whether it came out of a cache, this edge's or another's.
    #[track_caller]
    pub fn is_hit(&self, answer: &CurlAnswer) -> bool {
        status(answer).contains("; hit")
    }

    pub fn asked(&self, path: &str) -> u64 {
        asked(self.platform, path)
    }

    /// Purges all, and lets the instance forget what it has counted.
    pub fn purge(&self) {
        let _purged =
            self.platform.atoll().run(&["cache", "purge", "--app", "counts", "--all"]).expect_code(0);
        assert_eq!(get(self.platform, "/forget", &[]).status, 200);
    }

    pub fn edges(&self) -> [&Edge; 2] {
        [&self.attacked, &self.second]
    }
}

/// Asks an edge by the name that is the same at each, where the arguments have no other one: a port would make it another resource.
#[allow(dead_code, reason = "not every test that shares this file asks so")]
pub fn by_name(platform: &Platform, edge: &Edge, path: &str, arguments: &[&str]) -> CurlAnswer {
    let own: &[&str] = match arguments.iter().any(|argument| argument.starts_with("Host:")) {
        true => &[],
        false => &["-H", "Host: counts.localhost"],
    };
    at(platform, edge, path, &[own, arguments].concat())
}
