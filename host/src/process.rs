//! A process that leads its own group: started here, or left by an earlier run of the host.

use crate::procfs;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{debug, warn};

/// How often a process is looked at that is no child of ours: nobody tells us of its end.
const POLL: Duration = Duration::from_millis(50);
/// The same for a child. SIGCHLD tells us of it; this is for signals that got lost.
const POLL_CHILD: Duration = Duration::from_secs(1);

/// A running process and its group.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    start_time: u64,
    /// Absent for one that an earlier run of the host started: its status is told to somebody else.
    child: Option<Child>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The exit status; -1 after a signal, or when nobody knows.
    pub status: i32,
    /// The signal, or 0.
    pub signal: i32,
}

impl Process {
    /// Starts `command` as the leader of a new group, without input, its output appended to `output`.
    pub fn start(command: &mut Command, output: &Path) -> io::Result<Self> {
        let (out, err) = outputs(output);
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0).spawn()?;
        let pid = child.id();
        // It can't be gone: nobody has asked for its status yet.
        let start_time = procfs::stat(pid).map_or(0, |stat| stat.start_time);
        Ok(Self { pid, start_time, child: Some(child) })
    }

    /// The process with this pid, if it is the one that started then.
    #[must_use]
    pub fn adopt(pid: u32, start_time: u64) -> Option<Self> {
        procfs::is_alive(pid, start_time).then_some(Self { pid, start_time, child: None })
    }

    /// Its pid, also its group's.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Clock ticks since boot when it started.
    #[must_use]
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Sends a signal to the whole group.
    pub fn signal(&self, signal: Signal) {
        // Of a child nobody else can have asked the status, so that its pid is still its own.
        if self.child.is_some()
            || procfs::stat(self.pid).is_some_and(|stat| stat.start_time == self.start_time)
        {
            signal_group(self.pid, signal);
        }
    }

    /// Waits for the leader's end, kills what is left of its group, and takes the status. Cancel-safe.
    pub async fn ended(&mut self) -> Ended {
        self.leader_ended().await;
        // Before the status is taken: until then the kernel gives the pid to nobody else.
        signal_group(self.pid, Signal::KILL);
        let unknown = Ended { status: -1, signal: 0 };
        let Some(child) = &mut self.child else { return unknown };
        match child.wait() {
            Ok(status) => Ended { status: status.code().unwrap_or(-1), signal: status.signal().unwrap_or(0) },
            Err(cause) => {
                warn!(pid = self.pid, %cause, "no exit status");
                unknown
            }
        }
    }

    async fn leader_ended(&self) {
        if self.child.is_none() {
            while procfs::is_alive(self.pid, self.start_time) {
                tokio::time::sleep(POLL).await;
            }
            return;
        }
        // Listens first, then looks: an end in between is not missed.
        let mut children = signal(SignalKind::child()).ok();
        while !has_ended(self.pid) {
            match &mut children {
                Some(children) => {
                    let _late = tokio::time::timeout(POLL_CHILD, children.recv()).await;
                }
                None => tokio::time::sleep(POLL).await,
            }
        }
    }
}

/// Whether a child has ended. Leaves its status to be taken: until then the kernel gives the pid to nobody else.
fn has_ended(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return true };
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // An error means that it is no child any more.
    !matches!(waitid(WaitId::Pid(pid), options), Ok(None))
}

/// Sends a signal to every process of a group. An empty group is no error.
pub fn signal_group(group: u32, signal: Signal) {
    let Some(group) = i32::try_from(group).ok().filter(|group| *group > 1).and_then(Pid::from_raw) else {
        return;
    };
    if let Err(cause) = kill_process_group(group, signal) {
        debug!(?group, ?signal, %cause, "no process was signalled");
    }
}

/// Kills what carries `NAME=value` in its environment: processes that left their group, or were started
/// just before the host was killed. Says how many there were.
pub fn kill_strays(name: &str, value: &str) -> usize {
    let strays = procfs::with_environment(name, value);
    for pid in &strays {
        let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) else { continue };
        let _gone = rustix::process::kill_process(pid, Signal::KILL);
    }
    strays.len()
}

/// The output file, twice; without a place for it the output is dropped, which must not stop a program.
fn outputs(path: &Path) -> (Stdio, Stdio) {
    let open = || -> io::Result<(File, File)> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        Ok((file.try_clone()?, file))
    };
    match open() {
        Ok((out, err)) => (out.into(), err.into()),
        Err(cause) => {
            warn!(path = %path.display(), %cause, "output is dropped: its file cannot be opened");
            (Stdio::null(), Stdio::null())
        }
    }
}
