//! What `/proc` says about processes.

use std::path::{Path, PathBuf};

/// A process, safe against its pid being used again: together with the boot, the pid and the start
/// time name one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// Clock ticks from boot to its start.
    pub start_ticks: u64,
}

impl Process {
    /// The process that has that pid now.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields = after_name(&stat)?;
        // Zombies are over: only their parent can remove them.
        if fields.first() == Some(&"Z") {
            return None;
        }
        Some(Self { pid, start_ticks: fields.get(19)?.parse().ok()? })
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Its process group.
    pub fn group(self) -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        after_name(&stat)?.get(2)?.parse().ok()
    }
}

/// The fields after the program's name, which may hold spaces and parentheses itself.
fn after_name(stat: &str) -> Option<Vec<&str>> {
    stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect())
}

/// This boot of the machine; ticks and pids of another mean nothing.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The pids of all processes.
pub fn pids() -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The arguments of a process of ours, the program first; empty for those of others.
pub fn arguments(pid: u32) -> Vec<String> {
    strings(Path::new(&format!("/proc/{pid}/cmdline")))
}

/// The value of a variable in the environment that a process of ours was started with.
pub fn variable(pid: u32, name: &str) -> Option<String> {
    let entries = strings(&PathBuf::from(format!("/proc/{pid}/environ")));
    entries.into_iter().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
}

fn strings(path: &Path) -> Vec<String> {
    let bytes = std::fs::read(path).unwrap_or_default();
    let parts = bytes.split(|byte| *byte == 0).filter(|part| !part.is_empty());
    parts.map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn we_are_found() {
        let me = Process::of(std::process::id()).unwrap();
        assert!(me.is_alive() && me.start_ticks > 0);
        assert!(!Process { start_ticks: me.start_ticks + 1, ..me }.is_alive());
        assert!(pids().contains(&me.pid));
        assert!(!arguments(me.pid).is_empty());
        assert_eq!(variable(me.pid, "PATH"), std::env::var("PATH").ok());
        assert!(me.group().is_some());
        assert!(!boot_id().is_empty());
    }

    #[test]
    fn names_with_parentheses_are_read() {
        let fields = after_name("12 (a) b (c)) S 1 7 7 0").unwrap();
        assert_eq!(&fields[..3], ["S", "1", "7"]);
    }
}
