//! The running platform: its nodes' tasks, and the files that say what runs.

use super::layout::{Layout, NodePlan};
use super::settings::Settings;
use super::start;
use super::state::{self, RunFile};
use super::supervisor::{self, NodeEvent};
use crate::failure::{Failure, Outcome};
use crate::out;
use atoll_model::Role;
use atoll_process::drain::{Drain, DrainTrigger, channel};
use std::collections::BTreeMap;
use std::path::PathBuf;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Events of nodes that wait to be written down. Nodes wait where it is full.
const EVENTS_MAX: usize = 64;

/// What runs. Owns the nodes' tasks; `run.json` and `dev.json` are written here alone.
#[derive(Debug)]
pub struct Platform {
    layout: Layout,
    data: PathBuf,
    program: PathBuf,
    run: RunFile,
    pids: BTreeMap<String, u32>,
    token: Option<String>,
    events: mpsc::Receiver<NodeEvent>,
    events_sender: mpsc::Sender<NodeEvent>,
    nodes: JoinSet<()>,
    control: JoinSet<()>,
    nodes_drain: (DrainTrigger, Drain),
    control_drain: (DrainTrigger, Drain),
}

impl Platform {
    /// Nothing runs yet.
    pub fn new(settings: &Settings, layout: Layout, program: PathBuf) -> Self {
        let (events_sender, events) = mpsc::channel(EVENTS_MAX);
        let run = RunFile { addresses: layout.addresses.clone(), ..RunFile::default() };
        Self {
            layout,
            data: settings.data.clone(),
            program,
            run,
            pids: BTreeMap::new(),
            token: None,
            events,
            events_sender,
            nodes: JoinSet::new(),
            control: JoinSet::new(),
            nodes_drain: channel(),
            control_drain: channel(),
        }
    }

    /// What the next start needs to know.
    pub fn run_file(&self) -> &RunFile {
        &self.run
    }

    /// Starts everything, says `ready`, and goes on until the future is dropped or the start fails.
    pub async fn start_and_watch(&mut self, settings: &Settings) -> Outcome {
        let nodes = self.layout.nodes.clone();
        for node in nodes.iter().filter(|node| node.config.roles.has(Role::Control)) {
            self.watch(node);
        }
        let (start_others, others_wanted) = watch::channel(false);
        let plan = start::Plan { settings, layout: &self.layout.clone(), program: &self.program.clone() };
        let (ready_sender, mut ready) = mpsc::channel::<String>(1);
        let starting = start::bring_up(&plan, start_others, ready_sender);
        tokio::pin!(starting);
        let mut others_wanted = Some(others_wanted);
        let mut started = false;
        loop {
            tokio::select! {
                ended = &mut starting, if !started => {
                    ended?;
                    started = true;
                }
                Some(event) = self.events.recv() => self.take(event),
                Some(token) = ready.recv(), if self.token.is_none() => {
                    self.token = Some(token);
                    self.save()?;
                    out::data("ready");
                    if settings.context {
                        out::note("in another terminal: `atoll deploy`, `atoll status`; Ctrl-C here stops everything");
                    }
                }
                () = wanted(&mut others_wanted), if others_wanted.is_some() => {
                    others_wanted = None;
                    for node in nodes.iter().filter(|node| !node.config.roles.has(Role::Control)) {
                        self.watch(node);
                    }
                }
            }
        }
    }

    /// Stops the nodes, then control.
    pub async fn stop(&mut self) {
        self.nodes_drain.0.start();
        Self::finish(&mut self.nodes, &mut self.events).await;
        self.control_drain.0.start();
        Self::finish(&mut self.control, &mut self.events).await;
    }

    /// Waits for the tasks; their events are read meanwhile, so that none of them waits for us.
    async fn finish(tasks: &mut JoinSet<()>, events: &mut mpsc::Receiver<NodeEvent>) {
        loop {
            tokio::select! {
                task = tasks.join_next() => {
                    if task.is_none() {
                        return;
                    }
                }
                _ = events.recv() => {}
            }
        }
    }

    fn watch(&mut self, node: &NodePlan) {
        let is_control = node.config.roles.has(Role::Control);
        let (tasks, drain) = if is_control {
            (&mut self.control, self.control_drain.1.clone())
        } else {
            (&mut self.nodes, self.nodes_drain.1.clone())
        };
        tasks.spawn(supervisor::watch(node.clone(), self.program.clone(), self.events_sender.clone(), drain));
    }

    /// Takes note of what happened to a node. A full disk must not end a platform that runs: it is said, and
    /// the next event writes the files again.
    fn take(&mut self, event: NodeEvent) {
        match event {
            NodeEvent::Started { name, pid } => {
                self.run.started(&name, pid);
                self.pids.insert(name, pid);
            }
            NodeEvent::Crashed { name } => {
                self.run.nodes.remove(&name);
                self.pids.remove(&name);
            }
        }
        if let Err(failure) = self.save() {
            failure.print();
        }
    }

    fn save(&self) -> Outcome {
        self.run.save(&self.data)?;
        match &self.token {
            Some(token) => {
                state::save_dev_json(&self.data, &state::dev_json(&self.layout, token, &self.pids))
            }
            None => Ok(()),
        }
    }
}

/// Resolves once control can take nodes.
async fn wanted(signal: &mut Option<watch::Receiver<bool>>) {
    if let Some(receiver) = signal {
        // A dropped sender means that the start failed, which ends the loop by itself.
        if receiver.wait_for(|wanted| *wanted).await.is_ok() {
            return;
        }
    }
    std::future::pending().await
}

/// A start that did not come to its end, with the last lines of the node that it waited for.
pub fn not_up(node: &NodePlan, what: &str) -> Failure {
    Failure::failed(what)
        .place(format!("node {} (log: {})", node.name(), node.log_path.display()))
        .details(super::logs::last_lines(&node.log_path, 8))
}
