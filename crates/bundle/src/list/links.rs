//! Where links lead, decided on the list alone.

use super::{Entry, ListError};
use crate::path::ancestors;
use std::collections::{HashMap, HashSet, VecDeque};

/// Links that lead to links, one after another.
const HOPS_MAX: usize = 16;
/// Names that are looked at for all links of a list together: a list must not keep its reader busy.
const STEPS_MAX: usize = 2_000_000;

/// The entries as a tree.
pub(super) struct Tree<'a> {
    entries: HashMap<&'a str, &'a Entry>,
    folders: HashSet<&'a str>,
}

enum Lost {
    Outside,
    Nowhere,
    Circle,
}

impl<'a> Tree<'a> {
    pub(super) fn new(entries: &'a [Entry]) -> Self {
        let mut folders: HashSet<&str> = entries.iter().flat_map(|entry| ancestors(entry.path())).collect();
        folders.extend(entries.iter().filter(|e| matches!(e, Entry::Folder { .. })).map(Entry::path));
        Self { entries: entries.iter().map(|entry| (entry.path(), entry)).collect(), folders }
    }

    pub(super) fn entry(&self, path: &str) -> Option<&'a Entry> {
        self.entries.get(path).copied()
    }

    /// The file that a program would open at `path`.
    pub(super) fn file(&self, path: &str) -> Option<&'a Entry> {
        let found = self.resolve("", path, &mut 0).ok()?;
        self.entry(&found).filter(|entry| matches!(entry, Entry::File { .. }))
    }

    /// Every link leads to something of the tree, and on its way there never out of it.
    pub(super) fn check_links(&self) -> Result<(), ListError> {
        let mut steps = 0;
        for entry in self.entries.values() {
            let Entry::Link { path, target } = entry else { continue };
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            let (path, target) = (path.clone(), target.clone());
            match self.resolve(folder, &target, &mut steps) {
                Ok(_) => {}
                Err(Lost::Outside) => return Err(ListError::Leaves { path, target }),
                Err(Lost::Nowhere) => return Err(ListError::Dangling { path, target }),
                Err(Lost::Circle) => return Err(ListError::Circle(path)),
            }
        }
        Ok(())
    }

    /// What `target` leads to from `folder`, as the kernel would go: `..` is taken where a link has led, not
    /// where it was written.
    fn resolve(&self, folder: &str, target: &str, steps: &mut usize) -> Result<String, Lost> {
        let mut at = folder.to_owned();
        let mut ahead: VecDeque<String> = target.split('/').map(str::to_owned).collect();
        let mut hops = 0;
        while let Some(name) = ahead.pop_front() {
            *steps += 1;
            if *steps > STEPS_MAX {
                return Err(Lost::Circle);
            }
            // Whatever comes after a file, if only a `/`: it is no folder.
            if !at.is_empty() && !self.folders.contains(at.as_str()) {
                return Err(Lost::Nowhere);
            }
            if name.is_empty() || name == "." {
                continue;
            }
            if name == ".." {
                if at.is_empty() {
                    return Err(Lost::Outside);
                }
                at.truncate(at.rfind('/').unwrap_or(0));
                continue;
            }
            let next = if at.is_empty() { name } else { format!("{at}/{name}") };
            match self.entry(&next) {
                Some(Entry::Link { target, .. }) => {
                    hops += 1;
                    if hops > HOPS_MAX {
                        return Err(Lost::Circle);
                    }
                    for part in target.split('/').rev() {
                        ahead.push_front(part.to_owned());
                    }
                }
                Some(Entry::File { .. } | Entry::Folder { .. }) => at = next,
                None if self.folders.contains(next.as_str()) => at = next,
                None => return Err(Lost::Nowhere),
            }
        }
        Ok(at)
    }
}
