//! One program's output: the current file, the one before it, and the index of times.

use super::times::{Times, TimesFile};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

/// Most of the last output that an exit's report carries, bytes.
const TAIL_BYTES: usize = 2 << 10;

/// A place in a program's output that stays findable after rotations: a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark(u64);

/// One program's output file and the one before it.
#[derive(Debug)]
pub struct LogFile {
    current: PathBuf,
    previous: PathBuf,
    bytes_max: u64,
    /// Held while rotating, and while reading where the two files must fit together.
    extent: Mutex<Extent>,
    /// Nothing will be appended any more.
    closed: AtomicBool,
    /// Who reads. Lines are only counted for them.
    readers: AtomicUsize,
}

#[derive(Debug)]
struct Extent {
    /// The position at which the previous file begins; `base` where there is none.
    oldest: u64,
    /// The position at which the previous file ends. What comes from there to `base` was lost in the rotation.
    previous_end: u64,
    /// The position at which the current file begins.
    base: u64,
    /// Lines before `base`, from anywhere: only differences count.
    lines: i64,
    /// Lines from `previous_end` to `base`.
    lines_lost: i64,
    times: TimesFile,
}

/// A piece of output.
#[derive(Debug)]
pub(super) struct Piece {
    /// The position of the first byte: after the one asked for, where that has been overwritten.
    pub(super) start: u64,
    pub(super) bytes: Vec<u8>,
    /// There is no more now.
    pub(super) at_end: bool,
    /// When the current file was written to last, ms since 1970.
    pub(super) written_ms: u64,
}

/// What a look at the file found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Looked {
    pub(super) bytes: u64,
    pub(super) rotated: bool,
}

/// As long as it lives, lines are counted.
#[derive(Debug)]
pub(super) struct Reading(Arc<LogFile>);

impl LogFile {
    /// The file at `current`; the one before it has `.1` at the end of its name, the index `.times`.
    #[must_use]
    pub fn new(current: PathBuf, bytes_max: u64) -> Self {
        let beside = |ending: &str| {
            let mut path = current.clone().into_os_string();
            path.push(ending);
            PathBuf::from(path)
        };
        let (previous, (times, base)) = (beside(".1"), TimesFile::open(beside(".times")));
        let before = size_of(&previous);
        let mut base = base.unwrap_or(before);
        if times.noted() > base + size_of(&current) {
            // It was truncated, and we ended before we had noted that.
            base = times.noted();
        }
        let oldest = base.saturating_sub(before);
        let extent = Extent { oldest, previous_end: base, base, lines: 0, lines_lost: 0, times };
        Self {
            current,
            previous,
            bytes_max,
            extent: Mutex::new(extent),
            closed: AtomicBool::new(false),
            readers: AtomicUsize::new(0),
        }
    }

    /// Where programs append.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.current
    }

    pub(super) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Nothing will be appended any more: readers that follow come to their end.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The end of the output so far.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(self.extent().base + size_of(&self.current))
    }

    /// The last output since `mark`, as text of at most 2 KiB.
    #[must_use]
    pub fn tail_since(&self, mark: Mark) -> String {
        let extent = self.extent();
        let end = extent.base + size_of(&self.current);
        let from = extent.oldest.max(mark.0).max(end.saturating_sub(TAIL_BYTES as u64));
        let mut bytes = Vec::new();
        if from < extent.previous_end {
            let (from, to) = (from - extent.oldest, extent.previous_end - extent.oldest);
            bytes = read_at(&self.previous, from, to).unwrap_or_default();
        }
        let from = from.saturating_sub(extent.base);
        bytes.extend(read_at(&self.current, from, end - extent.base).unwrap_or_default());
        tail_text(&bytes)
    }

    /// Begins to read.
    pub(super) fn reading(self: &Arc<Self>) -> Reading {
        self.readers.fetch_add(1, Ordering::AcqRel);
        Reading(Arc::clone(self))
    }

    /// The positions of the first byte that is left and of the next that comes.
    pub(super) fn reach(&self) -> (u64, u64) {
        let extent = self.extent();
        (extent.oldest, extent.base + size_of(&self.current))
    }

    /// All notes of when it was written.
    pub(super) fn times(&self) -> Times {
        self.extent().times.read()
    }

    /// At most `bytes_max` bytes from a position on, or from the first that are left after it. Nothing
    /// was written where the program could not be started so far.
    pub(super) fn read(&self, from: u64, bytes_max: usize) -> io::Result<Piece> {
        let extent = self.extent();
        let (size, written_ms) = match std::fs::metadata(&self.current) {
            Ok(data) => (data.len(), written_ms(&data)),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => (0, 0),
            Err(cause) => return Err(cause),
        };
        let end = extent.base + size;
        // After the end: somebody else has truncated it.
        let mut start = from.clamp(extent.oldest, end);
        let upto = |start: u64, end: u64| end.min(start + bytes_max as u64);
        let mut bytes = Vec::new();
        if start < extent.previous_end {
            let (from, to) = (start - extent.oldest, upto(start, extent.previous_end) - extent.oldest);
            bytes = read_at(&self.previous, from, to).unwrap_or_default();
        }
        if start < extent.base && bytes.is_empty() {
            start = extent.base;
        }
        if start >= extent.base && start < end {
            let (from, to) = (start - extent.base, upto(start, end) - extent.base);
            bytes = read_at(&self.current, from, to)?;
        }
        let at_end = start + bytes.len() as u64 >= end;
        Ok(Piece { start, bytes, at_end, written_ms })
    }

    /// Lines before a position, counted from anywhere: only differences count.
    pub(super) fn lines_before(&self, position: u64) -> io::Result<i64> {
        let extent = self.extent();
        if position >= extent.base {
            return Ok(extent.lines + count_lines(&self.current, 0, position - extent.base)?);
        }
        let (from, to) = (position.saturating_sub(extent.oldest), extent.previous_end - extent.oldest);
        Ok(extent.lines - extent.lines_lost - count_lines(&self.previous, from, to)?)
    }

    /// Rotates the file if it comes near its bound, else notes how long it is.
    pub(super) fn look(&self) -> io::Result<Looked> {
        let mut extent = self.extent();
        let Ok(data) = std::fs::metadata(&self.current) else {
            return Ok(Looked { bytes: 0, rotated: false });
        };
        let size = data.len();
        // Room for what is written while the rest is copied.
        let limit = self.bytes_max - self.bytes_max / 8;
        if size < limit {
            let base = extent.base;
            extent.times.note(base, base + size, written_ms(&data))?;
            return Ok(Looked { bytes: size, rotated: false });
        }
        self.rotate(&mut extent, size - limit)?;
        Ok(Looked { bytes: 0, rotated: true })
    }

    fn rotate(&self, extent: &mut Extent, from: u64) -> io::Result<()> {
        let counted = self.readers.load(Ordering::Acquire) > 0;
        if counted {
            // Before the copy: after it every moment loses what is written in it.
            extent.lines += count_lines(&self.current, 0, from).unwrap_or(0);
        }
        let copied = self.copy_away(from);
        let bytes = *copied.as_ref().unwrap_or(&0);
        let (kept_to, size) = (from + bytes, size_of(&self.current));
        extent.lines_lost = 0;
        if counted {
            extent.lines_lost = count_lines(&self.current, kept_to, size).unwrap_or(0);
        }
        // Also when the disk is too full for a copy: then it is the more urgent.
        OpenOptions::new().write(true).open(&self.current)?.set_len(0)?;
        if counted {
            extent.lines += count_lines(&self.previous, 0, bytes).unwrap_or(0) + extent.lines_lost;
        }
        let begun = extent.base;
        extent.base = begun + size.max(kept_to);
        extent.previous_end = begun + kept_to;
        // Without a copy there is no previous file.
        extent.oldest = if bytes > 0 { begun + from } else { extent.base };
        extent.previous_end = extent.previous_end.max(extent.oldest);
        let oldest = extent.oldest;
        let noted = extent.times.rotated(extent.base, oldest);
        copied.and(noted)
    }

    /// Says how many bytes were copied.
    fn copy_away(&self, from: u64) -> io::Result<u64> {
        let mut temporary = self.previous.clone().into_os_string();
        temporary.push(".new");
        let mut source = File::open(&self.current)?;
        source.seek(SeekFrom::Start(from))?;
        let copied = File::create(&temporary).and_then(|mut target| {
            let mut rest = source.take(self.bytes_max);
            let copied = io::copy(&mut rest, &mut target)?;
            std::fs::rename(&temporary, &self.previous)?;
            // What came meanwhile: little, so that next to nothing comes while it is copied.
            Ok(copied + io::copy(&mut rest, &mut target)?)
        });
        if copied.is_err() {
            // Readers of a copy that is not of this rotation would be misled; and its room is needed.
            let _absent = std::fs::remove_file(&temporary);
            let _absent = std::fs::remove_file(&self.previous);
        }
        copied
    }

    fn extent(&self) -> MutexGuard<'_, Extent> {
        self.extent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::ops::Deref for Reading {
    type Target = LogFile;
    fn deref(&self) -> &LogFile {
        &self.0
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::AcqRel);
    }
}

fn size_of(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |data| data.len())
}

fn written_ms(data: &Metadata) -> u64 {
    let since = data.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

fn read_at(path: &Path, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(to.saturating_sub(from)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn count_lines(path: &Path, from: u64, to: u64) -> io::Result<i64> {
    let mut file = match File::open(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(0),
        opened => opened?,
    };
    file.seek(SeekFrom::Start(from))?;
    let mut rest = file.take(to.saturating_sub(from));
    let (mut buffer, mut lines) = (vec![0; 64 << 10], 0);
    loop {
        let count = rest.read(&mut buffer)?;
        if count == 0 {
            return Ok(lines);
        }
        let ends = buffer[..count].iter().filter(|byte| **byte == b'\n').count();
        lines += i64::try_from(ends).unwrap_or(0);
    }
}

/// `bytes` as text of at most `TAIL_BYTES`, cut at the front.
fn tail_text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]).into_owned();
    let mut start = text.len().saturating_sub(TAIL_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}

#[cfg(test)]
mod tests;
