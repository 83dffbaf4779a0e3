//! Tasks that are named and waited for.

use std::future::Future;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, error, info_span};

/// Spawns tasks on one runtime and can wait for all of them.
#[derive(Debug, Clone)]
pub struct Tasks {
    runtime: Handle,
    tracker: TaskTracker,
}

impl Tasks {
    /// Tasks will run on `runtime`.
    #[must_use]
    pub fn new(runtime: Handle) -> Self {
        Self { runtime, tracker: TaskTracker::new() }
    }

    /// Runs `task` under `name`. A panic ends that task alone, and is logged.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let inner = self.runtime.spawn(task.instrument(info_span!("task", name)));
        self.tracker.spawn_on(
            async move {
                match inner.await {
                    Ok(()) => debug!(name, "task ended"),
                    Err(cause) if cause.is_panic() => error!(name, "task panicked"),
                    Err(_) => debug!(name, "task was cancelled"),
                }
            },
            &self.runtime,
        );
    }

    /// Waits until every task has ended; false when some had not after `within`.
    pub async fn finished(&self, within: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(within, self.tracker.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_stays_in_its_task() {
        let tasks = Tasks::new(Handle::current());
        tasks.spawn("bad", async { panic!("on purpose") });
        tasks.spawn("good", async {});
        assert!(tasks.finished(Duration::from_secs(5)).await);
    }
}
