//! The thread that makes changes: takes what waits, runs it one after the other, commits it as one.

use super::change::{Change, Writes};
use super::disk::Disk;
use super::{DesiredRecord, Shared, StoreError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// Changes that share one commit.
const GROUP_MAX: usize = 64;

type Feeder = mpsc::Sender<Vec<DesiredRecord>>;

/// A change that waits for its turn.
pub(super) struct Job {
    /// Runs it; true when its writes are to be kept.
    run: Box<dyn FnOnce(&mut Change<'_>) -> bool + Send>,
    /// Tells the caller: the revision of the commit, or why there was none.
    finish: Box<dyn FnOnce(Result<u64, StoreError>) + Send>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

/// Wraps a caller's change so that the thread need not know its types.
pub(super) fn job<T, E>(
    change: impl FnOnce(&mut Change<'_>) -> Result<T, E> + Send + 'static,
    answer: oneshot::Sender<Result<(T, u64), E>>,
) -> Job
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    let made: Arc<Mutex<Option<Result<T, E>>>> = Arc::default();
    let slot = made.clone();
    let run = Box::new(move |transaction: &mut Change<'_>| {
        let result = change(transaction);
        let keep = result.is_ok();
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        keep
    });
    let finish = Box::new(move |committed: Result<u64, StoreError>| {
        let made = made.lock().unwrap_or_else(PoisonError::into_inner).take();
        let result = match (made, committed) {
            (Some(Err(own)), _) => Err(own),
            (_, Err(store)) => Err(store.into()),
            (Some(Ok(value)), Ok(revision)) => Ok((value, revision)),
            (None, Ok(_)) => Err(StoreError::Broken("the change failed inside".to_owned()).into()),
        };
        // A caller that has gone away wants no answer.
        let _gone = answer.send(result).is_err();
    });
    Job { run, finish }
}

/// Runs until every handle to the store is gone.
pub(super) fn run(mut disk: Disk, shared: &Shared, mut jobs: mpsc::Receiver<Job>, feed: Feeder) {
    let mut waiting = Vec::with_capacity(GROUP_MAX);
    while jobs.blocking_recv_many(&mut waiting, GROUP_MAX) > 0 {
        group(&mut disk, shared, &feed, std::mem::take(&mut waiting));
    }
}

fn group(disk: &mut Disk, shared: &Shared, feed: &Feeder, jobs: Vec<Job>) {
    if let Err(error) = recover(disk, shared, feed) {
        for job in jobs {
            (job.finish)(Err(error.clone()));
        }
        return;
    }
    let before = *shared.revision.borrow();
    let mut revision = before;
    let mut writes = Writes::new();
    let mut desired = Vec::new();
    let mut answers = Vec::with_capacity(jobs.len());
    {
        let image = shared.image.read().unwrap_or_else(PoisonError::into_inner);
        for job in jobs {
            let mut change = Change::new(&image, &writes, revision);
            let keep = catch_unwind(AssertUnwindSafe(|| (job.run)(&mut change))).unwrap_or(false);
            let Change { own, desired: records, revision: used, skipped, .. } = change;
            if keep && (skipped || !(own.is_empty() && records.is_empty())) {
                revision = used.max(revision + 1);
                writes.extend(own);
                desired.extend(records);
            }
            answers.push((job.finish, revision));
        }
    }
    if revision == before {
        // Nothing was written: reads and refusals only.
        answers.into_iter().for_each(|(finish, revision)| finish(Ok(revision)));
        return;
    }
    match disk.commit(&writes, revision) {
        Ok(()) => {
            apply(shared, writes, revision);
            if !desired.is_empty() {
                publish(shared, feed, desired);
            }
            answers.into_iter().for_each(|(finish, revision)| finish(Ok(revision)));
        }
        Err(error) => {
            tracing::error!(%error, "changes were refused: the control store could not be written");
            answers.into_iter().for_each(|(finish, _)| finish(Err(error.clone())));
        }
    }
}

/// After a failure: what is on disk is the truth, also where we answered that we don't know.
fn recover(disk: &mut Disk, shared: &Shared, feed: &Feeder) -> Result<(), StoreError> {
    if !disk.is_broken() {
        return Ok(());
    }
    let (image, revision) = disk.reopen()?;
    tracing::info!(revision, "the control store is open again");
    *shared.image.write().unwrap_or_else(PoisonError::into_inner) = image;
    shared.revision.send_replace(revision);
    shared.gap.store(true, Ordering::Release);
    publish(shared, feed, Vec::new());
    Ok(())
}

fn apply(shared: &Shared, writes: Writes, revision: u64) {
    shared.image.write().unwrap_or_else(PoisonError::into_inner).apply(writes, revision);
    shared.revision.send_replace(revision);
}

/// Hands records to the publisher. When its queue is full it is a thousand batches behind already, and
/// is told to compare everything instead.
fn publish(shared: &Shared, feed: &Feeder, desired: Vec<DesiredRecord>) {
    if feed.try_send(desired).is_err() {
        shared.gap.store(true, Ordering::Release);
    }
}
