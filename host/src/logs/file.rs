//! One program's output: one file, of which the last part is kept, and the index of times.

use super::times::{Times, TimesFile};
use rustix::fs::FallocateFlags;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

/// Most of the last output that an exit's report carries, bytes.
const TAIL_BYTES: usize = 2 << 10;
/// The length, holes counted, at which a file begins anew: filesystems have a bound (ext4: 16 TiB), and a
/// program whose writes failed there would lose all that it writes.
const LENGTH_MAX: u64 = 8 << 40;

/// A place in a program's output that stays findable: a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark(u64);

/// One program's output file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    bytes_max: u64,
    /// Held while the front is let go and while reading, so that nobody reads what is a hole by then.
    extent: Mutex<Extent>,
    /// Nothing will be appended any more.
    closed: AtomicBool,
    /// Who reads. Lines are only counted for them.
    readers: AtomicUsize,
}

#[derive(Debug)]
struct Extent {
    /// The position of the file's first byte: 0, unless it was truncated.
    base: u64,
    /// The position of the first byte that is left. All before it is a hole.
    oldest: u64,
    /// Lines before `oldest`, from anywhere: only differences count.
    lines: i64,
    times: TimesFile,
}

/// The file as it is at this moment.
#[derive(Debug, Clone, Copy)]
struct Now {
    /// The position of the next byte that comes.
    end: u64,
    /// When it was written to last, ms since 1970.
    written_ms: u64,
    /// The filesystem's block, bytes: holes are of whole ones.
    block: u64,
}

/// A piece of output.
#[derive(Debug)]
pub(super) struct Piece {
    /// The position of the first byte: after the one asked for, where that is gone.
    pub(super) start: u64,
    /// Where it is after: the lines before it, counted from anywhere.
    pub(super) lines_before: Option<i64>,
    pub(super) bytes: Vec<u8>,
    /// There is no more now.
    pub(super) at_end: bool,
    /// When the file was written to last, ms since 1970.
    pub(super) written_ms: u64,
}

/// What a look at the file found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Looked {
    /// The position of the next byte that comes.
    pub(super) end: u64,
    /// Its oldest part was let go.
    pub(super) trimmed: bool,
}

/// As long as it lives, lines are counted.
#[derive(Debug)]
pub(super) struct Reading(Arc<LogFile>);

impl LogFile {
    /// The file at `path`, whose last `bytes_max` bytes are kept; its index has `.times` at the end of its name.
    #[must_use]
    pub fn new(path: PathBuf, bytes_max: u64) -> Self {
        let beside = |ending: &str| {
            let mut beside = path.clone().into_os_string();
            beside.push(ending);
            PathBuf::from(beside)
        };
        // Hosts once copied older output there.
        let _absent = std::fs::remove_file(beside(".1"));
        let (times, base) = TimesFile::open(beside(".times"));
        let base = base.unwrap_or(0);
        let oldest = base + hole_at_front(&path).unwrap_or(0);
        Self {
            path,
            bytes_max,
            extent: Mutex::new(Extent { base, oldest, lines: 0, times }),
            closed: AtomicBool::new(false),
            readers: AtomicUsize::new(0),
        }
    }

    /// Where programs append.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Nothing will be appended any more: readers that follow come to their end. From now on nothing of ours writes beside it: its folder
    /// may be removed.
    pub fn close(&self) {
        let _no_look = self.extent();
        self.closed.store(true, Ordering::Release);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The end of the output so far.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(self.reach().1)
    }

    /// The last output since `mark`, as text of at most 2 KiB.
    #[must_use]
    pub fn tail_since(&self, mark: Mark) -> String {
        let (_, end) = self.reach();
        let from = mark.0.max(end.saturating_sub(TAIL_BYTES as u64));
        let piece = self.read(from, TAIL_BYTES);
        tail_text(&piece.map(|piece| piece.bytes).unwrap_or_default())
    }

    /// Begins to read.
    pub(super) fn reading(self: &Arc<Self>) -> Reading {
        self.readers.fetch_add(1, Ordering::AcqRel);
        Reading(Arc::clone(self))
    }

    /// The positions of the first byte that is left and of the next that comes.
    pub(super) fn reach(&self) -> (u64, u64) {
        let mut extent = self.extent();
        let end = self.now(&mut extent).map_or(extent.oldest, |now| now.end);
        (extent.oldest, end)
    }

    /// All notes of when it was written.
    pub(super) fn times(&self) -> Times {
        self.extent().times.read()
    }

    /// At most `bytes_max` bytes from a position on, or from the first that are left after it. Nothing
    /// was written where the program could not be started so far.
    pub(super) fn read(&self, from: u64, bytes_max: usize) -> io::Result<Piece> {
        let mut extent = self.extent();
        let now = self.now(&mut extent)?;
        // After the end: somebody has truncated it.
        let start = from.clamp(extent.oldest, now.end);
        let to = now.end.min(start + bytes_max as u64);
        let bytes = if start < to { self.read_at(&extent, start, to)? } else { Vec::new() };
        let at_end = start + bytes.len() as u64 >= now.end;
        let lines_before = (start > from).then_some(extent.lines);
        Ok(Piece { start, lines_before, bytes, at_end, written_ms: now.written_ms })
    }

    /// Lines before a position, counted from anywhere: only differences count.
    pub(super) fn lines_before(&self, position: u64) -> io::Result<i64> {
        let mut extent = self.extent();
        let _now = self.now(&mut extent)?;
        Ok(extent.lines + self.count_lines(&extent, extent.oldest, position)?)
    }

    /// Lets the oldest part go if more is there than is to be kept, and notes how long the file is.
    pub(super) fn look(&self) -> io::Result<Looked> {
        let mut extent = self.extent();
        let now = self.now(&mut extent)?;
        if self.is_closed() {
            return Ok(Looked { end: now.end, trimmed: false });
        }
        let base = extent.base;
        let noted = extent.times.note(base, now.end, now.written_ms);
        let mut trimmed = false;
        // An eighth at a time: the work for it is little.
        if now.end - extent.oldest > self.bytes_max + self.bytes_max / 8 {
            trimmed = self.trim(&mut extent, now)?;
        }
        noted.map(|()| Looked { end: now.end, trimmed })
    }

    /// Makes a hole of all but the last `bytes_max` bytes. Where there can be none, all of it goes: a full disk harms
    /// more than lost output.
    fn trim(&self, extent: &mut Extent, now: Now) -> io::Result<bool> {
        let kept = now.end - extent.base - self.bytes_max;
        // Whole blocks, so that where data begins says to the next host where the output does.
        let oldest = extent.base + kept / now.block * now.block;
        if oldest <= extent.oldest {
            return Ok(false);
        }
        let file = OpenOptions::new().write(true).open(&self.path)?;
        if now.end - extent.base > LENGTH_MAX {
            return self.truncate(extent, &file).map(|()| true);
        }
        let lines = self.lines_if_read(extent, oldest);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (from, length) = (extent.oldest - extent.base, oldest - extent.oldest);
        if let Err(cause) = rustix::io::retry_on_intr(|| rustix::fs::fallocate(&file, punch, from, length)) {
            self.truncate(extent, &file)?;
            return Err(cause.into());
        }
        extent.lines += lines;
        extent.oldest = oldest;
        Ok(true)
    }

    /// Empties the file. What comes between the last look at its length and the next moment is lost untold.
    fn truncate(&self, extent: &mut Extent, file: &File) -> io::Result<()> {
        extent.lines += self.lines_if_read(extent, u64::MAX);
        let end = extent.base + file.metadata()?.len();
        file.set_len(0)?;
        (extent.base, extent.oldest) = (end, end);
        extent.times.begins_at(end)
    }

    fn lines_if_read(&self, extent: &Extent, to: u64) -> i64 {
        if self.readers.load(Ordering::Acquire) == 0 {
            return 0;
        }
        self.count_lines(extent, extent.oldest, to).unwrap_or(0)
    }

    /// How the file is; one that was truncated by somebody else begins where the output known last ended.
    fn now(&self, extent: &mut Extent) -> io::Result<Now> {
        let data = match std::fs::metadata(&self.path) {
            Ok(data) => data,
            // It was not started so far, or is being removed.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                return Ok(Now { end: extent.oldest, written_ms: 0, block: 1 });
            }
            Err(cause) => return Err(cause),
        };
        let known = extent.times.noted().max(extent.oldest);
        if extent.base + data.len() < known {
            (extent.base, extent.oldest) = (known, known);
            if !self.is_closed() {
                extent.times.begins_at(known)?;
            }
        }
        let end = extent.base + data.len();
        Ok(Now { end, written_ms: written_ms(&data), block: data.blksize().max(1) })
    }

    fn read_at(&self, extent: &Extent, from: u64, to: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.part(extent, from, to)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn count_lines(&self, extent: &Extent, from: u64, to: u64) -> io::Result<i64> {
        let mut part = match self.part(extent, from, to) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(0),
            part => part?,
        };
        let (mut buffer, mut lines) = (vec![0; 64 << 10], 0);
        loop {
            let count = part.read(&mut buffer)?;
            if count == 0 {
                return Ok(lines);
            }
            let ends = buffer[..count].iter().filter(|byte| **byte == b'\n').count();
            lines += i64::try_from(ends).unwrap_or(0);
        }
    }

    /// The file from one position to another, as far as it goes.
    fn part(&self, extent: &Extent, from: u64, to: u64) -> io::Result<io::Take<File>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(from - extent.base))?;
        Ok(file.take(to.saturating_sub(from)))
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

fn written_ms(data: &Metadata) -> u64 {
    let since = data.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

/// How long the hole at the front of a file is, bytes.
fn hole_at_front(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)) {
        // Nothing is in it, or it is one hole.
        Err(rustix::io::Errno::NXIO) => Ok(file.metadata()?.len()),
        data => Ok(data?),
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
