//! Contents on disk, each under its own hash, read-only and never half there.

use crate::digest::{Digest, Hasher};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// What has not arrived whole.
const INCOMING: &str = "incoming";
/// After this many bytes it is looked again whether the disk has room.
const LOOK_EVERY: u64 = 4 << 20;

/// Why a content was not taken.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The bytes are not those that were announced.
    #[error("the content has the SHA-256 {found}, not {expected}")]
    Mismatch {
        /// What was announced.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// There are more bytes than may be.
    #[error("the content has more than {0} bytes")]
    TooLarge(u64),
    /// The disk has no room; nothing of it is kept.
    #[error("the disk is full")]
    Full,
    /// The disk failed.
    #[error("the disk failed: {0}")]
    Io(#[source] io::Error),
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        if is_full(&error) { Self::Full } else { Self::Io(error) }
    }
}

/// Whether an error means that there is no room.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What a sweep removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Contents.
    pub contents: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Contents by hash, in one folder of which only this process writes.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    keep_free: u64,
    sync: bool,
    serial: AtomicU64,
    /// Held while a content is marked as used and while one is removed: what was just said to be here is not
    /// taken away.
    gate: Mutex<()>,
}

impl Store {
    /// Opens the store in `root`, which is made; what had not arrived whole is removed. `keep_free` bytes of the
    /// disk are left to others.
    pub fn open(root: &Path, keep_free: u64) -> io::Result<Self> {
        let incoming = root.join(INCOMING);
        match fs::remove_dir_all(&incoming) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&incoming)?;
        Ok(Self {
            root: root.to_owned(),
            keep_free,
            sync: true,
            serial: AtomicU64::new(0),
            gate: Mutex::default(),
        })
    }

    /// The same, without waiting for the disk at each content: for who can have them again, and checks each
    /// content before it is used. After a power failure some may be damaged.
    #[must_use]
    pub fn unsynced(self) -> Self {
        Self { sync: false, ..self }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.root.join(&name[..2]).join(name)
    }

    /// The content's size, where it is here. It counts as used now.
    #[must_use]
    pub fn touch(&self, digest: &Digest) -> Option<u64> {
        let _held = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let file = File::open(self.path(digest)).ok()?;
        // A clock that can't be set only makes it look older than it is.
        let _unmarked = file.set_modified(SystemTime::now()).is_err();
        file.metadata().ok().map(|facts| facts.len())
    }

    /// Opens a content.
    pub fn read(&self, digest: &Digest) -> io::Result<File> {
        File::open(self.path(digest))
    }

    /// The whole of a content, which has at most `bytes_max`; an error where it is not what its name says.
    pub fn read_all(&self, digest: &Digest, bytes_max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read(digest)?.take(bytes_max).read_to_end(&mut bytes)?;
        if Digest::of(&bytes) == *digest { Ok(bytes) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// Begins to take a content of at most `bytes_max`. Dropped before its end, nothing is left of it.
    pub fn incoming(&self, digest: Digest, bytes_max: u64) -> Result<Incoming<'_>, StoreError> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join(INCOMING).join(format!("{digest}.{serial}"));
        self.check_room(0)?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Incoming {
            store: self,
            path,
            file,
            hasher: Hasher::new(),
            digest,
            bytes_max,
            written: 0,
            looked_at: 0,
        })
    }

    /// Takes a content that is at hand.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if self.touch(&digest).is_none() {
            let mut incoming = self.incoming(digest, bytes.len() as u64)?;
            incoming.write(bytes)?;
            incoming.finish()?;
        }
        Ok(digest)
    }

    /// Whether `bytes` more would leave the disk what is kept free.
    pub fn check_room(&self, bytes: u64) -> Result<(), StoreError> {
        let disk = rustix::fs::statvfs(&self.root).map_err(io::Error::from)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < self.keep_free.saturating_add(bytes) { Err(StoreError::Full) } else { Ok(()) }
    }

    /// Removes a content that is not what its name says.
    pub fn remove(&self, digest: &Digest) -> io::Result<()> {
        fs::remove_file(self.path(digest))
    }

    /// Every content with its size.
    pub fn contents(&self) -> io::Result<Vec<(Digest, u64)>> {
        let mut all = Vec::new();
        for shard in fs::read_dir(&self.root)? {
            let shard = shard?;
            if shard.file_name() == INCOMING || !shard.file_type()?.is_dir() {
                continue;
            }
            for file in fs::read_dir(shard.path())? {
                let file = file?;
                let digest = file.file_name().to_str().and_then(|name| name.parse().ok());
                if let Some(digest) = digest {
                    all.push((digest, file.metadata()?.len()));
                }
            }
        }
        Ok(all)
    }

    /// Removes the contents that `keep` does not name and that were last used before `unused_since`.
    pub fn sweep(&self, keep: impl Fn(&Digest) -> bool, unused_since: SystemTime) -> io::Result<Swept> {
        let mut swept = Swept::default();
        for (digest, bytes) in self.contents()?.into_iter().filter(|(digest, _)| !keep(digest)) {
            let _held = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
            let path = self.path(&digest);
            let is_old =
                fs::metadata(&path).and_then(|facts| facts.modified()).is_ok_and(|at| at < unused_since);
            if is_old && fs::remove_file(&path).is_ok() {
                swept.contents += 1;
                swept.bytes += bytes;
            }
        }
        Ok(swept)
    }
}

/// A content on its way into a store.
#[derive(Debug)]
pub struct Incoming<'s> {
    store: &'s Store,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    digest: Digest,
    bytes_max: u64,
    written: u64,
    looked_at: u64,
}

impl Incoming<'_> {
    /// Which content.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// Bytes so far.
    #[must_use]
    pub const fn written(&self) -> u64 {
        self.written
    }

    /// Takes the next bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.written.saturating_add(bytes.len() as u64);
        if written > self.bytes_max {
            return Err(StoreError::TooLarge(self.bytes_max));
        }
        if written - self.looked_at > LOOK_EVERY {
            self.store.check_room(0)?;
            self.looked_at = written;
        }
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.written = written;
        Ok(())
    }

    /// Checks the whole, and puts it where it belongs. It is on disk when this
    /// returns, unless the store is [`Store::unsynced`]. Gives its size.
    pub fn finish(mut self) -> Result<u64, StoreError> {
        let found = std::mem::take(&mut self.hasher).finish();
        if found != self.digest {
            return Err(StoreError::Mismatch { expected: self.digest, found });
        }
        self.file.set_permissions(Permissions::from_mode(0o400))?;
        if self.store.sync {
            self.file.sync_all()?;
        }
        let target = self.store.path(&self.digest);
        let shard = target.parent().unwrap_or(&self.store.root);
        DirBuilder::new().recursive(true).mode(0o700).create(shard)?;
        fs::rename(&self.path, &target)?;
        if self.store.sync {
            File::open(shard)?.sync_all()?;
        }
        Ok(self.written)
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        // After `finish` it is not there any more.
        let _gone_already = fs::remove_file(&self.path).is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("s"), 0).unwrap();
        (folder, store)
    }

    #[test]
    fn a_content_is_whole_or_not_there() {
        let (folder, store) = store();
        let digest = Digest::of(b"hello");
        let mut half = store.incoming(digest, 5).unwrap();
        half.write(b"hel").unwrap();
        drop(half);
        assert_eq!(store.touch(&digest), None);
        let mut wrong = store.incoming(digest, 5).unwrap();
        wrong.write(b"hellO").unwrap();
        assert!(matches!(wrong.finish(), Err(StoreError::Mismatch { .. })));
        let mut long = store.incoming(digest, 5).unwrap();
        assert!(matches!(long.write(b"hello!"), Err(StoreError::TooLarge(5))));
        drop(long);
        assert_eq!(fs::read_dir(folder.path().join("s/incoming")).unwrap().count(), 0);
        let mut right = store.incoming(digest, 5).unwrap();
        right.write(b"he").unwrap();
        right.write(b"llo").unwrap();
        assert_eq!(right.finish().unwrap(), 5);
        assert_eq!(store.touch(&digest), Some(5));
        assert_eq!(store.read_all(&digest, 100).unwrap(), b"hello");
        assert_eq!(store.contents().unwrap(), [(digest, 5)]);
    }

    #[test]
    fn what_did_not_arrive_goes_at_the_next_start() {
        let (folder, store) = store();
        let mut half = store.incoming(Digest::of(b"hello"), 5).unwrap();
        half.write(b"h").unwrap();
        std::mem::forget(half);
        let incoming = folder.path().join("s/incoming");
        assert_eq!(fs::read_dir(&incoming).unwrap().count(), 1);
        Store::open(&folder.path().join("s"), 0).unwrap();
        assert_eq!(fs::read_dir(&incoming).unwrap().count(), 0);
    }

    #[test]
    fn a_disk_that_is_to_keep_more_than_it_has_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), u64::MAX).unwrap();
        assert!(matches!(store.put(b"x"), Err(StoreError::Full)));
    }

    #[test]
    fn a_sweep_spares_what_is_kept_and_what_was_just_used() {
        let (_folder, store) = store();
        let [a, b, c] = [b"a", b"b", b"c"].map(|bytes| store.put(bytes).unwrap());
        let later = SystemTime::now() + Duration::from_secs(60);
        let long_ago = SystemTime::now() - Duration::from_secs(60);
        assert_eq!(store.sweep(|_| false, long_ago).unwrap(), Swept::default());
        assert_eq!(store.sweep(|digest| *digest == a, later).unwrap(), Swept { contents: 2, bytes: 2 });
        assert_eq!([a, b, c].map(|digest| store.touch(&digest)), [Some(1), None, None]);
    }
}
