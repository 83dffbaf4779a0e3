//! The files of an instance whose service has a bundle: its working directory, made anew for each start.

use super::{INSTANCE_VARIABLE, Instance};
use crate::process::kill_strays;
use crate::supervisor::{Event, Exit};
use atoll_process::clock;
use std::path::PathBuf;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// In the instance's folder.
const FOLDER: &str = "files";

/// Files on their way.
pub(super) struct Preparing {
    done: JoinHandle<Result<(), String>>,
    said: watch::Receiver<String>,
    stop: CancellationToken,
}

impl Drop for Preparing {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What happened to them.
pub(super) enum Files {
    /// They are there, or will not be.
    Done(Result<(), String>),
    /// How far they are has changed.
    News,
}

impl Preparing {
    /// Waits for what happens next; for ever if nothing is prepared. Cancel-safe.
    pub(super) async fn next(preparing: &mut Option<Self>) -> Files {
        let Some(preparing) = preparing else { return std::future::pending().await };
        tokio::select! {
            done = &mut preparing.done => {
                Files::Done(done.unwrap_or_else(|_panicked| Err("the host failed".to_owned())))
            }
            Ok(()) = preparing.said.changed() => Files::News,
        }
    }

    /// What to tell people meanwhile.
    pub(super) fn said(&self) -> String {
        self.said.borrow().clone()
    }
}

impl Instance {
    /// Where the program runs.
    pub(super) fn working_dir(&self) -> PathBuf {
        match self.saved.spec.bundle {
            Some(_) => self.folder.join(FOLDER),
            None => PathBuf::from(&self.saved.spec.working_dir),
        }
    }

    /// Begins to make the working directory. `false`: there is none to make.
    pub(super) fn prepare_files(&mut self) -> bool {
        let Some(bundle) = self.saved.spec.bundle.clone() else { return false };
        let (say, said) = watch::channel(String::new());
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (bundles, cluster) = (self.ground.bundles.clone(), self.saved.cluster.clone());
        let (folder, instance) = (self.folder.clone(), self.saved.instance.clone());
        let done = tokio::spawn(async move {
            // What an earlier run of the program left must not write into the new folder.
            let before = move || {
                kill_strays(INSTANCE_VARIABLE, instance.as_str());
            };
            tokio::select! {
                done = bundles.prepare(&cluster, &bundle, &say, &folder, FOLDER, before) => done,
                () = stopped.cancelled() => Err("it was stopped before its files were there".to_owned()),
            }
        });
        self.preparing = Some(Preparing { done, said, stop });
        true
    }

    /// An instance that is to end does not wait for files.
    pub(super) fn give_up_files(&self) {
        if let Some(preparing) = self.preparing.as_ref().filter(|_| self.core.is_draining()) {
            preparing.stop.cancel();
        }
    }

    /// Goes on with the start of the program.
    pub(super) async fn take_files(&mut self, files: Files) -> Event {
        match files {
            Files::News => {
                self.report().await;
                Event::Tick
            }
            Files::Done(done) => {
                self.preparing = None;
                match done {
                    Ok(()) => self.start_program().await,
                    Err(why) => self.start_failed(why),
                }
            }
        }
    }

    pub(super) fn start_failed(&self, start_error: String) -> Event {
        tracing::warn!(instance = %self.saved.instance, cluster = %self.saved.cluster, %start_error, "not started");
        Event::StartFailed(Exit { status: -1, start_error, at_ms: clock::unix_ms(), ..Exit::default() })
    }
}
