//! The file: three tables in redb.

use crate::core::{Dirty, DiskId, Kept};
use crate::exchange::log_id;
use crate::records::{LogId, Watermark};
use atoll_wire::Message;
use atoll_wire::record::{RecordCertificate, SignedRecord};
use redb::{ReadableDatabase, ReadableTable, TableDefinition, TableError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records 1");
const LOGS: TableDefinition<'_, &[u8], (u64, u64, u64, bool)> = TableDefinition::new("logs 1");
const CERTIFICATES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("certificates 1");
/// Read once at the start, written seldom: a small cache is enough.
const CACHE_BYTES: usize = 2 << 20;
/// Records that are read before they are handed over.
const AT_A_TIME: usize = 4096;

/// Why the file can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It holds something else than was written.
    #[error("{0}")]
    Damaged(String),
    /// The disk is full, read-only, gone, or another process has the file.
    #[error("{0}")]
    Io(String),
}

#[derive(Debug)]
pub(crate) struct Database(redb::Database);

impl Database {
    /// Opens the file, or makes it, and reads all but the records.
    pub(crate) fn open(path: &Path) -> Result<(Self, Kept), Error> {
        // A damaged file can make the library panic; that must not end the node.
        catch_unwind(|| {
            let database = redb::Builder::new().set_cache_size(CACHE_BYTES).create(path).map_err(opening)?;
            let database = Self(database);
            let kept = database.read()?;
            Ok((database, kept))
        })
        .unwrap_or_else(|_| Err(Error::Damaged("reading it failed unexpectedly".into())))
    }

    fn read(&self) -> Result<Kept, Error> {
        let transaction = self.0.begin_read().map_err(damaged)?;
        let mut kept = Kept::default();
        match transaction.open_table(LOGS) {
            Ok(table) => {
                for row in table.iter().map_err(damaged)? {
                    let (key, value) = row.map_err(damaged)?;
                    let (epoch, version, floor, resyncing) = value.value();
                    let Some(id) = read_log_key(key.value()) else { continue };
                    kept.logs.push((id, Watermark { epoch, version, floor, resyncing }));
                }
            }
            // A new file.
            Err(TableError::TableDoesNotExist(_)) => return Ok(kept),
            Err(why) => return Err(damaged(why)),
        }
        let table = transaction.open_table(CERTIFICATES).map_err(damaged)?;
        for row in table.iter().map_err(damaged)? {
            let (_, value) = row.map_err(damaged)?;
            kept.certificates.extend(RecordCertificate::decode(value.value()).ok());
        }
        // To know that it can be read; kept in memory they would be more than what is made of them.
        let table = transaction.open_table(RECORDS).map_err(damaged)?;
        for row in table.iter().map_err(damaged)? {
            row.map_err(damaged)?;
        }
        Ok(kept)
    }

    /// Hands over every record, some at a time.
    pub(crate) fn records(&self, each: &mut dyn FnMut(Vec<SignedRecord>)) -> Result<(), Error> {
        catch_unwind(AssertUnwindSafe(|| {
            let transaction = self.0.begin_read().map_err(damaged)?;
            let table = match transaction.open_table(RECORDS) {
                Ok(table) => table,
                // A new file.
                Err(TableError::TableDoesNotExist(_)) => return Ok(()),
                Err(why) => return Err(damaged(why)),
            };
            let mut some = Vec::with_capacity(AT_A_TIME);
            for row in table.iter().map_err(damaged)? {
                let (_, value) = row.map_err(damaged)?;
                some.extend(SignedRecord::decode(value.value()).ok());
                if some.len() >= AT_A_TIME {
                    each(std::mem::replace(&mut some, Vec::with_capacity(AT_A_TIME)));
                }
            }
            each(some);
            Ok(())
        }))
        .unwrap_or_else(|_| Err(Error::Damaged("reading it failed unexpectedly".into())))
    }

    /// Writes the changes in one transaction; with `anew`, nothing else is left in the file.
    pub(crate) fn write(
        &self,
        dirty: &Dirty,
        marks: &[(LogId, Option<Watermark>)],
        anew: bool,
    ) -> Result<(), Error> {
        catch_unwind(AssertUnwindSafe(|| {
            self.write_all(dirty, marks, anew).map_err(|why| Error::Io(why.to_string()))
        }))
        .unwrap_or_else(|_| Err(Error::Damaged("writing it failed unexpectedly".into())))
    }

    fn write_all(
        &self,
        dirty: &Dirty,
        marks: &[(LogId, Option<Watermark>)],
        anew: bool,
    ) -> Result<(), redb::Error> {
        let transaction = self.0.begin_write()?;
        if anew {
            transaction.delete_table(RECORDS)?;
            transaction.delete_table(LOGS)?;
            transaction.delete_table(CERTIFICATES)?;
        }
        {
            let mut table = transaction.open_table(RECORDS)?;
            for (id, record) in &dirty.records {
                let key = record_key(id);
                match record {
                    Some(record) => {
                        drop(table.insert(key.as_slice(), record.proof.signed().encode_to_vec().as_slice())?)
                    }
                    None => drop(table.remove(key.as_slice())?),
                }
            }
            let mut table = transaction.open_table(LOGS)?;
            for (id, mark) in marks {
                let key = log_key(id);
                match mark {
                    Some(mark) => {
                        let value = (mark.epoch, mark.version, mark.floor, mark.resyncing);
                        drop(table.insert(key.as_slice(), value)?);
                    }
                    None => drop(table.remove(key.as_slice())?),
                }
            }
            let mut table = transaction.open_table(CERTIFICATES)?;
            for (hash, certificate) in &dirty.certificates {
                match certificate {
                    Some(certificate) => {
                        drop(table.insert(hash.as_slice(), certificate.encode_to_vec().as_slice())?);
                    }
                    None => drop(table.remove(hash.as_slice())?),
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

fn opening(why: redb::DatabaseError) -> Error {
    use redb::{DatabaseError, StorageError};
    match why {
        DatabaseError::Storage(StorageError::Io(why)) => {
            // What redb says of a file that is no database, or was cut short.
            use std::io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
            if matches!(why.kind(), InvalidData | InvalidInput | UnexpectedEof) {
                Error::Damaged(why.to_string())
            } else {
                Error::Io(why.to_string())
            }
        }
        DatabaseError::DatabaseAlreadyOpen => Error::Io("another process has it open".into()),
        other => Error::Damaged(other.to_string()),
    }
}

fn damaged(why: impl std::fmt::Display) -> Error {
    Error::Damaged(why.to_string())
}

fn log_key(id: &LogId) -> Vec<u8> {
    [id.owner.as_str().as_bytes(), &[0], id.scope.as_str().as_bytes(), &[0]].concat()
}

fn read_log_key(key: &[u8]) -> Option<LogId> {
    let mut parts = std::str::from_utf8(key).ok()?.split('\0');
    log_id(parts.next()?, parts.next()?)
}

fn record_key((log, kind, key): &DiskId) -> Vec<u8> {
    let mut bytes = log_key(log);
    bytes.extend_from_slice(&kind.0.to_be_bytes());
    bytes.extend_from_slice(key.as_bytes());
    bytes
}
