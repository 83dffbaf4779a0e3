//! Removing a folder that somebody else could write in.

use rustix::fs::{Mode, OFlags, chmod, fstat, openat};
use rustix::io::Errno;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Deeper than any path that the kernel takes at once.
const DEPTH_MAX: usize = 4096;

/// Removes `path` and all below it, also folders that were made unreadable. Links are removed, never
/// followed. That there is nothing is no error.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return fs::remove_file(path),
        done => return done,
    }
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let above = fs::File::open(above)?;
    open_up(above.as_fd(), name.as_encoded_bytes(), 0)?;
    fs::remove_dir_all(path)
}

/// Makes a folder and those below it readable and writable again.
fn open_up(above: BorrowedFd<'_>, name: &[u8], depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other("the folders are nested too deep"));
    }
    let Some(folder) = open_folder(above, name)? else { return Ok(()) };
    for entry in rustix::fs::Dir::read_from(&folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            open_up(folder.as_fd(), name, depth + 1)?;
        }
    }
    Ok(())
}

/// The folder, with all rights for its owner; nothing where `name` is no folder.
fn open_folder(above: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Without reading it, which may not be allowed: what it is can't change under us any more.
    let held = match openat(above, name, flags | OFlags::PATH, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        held => held?,
    };
    if fstat(&held)?.st_mode & 0o700 != 0o700 {
        chmod(format!("/proc/self/fd/{}", held.as_raw_fd()), Mode::RWXU)?;
    }
    Ok(Some(openat(&held, ".", flags, Mode::empty())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn locked_folders_go_and_links_are_not_followed() {
        let top = tempfile::tempdir().unwrap();
        let (out, tree) = (top.path().join("out"), top.path().join("tree"));
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::create_dir(&out).unwrap();
        fs::write(out.join("kept"), "x").unwrap();
        fs::write(tree.join("a/b/c/f"), "x").unwrap();
        symlink(&out, tree.join("a/link")).unwrap();
        for locked in ["a/b/c", "a/b", "a"] {
            fs::set_permissions(tree.join(locked), fs::Permissions::from_mode(0o000)).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(out.join("kept").exists());
        remove_tree(&tree).unwrap();
        symlink(&out, &tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && out.join("kept").exists());
    }

    #[test]
    fn locked_folders_can_be_opened_up() {
        let top = tempfile::tempdir().unwrap();
        let tree = top.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        for locked in ["a/b", "a"] {
            fs::set_permissions(tree.join(locked), fs::Permissions::from_mode(0o000)).unwrap();
        }
        open_up(fs::File::open(top.path()).unwrap().as_fd(), b"tree", 0).unwrap();
        assert_eq!(fs::metadata(tree.join("a/b")).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
