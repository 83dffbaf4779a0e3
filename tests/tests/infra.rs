//! What operators install: configurations are usable, units are well-formed, and the lab comes up, loses a
//! region, and goes down without a trace.
#![allow(clippy::print_stderr, clippy::unwrap_used, reason = "a test")]

use atoll_testkit::{Atoll, atoll_binary, wait_until};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

fn infra(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra").join(path)
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(infra(folder)).unwrap().map(|entry| entry.unwrap().path());
    let found: Vec<PathBuf> = all.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    assert!(!found.is_empty(), "nothing in {folder}");
    found
}

#[test]
fn example_configurations_are_usable() {
    let folder = tempfile::tempdir().unwrap();
    let atoll = Atoll::new(folder.path());
    for file in files("examples", "toml") {
        let _usable = atoll.run(&["node", "--check", "--config", file.to_str().unwrap()]).expect_code(0);
    }
    let broken = folder.path().join("broken.toml");
    let text = std::fs::read_to_string(infra("examples/fra-edge.toml")).unwrap();
    std::fs::write(&broken, text.replace("https ", "htps ")).unwrap();
    let refused = atoll.run(&["node", "--check", "--config", broken.to_str().unwrap()]).expect_code(2);
    assert!(refused.stderr.contains("htps") && refused.stderr.contains("line"), "{}", refused.stderr);
}

/// systemd's own opinion of the units, as if `atoll` were installed.
#[test]
fn units_are_well_formed() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("skipped: systemd-analyze is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for unit in files("systemd", "service") {
        let copy = folder.path().join(unit.file_name().unwrap());
        let text = std::fs::read_to_string(&unit).unwrap();
        std::fs::write(&copy, text.replace("/usr/bin/atoll", atoll_binary().to_str().unwrap())).unwrap();
        let Output { status, stdout, stderr } =
            Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&copy).output().unwrap();
        let said = [stdout, stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let of_ours: Vec<&str> = said.lines().filter(|line| line.contains("atoll-")).collect();
        assert!(status.success() && of_ours.is_empty(), "{}: {of_ours:?}", unit.display());
    }
}

/// The lab; it goes down when this is dropped.
struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    fn run(&self, arguments: &[&str]) -> Output {
        let folder = self.folder.path().join("lab");
        Command::new("python3")
            .arg(infra("lab/lab"))
            .arg("--dir")
            .arg(folder)
            .args(arguments)
            .output()
            .unwrap()
    }

    /// The region that serves a client in `region`; nothing where it got no good answer.
    fn served_by(&self, region: &str) -> Option<String> {
        let answer: serde_json::Value =
            serde_json::from_slice(&self.run(&["curl", region, "/json"]).stdout).ok()?;
        Some(answer["region"].as_str()?.to_owned())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _down = self.run(&["down"]);
    }
}

#[test]
fn the_lab_comes_up_loses_a_region_and_goes_down() {
    if let Some(why) = why_no_lab() {
        eprintln!("skipped: the lab needs root and network namespaces: {why}");
        return;
    }
    let lab = Lab { folder: tempfile::tempdir().unwrap() };
    let up = lab.run(&["up", "--atoll", atoll_binary().to_str().unwrap(), "--regions", "fra,was"]);
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    for region in ["fra", "was"] {
        assert_eq!(lab.served_by(region).as_deref(), Some(region));
    }
    assert!(lab.run(&["kill", "was-gw"]).status.success());
    wait_until("was is served from fra", Duration::from_secs(10), || {
        lab.served_by("was").as_deref() == Some("fra")
    });
    assert!(lab.run(&["start", "was-gw"]).status.success());
    wait_until("was serves itself again", Duration::from_secs(20), || {
        lab.served_by("was").as_deref() == Some("was")
    });
    assert!(lab.run(&["cut", "fra"]).status.success());
    assert_eq!(lab.served_by("was").as_deref(), Some("was"), "control's region is gone, without a word");
    assert!(lab.run(&["mend", "fra"]).status.success());
    assert!(lab.run(&["down"]).status.success());
    let left = Command::new("ip").args(["netns", "list"]).output().unwrap().stdout;
    let left = String::from_utf8_lossy(&left);
    assert!(!left.lines().any(|line| line.starts_with("atl-")), "{left}");
}

fn why_no_lab() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("no /dev/net/tun".to_owned());
    }
    let listed = Command::new("ip").args(["netns", "list"]).output();
    match listed {
        Ok(output)
            if String::from_utf8_lossy(&output.stdout).lines().any(|line| line.starts_with("atl-")) =>
        {
            Some("a lab is up on this machine".to_owned())
        }
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Some(format!("`ip`: {error}")),
    }
}
