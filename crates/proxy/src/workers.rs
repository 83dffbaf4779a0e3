//! Data-path workers: one thread, one single-threaded runtime, one set of local tasks each.

use crate::metrics::ProxyMetrics;
use atoll_process::Drain;
use futures_util::FutureExt as _;
use std::any::Any;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet};
use tracing::error;

/// The most workers that are started without being asked for.
const COUNT_DEFAULT_MAX: usize = 4;
/// How long workers may take to end once the drain was forced.
const END_WITHIN: Duration = Duration::from_secs(2);

/// How many workers to start where an operator says `configured`: 0 means one for each core, at most 4.
#[must_use]
pub fn count(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(COUNT_DEFAULT_MAX)),
        workers => workers,
    }
}

/// Does `work` until the drain is forced.
pub async fn until_forced(drain: Drain, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = drain.forced() => {}
    }
}

/// Which worker this is.
#[derive(Debug, Clone, Copy)]
pub struct Worker {
    /// From 0.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

/// Threads that run.
#[derive(Debug)]
pub struct Workers {
    ended: Vec<oneshot::Receiver<bool>>,
}

/// Starts `count` threads that each run `body` to its end, and then drop what it has spawned.
///
/// # Errors
/// When a thread or a runtime can't be made.
pub fn spawn<F, Fut>(count: usize, name: &str, body: F) -> io::Result<Workers>
where
    F: Fn(Worker) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let body = Arc::new(body);
    let count = count.max(1);
    let mut ended = Vec::with_capacity(count);
    for index in 0..count {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (done, receiver) = oneshot::channel();
        let body = Arc::clone(&body);
        std::thread::Builder::new().name(format!("{name}-{index}")).spawn(move || {
            let work = LocalSet::new();
            let main = AssertUnwindSafe(body(Worker { index, count })).catch_unwind();
            let outcome = work.block_on(&runtime, main);
            if let Err(panic) = &outcome {
                error!(index, panic = panic_text(panic.as_ref()), "a worker's main task panicked");
            }
            drop(work);
            // The receiver is gone when nobody waits for the workers.
            let _unheard = done.send(outcome.is_ok());
        })?;
        ended.push(receiver);
    }
    Ok(Workers { ended })
}

/// [`spawn`], with one of `own` (its sockets) for each worker.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_each<T, F, Fut>(own: Vec<T>, name: &str, body: F) -> io::Result<Workers>
where
    T: Send + 'static,
    F: Fn(Worker, T) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let count = own.len();
    // Each worker takes its own, on its own thread.
    let own: Mutex<Vec<Option<T>>> = Mutex::new(own.into_iter().map(Some).collect());
    spawn(count, name, move |worker| {
        let mut all = own.lock().unwrap_or_else(PoisonError::into_inner);
        let work = all.get_mut(worker.index).and_then(Option::take).map(|own| body(worker, own));
        async move {
            if let Some(work) = work {
                work.await;
            }
        }
    })
}

impl Workers {
    /// Waits until every worker has ended, which they must soon after the drain was forced; false when one
    /// panicked or did not.
    pub async fn drained(self, drain: &Drain) -> bool {
        let ended = self.finished(Duration::MAX);
        tokio::pin!(ended);
        tokio::select! {
            well = &mut ended => well,
            () = drain.forced() => tokio::time::timeout(END_WITHIN, ended).await.unwrap_or(false),
        }
    }

    /// Waits until every worker has ended; false when one panicked or had not ended after `within`.
    pub async fn finished(self, within: Duration) -> bool {
        let all = async {
            let mut well = true;
            for ended in self.ended {
                well &= ended.await.unwrap_or(false);
            }
            well
        };
        tokio::time::timeout(within, all).await.unwrap_or(false)
    }
}

/// Runs `task` on this worker. A panic ends that task alone, and is logged and counted.
pub fn spawn_task<F>(name: &'static str, metrics: &ProxyMetrics, task: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + 'static,
{
    let panics = metrics.panics.clone();
    tokio::task::spawn_local(async move {
        if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
            panics.inc();
            error!(name, panic = panic_text(panic.as_ref()), "a task panicked");
        }
    })
}

/// What a panic said.
#[must_use]
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::Mutex;

    #[tokio::test]
    async fn each_worker_runs_local_tasks_and_a_panic_ends_one_task_alone() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        let metrics = ProxyMetrics::unregistered();
        let counted = metrics.clone();
        let workers = spawn(3, "test", move |worker| {
            let (noted, metrics) = (Arc::clone(&noted), counted.clone());
            async move {
                let local = std::rc::Rc::new(worker.index);
                let bad = spawn_task("bad", &metrics, async { panic!("on purpose") });
                let good = spawn_task("good", &metrics, async move {
                    noted.lock().unwrap().push(*local);
                });
                bad.await.unwrap();
                good.await.unwrap();
            }
        });
        assert!(workers.unwrap().finished(Duration::from_secs(10)).await);
        seen.lock().unwrap().sort_unstable();
        assert_eq!(*seen.lock().unwrap(), [0, 1, 2]);
        assert_eq!(metrics.panics.get(), 3);
    }

    #[tokio::test]
    async fn a_worker_that_panics_is_told() {
        let workers = spawn(2, "test", |worker| async move { assert!(worker.index != 1, "on purpose") });
        assert!(!workers.unwrap().finished(Duration::from_secs(10)).await);
    }
}
