//! The nodes' processes: started, watched, started again, stopped.

use super::layout::NodePlan;
use super::logs;
use crate::out;
use atoll_process::Drain;
use rustix::process::{Pid, Signal, kill_process};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::Instant;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A node that ran this long was well: its next crash is not one of a series.
const WELL_AFTER: Duration = Duration::from_secs(30);
/// How long a node may take to end after SIGTERM. More than its own drain, and than a host's time to
/// stop its instances.
const STOP_WAIT: Duration = Duration::from_secs(15);

/// What happened to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeEvent {
    /// It has a process.
    Started {
        /// The node.
        name: String,
        /// The process.
        pid: u32,
    },
    /// Its process ended although nobody asked it to.
    Crashed {
        /// The node.
        name: String,
    },
}

/// How long to wait before the next start.
#[derive(Debug)]
struct Backoff(Duration);

impl Backoff {
    fn after(&mut self, ran: Duration) -> Duration {
        if ran >= WELL_AFTER {
            self.0 = BACKOFF_MIN;
        }
        let wait = self.0;
        self.0 = (self.0 * 2).min(BACKOFF_MAX);
        wait
    }
}

/// Keeps one node running until `drain`; then ends it, with SIGKILL if it takes too long.
pub async fn watch(node: NodePlan, program: PathBuf, events: mpsc::Sender<NodeEvent>, drain: Drain) {
    let mut backoff = Backoff(BACKOFF_MIN);
    while !drain.is_draining() {
        let started = Instant::now();
        let ended = match spawn(&node, &program) {
            Ok(child) => {
                let pid = child.id().unwrap_or_default();
                let name = node.name().to_owned();
                // The receiver goes only when the platform stops.
                let _stopping = events.send(NodeEvent::Started { name, pid }).await;
                match run(child, &node, &drain).await {
                    Some(status) => describe(status),
                    None => return,
                }
            }
            Err(error) => format!("could not be started: {error}"),
        };
        let wait = backoff.after(started.elapsed());
        out::note(&format!(
            "node {} {ended}; starting it again in {} ms (log: {})",
            node.name(),
            wait.as_millis(),
            node.log_path.display()
        ));
        let _stopping = events.send(NodeEvent::Crashed { name: node.name().to_owned() }).await;
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = drain.draining() => return,
        }
    }
}

fn spawn(node: &NodePlan, program: &PathBuf) -> io::Result<Child> {
    let log = logs::open(&node.log_path)?;
    Command::new(program)
        .arg("node")
        .arg("--config")
        .arg(&node.config_path)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A group of its own: Ctrl-C in the terminal is for us, and we stop the nodes in order.
        .process_group(0)
        .spawn()
}

/// How the process ended by itself, or nothing once it was stopped.
async fn run(mut child: Child, node: &NodePlan, drain: &Drain) -> Option<ExitStatus> {
    let pid = child.id();
    loop {
        tokio::select! {
            ended = child.wait() => return Some(ended.unwrap_or_default()),
            () = drain.draining() => break,
            () = tokio::time::sleep(logs::CHECK_EVERY) => logs::rotate(&node.log_path),
        }
    }
    if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) {
        // It is our child and not waited for yet, so the pid is still its own.
        let _gone = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(STOP_WAIT, child.wait()).await.is_err() {
        out::note(&format!("node {} does not stop; killing it", node.name()));
        let _gone = child.kill().await;
    }
    None
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_to_a_bound_and_starts_over() {
        let mut backoff = Backoff(BACKOFF_MIN);
        let waits: Vec<u128> = (0..9).map(|_| backoff.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
        assert_eq!(backoff.after(WELL_AFTER).as_millis(), 100);
    }

    #[test]
    fn an_end_is_described() {
        assert_eq!(describe(ExitStatus::from_raw(9)), "was ended by signal 9");
        assert_eq!(describe(ExitStatus::from_raw(3 << 8)), "ended with exit status 3");
    }
}
