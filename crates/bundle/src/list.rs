//! What is in a bundle.

mod links;
#[cfg(test)]
mod tests;

use crate::digest::Digest;
use crate::path::{self, PathFault, ancestors};
use links::Tree;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt::Write;

/// Most entries of a bundle.
pub const ENTRIES_MAX: usize = 20_000;
/// Most bytes of all files of a bundle together: 512 MiB.
pub const BYTES_MAX: u64 = 512 << 20;
/// Longest canonical text of a list: 8 MiB.
pub const LIST_BYTES_MAX: usize = 8 << 20;

const HEAD: &str = "atoll bundle 1\n";

/// One thing in a bundle. Folders that hold something are not listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Entry {
    /// A regular file.
    File {
        /// Where, with `/` between names.
        path: String,
        /// Whether it may be run. No other bit of a mode travels.
        #[serde(default)]
        executable: bool,
        /// Bytes.
        size: u64,
        /// Its content.
        sha256: Digest,
    },
    /// A symbolic link.
    Link {
        /// Where.
        path: String,
        /// What it says: a path from the folder it is in.
        target: String,
    },
    /// A folder without content.
    Folder {
        /// Where.
        path: String,
    },
}

impl Entry {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            Self::File { path, .. } | Self::Link { path, .. } | Self::Folder { path } => path,
        }
    }
}

/// Why something is no list of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// Nothing in it.
    #[error("a bundle holds at least one file")]
    Empty,
    /// More than [`ENTRIES_MAX`].
    #[error("a bundle has at most {ENTRIES_MAX} files and links")]
    TooMany,
    /// More than [`BYTES_MAX`].
    #[error("the files of a bundle have at most {} MiB together", BYTES_MAX >> 20)]
    TooLarge,
    /// More than [`LIST_BYTES_MAX`].
    #[error("the names of a bundle's files have at most {} MiB together", LIST_BYTES_MAX >> 20)]
    ListTooLong,
    /// A path that is not allowed.
    #[error("the path `{}` is not allowed: {fault}", shown(.path))]
    Path {
        /// Which.
        path: String,
        /// Why.
        fault: PathFault,
    },
    /// Twice the same path.
    #[error("`{}` is listed twice", shown(.0))]
    Twice(String),
    /// Names that some file systems hold for one.
    #[error("`{}` and `{}` differ only in upper and lower case: rename one of them", shown(.0), shown(.1))]
    Case(String, String),
    /// Something below what is no folder.
    #[error("`{}` lies below `{}`, which is listed itself", shown(.path), shown(.above))]
    Below {
        /// Which.
        path: String,
        /// What is above it.
        above: String,
    },
    /// A link whose text is not allowed.
    #[error("the link `{}` -> `{}` is not allowed: {fault}", shown(.path), shown(.target))]
    Target {
        /// The link.
        path: String,
        /// What it says.
        target: String,
        /// Why.
        fault: PathFault,
    },
    /// A link that leads out.
    #[error("the link `{}` -> `{}` leaves the bundle", shown(.path), shown(.target))]
    Leaves {
        /// The link.
        path: String,
        /// What it says.
        target: String,
    },
    /// A link that leads to nothing.
    #[error("the link `{}` -> `{}` leads to nothing in the bundle: list that too", shown(.path), shown(.target))]
    Dangling {
        /// The link.
        path: String,
        /// What it says.
        target: String,
    },
    /// Links that lead to links without an end.
    #[error("the link `{}` leads in a circle, or over too many others", shown(.0))]
    Circle(String),
    /// One content has one size.
    #[error("`{}` has the SHA-256 of another file and another size", shown(.0))]
    Sizes(String),
    /// A text that is no list.
    #[error("line {0} of the bundle's list cannot be read")]
    Text(usize),
}

/// For messages: hostile text can't move a terminal's cursor.
fn shown(text: &str) -> String {
    text.chars().take(200).flat_map(char::escape_debug).collect()
}

/// A bundle's entries, checked, in the order of their paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    entries: Vec<Entry>,
    size: u64,
    text: String,
    digest: Digest,
}

impl List {
    /// Checks entries, in any order.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, ListError> {
        if entries.is_empty() {
            return Err(ListError::Empty);
        }
        if entries.len() > ENTRIES_MAX {
            return Err(ListError::TooMany);
        }
        entries.sort_by(|a, b| a.path().cmp(b.path()));
        let size = check_each(&entries)?;
        let tree = Tree::new(&entries);
        check_names(&entries, &tree)?;
        tree.check_links()?;
        let text = text_of(&entries);
        if text.len() > LIST_BYTES_MAX {
            return Err(ListError::ListTooLong);
        }
        Ok(Self { size, digest: Digest::of(text.as_bytes()), text, entries })
    }

    /// Reads a canonical text.
    pub fn parse(text: &str) -> Result<Self, ListError> {
        if text.len() > LIST_BYTES_MAX {
            return Err(ListError::ListTooLong);
        }
        let lines =
            text.strip_prefix(HEAD).and_then(|rest| rest.strip_suffix('\n')).ok_or(ListError::Text(1))?;
        let mut entries = Vec::new();
        for (at, line) in lines.split('\n').enumerate() {
            if entries.len() >= ENTRIES_MAX {
                return Err(ListError::TooMany);
            }
            entries.push(entry_of(line).ok_or(ListError::Text(at + 2))?);
        }
        let list = Self::new(entries)?;
        // Another order, or a number with zeros in front: not what we would have written.
        if list.text == text { Ok(list) } else { Err(ListError::Text(0)) }
    }

    /// The canonical text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The bundle's name: the SHA-256 of its text.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// Bytes of all files together.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The entries, in the order of their paths.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The contents, each once, with their sizes, in the order in which they first come.
    #[must_use]
    pub fn contents(&self) -> Vec<(Digest, u64)> {
        let mut seen = std::collections::HashSet::new();
        let files = self.entries.iter().filter_map(|entry| match entry {
            Entry::File { sha256, size, .. } => Some((*sha256, *size)),
            Entry::Link { .. } | Entry::Folder { .. } => None,
        });
        files.filter(|(digest, _)| seen.insert(*digest)).collect()
    }

    /// The file at `path` (which may hold `.` and `..`), over links; nothing where there is none.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<&Entry> {
        Tree::new(&self.entries).file(path)
    }
}

/// Each entry by itself; gives the size of all.
fn check_each(entries: &[Entry]) -> Result<u64, ListError> {
    let mut total: u64 = 0;
    let mut sizes: HashMap<Digest, u64> = HashMap::new();
    for entry in entries {
        path::check(entry.path())
            .map_err(|fault| ListError::Path { path: entry.path().to_owned(), fault })?;
        match entry {
            Entry::File { path, size, sha256, .. } => {
                total =
                    total.checked_add(*size).filter(|sum| *sum <= BYTES_MAX).ok_or(ListError::TooLarge)?;
                // Whoever unpacks it would take the content for damaged, and remove it from under others.
                if *sizes.entry(*sha256).or_insert(*size) != *size {
                    return Err(ListError::Sizes(path.clone()));
                }
            }
            Entry::Link { path, target } => path::check_target(target)
                .map_err(|fault| ListError::Target { path: path.clone(), target: target.clone(), fault })?,
            Entry::Folder { .. } => {}
        }
    }
    Ok(total)
}

/// The entries, which are sorted, among each other.
fn check_names(entries: &[Entry], tree: &Tree<'_>) -> Result<(), ListError> {
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].path() == pair[1].path()) {
        return Err(ListError::Twice(pair[0].path().to_owned()));
    }
    let mut folded: HashMap<String, &str> = HashMap::new();
    for path in entries.iter().map(Entry::path) {
        if let Some(above) = ancestors(path).find(|above| tree.entry(above).is_some()) {
            return Err(ListError::Below { path: path.to_owned(), above: above.to_owned() });
        }
        for name in ancestors(path).chain([path]) {
            let other = *folded.entry(name.to_lowercase()).or_insert(name);
            if other != name {
                return Err(ListError::Case(other.to_owned(), name.to_owned()));
            }
        }
    }
    Ok(())
}

/// Fields are separated by tabs, which no path has.
fn text_of(entries: &[Entry]) -> String {
    let mut text = String::from(HEAD);
    for entry in entries {
        // Writing into a string does not fail.
        let _written = match entry {
            Entry::File { path, executable, size, sha256 } => {
                let mode = if *executable { "x" } else { "-" };
                writeln!(text, "file\t{mode}\t{size}\t{sha256}\t{path}")
            }
            Entry::Link { path, target } => writeln!(text, "link\t{target}\t{path}"),
            Entry::Folder { path } => writeln!(text, "folder\t{path}"),
        };
    }
    text
}

fn entry_of(line: &str) -> Option<Entry> {
    let fields: Vec<&str> = line.splitn(6, '\t').collect();
    Some(match fields.as_slice() {
        ["file", mode @ ("x" | "-"), size, sha256, path] => Entry::File {
            path: (*path).to_owned(),
            executable: *mode == "x",
            size: size.parse().ok()?,
            sha256: sha256.parse().ok()?,
        },
        ["link", target, path] => Entry::Link { path: (*path).to_owned(), target: (*target).to_owned() },
        ["folder", path] => Entry::Folder { path: (*path).to_owned() },
        _ => return None,
    })
}
