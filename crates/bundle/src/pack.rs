//! From a folder and patterns to a list, and to where each content is.

use crate::digest::{Digest, Hasher};
use crate::list::{BYTES_MAX, ENTRIES_MAX, Entry, List, ListError};
use atoll_model::manifest::FilePattern;
use rustix::fs::OFlags;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const PIECE: usize = 128 * 1024;
/// How often a file that changes while it is read is read again.
const READS: u32 = 3;
/// What version control keeps to itself is in no bundle.
const LEFT_OUT: &str = ".git";

/// Why the files can't be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// Nothing is there by that name.
    #[error("`{0}` matches nothing")]
    Nothing(String),
    /// A folder, listed as a file.
    #[error("`{0}` is a folder: write `{0}/` for all that is in it")]
    Folder(String),
    /// A file, listed as a folder.
    #[error("`{0}/` is no folder: write `{0}`")]
    NoFolder(String),
    /// A link on the way to what is listed.
    #[error("`{0}` is a link: list what it leads to")]
    Linked(String),
    /// A socket, a device, a queue.
    #[error("`{0}` is no file, folder or link")]
    Special(String),
    /// A name that can't be written in a list.
    #[error("the name of `{0}` is not valid UTF-8")]
    Name(String),
    /// Somebody writes it.
    #[error("`{0}` changes while it is read: deploy again when it is finished")]
    Changes(String),
    /// It can't be read.
    #[error("`{path}` cannot be read: {source}")]
    Io {
        /// What.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was found is no bundle.
    #[error(transparent)]
    List(#[from] ListError),
}

/// Where a content is on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The file, relative to the folder that was packed.
    pub path: String,
    /// Its bytes.
    pub size: u64,
    file: PathBuf,
    stamp: Stamp,
}

/// What changes when a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(facts: &Metadata) -> Self {
        Self {
            inode: facts.ino(),
            size: facts.size(),
            modified: (facts.mtime(), facts.mtime_nsec()),
            changed: (facts.ctime(), facts.ctime_nsec()),
        }
    }
}

impl Source {
    /// Opens the file, if it is still what was packed.
    pub fn open(&self) -> Result<File, PackError> {
        let at = |source| PackError::Io { path: self.path.clone(), source };
        let file = open(&self.file).map_err(at)?;
        let stamp = Stamp::of(&file.metadata().map_err(at)?);
        if stamp == self.stamp { Ok(file) } else { Err(PackError::Changes(self.path.clone())) }
    }
}

/// A bundle that is not uploaded yet.
#[derive(Debug)]
pub struct Packed {
    /// What is in it.
    pub list: List,
    /// Where each content is.
    pub sources: HashMap<Digest, Source>,
}

/// Packs what `patterns` name in `folder`. `progress` is told how many bytes were read since it was last told.
pub fn pack(
    folder: &Path,
    patterns: &[FilePattern],
    progress: &mut dyn FnMut(u64),
) -> Result<Packed, PackError> {
    let mut walk = Walk { folder, found: BTreeMap::new(), bytes: 0 };
    for pattern in patterns {
        walk.pattern(pattern)?;
    }
    let mut entries = Vec::with_capacity(walk.found.len());
    let mut sources = HashMap::new();
    for (path, found) in walk.found {
        entries.push(match found {
            Found::Folder => Entry::Folder { path },
            Found::Link(target) => Entry::Link { path, target },
            Found::File { executable } => {
                let (sha256, source) = read(folder, &path, progress)?;
                let size = source.size;
                sources.entry(sha256).or_insert(source);
                Entry::File { path, executable, size, sha256 }
            }
        });
    }
    Ok(Packed { list: List::new(entries)?, sources })
}

enum Found {
    File { executable: bool },
    Link(String),
    Folder,
}

struct Walk<'a> {
    folder: &'a Path,
    found: BTreeMap<String, Found>,
    bytes: u64,
}

impl Walk<'_> {
    fn pattern(&mut self, pattern: &FilePattern) -> Result<(), PackError> {
        let Some((last, above)) = pattern.parts().split_last() else {
            return self.all_below("");
        };
        let mut folders = vec![String::new()];
        for part in above {
            let mut next = Vec::new();
            for folder in &folders {
                for path in self.named(folder, part)? {
                    let facts = self.facts(&path)?;
                    if facts.is_symlink() && !FilePattern::is_glob(part) {
                        return Err(PackError::Linked(path));
                    }
                    next.extend(facts.is_dir().then_some(path));
                }
            }
            folders = next;
        }
        let mut any = false;
        for folder in folders {
            for path in self.named(&folder, last)? {
                any |= self.listed(&path, pattern.is_folder(), FilePattern::is_glob(last))?;
            }
        }
        if any { Ok(()) } else { Err(PackError::Nothing(pattern.to_string())) }
    }

    /// Takes in what a pattern names. A glob passes over what is not of its kind.
    fn listed(&mut self, path: &str, as_folder: bool, by_glob: bool) -> Result<bool, PackError> {
        let facts = self.facts(path)?;
        let folder = facts.is_dir();
        if by_glob && (folder != as_folder || is_left_out(path)) {
            return Ok(false);
        }
        match (folder, as_folder) {
            (true, true) => self.all_below(path)?,
            (true, false) => return Err(PackError::Folder(path.to_owned())),
            (false, true) if facts.is_symlink() => return Err(PackError::Linked(path.to_owned())),
            (false, true) => return Err(PackError::NoFolder(path.to_owned())),
            (false, false) => self.take(path, &facts)?,
        }
        Ok(true)
    }

    fn all_below(&mut self, folder: &str) -> Result<(), PackError> {
        let names: Vec<String> = self.names(folder)?.into_iter().filter(|name| name != LEFT_OUT).collect();
        if names.is_empty() && !folder.is_empty() {
            return self.keep(folder, Found::Folder);
        }
        for name in names {
            let path = join(folder, &name);
            let facts = self.facts(&path)?;
            if facts.is_dir() { self.all_below(&path)? } else { self.take(&path, &facts)? }
        }
        Ok(())
    }

    fn take(&mut self, path: &str, facts: &Metadata) -> Result<(), PackError> {
        let found = if facts.is_symlink() {
            let target = fs::read_link(self.folder.join(path)).map_err(|source| at(path, source))?;
            Found::Link(target.into_os_string().into_string().map_err(|_| PackError::Name(path.to_owned()))?)
        } else if facts.is_file() {
            self.bytes += facts.len();
            if self.bytes > BYTES_MAX && !self.found.contains_key(path) {
                // Before an hour is spent on reading what will be refused.
                return Err(ListError::TooLarge.into());
            }
            Found::File { executable: facts.permissions().mode() & 0o111 != 0 }
        } else {
            return Err(PackError::Special(path.to_owned()));
        };
        self.keep(path, found)
    }

    fn keep(&mut self, path: &str, found: Found) -> Result<(), PackError> {
        crate::path::check(path).map_err(|fault| ListError::Path { path: path.to_owned(), fault })?;
        self.found.insert(path.to_owned(), found);
        if self.found.len() > ENTRIES_MAX { Err(ListError::TooMany.into()) } else { Ok(()) }
    }

    /// The paths in `folder` that one part of a pattern names.
    fn named(&self, folder: &str, part: &str) -> Result<Vec<String>, PackError> {
        if FilePattern::is_glob(part) {
            let names = self.names(folder)?.into_iter();
            return Ok(names
                .filter(|name| FilePattern::matches(part, name))
                .map(|name| join(folder, &name))
                .collect());
        }
        let path = join(folder, part);
        match fs::symlink_metadata(self.folder.join(&path)) {
            Ok(_) => Ok(vec![path]),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(at(&path, source)),
        }
    }

    fn names(&self, folder: &str) -> Result<Vec<String>, PackError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.folder.join(folder)).map_err(|source| at(folder, source))? {
            let name = entry.map_err(|source| at(folder, source))?.file_name();
            let name = name.into_string();
            names.push(name.map_err(|raw| PackError::Name(join(folder, &raw.to_string_lossy())))?);
        }
        names.sort_unstable();
        Ok(names)
    }

    fn facts(&self, path: &str) -> Result<Metadata, PackError> {
        fs::symlink_metadata(self.folder.join(path)).map_err(|source| at(path, source))
    }
}

fn is_left_out(path: &str) -> bool {
    path.rsplit('/').next() == Some(LEFT_OUT)
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

fn at(path: &str, source: io::Error) -> PackError {
    let path = if path.is_empty() { "." } else { path };
    PackError::Io { path: path.to_owned(), source }
}

fn open(file: &Path) -> io::Result<File> {
    // A queue that took the file's place must not make us wait for its writer.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(file)
}

/// The hash of a file that nobody wrote meanwhile.
fn read(folder: &Path, path: &str, progress: &mut dyn FnMut(u64)) -> Result<(Digest, Source), PackError> {
    let file = folder.join(path);
    let mut piece = vec![0; PIECE];
    for _ in 0..READS {
        let mut open = open(&file).map_err(|source| at(path, source))?;
        let facts = open.metadata().map_err(|source| at(path, source))?;
        if !facts.is_file() {
            return Err(PackError::Special(path.to_owned()));
        }
        let (mut hasher, mut size) = (Hasher::new(), 0);
        loop {
            let count = open.read(&mut piece).map_err(|source| at(path, source))?;
            size += count as u64;
            if count == 0 || size > facts.len() {
                break;
            }
            hasher.update(&piece[..count]);
            progress(count as u64);
        }
        let stamp = Stamp::of(&open.metadata().map_err(|source| at(path, source))?);
        if size == facts.len() && stamp == Stamp::of(&facts) {
            return Ok((hasher.finish(), Source { path: path.to_owned(), size, file, stamp }));
        }
    }
    Err(PackError::Changes(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn ground() -> tempfile::TempDir {
        let top = tempfile::tempdir().unwrap();
        for folder in ["bin", "static/css", "static/.well-known", "static/empty", ".git", "static/.git"] {
            fs::create_dir_all(top.path().join(folder)).unwrap();
        }
        for file in [
            "bin/web",
            "static/css/a.css",
            "static/.well-known/x",
            ".git/config",
            "static/.git/config",
            "app.py",
            "lib.py",
            ".env",
            "notes.txt",
        ] {
            fs::write(top.path().join(file), file).unwrap();
        }
        fs::set_permissions(top.path().join("bin/web"), fs::Permissions::from_mode(0o4755)).unwrap();
        top
    }

    fn paths(top: &Path, patterns: &[&str]) -> Result<Vec<String>, String> {
        let patterns: Vec<FilePattern> = patterns.iter().map(|text| text.parse().unwrap()).collect();
        let packed = pack(top, &patterns, &mut |_| {}).map_err(|error| error.to_string())?;
        for (digest, _) in packed.list.contents() {
            let mut bytes = Vec::new();
            packed.sources[&digest].open().unwrap().read_to_end(&mut bytes).unwrap();
            assert_eq!(Digest::of(&bytes), digest);
        }
        Ok(packed.list.entries().iter().map(|entry| entry.path().to_owned()).collect())
    }

    #[test]
    fn patterns_name_files_and_folders() {
        let top = ground();
        let found = |patterns: &[&str]| paths(top.path(), patterns).unwrap();
        assert_eq!(found(&["bin/", "app.py"]), ["app.py", "bin/web"]);
        assert_eq!(found(&["static/"]), ["static/.well-known/x", "static/css/a.css", "static/empty"]);
        assert_eq!(found(&["*.py"]), ["app.py", "lib.py"]);
        assert_eq!(found(&["*/c?s/*.css"]), ["static/css/a.css"]);
        assert_eq!(found(&["*/", "app.py", "app.py"]).len(), 5);
        assert_eq!(found(&["./"]).len(), 8);
        assert_eq!(found(&[".env"]), [".env"]);
    }

    #[test]
    fn what_does_not_fit_its_pattern_is_said() {
        let top = ground();
        let why = |patterns: &[&str]| paths(top.path(), patterns).unwrap_err();
        assert_eq!(why(&["app.py", "none"]), "`none` matches nothing");
        assert_eq!(why(&["*.rb"]), "`*.rb` matches nothing");
        assert!(why(&["bin"]).contains("write `bin/`"));
        assert!(why(&["app.py/"]).contains("is no folder"));
        symlink("/etc", top.path().join("etc")).unwrap();
        symlink("../..", top.path().join("static/up")).unwrap();
        assert!(why(&["etc/"]).contains("is a link"));
        assert!(why(&["etc/passwd"]).contains("is a link"));
        assert!(why(&["etc"]).contains("not allowed"));
        assert!(why(&["static/"]).contains("leaves the bundle"));
        symlink("../notes.txt", top.path().join("bin/notes")).unwrap();
        assert!(why(&["bin/"]).contains("list that too"));
        assert_eq!(paths(top.path(), &["bin/", "notes.txt"]).unwrap().len(), 3);
        let socket = top.path().join("bin/socket");
        let _listening = std::os::unix::net::UnixListener::bind(socket).unwrap();
        assert!(why(&["bin/", "notes.txt"]).contains("no file, folder or link"));
    }

    #[test]
    fn only_the_right_to_run_is_kept_of_a_mode() {
        let top = ground();
        let packed = pack(top.path(), &["bin/".parse().unwrap()], &mut |_| {}).unwrap();
        assert!(matches!(packed.list.entries(), [Entry::File { executable: true, .. }]));
        assert!(!packed.list.text().contains("4755"));
    }

    #[test]
    fn a_file_that_changed_since_is_not_opened() {
        let top = ground();
        let packed = pack(top.path(), &["app.py".parse().unwrap()], &mut |_| {}).unwrap();
        let source = packed.sources.values().next().unwrap();
        fs::write(top.path().join("app.py"), "other").unwrap();
        assert!(matches!(source.open(), Err(PackError::Changes(_))));
    }
}
