//! What `/proc` says about processes, and ending them.

use rustix::process::{Pid, Signal};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The pids of living processes that belong to a folder: it is in their command line or environment,
/// or their working directory is inside it. Never this process.
#[must_use]
pub fn of_folder(folder: &Path) -> Vec<u32> {
    let me = std::process::id();
    pids().into_iter().filter(|pid| *pid != me && belongs(*pid, folder) && is_alive(*pid)).collect()
}

fn belongs(pid: u32, folder: &Path) -> bool {
    let wanted = folder.as_os_str().as_bytes();
    let holds = |file: &str| {
        std::fs::read(format!("/proc/{pid}/{file}"))
            .is_ok_and(|bytes| bytes.windows(wanted.len()).any(|part| part == wanted))
    };
    holds("cmdline") || holds("environ") || is_inside(pid, folder)
}

fn is_inside(pid: u32, folder: &Path) -> bool {
    std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(folder))
}

fn pids() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Whether the process runs; one that waits only for its parent to look does not.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| fields.first().is_some_and(|state| state != "Z" && state != "X"))
}

/// The processes that it started itself and that have not been waited for.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let parent = pid.to_string();
    pids().into_iter().filter(|pid| stat(*pid).is_some_and(|fields| fields.get(1) == Some(&parent))).collect()
}

/// Clock ticks from boot to its start; with the pid it names one process.
#[must_use]
pub fn start_ticks(pid: u32) -> Option<u64> {
    stat(pid)?.get(19)?.parse().ok()
}

/// The fields of `stat` after the name, which may hold spaces.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// The command line, with spaces between the arguments.
#[must_use]
pub fn command_line(pid: u32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
}

/// The TCP ports on which a process listens, over IPv4.
#[must_use]
pub fn listening_ports(pid: u32) -> Vec<u16> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let sockets: Vec<String> = links
        .filter_map(|link| std::fs::read_link(link.path()).ok())
        .filter_map(|to| to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned))
        .collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    let mut ports: Vec<u16> = table.lines().skip(1).filter_map(|line| listening(line, &sockets)).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// The port of a line of the kernel's table, if it is one of those sockets and listens (state 0A).
fn listening(line: &str, sockets: &[String]) -> Option<u16> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let is_ours = sockets.iter().any(|socket| Some(&socket.as_str()) == fields.get(9));
    if *fields.get(3)? != "0A" || !is_ours {
        return None;
    }
    u16::from_str_radix(fields.get(1)?.rsplit_once(':')?.1, 16).ok()
}

/// Sends a signal to a process; one that is gone is left alone.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _gone = rustix::process::kill_process(pid, signal);
    }
}

/// SIGKILL.
pub fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Resident memory now, bytes.
#[must_use]
pub fn memory(pid: u32) -> Option<u64> {
    status_kib(pid, "VmRSS:")
}

/// The most resident memory since the start, or since [`reset_memory_peak`], bytes.
#[must_use]
pub fn memory_peak(pid: u32) -> Option<u64> {
    status_kib(pid, "VmHWM:")
}

/// Lets the peak start again from what is used now.
pub fn reset_memory_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

fn status_kib(pid: u32, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// How much the resident memory of each process grew, at its peak, while `work` ran: pid, command
/// line, bytes. Processes that ended meanwhile are left out.
pub fn memory_growth<T>(pids: &[u32], work: impl FnOnce() -> T) -> (T, Vec<(u32, String, u64)>) {
    let before: Vec<(u32, u64)> = pids
        .iter()
        .filter_map(|pid| {
            reset_memory_peak(*pid);
            Some((*pid, memory(*pid)?))
        })
        .collect();
    let result = work();
    let growth = before
        .into_iter()
        .filter_map(|(pid, before)| Some((pid, command_line(pid), memory_peak(pid)?.saturating_sub(before))))
        .collect();
    (result, growth)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_found_by_its_folder_and_killed() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep").arg("100").current_dir(folder.path()).spawn().unwrap();
        crate::wait_until("the child is found", std::time::Duration::from_secs(5), || {
            of_folder(folder.path()) == [child.id()]
        });
        assert!(start_ticks(child.id()).unwrap() > 0);
        kill(child.id());
        child.wait().unwrap();
        assert!(of_folder(folder.path()).is_empty() && !is_alive(child.id()));
    }

    #[test]
    fn a_listening_port_is_found() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listening_ports(std::process::id()).contains(&port));
    }

    #[test]
    fn growth_is_seen_at_its_peak() {
        let me = std::process::id();
        let ((), growth) = memory_growth(&[me], || {
            let block = vec![1_u8; 64 << 20];
            assert_eq!(std::hint::black_box(&block)[1000], 1);
        });
        assert!(growth[0].2 >= 60 << 20, "{growth:?}");
    }
}
