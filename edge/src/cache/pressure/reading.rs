//! How much memory there is, and how much of it is used: what Linux says of the cgroup and of the machine.
//!
//! A limit may be set at any level above the process's own cgroup, so that all are looked at. Of several the one counts that is
//! the nearest to being full. Elsewhere than on Linux there is nothing to read.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

/// Longest file that is read; the longest, `memory.stat`, has some 2 KiB.
const BYTES_MAX: u64 = 64 * 1024;
/// Most levels of cgroups that are looked at.
const LEVELS_MAX: usize = 64;

/// Memory of a cgroup, a machine or a process, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// In use, without what the kernel can take back at once.
    pub used: u64,
    /// All there is.
    pub limit: u64,
}

impl Reading {
    /// Whether more of this one is used, for its size.
    fn is_fuller_than(self, other: Self) -> bool {
        u128::from(self.used) * u128::from(other.limit) > u128::from(other.used) * u128::from(self.limit)
    }
}

/// Reads what counts for this process. Blocks for some microseconds.
#[must_use]
pub fn read() -> Option<Reading> {
    Files::at("/").read()
}

/// The same, or, with a limit for the process itself, bytes, what it uses of that.
#[must_use]
pub fn read_with(limit: Option<u64>) -> Option<Reading> {
    let Some(limit) = limit else { return read() };
    Some(Reading { used: Files::at("/").process()?, limit })
}

/// Where the files are; tests have their own.
#[derive(Debug)]
struct Files {
    root: PathBuf,
}

impl Files {
    fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn read(&self) -> Option<Reading> {
        let cgroups = self.text("proc/self/cgroup").unwrap_or_default();
        let unified = Cgroup::unified(&cgroups).map(|cgroup| self.tightest(&cgroup));
        let legacy = Cgroup::legacy(&cgroups).map(|cgroup| self.tightest(&cgroup));
        [unified.flatten(), legacy.flatten(), self.machine()].into_iter().flatten().reduce(fuller)
    }

    fn machine(&self) -> Option<Reading> {
        let text = self.text("proc/meminfo")?;
        let limit = field(&text, "MemTotal:")?;
        Some(Reading { used: limit.saturating_sub(field(&text, "MemAvailable:")?), limit })
    }

    /// What this process uses.
    fn process(&self) -> Option<u64> {
        field(&self.text("proc/self/status")?, "VmRSS:")
    }

    /// The fullest of a cgroup and those above it.
    fn tightest(&self, cgroup: &Cgroup) -> Option<Reading> {
        let levels = cgroup.path.ancestors().take(LEVELS_MAX);
        levels.filter_map(|level| self.level(cgroup.names, level)).reduce(fuller)
    }

    fn level(&self, names: &Names, level: &Path) -> Option<Reading> {
        let folder = Path::new(names.mount).join(level);
        let text = |name| self.text(folder.join(name));
        let limit = names.limits.iter().filter_map(|name| number(&text(*name)?)).min()?;
        let used = number(&text(names.used)?)?;
        let inactive = text("memory.stat").and_then(|stat| field(&stat, names.inactive)).unwrap_or(0);
        // The old version writes a number near 2^63 where there is no limit.
        (limit < 1 << 60).then_some(Reading { used: used.saturating_sub(inactive), limit })
    }

    fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let mut text = String::new();
        File::open(self.root.join(path)).ok()?.take(BYTES_MAX).read_to_string(&mut text).ok()?;
        Some(text)
    }
}

fn fuller(one: Reading, other: Reading) -> Reading {
    if one.is_fuller_than(other) { one } else { other }
}

/// What the files of a version of cgroups are called.
#[derive(Debug)]
struct Names {
    mount: &'static str,
    limits: &'static [&'static str],
    used: &'static str,
    /// File pages that nobody has used for a while, which the kernel takes back first: in `memory.stat`.
    inactive: &'static str,
}

const UNIFIED: Names = Names {
    mount: "sys/fs/cgroup",
    limits: &["memory.max", "memory.high"],
    used: "memory.current",
    inactive: "inactive_file",
};
const LEGACY: Names = Names {
    mount: "sys/fs/cgroup/memory",
    limits: &["memory.limit_in_bytes"],
    used: "memory.usage_in_bytes",
    inactive: "total_inactive_file",
};

/// The cgroup that a process is in.
#[derive(Debug)]
struct Cgroup {
    names: &'static Names,
    /// From the mount; empty for the topmost.
    path: PathBuf,
}

impl Cgroup {
    /// Of version 2, in the text of `/proc/self/cgroup`.
    fn unified(text: &str) -> Option<Self> {
        let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
        Some(Self { names: &UNIFIED, path: below_mount(path) })
    }

    /// Of version 1.
    fn legacy(text: &str) -> Option<Self> {
        let path = text.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|controller| controller == "memory").then_some(path)
        })?;
        Some(Self { names: &LEGACY, path: below_mount(path) })
    }
}

/// A cgroup's path without the slash. One that leads out of what is visible here is the topmost that is.
fn below_mount(path: &str) -> PathBuf {
    let path = Path::new(path);
    let path = path.strip_prefix("/").unwrap_or(path);
    if path.components().all(|part| matches!(part, Component::Normal(_))) {
        path.into()
    } else {
        PathBuf::new()
    }
}

/// A file with one number; nothing for `max`.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number after a name, bytes, also where it is in kB.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        words.next().filter(|word| *word == name)?;
        let number = words.next()?.parse::<u64>().ok()?;
        match words.next() {
            None => Some(number),
            Some("kB") => number.checked_mul(1024),
            Some(_) => None,
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use tempfile::TempDir;

    const MEMINFO: &str = "MemTotal:       1000 kB\nMemFree:          10 kB\nMemAvailable:    600 kB\n";

    fn machine(files: &[(&str, &str)]) -> TempDir {
        let root = TempDir::new().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn read_of(files: &[(&str, &str)]) -> Option<Reading> {
        Files::at(machine(files).path()).read()
    }

    #[test]
    fn a_machine_without_cgroups() {
        let whole = Some(Reading { used: 400 * 1024, limit: 1000 * 1024 });
        assert_eq!(read_of(&[("proc/meminfo", MEMINFO)]), whole);
        assert_eq!(read_of(&[("proc/meminfo", MEMINFO), ("proc/self/cgroup", "0::/none\n")]), whole);
        assert_eq!(read_of(&[("proc/meminfo", "MemTotal: x kB")]), None);
        assert_eq!(read_of(&[]), None);
    }

    #[test]
    fn limits_at_any_level_count_and_the_fullest_wins() {
        let files = [
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "1:name=systemd:/x\n0::/a.slice/b.service\n"),
            ("sys/fs/cgroup/a.slice/memory.max", "max\n"),
            ("sys/fs/cgroup/a.slice/memory.high", "1000\n"),
            ("sys/fs/cgroup/a.slice/memory.current", "990\n"),
            ("sys/fs/cgroup/a.slice/memory.stat", "anon 5\ninactive_file 90\nactive_file 7\n"),
            ("sys/fs/cgroup/a.slice/b.service/memory.max", "800\n"),
            ("sys/fs/cgroup/a.slice/b.service/memory.high", "max\n"),
            ("sys/fs/cgroup/a.slice/b.service/memory.current", "600\n"),
        ];
        assert_eq!(read_of(&files), Some(Reading { used: 900, limit: 1000 }));
        let root = machine(&files);
        fs::write(root.path().join("sys/fs/cgroup/a.slice/b.service/memory.high"), "601\n").unwrap();
        assert_eq!(Files::at(root.path()).read(), Some(Reading { used: 600, limit: 601 }));
        fs::write(root.path().join("proc/meminfo"), "MemTotal: 10 kB\nMemAvailable: 0 kB\n").unwrap();
        assert_eq!(Files::at(root.path()).read(), Some(Reading { used: 10_240, limit: 10_240 }));
    }

    #[test]
    fn the_old_version() {
        let folder = "sys/fs/cgroup/memory";
        let [limit, used, stat] = ["memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"]
            .map(|name| format!("{folder}/{name}"));
        let mut files = [
            ("proc/meminfo", MEMINFO),
            // In a container the path is that of the machine, and its folder is not there.
            ("proc/self/cgroup", "4:cpu,memory:/docker/abc\n0::/\n"),
            (limit.as_str(), "1000\n"),
            (used.as_str(), "700\n"),
            (stat.as_str(), "inactive_file 1\ntotal_inactive_file 200\n"),
        ];
        assert_eq!(read_of(&files), Some(Reading { used: 500, limit: 1000 }));
        files[2].1 = "9223372036854771712\n";
        assert_eq!(read_of(&files).unwrap().limit, 1000 * 1024, "no limit");
    }

    #[test]
    fn a_path_never_leads_out() {
        for (path, below) in
            [("/", ""), ("/a/b", "a/b"), ("/../a", ""), ("/a/../../b", ""), ("", ""), ("a", "a")]
        {
            assert_eq!(below_mount(path), Path::new(below), "{path}");
        }
    }

    #[test]
    fn a_process_by_its_own_limit() {
        let root = machine(&[("proc/self/status", "Name:\tx\nVmHWM:\t 99 kB\nVmRSS:\t    12 kB\n")]);
        assert_eq!(Files::at(root.path()).process(), Some(12 * 1024));
        if cfg!(target_os = "linux") {
            let Reading { used, limit } = read_with(Some(7)).unwrap();
            assert!(used > 100_000 && limit == 7);
            let Reading { used, limit } = read().unwrap();
            assert!(used > 0 && limit > 1 << 20);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(\\PC|[:\\n0-9/. ]|0::|memory|VmRSS: ){0,60}") {
            let _ = (field(&text, "VmRSS:"), number(&text), below_mount(&text));
            let _ = (Cgroup::unified(&text), Cgroup::legacy(&text));
        }
    }
}
