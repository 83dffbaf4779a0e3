//! From a list and a store to a folder.
//!
//! The folder above may be in the hands of whoever ran there before. So nothing is opened by a path of more than
//! one name: each folder is made here and held open, files are made anew and never through a link, and links come
//! last.

use crate::digest::{Digest, Hasher};
use crate::list::{Entry, List};
use crate::remove::remove_tree;
use crate::store::{Store, StoreError, is_full};
use rustix::fs::{Mode, OFlags, fchmod, mkdirat, openat, renameat, symlinkat};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

const PIECE: usize = 128 * 1024;
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Why a bundle was not unpacked. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The store lacks a content, or has it damaged (then it was removed): it must be fetched again.
    #[error("the content of `{0}` is not in the store")]
    Content(String),
    /// No room.
    #[error("the disk has no room for the {0} bytes of the files")]
    Full(u64),
    /// The disk failed, or somebody else writes in the folder.
    #[error("`{path}` cannot be made: {source}")]
    Io {
        /// What.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes the folder `name` in `above` and fills it; what was there is removed. It is there whole, or not at all.
/// Each content is checked on its way.
pub fn unpack(list: &List, store: &Store, above: &Path, name: &str) -> Result<(), UnpackError> {
    if let Err(StoreError::Full) = store.check_room(list.size()) {
        return Err(UnpackError::Full(list.size()));
    }
    let fresh = format!("{name}.new");
    let made = (|| {
        let at = |source| failed(name, source);
        for old in [&fresh, name] {
            remove_tree(&above.join(old)).map_err(at)?;
        }
        let parent: OwnedFd =
            openat(rustix::fs::CWD, above, FOLDER, Mode::empty()).map_err(|e| at(e.into()))?;
        mkdirat(&parent, fresh.as_str(), Mode::RWXU).map_err(|e| at(e.into()))?;
        let root = openat(&parent, fresh.as_str(), FOLDER, Mode::empty()).map_err(|e| at(e.into()))?;
        fill(list, store, root.as_fd())?;
        renameat(&parent, fresh.as_str(), &parent, name).map_err(|e| at(e.into()))
    })();
    if made.is_err() {
        // The cause is what counts; the next try begins with this again.
        let _left = remove_tree(&above.join(&fresh)).is_err();
    }
    match made {
        Err(UnpackError::Io { source, .. }) if is_full(&source) => Err(UnpackError::Full(list.size())),
        made => made,
    }
}

fn failed(path: &str, source: io::Error) -> UnpackError {
    UnpackError::Io { path: path.to_owned(), source }
}

fn fill(list: &List, store: &Store, root: BorrowedFd<'_>) -> Result<(), UnpackError> {
    let mut folders = Folders::new(root);
    for entry in list.entries() {
        let at = |source| failed(entry.path(), source);
        let name = folders.enter(entry.path()).map_err(at)?;
        match entry {
            Entry::File { executable, size, sha256, .. } => {
                let mode = if *executable { 0o755 } else { 0o644 };
                let made = copy(store, sha256, *size, folders.current(), name, mode).map_err(at)?;
                if !made {
                    return Err(UnpackError::Content(entry.path().to_owned()));
                }
            }
            Entry::Folder { .. } => make_folder(folders.current(), name).map_err(at)?,
            Entry::Link { .. } => {}
        }
    }
    for entry in list.entries() {
        let Entry::Link { path, target } = entry else { continue };
        let made = open_above(root, path).and_then(|(folder, name)| {
            let folder = folder.as_ref().map_or(root, AsFd::as_fd);
            Ok(symlinkat(target.as_str(), folder, name)?)
        });
        made.map_err(|source| failed(path, source))?;
    }
    Ok(())
}

/// The folders above the entry at hand, made as they come. The entries are sorted: what lies in a folder
/// comes in one go, so none is entered twice.
struct Folders<'r> {
    root: BorrowedFd<'r>,
    open: Vec<(String, OwnedFd)>,
}

impl<'r> Folders<'r> {
    fn new(root: BorrowedFd<'r>) -> Self {
        Self { root, open: Vec::new() }
    }

    fn current(&self) -> BorrowedFd<'_> {
        self.open.last().map_or(self.root, |(_, folder)| folder.as_fd())
    }

    /// Goes to the folder of `path`; gives the last name.
    fn enter<'p>(&mut self, path: &'p str) -> io::Result<&'p str> {
        let mut names: Vec<&str> = path.split('/').collect();
        let last = names.pop().unwrap_or_default();
        let same = self.open.iter().zip(&names).take_while(|((open, _), name)| open == *name).count();
        self.open.truncate(same);
        for name in &names[same..] {
            make_folder(self.current(), name)?;
            let folder = openat(self.current(), *name, FOLDER, Mode::empty())?;
            self.open.push(((*name).to_owned(), folder));
        }
        Ok(last)
    }
}

fn make_folder(above: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    Ok(mkdirat(above, name, Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH)?)
}

/// The folder of `path` (nothing: the root) and its last name, going through no link.
fn open_above<'p>(root: BorrowedFd<'_>, path: &'p str) -> io::Result<(Option<OwnedFd>, &'p str)> {
    let mut names: Vec<&str> = path.split('/').collect();
    let last = names.pop().unwrap_or_default();
    let mut folder: Option<OwnedFd> = None;
    for name in names {
        let above = folder.as_ref().map_or(root, AsFd::as_fd);
        let next = openat(above, name, FOLDER, Mode::empty())?;
        folder = Some(next);
    }
    Ok((folder, last))
}

/// Makes a new file of a content. `false`: the store has not got it, or not as it should be.
fn copy(
    store: &Store,
    digest: &Digest,
    size: u64,
    folder: BorrowedFd<'_>,
    name: &str,
    mode: u32,
) -> io::Result<bool> {
    let Ok(mut content) = store.read(digest) else { return Ok(false) };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?);
    let (mut hasher, mut copied, mut piece) = (Hasher::new(), 0_u64, vec![0; PIECE.min(size as usize + 1)]);
    // A content that cannot be read is as good as absent.
    while let Ok(count) = content.read(&mut piece) {
        copied += count as u64;
        if count == 0 || copied > size {
            break;
        }
        hasher.update(&piece[..count]);
        file.write_all(&piece[..count])?;
    }
    if copied != size || hasher.finish() != *digest {
        let _gone_already = store.remove(digest).is_err();
        return Ok(false);
    }
    // The umask has no say, and no other bit than these is ever set.
    fchmod(&file, Mode::from_raw_mode(mode))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    struct Ground {
        top: tempfile::TempDir,
        store: Store,
        list: List,
    }

    fn entry(path: &str, executable: bool, content: &[u8]) -> Entry {
        let (size, sha256) = (content.len() as u64, Digest::of(content));
        Entry::File { path: path.to_owned(), executable, size, sha256 }
    }

    fn ground() -> Ground {
        let top = tempfile::tempdir().unwrap();
        let store = Store::open(&top.path().join("store"), 0).unwrap();
        store.put(b"#!/bin/sh\n").unwrap();
        store.put(b"body").unwrap();
        let list = List::new(vec![
            entry("bin/web", true, b"#!/bin/sh\n"),
            entry("static/a/x", false, b"body"),
            entry("static/y", false, b"body"),
            entry("static-z", false, b"body"),
            Entry::Folder { path: "data/empty".into() },
            Entry::Link { path: "links/run".into(), target: "../bin/web".into() },
        ]);
        fs::create_dir(top.path().join("instance")).unwrap();
        Ground { list: list.unwrap(), store, top }
    }

    impl Ground {
        fn above(&self) -> std::path::PathBuf {
            self.top.path().join("instance")
        }

        fn unpack(&self) -> Result<(), UnpackError> {
            unpack(&self.list, &self.store, &self.above(), "files")
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_folder_is_made_anew_each_time() {
        let ground = ground();
        let files = ground.above().join("files");
        for _ in 0..2 {
            ground.unpack().unwrap();
            assert_eq!(mode(&files.join("bin/web")), 0o755);
            assert_eq!(mode(&files.join("static/a/x")), 0o644);
            assert_eq!(fs::read(files.join("static/y")).unwrap(), b"body");
            assert!(files.join("data/empty").is_dir());
            assert_eq!(fs::read_link(files.join("links/run")).unwrap(), Path::new("../bin/web"));
            assert!(!files.join("scratch").exists());
            fs::write(files.join("scratch"), "of an instance").unwrap();
            // What an instance writes into its own file is not in the store.
            fs::write(files.join("static/y"), "changed").unwrap();
        }
        assert_eq!(fs::read_dir(ground.above()).unwrap().count(), 1);
    }

    #[test]
    fn links_that_an_instance_left_lead_nowhere() {
        let ground = ground();
        let outside = ground.top.path().join("outside");
        fs::create_dir_all(outside.join("bin")).unwrap();
        fs::write(outside.join("bin/web"), "mine").unwrap();
        for name in ["files", "files.new"] {
            symlink(&outside, ground.above().join(name)).unwrap();
        }
        ground.unpack().unwrap();
        assert_eq!(fs::read(outside.join("bin/web")).unwrap(), b"mine");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert!(!fs::symlink_metadata(ground.above().join("files")).unwrap().is_symlink());
        // The folder above is a link itself: nothing is made in what it leads to.
        let linked = ground.top.path().join("linked");
        symlink(&outside, &linked).unwrap();
        assert!(unpack(&ground.list, &ground.store, &linked, "files").is_err());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_content_is_noticed_and_thrown_away() {
        let ground = ground();
        let digest = Digest::of(b"body");
        let path = ground.top.path().join("store").join(&digest.to_string()[..2]).join(digest.to_string());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "evil").unwrap();
        assert!(matches!(ground.unpack(), Err(UnpackError::Content(_))));
        assert_eq!(fs::read_dir(ground.above()).unwrap().count(), 0);
        assert_eq!(ground.store.touch(&digest), None);
        ground.store.put(b"body").unwrap();
        ground.unpack().unwrap();
    }

    #[test]
    fn a_disk_without_room_is_not_filled() {
        let ground = ground();
        let store = Store::open(&ground.top.path().join("store"), u64::MAX / 2).unwrap();
        assert!(matches!(unpack(&ground.list, &store, &ground.above(), "files"), Err(UnpackError::Full(_))));
        assert_eq!(fs::read_dir(ground.above()).unwrap().count(), 0);
    }
}
