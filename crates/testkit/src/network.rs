//! A network that a test may break: a namespace of the test's own, in which packets can be dropped.

use std::process::{Command, Stdio};

/// Set in the process that runs in its own namespace.
const INSIDE: &str = "ATOLL_TEST_OWN_NETWORK";

/// Runs the test of that name again, alone, in a network namespace of its own with nothing but loopback, and
/// says how it went; nothing inside of it. Where namespaces or nft can't be had the test is skipped, with
/// the reason.
///
/// ```no_run
/// # use atoll_testkit::network;
/// if !network::inside_own("a_region_is_lost") {
///     return;
/// }
/// ```
///
/// # Panics
/// When the test fails there.
#[must_use]
pub fn inside_own(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if let Err(why) = can_be_had() {
        println!("skipped: {why}");
        return false;
    }
    let executable = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command
        .args(["--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"])
        .arg(executable)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1");
    let ended = command.status().unwrap();
    assert!(ended.success(), "{test} failed in its own network: {ended}");
    false
}

fn can_be_had() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("only root can make a network namespace".to_owned());
    }
    let rules = "add table inet atoll_probe; delete table inet atoll_probe";
    let probe = format!("ip link set lo up && nft '{rules}'");
    let tried = Command::new("unshare")
        .args(["--net", "sh", "-c", &probe])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("no unshare: {error}"))?;
    if tried.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&tried.stderr).trim().to_owned();
    Err(format!("packets can't be dropped in a network namespace here (Debian: iproute2, nftables): {why}"))
}

/// Packets from and to some ports are dropped until this is dropped: no answer, no reset, nothing.
#[derive(Debug)]
pub struct BlackHole {
    _private: (),
}

impl BlackHole {
    /// Drops every packet, TCP and UDP, from and to these ports. Only inside [`inside_own`].
    ///
    /// # Panics
    /// Outside of it, and when nft refuses.
    #[must_use]
    pub fn around(ports: &[u16]) -> Self {
        assert!(std::env::var_os(INSIDE).is_some(), "this would break the machine's network");
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        let ports = ports.join(", ");
        nft(&format!(
            "add table inet atoll_hole\n\
             add chain inet atoll_hole in {{ type filter hook input priority 0; }}\n\
             add rule inet atoll_hole in meta l4proto {{ tcp, udp }} th dport {{ {ports} }} drop\n\
             add rule inet atoll_hole in meta l4proto {{ tcp, udp }} th sport {{ {ports} }} drop"
        ));
        Self { _private: () }
    }
}

impl Drop for BlackHole {
    fn drop(&mut self) {
        nft("delete table inet atoll_hole");
    }
}

fn nft(rules: &str) {
    let done = Command::new("nft").arg(rules).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(0), "nft {rules}: {said}");
}
