//! What instances use, for `atoll top`.

use super::HostView;
use atoll_process::usage::{self, Usage};
use atoll_wire::node::{InstanceStats, ProcessStats};
use std::sync::PoisonError;

impl HostView {
    /// What each running instance of the clusters whose names begin so uses: its program and its sidecar,
    /// each with all processes of its group. Reads `/proc`, and so may block for some milliseconds.
    #[must_use]
    pub fn usage(&self, prefix: &str) -> Vec<InstanceStats> {
        let pids: Vec<(String, u32, u32)> = {
            let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
            let wanted =
                board.iter().filter(|(_, shown)| shown.saved.cluster.to_string().starts_with(prefix));
            let pids = wanted.map(|(id, shown)| (id.to_string(), shown.view.pid, shown.view.sidecar_pid));
            pids.filter(|(_, program, sidecar)| *program > 0 || *sidecar > 0).collect()
        };
        let groups = pids.iter().flat_map(|(_, program, sidecar)| [*program, *sidecar]);
        let used = usage::of_groups(&groups.filter(|group| *group > 0).collect());
        let stats = |group: u32| used.get(&group).map(stats_of);
        pids.into_iter()
            .map(|(instance, program, sidecar)| InstanceStats {
                instance,
                program: stats(program),
                sidecar: stats(sidecar),
            })
            .collect()
    }
}

fn stats_of(usage: &Usage) -> ProcessStats {
    ProcessStats { cpu_ms: usage.cpu_ms, memory_bytes: usage.memory_bytes }
}
