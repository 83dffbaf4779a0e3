//! One instance: does what its [`Supervisor`] says, and tells it what happens.

mod actions;
mod calls;
mod files;
mod record;

use crate::bundles::Bundles;
use crate::check::Target;
use crate::config::Config;
use crate::logs::{Janitor, LogFile, Mark};
use crate::metrics::HostMetrics;
use crate::ports::Ports;
use crate::process::{Ended, Process, kill_strays};
use crate::procfs;
use crate::region::{Neighbours, Region};
use crate::sidecars::{Sidecars, Slot};
use crate::state::{Saved, SavedProcess, instances_dir};
use crate::supervisor::{
    Action, Adopted, Event, Exit, Millis, Policy, State, Supervisor, Timing, View, Want,
};
use crate::workload::{Workload, Workloads};
use atoll_model::{Check, CheckKind, InstanceId, RegionName, SiteName};
use atoll_process::clock;
use atoll_wire::sidecar::{Denied, SidecarState, SidecarStatus};
use files::Preparing;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

/// Events that wait for an instance; its senders wait in turn.
const INBOX: usize = 64;
/// In the environment of every process of an instance.
pub(crate) const INSTANCE_VARIABLE: &str = "ATOLL_INSTANCE";
/// In the environment of its sidecar.
pub(crate) const SIDECAR_VARIABLE: &str = "ATOLL_SIDECAR_OF";
const RESPONSE_TIMEOUT_MS: u64 = 60_000;

/// What the host says of an instance to others.
#[derive(Debug, Clone)]
pub enum Report {
    /// Publish this.
    Instance(Box<atoll_wire::record::Instance>),
    /// There is nothing to say of it any more.
    Withdraw(InstanceId),
}

/// Where reports go. Must not block.
pub type Reporter = Arc<dyn Fn(Report) + Send + Sync>;

/// What is shown of each instance here, and its output.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) saved: Saved,
    pub(crate) view: View,
    pub(crate) log: Arc<LogFile>,
}

/// What all instances of a host share.
pub(crate) struct Ground {
    pub(crate) config: Config,
    pub(crate) site: SiteName,
    pub(crate) region: RegionName,
    pub(crate) data_dir: PathBuf,
    pub(crate) base_environment: BTreeMap<String, String>,
    pub(crate) sidecar_command: Vec<String>,
    pub(crate) sidecars: Arc<Sidecars>,
    pub(crate) workloads: Workloads,
    pub(crate) ports: Ports,
    pub(crate) janitor: Janitor,
    pub(crate) reporter: Reporter,
    pub(crate) metrics: HostMetrics,
    pub(crate) board: Arc<Mutex<BTreeMap<InstanceId, Shown>>>,
    /// Removed nodes.
    pub(crate) denied: watch::Receiver<Vec<Denied>>,
    /// The files of services that bring their own.
    pub(crate) bundles: Arc<Bundles>,
    /// What gossip tells of the region.
    pub(crate) neighbourhood: Arc<Region>,
}

impl Ground {
    pub(crate) fn folder_of(&self, instance: &InstanceId) -> PathBuf {
        instances_dir(&self.data_dir).join(instance.as_str())
    }
}

/// One instance, its processes and what is known of it.
pub(crate) struct Instance {
    ground: Arc<Ground>,
    core: Supervisor,
    saved: Saved,
    checks: Vec<Check>,
    folder: PathBuf,
    log: Arc<LogFile>,
    sidecar_log: Arc<LogFile>,
    /// The end of the output before the program's current start.
    mark: Mark,
    program: Option<Process>,
    /// The program starts when its files are there.
    preparing: Option<Preparing>,
    target: Option<Target>,
    sidecar: Option<Process>,
    sidecar_state: watch::Sender<SidecarState>,
    /// What the sidecar that runs now says; of one before nothing is heard any more.
    sidecar_said: watch::Receiver<SidecarStatus>,
    /// Of the region, what the instance has to do with.
    neighbours: Neighbours,
    workload: watch::Receiver<Option<Arc<Workload>>>,
    denied: watch::Receiver<Vec<Denied>>,
    clock: watch::Receiver<i64>,
    asked: JoinSet<Event>,
    inbox: mpsc::Receiver<Event>,
    began: Instant,
    shown_state: Option<State>,
    halted: bool,
}

impl Instance {
    /// Takes up what `saved` says is running, if it still is. Nothing else happens before [`Self::run`].
    pub(crate) fn new(
        ground: Arc<Ground>,
        mut saved: Saved,
        want: Want,
    ) -> io::Result<(Self, mpsc::Sender<Event>)> {
        let folder = ground.folder_of(&saved.instance);
        atoll_process::files::private_dir(&folder)?;
        let checks = checks_of(&saved);
        let program = saved.program.as_ref().and_then(|p| Process::adopt(p.pid, p.start_time));
        let sidecar = saved.sidecar.as_ref().and_then(|p| Process::adopt(p.pid, p.start_time));
        ground.metrics.adoptions.inc_by(u64::from(program.is_some()) + u64::from(sidecar.is_some()));
        if program.is_none() && saved.program.take().is_some() {
            saved.last_exit = Some(Exit { status: -1, at_ms: clock::unix_ms(), ..Exit::default() });
        }
        let left = Adopted {
            program: program.as_ref().map(|process| (process.pid(), saved.port, saved.started_ms)),
            healthy: saved.healthy,
            sidecar: sidecar.as_ref().map(|process| (process.pid(), saved.sidecar_address.clone())),
            restarts: saved.restarts,
            last_exit: saved.last_exit.clone(),
        };
        let core = Supervisor::adopt(policy_of(&saved, &checks, &ground.config), want, 0, left);
        let log = Arc::new(LogFile::new(folder.join("output.log"), ground.config.log_bytes_max));
        let sidecar_log = Arc::new(LogFile::new(folder.join("sidecar.log"), ground.config.log_bytes_max));
        ground.janitor.watch(&log);
        ground.janitor.watch(&sidecar_log);
        let (outbox, inbox) = mpsc::channel(INBOX);
        saved.calls.truncate(atoll_model::manifest::CALLS_MAX);
        let (sidecar_state, _) = watch::channel(SidecarState {
            instance: saved.instance.to_string(),
            cluster: saved.cluster.to_string(),
            revision: saved.revision.clone(),
            region: ground.region.to_string(),
            site: ground.site.to_string(),
            response_timeout_ms: RESPONSE_TIMEOUT_MS,
            protocol: saved.spec.protocol.as_str().to_owned(),
            ..SidecarState::default()
        });
        let mut instance = Self {
            workload: ground.workloads.follow(&saved.cluster),
            denied: ground.denied.clone(),
            clock: ground.workloads.corrections(),
            neighbours: ground.neighbourhood.follow(),
            sidecar_said: watch::channel(SidecarStatus::default()).1,
            target: program.as_ref().map(|process| Target::new(saved.port, process.pid())),
            mark: Mark::default(),
            asked: JoinSet::new(),
            began: Instant::now(),
            shown_state: None,
            halted: false,
            ground,
            core,
            saved,
            checks,
            folder,
            log,
            sidecar_log,
            program,
            preparing: None,
            sidecar,
            sidecar_state,
            inbox,
        };
        instance.take_up()?;
        Ok((instance, outbox))
    }

    /// Registers what was adopted.
    fn take_up(&mut self) -> io::Result<()> {
        let view = self.view();
        self.show(&view);
        if self.program.is_some() {
            self.ground.ports.hold(self.saved.instance.as_str(), self.saved.port);
        }
        self.hold_ports()?;
        self.tell_sidecar();
        self.take_neighbours();
        self.take_certificate();
        self.take_denied();
        self.take_clock();
        if let Some(pid) = self.sidecar.as_ref().map(Process::pid) {
            let slot = self.slot();
            self.ground.sidecars.register(pid, slot);
        }
        Ok(())
    }

    /// Keeps it as it is wanted, until it is wanted no more. Cancelled, it leaves its processes running.
    pub(crate) async fn run(mut self) -> InstanceId {
        let mut events = VecDeque::from([Event::Tick]);
        loop {
            let event = match events.pop_front() {
                Some(event) => event,
                None => self.next_event().await,
            };
            self.count(&event);
            for action in self.core.handle(self.now(), event) {
                events.extend(self.perform(action).await);
                if action == Action::Finished {
                    return self.saved.instance;
                }
            }
            self.give_up_files();
        }
    }

    fn now(&self) -> Millis {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }

    async fn next_event(&mut self) -> Event {
        let timeout = self.core.timeout();
        let began = self.began;
        let due = async {
            match timeout {
                // One late millisecond is better than a turn for nothing.
                Some(at) => tokio::time::sleep_until((began + Duration::from_millis(at + 1)).into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = ended(&mut self.program) => self.program_ended(ended).await,
            files = Preparing::next(&mut self.preparing) => self.take_files(files).await,
            ended = ended(&mut self.sidecar) => self.sidecar_ended(ended),
            Some(event) = self.inbox.recv() => event,
            Some(Ok(event)) = self.asked.join_next() => event,
            Ok(()) = self.workload.changed() => {
                self.take_certificate();
                Event::Tick
            }
            Ok(()) = self.clock.changed() => {
                self.take_clock();
                Event::Tick
            }
            Ok(()) = self.denied.changed() => {
                self.take_denied();
                Event::Tick
            }
            () = self.neighbours.changed() => {
                self.take_neighbours();
                Event::Tick
            }
            Ok(()) = self.sidecar_said.changed() => self.hear_sidecar(),
            () = due => Event::Tick,
        }
    }

    async fn program_ended(&mut self, ended: Ended) -> Event {
        let Some(process) = self.program.take() else { return Event::Tick };
        let (log, mark, port, instance) =
            (Arc::clone(&self.log), self.mark, self.saved.port, self.saved.instance.clone());
        let was_well = self.core.checks_pass();
        let look = move || {
            let strays = kill_strays(INSTANCE_VARIABLE, instance.as_str());
            (log.tail_since(mark), !was_well && procfs::is_taken(port), strays)
        };
        let (tail, port_taken, strays) = tokio::task::spawn_blocking(look).await.unwrap_or_default();
        info!(
            instance = %self.saved.instance, cluster = %self.saved.cluster, pid = process.pid(),
            status = ended.status, signal = ended.signal, strays, port_taken, "program ended"
        );
        self.target = None;
        let exit = Exit {
            status: ended.status,
            signal: ended.signal,
            tail,
            at_ms: clock::unix_ms(),
            ..Exit::default()
        };
        Event::Exited { exit, port_taken }
    }

    fn sidecar_ended(&mut self, ended: Ended) -> Event {
        if let Some(process) = self.sidecar.take() {
            self.ground.sidecars.forget(process.pid());
            info!(instance = %self.saved.instance, pid = process.pid(), ?ended, "sidecar ended");
        }
        let how = if ended.signal != 0 {
            format!("signal {}", ended.signal)
        } else {
            format!("status {}", ended.status)
        };
        Event::SidecarExited(how)
    }

    /// For a sidecar that begins, or is taken over.
    fn slot(&mut self) -> Slot {
        let (said, heard) = watch::channel(SidecarStatus::default());
        self.sidecar_said = heard;
        Slot { instance: self.saved.instance.clone(), state: self.sidecar_state.subscribe(), said }
    }

    fn take_certificate(&mut self) {
        let Some(workload) = self.workload.borrow_and_update().clone() else { return };
        self.sidecar_state.send_modify(|state| {
            state.trust_domain.clone_from(&workload.trust_domain);
            state.chain.clone_from(&workload.chain);
            state.key.clone_from(&workload.key);
            state.roots.clone_from(&workload.roots);
        });
    }

    fn take_clock(&mut self) {
        let correction_ms = *self.clock.borrow_and_update();
        self.sidecar_state.send_modify(|state| state.clock_correction_ms = correction_ms);
    }

    fn take_denied(&mut self) {
        let denied = self.denied.borrow_and_update().clone();
        self.sidecar_state.send_modify(|state| state.denied = denied);
    }

    fn tell_sidecar(&self) {
        let (port, draining) = (u32::from(self.saved.port), self.core.is_draining());
        self.sidecar_state.send_modify(|state| {
            state.instance_port = port;
            state.draining = draining;
        });
    }

    fn count(&mut self, event: &Event) {
        let metrics = &self.ground.metrics;
        let counter = match event {
            Event::Exited { .. } if !self.core.is_draining() => &metrics.exits,
            Event::StartFailed(_) => &metrics.start_failures,
            Event::Started { .. } => &metrics.starts,
            Event::Checked { outcome: Err(_), .. } => &metrics.check_failures,
            Event::SidecarStarted { .. } => &metrics.sidecar_starts,
            Event::SidecarExited(_) if !self.core.is_draining() => &metrics.sidecar_exits,
            Event::Halt { .. } => {
                self.halted = true;
                return;
            }
            _ => return,
        };
        counter.inc();
    }

    /// What others may know, with what the supervisor can't see.
    fn view(&self) -> View {
        let mut view = self.core.view();
        let waits = self.core.checks_pass() || (self.makes_calls() && self.program.is_none());
        if view.state == State::Starting && waits && self.workload.borrow().is_none() {
            view.detail = "its sidecar waits for a workload certificate from control".to_owned();
        }
        if let Some(said) = self.preparing.as_ref().map(Preparing::said).filter(|said| !said.is_empty()) {
            view.detail = said;
        }
        view
    }

    fn show(&mut self, view: &View) {
        self.ground.metrics.moved(self.shown_state, Some(view.state));
        self.shown_state = Some(view.state);
        let shown = Shown { saved: self.saved.clone(), view: view.clone(), log: Arc::clone(&self.log) };
        let mut board = self.ground.board.lock().unwrap_or_else(PoisonError::into_inner);
        board.insert(self.saved.instance.clone(), shown);
    }
}

/// Waits for the end of a process; for ever if there is none. Cancel-safe.
async fn ended(process: &mut Option<Process>) -> Ended {
    match process {
        Some(process) => process.ended().await,
        None => std::future::pending().await,
    }
}

/// Without checks, the port must accept.
fn checks_of(saved: &Saved) -> Vec<Check> {
    if !saved.spec.checks.is_empty() {
        return saved.spec.checks.clone();
    }
    vec![Check { kind: CheckKind::Tcp, every_ms: 1_000, timeout_ms: 1_000, grace_ms: 10_000, up: 1, down: 3 }]
}

fn policy_of(saved: &Saved, checks: &[Check], config: &Config) -> Policy {
    let timing = |check: &Check| Timing {
        every_ms: check.every_ms,
        grace_ms: check.grace_ms,
        up: check.up,
        down: check.down,
    };
    Policy {
        drain_ms: saved.spec.drain_ms,
        drain_min_ms: config.drain_min_ms,
        stop_grace_ms: config.stop_grace_ms,
        checks: checks.iter().map(timing).collect(),
        calls: !saved.calls.is_empty() || saved.spec.proxy_env,
    }
}

fn saved_process(process: Option<&Process>) -> Option<SavedProcess> {
    process.map(|process| SavedProcess { pid: process.pid(), start_time: process.start_time() })
}

/// Removes an instance's folder; what can't be removed is said and left.
pub(crate) fn remove_folder(folder: &Path) {
    if let Err(cause) = atoll_bundle::remove_tree(folder) {
        warn!(folder = %folder.display(), %cause, "what an instance left could not be removed");
    }
}
