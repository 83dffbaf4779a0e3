//! What is to be done about one instance, decided without I/O and without a clock of its own.
//!
//! The caller tells what happened with [`Supervisor::handle`], does what comes back, and calls again
//! with [`Event::Tick`] at [`Supervisor::timeout`]. Two things are kept up: the program and its sidecar.

mod health;
mod sidecar;

use health::Health;
pub use health::Timing;
use serde::{Deserialize, Serialize};
use sidecar::Sidecar;

/// Milliseconds on a clock that only moves forward.
pub type Millis = u64;

/// After this long in health, the next exit is not counted with those before it.
const SETTLED_MS: Millis = 10_000;
const BACKOFF_FIRST_MS: Millis = 100;
const BACKOFF_MAX_MS: Millis = 10_000;
/// Starts in a row with another port, at once, because somebody was faster to take it.
const PORT_RETRIES_MAX: u32 = 3;
/// A group that survived SIGKILL (it hangs in the kernel) is sent it again.
const KILL_AGAIN_MS: Millis = 1_000;

/// The rules of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Longest time to finish open requests.
    pub drain_ms: Millis,
    /// Least time between announcing the drain and stopping.
    pub drain_min_ms: Millis,
    /// From SIGTERM to SIGKILL.
    pub stop_grace_ms: Millis,
    /// At least one check.
    pub checks: Vec<Timing>,
    /// The program starts only once the sidecar listens for its calls.
    pub calls: bool,
}

/// What control wants of the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Run and be kept running.
    Run,
    /// Finish, then stop.
    Drain,
    /// Stop now; leave nothing.
    Gone,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Exit {
    /// Its status; -1 when a signal ended it or nobody knows.
    pub status: i32,
    /// The signal that ended it, or 0.
    pub signal: i32,
    /// The last output, at most 2 KiB.
    pub tail: String,
    /// Wall clock, ms since 1970.
    pub at_ms: u64,
    /// It could not even be started: why.
    pub start_error: String,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Control changed its mind, or says so again.
    Want(Want),
    /// The host ends and takes its instances along.
    Halt {
        /// From SIGTERM to SIGKILL.
        grace_ms: Millis,
    },
    /// The answer to [`Action::StartProgram`].
    Started {
        /// Its process id, also its group's.
        pid: u32,
        /// The port it was given.
        port: u16,
        /// Wall clock, ms since 1970.
        at_ms: u64,
    },
    /// The other answer to [`Action::StartProgram`].
    StartFailed(Exit),
    /// The program ended; the rest of its group is gone too.
    Exited {
        /// How.
        exit: Exit,
        /// Another program listens on the port that it was given.
        port_taken: bool,
    },
    /// The answer to [`Action::Check`].
    Checked {
        /// Which check.
        check: usize,
        /// Of which start.
        run: u32,
        /// An error says in one line what is wrong.
        outcome: Result<(), String>,
    },
    /// The answer to [`Action::StartSidecar`].
    SidecarStarted {
        /// Its process id.
        pid: u32,
    },
    /// The other answer to [`Action::StartSidecar`].
    SidecarStartFailed(String),
    /// The sidecar ended: how.
    SidecarExited(String),
    /// What the sidecar says of itself.
    SidecarStatus {
        /// Where it listens; empty until it does.
        address: String,
        /// No stream is open, and it takes none.
        drained: bool,
        /// It listens for the program's calls, if the program makes any.
        listens: bool,
    },
    /// Time has passed.
    Tick,
}

/// One of the two processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The instance's own, with its whole group.
    Program,
    /// The sidecar.
    Sidecar,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start the program on a free port; answer with `Started` or `StartFailed`.
    StartProgram,
    /// Start the sidecar; answer with `SidecarStarted` or `SidecarStartFailed`.
    StartSidecar,
    /// Ask; answer with `Checked`.
    Check {
        /// Index in [`Policy::checks`].
        check: usize,
        /// To be handed back.
        run: u32,
    },
    /// SIGTERM to the group.
    Terminate(Who),
    /// SIGKILL to the group.
    Kill(Who),
    /// The port or the drain changed: tell the sidecar.
    TellSidecar,
    /// [`Supervisor::view`] changed: keep it and publish it.
    Report,
    /// Both processes are gone for good: remove what is left.
    Finished,
}

/// The state that is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It runs, and no check has passed yet.
    Starting,
    /// It may be sent requests.
    Healthy,
    /// It runs, and can't be sent requests.
    Unhealthy,
    /// It finishes what it has.
    Draining,
    /// It ended, and will be started again.
    Exited,
    /// It ended for good.
    Stopped,
}

impl State {
    /// Its name, in lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
            Self::Exited => "exited",
            Self::Stopped => "stopped",
        }
    }
}

/// What others may know of the instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct View {
    /// The state.
    pub state: State,
    /// Why it is not healthy, one line.
    pub detail: String,
    /// 0 while it does not run.
    pub pid: u32,
    /// 0 while it does not run.
    pub port: u16,
    /// Wall clock, ms since 1970.
    pub started_ms: u64,
    /// How often it was started again.
    pub restarts: u32,
    /// How its last process ended.
    pub last_exit: Option<Exit>,
    /// 0 while it does not run.
    pub sidecar_pid: u32,
    /// Empty until it listens.
    pub sidecar_address: String,
}

/// What an earlier run of the host left running.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Adopted {
    /// The program's pid and port and when it was started (ms since 1970).
    pub program: Option<(u32, u16, u64)>,
    /// It was healthy: it stays so until a check says otherwise, or a restart of the host would be an
    /// outage of its instances.
    pub healthy: bool,
    /// The sidecar's pid and address.
    pub sidecar: Option<(u32, String)>,
    /// How often it had been started again.
    pub restarts: u32,
    /// How its last process ended.
    pub last_exit: Option<Exit>,
}

#[derive(Debug)]
struct Running {
    pid: u32,
    port: u16,
    health: Health,
}

#[derive(Debug)]
enum Program {
    Idle,
    Starting,
    Running(Running),
    Waiting { until: Millis },
    Stopping { running: Running, kill_at: Millis },
}

#[derive(Debug, Clone, Copy)]
struct Drain {
    earliest: Millis,
    deadline: Millis,
}

/// The state machine of one instance.
#[derive(Debug)]
pub struct Supervisor {
    policy: Policy,
    want: Want,
    halted: bool,
    program: Program,
    sidecar: Sidecar,
    drain: Option<Drain>,
    /// Counts starts; answers to checks of an earlier one are dropped.
    run: u32,
    exits_in_row: u32,
    port_retries: u32,
    restarts: u32,
    started_ms: u64,
    last_exit: Option<Exit>,
    reported: Option<View>,
    finished: bool,
}

impl Supervisor {
    /// An instance that does not run yet. Nothing happens before the first event.
    #[must_use]
    pub fn new(policy: Policy, want: Want) -> Self {
        Self {
            policy,
            want,
            halted: false,
            program: Program::Idle,
            sidecar: Sidecar::default(),
            drain: None,
            run: 0,
            exits_in_row: 0,
            port_retries: 0,
            restarts: 0,
            started_ms: 0,
            last_exit: None,
            reported: None,
            finished: false,
        }
    }

    /// An instance that outlived the host's last run.
    #[must_use]
    pub fn adopt(policy: Policy, want: Want, now: Millis, left: Adopted) -> Self {
        let mut core = Self::new(policy, want);
        core.restarts = left.restarts;
        core.last_exit = left.last_exit;
        if let Some((pid, port, started_ms)) = left.program {
            core.run = 1;
            core.started_ms = started_ms;
            let health = Health::new(&core.policy.checks, now, left.healthy);
            core.program = Program::Running(Running { pid, port, health });
        }
        if let Some((pid, address)) = left.sidecar {
            core.sidecar = Sidecar::adopt(now, pid, address);
        }
        core
    }

    /// Takes in what happened and says what to do about it, in this order.
    pub fn handle(&mut self, now: Millis, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        self.take(now, event, &mut actions);
        self.settle(now, &mut actions);
        let view = self.view();
        if self.reported.as_ref() != Some(&view) && !self.finished {
            self.reported = Some(view);
            actions.push(Action::Report);
        }
        if self.is_over() && !self.finished {
            self.finished = true;
            actions.push(Action::Finished);
        }
        actions
    }

    /// When to call [`Self::handle`] again, if nothing happens before.
    #[must_use]
    pub fn timeout(&self) -> Option<Millis> {
        let program = match &self.program {
            Program::Idle | Program::Starting => None,
            Program::Waiting { until } => (self.goal() == Want::Run).then_some(*until),
            Program::Stopping { kill_at, .. } => Some(*kill_at),
            Program::Running(running) => match self.goal() {
                Want::Run => running.health.timeout(),
                Want::Drain => {
                    self.drain.map(|drain| if self.may_stop() { drain.earliest } else { drain.deadline })
                }
                Want::Gone => None,
            },
        };
        [program, self.sidecar.timeout(self.sidecar_wanted())].into_iter().flatten().min()
    }

    /// What others may know.
    #[must_use]
    pub fn view(&self) -> View {
        let (state, detail) = self.state();
        let (pid, port) = match &self.program {
            Program::Running(running) | Program::Stopping { running, .. } => (running.pid, running.port),
            Program::Idle | Program::Starting | Program::Waiting { .. } => (0, 0),
        };
        View {
            state,
            detail,
            pid,
            port,
            started_ms: self.started_ms,
            restarts: self.restarts,
            last_exit: self.last_exit.clone(),
            sidecar_pid: self.sidecar.pid(),
            sidecar_address: self.sidecar.address().to_owned(),
        }
    }

    /// Whether the sidecar is to take no new requests.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.goal() != Want::Run
    }

    /// Whether the checks of the running program pass, whatever the sidecar does.
    #[must_use]
    pub fn checks_pass(&self) -> bool {
        matches!(&self.program, Program::Running(running) if running.health.passes())
    }

    fn goal(&self) -> Want {
        if self.halted { Want::Gone } else { self.want }
    }

    fn is_over(&self) -> bool {
        self.goal() == Want::Gone && matches!(self.program, Program::Idle) && self.sidecar.is_idle()
    }

    fn take(&mut self, now: Millis, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Want(want) => self.want = want,
            Event::Halt { grace_ms } => {
                self.halted = true;
                self.policy.stop_grace_ms = grace_ms.min(self.policy.stop_grace_ms);
            }
            Event::Started { pid, port, at_ms } => {
                self.run += 1;
                self.started_ms = at_ms;
                let health = Health::new(&self.policy.checks, now, false);
                self.program = Program::Running(Running { pid, port, health });
                actions.push(Action::TellSidecar);
            }
            Event::StartFailed(exit) => self.ended(now, exit, false),
            Event::Exited { exit, port_taken } => self.ended(now, exit, port_taken),
            Event::Checked { check, run, outcome } => {
                if let Program::Running(running) = &mut self.program
                    && run == self.run
                {
                    running.health.checked(&self.policy.checks, now, check, outcome);
                }
            }
            Event::SidecarStarted { pid } => self.sidecar.started(now, pid),
            Event::SidecarStartFailed(why) | Event::SidecarExited(why) => self.sidecar.ended(now, why),
            Event::SidecarStatus { address, drained, listens } => {
                self.sidecar.status(address, drained, listens);
            }
            Event::Tick => {}
        }
    }

    fn ended(&mut self, now: Millis, exit: Exit, port_taken: bool) {
        let before = std::mem::replace(&mut self.program, Program::Idle);
        let was_settled = match &before {
            Program::Running(running) => running.health.healthy_for(now) >= SETTLED_MS,
            Program::Stopping { .. } => {
                // Asked for: no exit to be shown, unless it is started again.
                self.exits_in_row = 0;
                return;
            }
            Program::Idle | Program::Starting | Program::Waiting { .. } => false,
        };
        if port_taken && self.port_retries < PORT_RETRIES_MAX {
            self.port_retries += 1;
            self.program = Program::Waiting { until: now };
            return;
        }
        self.port_retries = 0;
        if was_settled {
            self.exits_in_row = 0;
        }
        self.last_exit = Some(exit);
        let until = now + backoff(self.exits_in_row);
        self.exits_in_row = self.exits_in_row.saturating_add(1);
        self.program = Program::Waiting { until };
    }

    /// Moves the two processes towards the goal as far as time allows.
    fn settle(&mut self, now: Millis, actions: &mut Vec<Action>) {
        match self.goal() {
            Want::Run => self.settle_running(now, actions),
            Want::Drain => self.settle_drain(now, actions),
            Want::Gone => self.stop_program(now, actions),
        }
        if let Program::Stopping { kill_at, .. } = &mut self.program
            && *kill_at <= now
        {
            *kill_at = now + KILL_AGAIN_MS;
            actions.push(Action::Kill(Who::Program));
        }
        self.sidecar.settle(now, self.sidecar_wanted(), self.policy.stop_grace_ms, actions);
    }

    fn settle_running(&mut self, now: Millis, actions: &mut Vec<Action>) {
        if self.drain.take().is_some() {
            actions.push(Action::TellSidecar);
        }
        let run = self.run;
        match &mut self.program {
            Program::Running(running) => {
                let due = running.health.due(now);
                actions.extend(due.into_iter().map(|check| Action::Check { check, run }));
            }
            Program::Waiting { until } if *until > now => {}
            // It must find the listeners of its sidecar: a status of that one will come.
            Program::Idle | Program::Waiting { .. } if self.policy.calls && !self.sidecar.listens() => {
                self.program = Program::Idle;
            }
            Program::Idle | Program::Waiting { .. } => {
                if run > 0 || self.last_exit.is_some() {
                    self.restarts += 1;
                }
                self.program = Program::Starting;
                actions.push(Action::StartProgram);
            }
            Program::Starting | Program::Stopping { .. } => {}
        }
    }

    fn settle_drain(&mut self, now: Millis, actions: &mut Vec<Action>) {
        let drain = *self.drain.get_or_insert_with(|| {
            actions.push(Action::TellSidecar);
            Drain { earliest: now + self.policy.drain_min_ms, deadline: now + self.policy.drain_ms }
        });
        let done = now >= drain.deadline || (now >= drain.earliest && self.may_stop());
        let runs = matches!(self.program, Program::Running(_));
        if !runs || done {
            self.stop_program(now, actions);
        }
    }

    /// No request is at the instance any more, or none can be.
    fn may_stop(&self) -> bool {
        self.sidecar.is_drained() || !self.sidecar.is_running()
    }

    fn stop_program(&mut self, now: Millis, actions: &mut Vec<Action>) {
        self.program = match std::mem::replace(&mut self.program, Program::Idle) {
            Program::Running(running) => {
                actions.push(Action::Terminate(Who::Program));
                Program::Stopping { running, kill_at: now + self.policy.stop_grace_ms }
            }
            Program::Waiting { .. } => Program::Idle,
            other @ (Program::Idle | Program::Starting) => other,
            // A halt may shorten what is left.
            Program::Stopping { running, kill_at } => {
                Program::Stopping { running, kill_at: kill_at.min(now + self.policy.stop_grace_ms) }
            }
        };
    }

    fn sidecar_wanted(&self) -> bool {
        match self.goal() {
            Want::Run => true,
            // It still refuses requests properly while the program ends.
            Want::Drain => !matches!(self.program, Program::Idle | Program::Waiting { .. }),
            Want::Gone => false,
        }
    }

    fn state(&self) -> (State, String) {
        if self.goal() != Want::Run {
            return match self.program {
                Program::Idle | Program::Waiting { .. } => (State::Stopped, String::new()),
                _ => (State::Draining, String::new()),
            };
        }
        let running = match &self.program {
            Program::Running(running) => running,
            Program::Stopping { .. } => {
                return (State::Draining, "it stops before it is started again".to_owned());
            }
            Program::Idle | Program::Starting | Program::Waiting { .. } => {
                let state = if self.last_exit.is_some() { State::Exited } else { State::Starting };
                let detail = self.last_exit.as_ref().map(describe);
                let waits = self.policy.calls && !self.sidecar.listens();
                let why = || if waits { self.sidecar.detail() } else { String::new() };
                return (state, detail.unwrap_or_else(why));
            }
        };
        match running.health.verdict() {
            Some(true) if self.sidecar.is_listening() => (State::Healthy, String::new()),
            Some(true) if self.sidecar.has_failed() => (State::Unhealthy, self.sidecar.detail()),
            Some(true) => (State::Starting, self.sidecar.detail()),
            Some(false) => (State::Unhealthy, running.health.detail()),
            None => (State::Starting, running.health.detail()),
        }
    }
}

fn describe(exit: &Exit) -> String {
    if !exit.start_error.is_empty() {
        exit.start_error.clone()
    } else if exit.signal != 0 {
        format!("ended by signal {}", exit.signal)
    } else if exit.status < 0 {
        "ended while the host was away".to_owned()
    } else {
        format!("exited with status {}", exit.status)
    }
}

fn backoff(exits_in_row: u32) -> Millis {
    BACKOFF_FIRST_MS.saturating_mul(1 << exits_in_row.min(16)).min(BACKOFF_MAX_MS)
}

#[cfg(test)]
mod tests;
