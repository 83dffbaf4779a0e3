//! An instance through which a test runs commands, as the program in it would: with its environment.

use crate::{Edge, Platform};
use std::fs;
use std::path::Path;
use std::process::Command;

const PROGRAM: &str = include_str!("probe.py");

/// What a command in an instance came to.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Its exit status.
    pub code: i64,
    /// What it said.
    pub out: String,
    /// What it complained of.
    pub err: String,
}

impl Ran {
    /// The status in the head that `curl -i` has shown; 0 without one.
    #[must_use]
    pub fn status(&self) -> u16 {
        let line = self.out.lines().find(|line| line.starts_with("HTTP/")).unwrap_or_default();
        line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    /// A field of that head.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<String> {
        let fields = self.out.lines().skip(1).take_while(|line| !line.trim().is_empty());
        let mut fields = fields.filter_map(|line| line.split_once(':'));
        let found = fields.find(|(have, _)| have.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim().to_owned())
    }
}

/// The words of `run` of a probe in whose folder [`write_probe`] has put its program.
///
/// # Panics
/// Without python3.
#[must_use]
pub fn probe_words() -> String {
    // The interpreter itself: a wrapper in the PATH may want an environment that instances don't get.
    let output = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output();
    let python = String::from_utf8(output.expect("python3 is installed").stdout).unwrap();
    format!("[{:?}, \"probe.py\"]", python.trim())
}

/// Puts the probe's program beside a manifest.
///
/// # Panics
/// When it can't be written.
pub fn write_probe(folder: &Path) {
    fs::write(folder.join("probe.py"), PROGRAM).unwrap();
}

impl Platform {
    /// Runs a line of the shell in the probe that answers at `<label>.localhost`.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    #[track_caller]
    pub fn run_in(&self, edge: &Edge, label: &str, line: &str) -> Ran {
        let answer = self.curl(edge, label, "/").arguments(["--data-binary", line]).run();
        assert_eq!(answer.status, 200, "{line}: {answer:?}");
        let said = answer.json();
        let text = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
        Ran { code: said["code"].as_i64().unwrap_or(-1), out: text("out"), err: text("err") }
    }
}
