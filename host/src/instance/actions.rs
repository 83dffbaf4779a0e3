//! Doing what the supervisor decided.

use super::record::record;
use super::{INSTANCE_VARIABLE, Instance, Report, SIDECAR_VARIABLE, remove_folder, saved_process};
use crate::check::Target;
use crate::process::{Process, kill_strays};
use crate::program;
use crate::supervisor::{Action, Event, Who};
use atoll_process::clock;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::PoisonError;
use tracing::{info, warn};

impl Instance {
    /// Does it; what came of it is the next event.
    pub(super) async fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::StartProgram => {
                if !self.prepare_files() {
                    return Some(self.start_program().await);
                }
            }
            Action::StartSidecar => return Some(self.start_sidecar().await),
            Action::Check { check, run } => self.check(check, run),
            Action::Terminate(who) => self.signal(who, Signal::TERM),
            Action::Kill(who) => {
                self.ground.metrics.kills.inc();
                self.signal(who, Signal::KILL);
            }
            Action::TellSidecar => self.tell_sidecar(),
            Action::Report => self.report().await,
            Action::Finished => self.finish().await,
        }
        None
    }

    pub(super) async fn start_program(&mut self) -> Event {
        self.mark = self.log.mark();
        match self.try_start_program().await {
            Ok(process) => {
                let (pid, port) = (process.pid(), self.saved.port);
                info!(instance = %self.saved.instance, cluster = %self.saved.cluster, pid, port, "program started");
                self.target = Some(Target::new(port, pid));
                self.program = Some(process);
                Event::Started { pid, port, at_ms: clock::unix_ms() }
            }
            Err(why) => self.start_failed(why),
        }
    }

    async fn try_start_program(&mut self) -> Result<Process, String> {
        let instance = self.saved.instance.clone();
        self.saved.port = self.ground.ports.take(instance.as_str()).map_err(|cause| cause.to_string())?;
        let environment = self.environment();
        let (spec, folder, output) =
            (self.saved.spec.clone(), self.working_dir(), self.log.path().to_owned());
        let start = move || {
            kill_strays(INSTANCE_VARIABLE, instance.as_str());
            let mut command =
                program::command(&spec, &folder, &environment).map_err(|cause| cause.to_string())?;
            Process::start(&mut command, &output).map_err(|cause| {
                format!("cannot start {}: {cause}", PathBuf::from(command.get_program()).display())
            })
        };
        tokio::task::spawn_blocking(start).await.map_err(|cause| cause.to_string())?
    }

    /// The clean base, the service's own, and what the platform says, which nothing overrides.
    fn environment(&self) -> BTreeMap<String, String> {
        let (saved, ground) = (&self.saved, &self.ground);
        let mut environment = ground.base_environment.clone();
        environment.extend(saved.spec.env.clone());
        let own = [
            ("PORT", saved.port.to_string()),
            ("ATOLL_APP", saved.cluster.app.to_string()),
            ("ATOLL_SERVICE", saved.cluster.service.to_string()),
            ("ATOLL_REGION", ground.region.to_string()),
            ("ATOLL_SITE", ground.site.to_string()),
            (INSTANCE_VARIABLE, saved.instance.to_string()),
            ("ATOLL_REVISION", saved.revision.clone()),
        ];
        environment.extend(own.map(|(name, value)| (name.to_owned(), value)));
        environment.extend(self.call_variables());
        environment
    }

    async fn start_sidecar(&mut self) -> Event {
        let instance = self.saved.instance.clone();
        let Some((program, arguments)) = self.ground.sidecar_command.split_first() else {
            return Event::SidecarStartFailed("no command for sidecars is configured".to_owned());
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg("--socket")
            .arg(self.ground.sidecars.path())
            .arg("--instance")
            .arg(instance.as_str());
        command.env_clear().envs(&self.ground.base_environment).env(SIDECAR_VARIABLE, instance.as_str());
        command.envs(program::sidecar_environment());
        let output = self.sidecar_log.path().to_owned();
        let start = move || {
            kill_strays(SIDECAR_VARIABLE, instance.as_str());
            Process::start(&mut command, &output).map_err(|cause| {
                format!("cannot start {}: {cause}", PathBuf::from(command.get_program()).display())
            })
        };
        match tokio::task::spawn_blocking(start)
            .await
            .map_err(|cause| cause.to_string())
            .and_then(|started| started)
        {
            Ok(process) => {
                let pid = process.pid();
                let slot = self.slot();
                self.ground.sidecars.register(pid, slot);
                self.sidecar = Some(process);
                Event::SidecarStarted { pid }
            }
            Err(why) => {
                warn!(instance = %self.saved.instance, %why, "no sidecar");
                Event::SidecarStartFailed(why)
            }
        }
    }

    fn check(&mut self, index: usize, run: u32) {
        let (Some(check), Some(target)) = (self.checks.get(index).cloned(), self.target.clone()) else {
            return;
        };
        self.asked.spawn(async move {
            let outcome = target.check(check.kind, check.timeout_ms).await.map_err(|cause| cause.to_string());
            Event::Checked { check: index, run, outcome }
        });
    }

    fn signal(&self, who: Who, signal: Signal) {
        let process = match who {
            Who::Program => &self.program,
            Who::Sidecar => &self.sidecar,
        };
        if let Some(process) = process {
            process.signal(signal);
        }
    }

    /// Publishes first: others wait for it. Then keeps it for our own restart.
    pub(super) async fn report(&mut self) {
        let view = self.view();
        (self.ground.reporter)(Report::Instance(Box::new(record(&self.saved, &view))));
        self.saved.program = saved_process(self.program.as_ref());
        self.saved.sidecar = saved_process(self.sidecar.as_ref());
        self.saved.sidecar_address.clone_from(&view.sidecar_address);
        self.saved.healthy = self.core.checks_pass();
        self.saved.started_ms = view.started_ms;
        self.saved.restarts = view.restarts;
        self.saved.last_exit.clone_from(&view.last_exit);
        self.show(&view);
        self.keep().await;
    }

    async fn keep(&self) {
        let (saved, folder) = (self.saved.clone(), self.folder.clone());
        let written = tokio::task::spawn_blocking(move || saved.write(&folder)).await;
        if let Ok(Err(cause)) = written {
            self.ground.metrics.state_errors.inc();
            warn!(instance = %self.saved.instance, %cause, "state was not kept; a restart of the host would stop this instance");
        }
    }

    async fn finish(&mut self) {
        let instance = self.saved.instance.clone();
        (self.ground.reporter)(Report::Withdraw(instance.clone()));
        self.ground.ports.release(instance.as_str());
        self.ground.metrics.moved(self.shown_state.take(), None);
        self.log.close();
        self.sidecar_log.close();
        self.ground.board.lock().unwrap_or_else(PoisonError::into_inner).remove(&instance);
        if self.halted {
            // It is still placed here, and starts again with the host: its output stays readable.
            self.saved.program = None;
            self.saved.sidecar = None;
            self.saved.healthy = false;
            self.keep().await;
            return;
        }
        let folder = self.folder.clone();
        let _removed = tokio::task::spawn_blocking(move || remove_folder(&folder)).await;
    }
}
