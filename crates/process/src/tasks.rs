//! Tasks that are named and waited for.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, error, info_span};

/// Spawns tasks on one runtime and can wait for all of them.
#[derive(Debug, Clone)]
pub struct Tasks {
    runtime: Handle,
    tracker: TaskTracker,
    /// The first vital task that ended.
    ended: Arc<watch::Sender<Option<&'static str>>>,
}

impl Tasks {
    /// Tasks will run on `runtime`.
    #[must_use]
    pub fn new(runtime: Handle) -> Self {
        Self { runtime, tracker: TaskTracker::new(), ended: Arc::default() }
    }

    /// Runs `task` under `name`. A panic ends that task alone, and is logged.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn_then(name, task, || {});
    }

    /// Runs `task`, without which the process would only be half alive: [`Self::vital_end`] tells of its end.
    pub fn spawn_vital<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let ended = Arc::clone(&self.ended);
        self.spawn_then(name, task, move || {
            ended.send_if_modified(|first| {
                let is_first = first.is_none();
                first.get_or_insert(name);
                is_first
            });
        });
    }

    /// The name of the first vital task that ended, whether it panicked or returned: outside a drain, the
    /// process should end and be started again. Cancel-safe.
    pub async fn vital_end(&self) -> &'static str {
        let mut ended = self.ended.subscribe();
        let name = ended.wait_for(Option::is_some).await.ok().and_then(|name| *name);
        match name {
            Some(name) => name,
            None => std::future::pending().await,
        }
    }

    fn spawn_then<F>(&self, name: &'static str, task: F, then: impl FnOnce() + Send + 'static)
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
                then();
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

    #[tokio::test]
    async fn the_end_of_a_vital_task_is_told() {
        let tasks = Tasks::new(Handle::current());
        tasks.spawn("ordinary", async {});
        let (hold, held) = tokio::sync::oneshot::channel::<()>();
        tasks.spawn_vital("held", async move { drop(held.await) });
        let nothing = tokio::time::timeout(Duration::from_millis(50), tasks.vital_end()).await;
        assert!(nothing.is_err(), "nothing vital has ended");
        tasks.spawn_vital("bad", async { panic!("on purpose") });
        assert_eq!(tasks.vital_end().await, "bad");
        drop(hold);
        assert!(tasks.finished(Duration::from_secs(5)).await);
        assert_eq!(tasks.clone().vital_end().await, "bad");
    }
}
