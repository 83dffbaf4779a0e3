//! The file under the store, and its re-opening after the disk has failed.

use super::change::{Writes, value};
use super::image::Image;
use super::{SCHEMA_VERSION, StoreError};
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition};
use std::fmt::Debug;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const SCHEMA: &str = "schema";
const EPOCH: &str = "epoch";
const REVISION: &str = "revision";

/// Room that must stay free on the disk. Below it a change is refused before the file is touched.
const FREE_BYTES_MIN: u64 = 2 * 1024 * 1024;
/// redb's page cache. The image is what is read.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// Where the database is.
pub trait Backing: Debug + Send + Sync + 'static {
    /// Opens it, or makes it.
    fn open(&self) -> Result<Database, DatabaseError>;
    /// Free room in bytes, if it is known.
    fn free_bytes(&self) -> Option<u64>;
    /// Its path, for messages.
    fn path(&self) -> &Path;
}

/// A file, mode 0600.
#[derive(Debug)]
pub struct FileBacking {
    path: PathBuf,
}

impl FileBacking {
    /// A store at `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

impl Backing for FileBacking {
    fn open(&self) -> Result<Database, DatabaseError> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.path)
            .map_err(StorageError::from)?;
        Database::builder().set_cache_size(CACHE_BYTES).create_file(file)
    }

    fn free_bytes(&self) -> Option<u64> {
        let folder = self.path.parent()?;
        rustix::fs::statvfs(folder).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// The store's place in the order of all changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) epoch: u64,
    pub(super) revision: u64,
}

/// The database, or nothing after the disk failed and until it can be opened again.
#[derive(Debug)]
pub(super) struct Disk {
    backing: Arc<dyn Backing>,
    database: Option<Database>,
}

impl Disk {
    /// Opens the store and reads it all.
    pub(super) fn open(
        backing: Arc<dyn Backing>,
        now_ms: u64,
    ) -> Result<(Self, Image, Counters), StoreError> {
        let database = backing.open().map_err(|error| open_error(error, backing.path()))?;
        let counters = prepare(&database, now_ms, backing.path())?;
        let image = load(&database, counters.revision)?;
        Ok((Self { backing, database: Some(database) }, image, counters))
    }

    /// Whether the file has to be opened again before the next change.
    pub(super) fn is_broken(&self) -> bool {
        self.database.is_none()
    }

    /// Opens the file again and reads what is really on it.
    pub(super) fn reopen(&mut self) -> Result<(Image, u64), StoreError> {
        self.room()?;
        let backing = &self.backing;
        let (database, image, counters) = guarded(|| {
            let database = backing.open().map_err(|error| open_error(error, backing.path()))?;
            let counters = prepare(&database, 0, backing.path())?;
            let image = load(&database, counters.revision)?;
            Ok((database, image, counters))
        })?;
        self.database = Some(database);
        Ok((image, counters.revision))
    }

    /// Writes a group of changes and waits until it is on disk.
    pub(super) fn commit(&mut self, writes: &Writes, revision: u64) -> Result<(), StoreError> {
        self.room()?;
        let database = self.database.as_ref().ok_or_else(|| StoreError::Broken("not open".to_owned()))?;
        let written = guarded(|| write(database, writes, revision).map_err(Into::into));
        if written.is_err() {
            // After a failed write redb refuses everything until the file is opened again.
            let failed = self.database.take();
            let _panicked = catch_unwind(AssertUnwindSafe(|| drop(failed))).is_err();
        }
        written
    }

    fn room(&self) -> Result<(), StoreError> {
        match self.backing.free_bytes() {
            Some(free) if free < FREE_BYTES_MIN => Err(StoreError::Full),
            _ => Ok(()),
        }
    }
}

/// A damaged file or a failing disk can make the library panic; the writer thread must outlive that.
fn guarded<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(StoreError::Broken("the database failed unexpectedly".to_owned())))
}

fn write(database: &Database, writes: &Writes, revision: u64) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut objects = transaction.open_table(OBJECTS)?;
        for (key, value) in writes {
            match value {
                Some(value) => drop(objects.insert(key.as_str(), &**value)?),
                None => drop(objects.remove(key.as_str())?),
            }
        }
        transaction.open_table(META)?.insert(REVISION, revision)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Checks the schema, or lays it out in a new file.
fn prepare(database: &Database, now_ms: u64, path: &Path) -> Result<Counters, StoreError> {
    let read = || -> Result<Counters, redb::Error> {
        let transaction = database.begin_write()?;
        let counters;
        {
            let mut meta = transaction.open_table(META)?;
            transaction.open_table(OBJECTS)?;
            let stored =
                |key: &str, meta: &redb::Table<'_, &str, u64>| -> Result<Option<u64>, StorageError> {
                    Ok(meta.get(key)?.map(|value| value.value()))
                };
            match stored(SCHEMA, &meta)? {
                None => {
                    meta.insert(SCHEMA, SCHEMA_VERSION)?;
                    // Seconds since 1970: a store that is made later wins over one that was lost.
                    meta.insert(EPOCH, (now_ms / 1000).max(1))?;
                    meta.insert(REVISION, 0)?;
                }
                Some(found) if found > SCHEMA_VERSION => {
                    return Ok(Counters { epoch: 0, revision: found });
                }
                Some(_) => {}
            }
            counters = Counters {
                epoch: stored(EPOCH, &meta)?.unwrap_or(1),
                revision: stored(REVISION, &meta)?.unwrap_or(0),
            };
        }
        transaction.commit()?;
        Ok(counters)
    };
    match read()? {
        // Epoch 0 is never stored: it carries the newer schema out of the closure.
        Counters { epoch: 0, revision: found } => Err(StoreError::Newer { path: path.to_owned(), found }),
        counters => Ok(counters),
    }
}

fn load(database: &Database, revision: u64) -> Result<Image, StoreError> {
    let read = || -> Result<Image, redb::Error> {
        let table = database.begin_read()?.open_table(OBJECTS)?;
        let mut objects = Vec::new();
        for entry in table.iter()? {
            let (key, bytes) = entry?;
            objects.push((key.value().to_owned(), value(bytes.value())));
        }
        Ok(Image::new(objects.into_iter(), revision))
    };
    Ok(read()?)
}

fn open_error(error: DatabaseError, path: &Path) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(path.to_owned()),
        other => redb::Error::from(other).into(),
    }
}

impl From<redb::Error> for StoreError {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::Io(cause) if is_full(&cause) => Self::Full,
            redb::Error::Corrupted(text) => Self::Damaged(text),
            other => Self::Broken(other.to_string()),
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
