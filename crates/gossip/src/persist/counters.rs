//! Two numbers that must never go back: the newest version that own records may have used, and the
//! generation under which this node was last a member.

use std::io;
use std::path::{Path, PathBuf};

const FILE: &str = "gossip-counters";
/// Versions reserved at a time.
const BLOCK: u64 = 4096;

/// The numbers, as the disk knows them.
#[derive(Debug)]
pub(crate) struct Counters {
    path: PathBuf,
    reserved: u64,
    generation: u64,
    found: bool,
}

impl Counters {
    /// Reads the file, and raises the generation.
    pub(crate) fn load(dir: &Path, now_ms: u64) -> Self {
        let path = dir.join(FILE);
        let kept = std::fs::read_to_string(&path).ok().and_then(|text| parse(&text));
        let (reserved, before) = kept.unwrap_or((0, 0));
        // The clock may step back; the number on disk does not.
        let generation = now_ms.max(before.saturating_add(1));
        Self { path, reserved, generation, found: kept.is_some() }
    }

    /// The first version that no earlier run can have used; nothing when the file was lost.
    pub(crate) fn next_version(&self) -> Option<u64> {
        self.found.then(|| self.reserved + 1)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Makes sure that versions beyond `used` are reserved.
    pub(crate) fn reserve(&mut self, used: u64) -> io::Result<()> {
        if self.found && used + BLOCK / 2 <= self.reserved {
            return Ok(());
        }
        let reserved = used.saturating_add(BLOCK);
        atoll_process::files::write_atomic(
            &self.path,
            format!("{reserved} {}\n", self.generation).as_bytes(),
            0o600,
        )?;
        self.reserved = reserved;
        self.found = true;
        Ok(())
    }
}

/// How far to skip when the file was lost but records were found.
pub(crate) const LOST_SKIP: u64 = BLOCK;

fn parse(text: &str) -> Option<(u64, u64)> {
    let (reserved, generation) = text.trim().split_once(' ')?;
    Some((reserved.parse().ok()?, generation.parse().ok()?))
}
