//! Processes that belong to a data folder: found, and ended.
//!
//! A killed `atoll dev` leaves nodes, sidecars and instances behind. Nodes are known from `run.json`
//! and by their command line, which names a configuration file in the folder; sidecars by the socket
//! in the folder that they were started with; instances by `ATOLL_INSTANCE` in their environment,
//! where a host of the folder keeps that instance. A process that is none of these is not touched.

use super::procfs::{self, Process};
use super::state::RunFile;
use crate::failure::{Failure, Outcome};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest wait for killed processes to be gone.
const WAIT: Duration = Duration::from_secs(5);

/// What a process is to the data folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// `atoll node`.
    Node,
    /// `atoll sidecar`.
    Sidecar,
    /// A program that a host runs, or what it started.
    Instance,
}

/// Every living process of the data folder.
pub fn find(data: &Path, run: Option<&RunFile>) -> BTreeMap<Process, Part> {
    let instances = instance_ids(data);
    let mut found: BTreeMap<Process, Part> = procfs::pids()
        .into_iter()
        .filter(|pid| *pid != std::process::id())
        .filter_map(|pid| Some((Process::of(pid)?, pid)))
        .filter_map(|(process, pid)| Some((process, part_of(pid, data, &instances)?)))
        .collect();
    if let Some(run) = run.filter(|run| run.boot_id == procfs::boot_id()) {
        found.extend(
            run.nodes.values().filter(|process| process.is_alive()).map(|process| (*process, Part::Node)),
        );
    }
    found
}

fn part_of(pid: u32, data: &Path, instances: &BTreeSet<String>) -> Option<Part> {
    let arguments = procfs::arguments(pid);
    if let Some(part) = part_by_arguments(&arguments, data, instances) {
        return Some(part);
    }
    let instance = procfs::variable(pid, "ATOLL_INSTANCE")?;
    instances.contains(&instance).then_some(Part::Instance)
}

fn part_by_arguments(arguments: &[String], data: &Path, instances: &BTreeSet<String>) -> Option<Part> {
    let value_of = |flag: &str| arguments.iter().skip_while(|argument| *argument != flag).nth(1);
    let inside = |flag: &str| value_of(flag).is_some_and(|path| Path::new(path).starts_with(data));
    match arguments.get(1)?.as_str() {
        "node" if inside("--config") => Some(Part::Node),
        "sidecar"
            if inside("--socket") || value_of("--instance").is_some_and(|id| instances.contains(id)) =>
        {
            Some(Part::Sidecar)
        }
        _ => None,
    }
}

/// The instances that the folder's hosts keep: `nodes/NODE/instances/ID`.
fn instance_ids(data: &Path) -> BTreeSet<String> {
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    entries(&data.join("nodes"))
        .flat_map(|node| entries(&node.path().join("instances")).collect::<Vec<_>>())
        .filter_map(|instance| instance.file_name().into_string().ok())
        .collect()
}

/// Kills every process of the data folder, those that appear meanwhile too, and says how many there were.
pub fn end_all(data: &Path, run: Option<&RunFile>) -> Outcome<usize> {
    let until = Instant::now() + WAIT;
    let mut killed = BTreeSet::new();
    loop {
        let found = find(data, run);
        if found.is_empty() {
            return Ok(killed.len());
        }
        if Instant::now() > until {
            let pids: Vec<String> = found.keys().map(|process| process.pid.to_string()).collect();
            return Err(Failure::failed("processes that an earlier `atoll dev` left can't be ended")
                .place(format!("pids {}", pids.join(", ")))
                .fix("end them, or use another folder with --data"));
        }
        // Nodes first: a host would start its instances again.
        for process in
            parts(&found, Part::Node).chain(parts(&found, Part::Sidecar)).chain(parts(&found, Part::Instance))
        {
            end(process);
            killed.insert(process);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn parts(found: &BTreeMap<Process, Part>, wanted: Part) -> impl Iterator<Item = Process> {
    found.iter().filter(move |(_, part)| **part == wanted).map(|(process, _)| *process)
}

/// Kills a process, and its group where it leads one. An error means that it is gone already.
fn end(process: Process) {
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else { return };
    let leads = process.group() == Some(process.pid);
    if !process.is_alive() {
        return;
    }
    let _gone = if leads { kill_process_group(pid, Signal::KILL) } else { kill_process(pid, Signal::KILL) };
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    #[test]
    fn command_lines_of_other_folders_are_left_alone() {
        let arguments = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let part = |text: &str| {
            part_by_arguments(
                &arguments(text),
                Path::new("/data/dev"),
                &BTreeSet::from(["i-ours".to_owned()]),
            )
        };
        assert_eq!(part("/bin/atoll node --config /data/dev/nodes/a.toml"), Some(Part::Node));
        assert_eq!(
            part("atoll sidecar --socket /data/dev/nodes/h/s.sock --instance i-1"),
            Some(Part::Sidecar)
        );
        assert_eq!(part("atoll sidecar --socket /run/s.sock --instance i-ours"), Some(Part::Sidecar));
        assert_eq!(part("atoll sidecar --socket /run/s.sock --instance i-other"), None);
        assert_eq!(part("atoll node --config /data/dev2/nodes/a.toml"), None);
        assert_eq!(part("vim node /data/dev/nodes/a.toml"), None);
        assert_eq!(part("atoll dev --data /data/dev"), None);
        assert_eq!(part("atoll"), None);
    }

    #[test]
    fn what_was_left_is_ended_with_its_group() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        std::fs::create_dir_all(data.join("nodes/fra1-host/instances/i-left")).unwrap();
        let mut ours = Command::new("sh")
            .args(["-c", "sleep 100 & sleep 100"])
            .env("ATOLL_INSTANCE", "i-left")
            .process_group(0)
            .spawn()
            .unwrap();
        let mut other = Command::new("sleep")
            .arg("100")
            .env("ATOLL_INSTANCE", "i-other")
            .process_group(0)
            .spawn()
            .unwrap();
        let until = Instant::now() + WAIT;
        while procfs::variable(ours.id(), "ATOLL_INSTANCE").is_none() && Instant::now() < until {
            std::thread::yield_now();
        }
        // The zombie that is left is ours to wait for, and does not count as alive.
        assert!(end_all(data, None).unwrap() >= 1);
        assert!(!ours.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn recorded_nodes_count_only_in_the_same_boot() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep").arg("100").process_group(0).spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        let mut run = RunFile { boot_id: "another".to_owned(), ..RunFile::default() };
        run.nodes.insert("n".to_owned(), process);
        assert!(find(folder.path(), Some(&run)).is_empty());
        run.boot_id = procfs::boot_id();
        assert_eq!(find(folder.path(), Some(&run)).get(&process), Some(&Part::Node));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
