//! Records on disk: group-committed by a thread of their own, so that a slow or full disk holds up nobody,
//! and read back before the network is touched. What is read is verified as if a peer had sent it.

mod counters;
mod database;

use crate::core::{Core, Dirty, Kept, State, disk_id};
use crate::records::{LogId, Watermark};
use crate::stats::Stats;
use atoll_wire::record::SignedRecord;
pub(crate) use counters::{Counters, LOST_SKIP};
use database::Database;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// How long changes are gathered before they are written.
const GATHER: Duration = Duration::from_millis(100);
/// How long to wait after a failed write.
const RETRY: Duration = Duration::from_secs(1);
const FILE: &str = "gossip.redb";

/// The disk, before the thread takes it.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
    database: Option<Database>,
    counters: Counters,
    stats: Arc<Stats>,
    /// The file was not read at the start, or was lost since: it is to be written anew as a whole, or what
    /// it holds from before would come back at the next start.
    stale: bool,
}

impl Disk {
    /// Opens what `dir` holds, and reads all but the records. A file that can't be read is moved aside; a disk that can't
    /// be written is used from memory, and tried again.
    pub(crate) fn open(dir: &Path, stats: Arc<Stats>, now_ms: u64) -> (Self, Kept) {
        let path = dir.join(FILE);
        let counters = Counters::load(dir, now_ms);
        let (database, kept) = match Database::open(&path) {
            Ok((database, kept)) => (Some(database), kept),
            Err(database::Error::Damaged(why)) => (set_aside(&path, &why, now_ms), Kept::default()),
            Err(database::Error::Io(why)) => {
                tracing::error!(
                    path = %path.display(),
                    "records can't be kept on disk, this node goes on without: {why}; check space and permissions"
                );
                stats.disk_errors.inc();
                (None, Kept::default())
            }
        };
        let stale = database.is_none();
        (Self { path, database, counters, stats, stale }, kept)
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Reserves versions ahead, so that a restart uses none twice.
    pub(crate) fn reserve(&mut self, core: &Core) {
        if let Err(why) = self.counters.reserve(core.last_version()) {
            self.complain("own record versions can't be reserved on disk", &why.to_string());
        }
    }

    /// Hands over the records that are on disk, some at a time; false when not all of them.
    pub(crate) fn read_records(&self, each: &mut dyn FnMut(Vec<SignedRecord>)) -> bool {
        let read = self.database.as_ref().map_or(Ok(()), |database| database.records(each));
        if let Err(why) = &read {
            self.complain("kept records could not all be read", &why.to_string());
        }
        read.is_ok()
    }

    fn complain(&self, what: &'static str, why: &str) {
        self.stats.disk_errors.inc();
        if self.stats.may_log("disk") {
            tracing::error!(
                path = %self.path.display(),
                "{what}: {why}; this node goes on from memory and tries again; check space and permissions"
            );
        }
    }

    fn write(&mut self, core: &Core) -> bool {
        if self.database.is_some() && !self.path.exists() {
            self.complain("the file of kept records was removed", "it is written anew");
            self.database = None;
            self.stale = true;
        }
        if self.stale {
            core.mark_all_dirty();
        }
        let (dirty, marks) = take_dirty(core);
        if dirty.is_empty() {
            return true;
        }
        if self.database.is_none() {
            self.database = Database::open(&self.path).ok().map(|(database, _)| database);
        }
        let written = match &self.database {
            Some(database) => database.write(&dirty, &marks, self.stale).map_err(|why| why.to_string()),
            None => Err("the file can't be opened".to_owned()),
        };
        let Err(why) = written else {
            self.stale = false;
            return true;
        };
        self.complain("records could not be written to disk", &why);
        // A database that failed once refuses all that follows: open it again.
        self.database = None;
        put_back(core, dirty);
        false
    }
}

fn set_aside(path: &Path, why: &str, now_ms: u64) -> Option<Database> {
    let aside = path.with_extension(format!("damaged-{now_ms}"));
    tracing::error!(
        path = %path.display(),
        aside = %aside.display(),
        "the file of kept records is damaged ({why}); it was moved aside and this node starts with none: \
         it learns them from its peers, and does not serve before"
    );
    if let Err(why) = std::fs::rename(path, &aside) {
        tracing::error!(path = %path.display(), "the damaged file could not be moved: {why}");
        return None;
    }
    Database::open(path).ok().map(|(database, _)| database)
}

impl Core {
    /// All that is held is to be written.
    fn mark_all_dirty(&self) {
        let mut state = self.state();
        let State { store, signers, dirty, .. } = &mut *state;
        dirty.logs.extend(store.logs().map(|(log, _)| log.clone()));
        dirty.records.extend(store.records().map(|record| (disk_id(&record.entry), Some(record.clone()))));
        dirty.certificates.extend(signers.all().map(|(hash, known)| (hash, Some(known))));
    }
}

fn take_dirty(core: &Core) -> (Dirty, Vec<(LogId, Option<Watermark>)>) {
    let mut state = core.state();
    let dirty = std::mem::take(&mut state.dirty);
    let marks = dirty.logs.iter().map(|log| (log.clone(), state.store.watermark(log))).collect();
    (dirty, marks)
}

fn put_back(core: &Core, failed: Dirty) {
    let mut state = core.state();
    let newer = std::mem::replace(&mut state.dirty, failed);
    state.dirty.records.extend(newer.records);
    state.dirty.logs.extend(newer.logs);
    state.dirty.certificates.extend(newer.certificates);
}

/// The thread that writes. Dropping it ends the thread without waiting.
#[derive(Debug)]
pub(crate) struct Writer {
    stop: SyncSender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    pub(crate) fn spawn(disk: Disk, core: Arc<Core>) -> std::io::Result<Self> {
        let (stop, stopped) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("gossip-disk".into())
            .spawn(move || run(disk, &core, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Writes what is left, and ends. Blocks.
    pub(crate) fn finish(&mut self) {
        let _already_stopping = self.stop.try_send(());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that keeps records on disk panicked");
        }
    }
}

fn run(mut disk: Disk, core: &Core, stopped: &Receiver<()>) {
    let mut wait = GATHER;
    loop {
        let last = !matches!(stopped.recv_timeout(wait), Err(RecvTimeoutError::Timeout));
        disk.reserve(core);
        wait = if disk.write(core) { GATHER } else { RETRY };
        if last {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
