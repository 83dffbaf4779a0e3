//! The sidecar's half of the state machine.

use super::{Action, Millis, Who};

const BACKOFF_FIRST_MS: Millis = 100;
const BACKOFF_MAX_MS: Millis = 5_000;
/// One that ran this long starts again at once.
const SETTLED_MS: Millis = 10_000;
const KILL_AGAIN_MS: Millis = 1_000;

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Idle,
    Starting,
    Running {
        since: Millis,
        pid: u32,
        address: String,
        drained: bool,
        listens: bool,
    },
    Waiting {
        until: Millis,
    },
    Stopping {
        pid: u32,
        kill_at: Millis,
    },
}

#[derive(Debug, Default)]
pub(super) struct Sidecar {
    phase: Phase,
    ends_in_row: u32,
    last_end: Option<String>,
}

impl Sidecar {
    pub(super) fn adopt(now: Millis, pid: u32, address: String) -> Self {
        let phase = Phase::Running { since: now, pid, address, drained: false, listens: false };
        Self { phase, ..Self::default() }
    }

    pub(super) fn started(&mut self, now: Millis, pid: u32) {
        self.phase =
            Phase::Running { since: now, pid, address: String::new(), drained: false, listens: false };
    }

    pub(super) fn ended(&mut self, now: Millis, why: String) {
        match self.phase {
            Phase::Stopping { .. } => {
                self.phase = Phase::Idle;
                return;
            }
            Phase::Running { since, .. } if now.saturating_sub(since) >= SETTLED_MS => self.ends_in_row = 0,
            _ => {}
        }
        let pause = match self.ends_in_row {
            0 => 0,
            n => BACKOFF_FIRST_MS.saturating_mul(1 << (n - 1).min(16)).min(BACKOFF_MAX_MS),
        };
        self.ends_in_row = self.ends_in_row.saturating_add(1);
        self.last_end = Some(why);
        self.phase = Phase::Waiting { until: now + pause };
    }

    pub(super) fn status(&mut self, new_address: String, new_drained: bool, new_listens: bool) {
        if let Phase::Running { address, drained, listens, .. } = &mut self.phase {
            // A sidecar does not stop listening: an empty address is one not yet known to who says it.
            if !new_address.is_empty() {
                *address = new_address;
            }
            *drained = new_drained;
            *listens = new_listens;
        }
    }

    pub(super) fn settle(&mut self, now: Millis, wanted: bool, grace_ms: Millis, actions: &mut Vec<Action>) {
        match &mut self.phase {
            Phase::Idle if wanted => self.start(actions),
            Phase::Waiting { until } if wanted && *until <= now => self.start(actions),
            Phase::Waiting { .. } if !wanted => self.phase = Phase::Idle,
            Phase::Running { pid, .. } if !wanted => {
                self.phase = Phase::Stopping { pid: *pid, kill_at: now + grace_ms };
                actions.push(Action::Terminate(Who::Sidecar));
            }
            Phase::Stopping { kill_at, .. } if *kill_at <= now => {
                *kill_at = now + KILL_AGAIN_MS;
                actions.push(Action::Kill(Who::Sidecar));
            }
            Phase::Stopping { kill_at, .. } => *kill_at = (*kill_at).min(now + grace_ms),
            Phase::Idle | Phase::Starting | Phase::Running { .. } | Phase::Waiting { .. } => {}
        }
    }

    fn start(&mut self, actions: &mut Vec<Action>) {
        self.phase = Phase::Starting;
        actions.push(Action::StartSidecar);
    }

    pub(super) fn timeout(&self, wanted: bool) -> Option<Millis> {
        match self.phase {
            Phase::Waiting { until } => wanted.then_some(until),
            Phase::Stopping { kill_at, .. } => Some(kill_at),
            Phase::Idle | Phase::Starting | Phase::Running { .. } => None,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    pub(super) fn is_listening(&self) -> bool {
        !self.address().is_empty()
    }

    pub(super) fn is_drained(&self) -> bool {
        matches!(self.phase, Phase::Running { drained: true, .. })
    }

    /// For the program's calls.
    pub(super) fn listens(&self) -> bool {
        matches!(self.phase, Phase::Running { listens: true, .. })
    }

    pub(super) fn has_failed(&self) -> bool {
        self.last_end.is_some()
    }

    pub(super) fn pid(&self) -> u32 {
        match self.phase {
            Phase::Running { pid, .. } | Phase::Stopping { pid, .. } => pid,
            Phase::Idle | Phase::Starting | Phase::Waiting { .. } => 0,
        }
    }

    pub(super) fn address(&self) -> &str {
        match &self.phase {
            Phase::Running { address, .. } => address,
            _ => "",
        }
    }

    pub(super) fn detail(&self) -> String {
        match &self.last_end {
            Some(why) => format!("its sidecar ended ({why}) and starts again"),
            None => "its sidecar does not listen yet".to_owned(),
        }
    }
}
