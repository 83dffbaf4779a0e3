//! `issued.log`: one JSON line for each certificate, on disk before the certificate leaves the CA.

use crate::error::CaError;
use crate::issue::Validity;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The log's name in the CA's folder.
const AUDIT_FILE: &str = "issued.log";

/// One issued certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Issued {
    time_ms: u64,
    /// `root`, `intermediate`, `node`, `record`, `workload`, `server`, `public-root`, `public`
    kind: String,
    subject: String,
    /// Hexadecimal.
    serial: String,
    not_after_ms: u64,
}

/// The open log. Appends only; about 200 bytes for each certificate, kept for ever.
#[derive(Debug)]
pub(crate) struct AuditLog {
    path: PathBuf,
    // Held over a write and its sync, so that lines are whole; callers are on blocking threads.
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    counts: BTreeMap<String, u64>,
    /// The last line is not whole: the next one starts anew.
    torn: bool,
}

impl AuditLog {
    pub(crate) fn open(dir: &Path) -> Result<Self, CaError> {
        let path = dir.join(AUDIT_FILE);
        let open = Open::new(&path).map_err(|source| CaError::file(&path, source))?;
        Ok(Self { path, open: Mutex::new(open) })
    }

    /// Writes a certificate down, and returns when that is on disk.
    pub(crate) fn append(
        &self,
        kind: &str,
        subject: String,
        serial: &[u8],
        validity: Validity,
        now_ms: u64,
    ) -> Result<(), CaError> {
        let issued = Issued {
            time_ms: now_ms,
            kind: kind.to_owned(),
            subject,
            serial: HEXLOWER.encode(serial),
            not_after_ms: validity.not_after_ms,
        };
        // The counts are only changed after the write: whole, whatever happened under the lock.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.append(&issued).map_err(|source| CaError::file(&self.path, source))
    }

    /// How many were issued, by kind.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).counts.clone()
    }
}

impl Open {
    fn new(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(0o600).open(path)?;
        if let Some(dir) = path.parent() {
            File::open(dir)?.sync_all()?;
        }
        let counts = count(&file)?;
        let torn = !ends_with_newline(&file)?;
        Ok(Self { file, counts, torn })
    }

    fn append(&mut self, issued: &Issued) -> io::Result<()> {
        let mut line = serde_json::to_vec(issued)?;
        line.push(b'\n');
        if self.torn {
            line.insert(0, b'\n');
        }
        self.torn = true;
        self.file.write_all(&line)?;
        self.file.sync_data()?;
        self.torn = false;
        *self.counts.entry(issued.kind.clone()).or_default() += 1;
        Ok(())
    }
}

/// A line that a crash cut off is passed over: its certificate was never returned.
fn count(file: &File) -> io::Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    for line in BufReader::new(file).split(b'\n') {
        if let Ok(issued) = serde_json::from_slice::<Issued>(&line?) {
            *counts.entry(issued.kind).or_default() += 1;
        }
    }
    Ok(counts)
}

fn ends_with_newline(mut file: &File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    io::Read::read_exact(&mut file, &mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn append(log: &AuditLog, kind: &str) {
        let validity = Validity { not_before_ms: 0, not_after_ms: 2 };
        log.append(kind, "x".into(), &[1], validity, 1).unwrap();
    }

    #[test]
    fn a_line_cut_off_by_a_crash_harms_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let log = AuditLog::open(dir.path()).unwrap();
        append(&log, "node");
        drop(log);
        let path = dir.path().join(AUDIT_FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(br#"{"time_ms":1,"ki"#);
        std::fs::write(&path, bytes).unwrap();
        let log = AuditLog::open(dir.path()).unwrap();
        append(&log, "workload");
        let wanted = BTreeMap::from([("node".to_owned(), 1), ("workload".to_owned(), 1)]);
        assert_eq!(log.counts(), wanted);
        assert_eq!(AuditLog::open(dir.path()).unwrap().counts(), wanted);
    }
}
