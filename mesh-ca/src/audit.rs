//! `issued.log`: one JSON line for each certificate, on disk before the certificate leaves the CA.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The log's name in the CA's folder.
pub(crate) const AUDIT_FILE: &str = "issued.log";

/// One issued certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Issued {
    pub(crate) time_ms: u64,
    /// `root`, `intermediate`, `node`, `record`, `workload`, `server`
    pub(crate) kind: String,
    pub(crate) subject: String,
    /// Hexadecimal.
    pub(crate) serial: String,
    pub(crate) not_after_ms: u64,
}

/// The open log. Appends only; about 200 bytes for each certificate, kept for ever.
#[derive(Debug)]
pub(crate) struct AuditLog {
    // Held over a write and its sync, so that lines are whole; callers are on blocking threads.
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    counts: BTreeMap<String, u64>,
    /// A write failed half-way: the next one starts a new line.
    torn: bool,
}

impl AuditLog {
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join(AUDIT_FILE);
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        File::open(dir)?.sync_all()?;
        let counts = count(&file)?;
        let torn = !ends_with_newline(&file)?;
        Ok(Self {
            open: Mutex::new(Open { file, counts, torn }),
        })
    }

    /// Appends a line, and returns when it is on disk.
    pub(crate) fn append(&self, issued: &Issued) -> io::Result<()> {
        let mut line = serde_json::to_vec(issued)?;
        line.push(b'\n');
        // The counts are only changed after the write: whole, whatever happened under the lock.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.torn {
            line.insert(0, b'\n');
        }
        open.torn = true;
        open.file.write_all(&line)?;
        open.file.sync_data()?;
        open.torn = false;
        *open.counts.entry(issued.kind.clone()).or_default() += 1;
        Ok(())
    }

    /// How many were issued, by kind.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .counts
            .clone()
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

    fn issued(kind: &str) -> Issued {
        Issued {
            time_ms: 1,
            kind: kind.into(),
            subject: "x".into(),
            serial: "00".into(),
            not_after_ms: 2,
        }
    }

    #[test]
    fn a_line_cut_off_by_a_crash_harms_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let log = AuditLog::open(dir.path()).unwrap();
        log.append(&issued("node")).unwrap();
        drop(log);
        let path = dir.path().join(AUDIT_FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(br#"{"time_ms":1,"ki"#);
        std::fs::write(&path, bytes).unwrap();
        let log = AuditLog::open(dir.path()).unwrap();
        log.append(&issued("workload")).unwrap();
        let wanted = BTreeMap::from([("node".to_owned(), 1), ("workload".to_owned(), 1)]);
        assert_eq!(log.counts(), wanted);
        assert_eq!(AuditLog::open(dir.path()).unwrap().counts(), wanted);
    }
}
