//! All instances of a host: one task each, started and told by placements.

use crate::instance::{Ground, INSTANCE_VARIABLE, Instance, Report, SIDECAR_VARIABLE, remove_folder};
use crate::process::{kill_strays, signal_group};
use crate::procfs;
use crate::state::{self, Saved, SavedCall, SavedProcess};
use crate::supervisor::{Event, Want};
use atoll_model::{ClusterName, InstanceId, ServiceSpec};
use atoll_process::{Drain, clock};
use atoll_wire::record;
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

/// Beyond the grace of their programs, how long the end of all instances may take.
const HALT_SLACK: Duration = Duration::from_secs(3);

/// What control wants of one instance here.
#[derive(Debug, Clone)]
pub enum Order {
    /// Run it, or drain it.
    Place(Box<Assignment>),
    /// Its placement is gone.
    Remove(InstanceId),
}

/// A placement that is well formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Which instance.
    pub instance: InstanceId,
    /// Of which service.
    pub cluster: ClusterName,
    /// Of which revision.
    pub revision: String,
    /// Run or drain.
    pub want: Want,
    /// What to run, or why this host can't know.
    pub spec: Result<ServiceSpec, String>,
    /// What it calls, without ports.
    pub calls: Vec<SavedCall>,
}

/// The instances and their tasks.
pub(crate) struct Fleet {
    ground: Arc<Ground>,
    members: BTreeMap<InstanceId, mpsc::Sender<Event>>,
    tasks: JoinSet<InstanceId>,
    /// Left by an earlier run, without a process that lives, until its placement is known.
    dormant: BTreeMap<InstanceId, Saved>,
    /// Taken over, and no placement is known yet.
    unplaced: BTreeSet<InstanceId>,
    /// Placed again while it is still being removed.
    again: BTreeMap<InstanceId, Box<Assignment>>,
}

impl Fleet {
    /// Takes over what an earlier run left. `known` are the placements known so far: what is among them
    /// is adopted as they want it.
    pub(crate) fn open(ground: Arc<Ground>, known: Vec<Order>) -> io::Result<Self> {
        let (saved, unreadable) = state::load(&ground.data_dir)?;
        for folder in unreadable {
            clear_unreadable(&folder);
        }
        let mut fleet = Self {
            ground,
            members: BTreeMap::new(),
            tasks: JoinSet::new(),
            dormant: BTreeMap::new(),
            unplaced: BTreeSet::new(),
            again: BTreeMap::new(),
        };
        fleet.dormant = saved.into_iter().map(|saved| (saved.instance.clone(), saved)).collect();
        for order in known {
            fleet.obey(order);
        }
        let lives = |process: &Option<SavedProcess>| {
            process.as_ref().is_some_and(|p| procfs::is_alive(p.pid, p.start_time))
        };
        let left = std::mem::take(&mut fleet.dormant);
        for (instance, saved) in left {
            fleet.unplaced.insert(instance.clone());
            if lives(&saved.program) {
                info!(%instance, cluster = %saved.cluster, "taken over before its placement is known");
                fleet.start(saved, Want::Run);
            } else {
                fleet.dormant.insert(instance, saved);
            }
        }
        Ok(fleet)
    }

    /// Follows `orders` until the drain.
    pub(crate) async fn run(mut self, mut orders: mpsc::Receiver<Order>, drain: Drain) {
        let orphans_due = tokio::time::sleep(Duration::from_millis(self.ground.config.orphan_grace_ms));
        tokio::pin!(orphans_due);
        let mut orphans_left = true;
        loop {
            tokio::select! {
                () = drain.draining() => break,
                Some(order) = orders.recv() => self.obey(order),
                Some(ended) = self.tasks.join_next() => self.task_ended(ended),
                () = &mut orphans_due, if orphans_left => {
                    orphans_left = false;
                    self.drop_orphans();
                }
                else => break,
            }
        }
        if self.ground.config.stop_instances_on_exit {
            self.halt().await;
        }
        // Dropping the tasks leaves the processes: the next run takes them over.
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Place(assignment) => self.place(assignment),
            Order::Remove(instance) => self.remove(&instance),
        }
    }

    fn place(&mut self, assignment: Box<Assignment>) {
        let instance = assignment.instance.clone();
        self.unplaced.remove(&instance);
        if let Some(member) = self.members.get(&instance) {
            if member.is_closed() {
                self.again.insert(instance, assignment);
            } else {
                tell(member, Event::Want(assignment.want));
            }
            return;
        }
        let saved = match (self.dormant.remove(&instance), assignment.spec) {
            (Some(saved), _) => saved,
            (None, Ok(spec)) => {
                Saved::new(instance, assignment.cluster, assignment.revision, spec, assignment.calls)
            }
            (None, Err(why)) => {
                self.refuse(&instance, &assignment.cluster, &assignment.revision, why);
                return;
            }
        };
        self.start(saved, assignment.want);
    }

    fn remove(&mut self, instance: &InstanceId) {
        self.again.remove(instance);
        self.unplaced.remove(instance);
        if let Some(member) = self.members.get(instance) {
            tell(member, Event::Want(Want::Gone));
        } else if let Some(saved) = self.dormant.remove(instance) {
            // Its program is gone, but its sidecar may be there.
            self.start(saved, Want::Gone);
        } else {
            // Refused before: what was said of it is taken back.
            (self.ground.reporter)(Report::Withdraw(instance.clone()));
        }
    }

    fn start(&mut self, saved: Saved, want: Want) {
        let (instance, cluster, revision) =
            (saved.instance.clone(), saved.cluster.clone(), saved.revision.clone());
        if self.members.len() >= self.ground.config.instances_max {
            let why = format!("this host has {} instances, which is its limit", self.members.len());
            self.refuse(&instance, &cluster, &revision, why);
            return;
        }
        match Instance::new(Arc::clone(&self.ground), saved, want) {
            Ok((member, events)) => {
                self.members.insert(instance, events);
                self.tasks.spawn(member.run());
            }
            Err(cause) => {
                self.refuse(
                    &instance,
                    &cluster,
                    &revision,
                    format!("the host can't make the instance's folder: {cause}"),
                );
            }
        }
    }

    fn refuse(&self, instance: &InstanceId, cluster: &ClusterName, revision: &str, why: String) {
        self.ground.metrics.bad_placements.inc();
        error!(%instance, %cluster, %why, "placement refused");
        let last_exit = record::Exit {
            status: -1,
            at_ms: clock::unix_ms(),
            start_error: why.clone(),
            ..Default::default()
        };
        (self.ground.reporter)(Report::Instance(Box::new(record::Instance {
            instance: instance.to_string(),
            cluster: cluster.to_string(),
            revision: revision.to_owned(),
            state: record::instance::State::Exited.into(),
            last_exit: Some(last_exit),
            detail: why,
            ..Default::default()
        })));
    }

    fn task_ended(&mut self, ended: Result<InstanceId, tokio::task::JoinError>) {
        match ended {
            Ok(instance) => {
                self.members.remove(&instance);
                if let Some(assignment) = self.again.remove(&instance) {
                    self.place(assignment);
                }
            }
            Err(cause) => {
                error!(%cause, "an instance's task failed; its processes go on and are taken over again");
                self.take_over_failed();
            }
        }
    }

    /// A task that panicked is begun anew from what it had saved.
    fn take_over_failed(&mut self) {
        let failed: Vec<InstanceId> = self
            .members
            .iter()
            .filter(|(_, events)| events.is_closed())
            .map(|(instance, _)| instance.clone())
            .collect();
        let Ok((saved, _)) = state::load(&self.ground.data_dir) else { return };
        for saved in saved.into_iter().filter(|saved| failed.contains(&saved.instance)) {
            self.members.remove(&saved.instance);
            self.start(saved, Want::Run);
        }
    }

    fn drop_orphans(&mut self) {
        for instance in std::mem::take(&mut self.unplaced) {
            warn!(%instance, "it runs here and is not placed here: stopped");
            self.remove(&instance);
        }
    }

    async fn halt(mut self) {
        let grace_ms = self.ground.config.exit_grace_ms;
        for member in self.members.values() {
            tell(member, Event::Halt { grace_ms });
        }
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_millis(grace_ms) + HALT_SLACK, all).await.is_err() {
            error!("not every instance ended in time; killing what is left");
            self.tasks.shutdown().await;
            let data_dir = self.ground.data_dir.clone();
            let _killed = tokio::task::spawn_blocking(move || kill_leftovers(&data_dir)).await;
        }
    }
}

/// Never waits: an instance whose inbox is full gets it a little later.
fn tell(member: &mpsc::Sender<Event>, event: Event) {
    if let Err(mpsc::error::TrySendError::Full(event)) = member.try_send(event) {
        let member = member.clone();
        tokio::spawn(async move {
            let _ended = member.send(event).await;
        });
    }
}

/// A folder whose state is damaged: its name says whose processes to end.
fn clear_unreadable(folder: &Path) {
    let Some(instance) = folder.file_name().and_then(|name| name.to_str()?.parse::<InstanceId>().ok()) else {
        return;
    };
    warn!(%instance, "its state cannot be read; what it left is ended");
    kill_strays(INSTANCE_VARIABLE, instance.as_str());
    kill_strays(SIDECAR_VARIABLE, instance.as_str());
    remove_folder(folder);
}

/// Kills at once every instance and sidecar that a host on `data_dir` left running, with their groups;
/// says how many processes there were. For `atoll dev`, after it was itself killed. The host must not run.
pub fn kill_leftovers(data_dir: &Path) -> io::Result<usize> {
    let (saved, _) = state::load(data_dir)?;
    let mut killed = 0;
    for saved in saved {
        for process in [&saved.program, &saved.sidecar].into_iter().flatten() {
            if procfs::is_alive(process.pid, process.start_time) {
                signal_group(process.pid, Signal::KILL);
                killed += 1;
            }
        }
        killed += kill_strays(INSTANCE_VARIABLE, saved.instance.as_str());
        killed += kill_strays(SIDECAR_VARIABLE, saved.instance.as_str());
    }
    Ok(killed)
}

#[cfg(test)]
mod tests;
