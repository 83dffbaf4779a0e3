//! Files that are either whole or not there, and locks.

use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

static NEXT_TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// Replaces `path` by `bytes` at once: a reader, also one after a power failure, sees the old content
/// or the new, never a part. The file gets `mode`.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let serial = NEXT_TEMPORARY.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!(".{}.{}.{serial}", name.to_string_lossy(), std::process::id()));
    // A process that was killed here may have had our pid: in a container every one has.
    let _absent = std::fs::remove_file(&temporary);
    let written = write_synced(&temporary, bytes, mode).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // Best effort: the error that counts is the one we return.
        let _ignored = std::fs::remove_file(&temporary);
        return written;
    }
    File::open(folder)?.sync_all()
}

/// [`write_atomic`], unless the file holds just that already: a restart on a full disk needs no room.
pub fn keep(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let same = std::fs::read(path).is_ok_and(|held| held == bytes)
        && std::fs::metadata(path).is_ok_and(|held| held.permissions().mode() & 0o7777 == mode);
    if same { Ok(()) } else { write_atomic(path, bytes, mode) }
}

fn write_synced(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // The umask may have taken bits away.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes a folder, and those above it, that only its owner may enter (0700). One that exists is narrowed.
pub fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o700))
}

/// Held until dropped, or until the process ends, however it ends.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("{path} is in use by another process{}", holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Held {
        /// The lock's file.
        path: PathBuf,
        /// The holder, if it wrote its pid.
        holder: Option<u32>,
    },
    /// The file could not be opened, locked or written.
    #[error("cannot lock {path}")]
    Io {
        /// The lock's file.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
}

/// Takes an exclusive lock on `path`, which is made if absent, and writes our pid into it.
pub fn lock(path: &Path) -> Result<FileLock, LockError> {
    let io_error = |source| LockError::Io { path: path.to_owned(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(io_error)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let holder = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
            return Err(LockError::Held { path: path.to_owned(), holder });
        }
        Err(errno) => return Err(io_error(errno.into())),
    }
    // The lock is what counts; on a full disk the holder's pid is missing from a message.
    let _unwritten = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).is_err();
    Ok(FileLock { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        write_atomic(&path, b"one", 0o600).unwrap();
        write_atomic(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_there_already_is_not_written_again() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let inode = || std::fs::metadata(&path).unwrap().ino();
        keep(&path, b"one", 0o600).unwrap();
        let first = inode();
        keep(&path, b"one", 0o600).unwrap();
        assert_eq!(inode(), first);
        keep(&path, b"one", 0o644).unwrap();
        keep(&path, b"two", 0o644).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
    }

    #[test]
    fn a_lock_is_held_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = lock(&path).unwrap();
        let Err(LockError::Held { holder, .. }) = lock(&path) else { panic!("taken twice") };
        assert_eq!(holder, Some(std::process::id()));
        drop(held);
        lock(&path).unwrap();
    }
}
