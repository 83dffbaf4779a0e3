//! The nodes' output: one file a node, appended to, bounded.
//!
//! The nodes hold the file themselves and not a pipe to us, so that they outlive us without an error.
//! A file that is too long is copied aside and emptied; what is written between the two is lost.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// How often a file's length is looked at.
pub const CHECK_EVERY: Duration = Duration::from_secs(5);
/// Length at which a file is rotated. One older file is kept.
const BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How much of a file's end is looked at for its last lines.
const TAIL_BYTES: u64 = 16 * 1024;

/// Opens a file for a node to append to.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Rotates a file that is too long. Best effort: the next look tries again.
pub fn rotate(path: &Path) {
    let too_long = std::fs::metadata(path).is_ok_and(|facts| facts.len() > BYTES_MAX);
    if too_long && std::fs::copy(path, path.with_extension("log.1")).is_ok() {
        let _ignored = OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(0));
    }
}

/// The last lines of a file; none if it can't be read.
pub fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::io::Write;

    #[test]
    fn a_long_file_is_set_aside_while_it_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n.log");
        let mut file = open(&path).unwrap();
        file.set_len(BYTES_MAX + 1).unwrap();
        rotate(&path);
        writeln!(file, "a\nb\nc").unwrap();
        assert_eq!(last_lines(&path, 2), ["b", "c"]);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 6);
        assert_eq!(std::fs::metadata(folder.path().join("n.log.1")).unwrap().len(), BYTES_MAX + 1);
        assert!(last_lines(&folder.path().join("none"), 2).is_empty());
    }
}
