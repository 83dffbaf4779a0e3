//! What processes use, from `/proc`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// What Linux counts CPU time in, on every machine we run on.
const TICK_MS: u64 = 10;

/// What a process, or a group of them, uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// CPU time since start, with that of children that have ended, ms.
    pub cpu_ms: u64,
    /// Resident memory, bytes. Pages that several share count for each.
    pub memory_bytes: u64,
}

impl Usage {
    fn add(&mut self, other: Self) {
        self.cpu_ms += other.cpu_ms;
        self.memory_bytes += other.memory_bytes;
    }
}

/// What this process uses.
#[must_use]
pub fn of_self() -> Usage {
    read("self").map(|(_group, usage)| usage).unwrap_or_default()
}

/// What the processes of each group use together. Groups without a process are left out. Looks at
/// every process of the machine.
#[must_use]
pub fn of_groups(groups: &BTreeSet<u32>) -> BTreeMap<u32, Usage> {
    let mut used = BTreeMap::<u32, Usage>::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) else {
            continue;
        };
        let Some(group) = stat(pid).map(|stat| stat.group) else { continue };
        if groups.contains(&group)
            && let Some((_, usage)) = read(pid)
        {
            used.entry(group).or_default().add(usage);
        }
    }
    used
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    group: u32,
    ticks: u64,
}

fn read(pid: &str) -> Option<(u32, Usage)> {
    let Stat { group, ticks } = stat(pid)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some((group, Usage { cpu_ms: ticks * TICK_MS, memory_bytes: resident(&status) }))
}

fn stat(pid: &str) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The second field is the program's name in parentheses, and may hold anything, also `)`.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    // utime, stime, cutime, cstime.
    let ticks = (11..15).map(number).sum::<Option<u64>>()?;
    Some(Stat { group: fields.get(2)?.parse().ok()?, ticks })
}

/// Nothing for a process that has ended and was not waited for.
fn resident(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_usage_is_there_and_our_group_has_it() {
        let own = of_self();
        assert!(own.memory_bytes > 100_000, "{own:?}");
        let group = stat("self").unwrap().group;
        let used = of_groups(&[group, 999_999_999].into());
        assert_eq!(used.len(), 1);
        assert!(used[&group].memory_bytes > 100_000);
    }

    #[test]
    fn names_may_hold_anything() {
        let text = "7 (a) b) S 1 7 7 0 -1 4 1 0 0 0 3 2 1 4 20 0 1 0 99 0 0";
        assert_eq!(parse_stat(text), Some(Stat { group: 7, ticks: 10 }));
        assert_eq!(resident("Name:\tx\nVmRSS:\t    12 kB\n"), 12 * 1024);
    }
}
