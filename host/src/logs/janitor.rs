//! Keeps output files within their bound.

use super::{Mark, TAIL_BYTES, tail_text};
use crate::metrics::HostMetrics;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tracing::warn;

/// The longest time between two looks. A program that begins to print as fast as memory takes it writes
/// some 1 GB/s: until the next look the file is over its bound by 25 MB or so.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// The shortest, while a program prints fast.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// One program's output file and the one before it.
#[derive(Debug)]
pub struct LogFile {
    current: PathBuf,
    previous: PathBuf,
    bytes_max: u64,
    /// Held while rotating, and while reading where the two files must fit together.
    rotation: Mutex<Rotation>,
    /// Nothing will be appended any more.
    closed: AtomicBool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Rotation {
    /// Counts rotations.
    serial: u64,
    /// Which offset of the file as it was has become the start of the previous file.
    copied_from: u64,
}

impl LogFile {
    /// The file at `current`; the one before it has `.1` at the end of its name.
    #[must_use]
    pub fn new(current: PathBuf, bytes_max: u64) -> Self {
        let mut previous = current.clone().into_os_string();
        previous.push(".1");
        Self {
            current,
            previous: previous.into(),
            bytes_max,
            rotation: Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// Where programs append.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.current
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
        let rotation = self.rotation.lock().unwrap_or_else(PoisonError::into_inner);
        Mark { serial: rotation.serial, offset: size_of(&self.current) }
    }

    /// The last output since `mark`, as text of at most 2 KiB.
    #[must_use]
    pub fn tail_since(&self, mark: Mark) -> String {
        let rotation = self.rotation.lock().unwrap_or_else(PoisonError::into_inner);
        let size = size_of(&self.current);
        let wanted = TAIL_BYTES as u64;
        let start = if rotation.serial == mark.serial { mark.offset } else { 0 };
        let mut bytes = Vec::new();
        if rotation.serial != mark.serial && size < wanted {
            let before = size_of(&self.previous);
            bytes = read_at(&self.previous, before.saturating_sub(wanted - size), before).unwrap_or_default();
        }
        let from = start.max(size.saturating_sub(wanted));
        bytes.extend(read_at(&self.current, from, size).unwrap_or_default());
        tail_text(&bytes)
    }

    /// Opens the files that hold what comes after `mark`, oldest first, each at the first byte of it;
    /// the mark is moved to the start of the current file where that has been truncated. False when a
    /// part is lost.
    pub(super) fn open_since(&self, mark: &mut Mark) -> io::Result<(Vec<File>, bool)> {
        let rotation = self.rotation.lock().unwrap_or_else(PoisonError::into_inner);
        let mut files = Vec::new();
        let mut whole = true;
        if rotation.serial != mark.serial {
            let next = mark.serial + 1 == rotation.serial;
            whole = next && mark.offset >= rotation.copied_from;
            let skip = if whole { mark.offset - rotation.copied_from } else { 0 };
            if let Ok(mut file) = File::open(&self.previous) {
                file.seek(SeekFrom::Start(skip))?;
                files.push(file);
            }
            *mark = Mark { serial: rotation.serial, offset: 0 };
        }
        let mut file = File::open(&self.current)?;
        // Truncated by somebody else.
        mark.offset = mark.offset.min(file.metadata()?.len());
        file.seek(SeekFrom::Start(mark.offset))?;
        files.push(file);
        Ok((files, whole))
    }

    /// The mark from which on the output has `lines` lines, as far as both files reach.
    pub(super) fn mark_of_last_lines(&self, lines: usize) -> (Mark, Option<Vec<u8>>) {
        let rotation = self.rotation.lock().unwrap_or_else(PoisonError::into_inner);
        let size = size_of(&self.current);
        let end = Mark { serial: rotation.serial, offset: size };
        if lines == 0 {
            return (end, None);
        }
        let mut wanted = lines;
        match start_of_lines(&self.current, size, &mut wanted) {
            Ok(Some(offset)) => return (Mark { offset, ..end }, None),
            Ok(None) => {}
            Err(_) => return (end, None),
        }
        let before = size_of(&self.previous);
        let from = start_of_lines(&self.previous, before, &mut wanted).ok().flatten().unwrap_or(0);
        let older = read_at(&self.previous, from, before).ok();
        (Mark { offset: 0, ..end }, older)
    }

    /// Rotates if the file comes near its bound; says whether it did.
    fn rotate_if_full(&self) -> io::Result<bool> {
        let mut rotation = self.rotation.lock().unwrap_or_else(PoisonError::into_inner);
        let size = size_of(&self.current);
        // Room for what is written while the rest is copied.
        let limit = self.bytes_max - self.bytes_max / 8;
        if size < limit {
            return Ok(false);
        }
        let from = size - limit;
        let copied = self.copy_away(from);
        // Also when the disk is too full for a copy: then it is the more urgent.
        OpenOptions::new().write(true).open(&self.current)?.set_len(0)?;
        *rotation = Rotation { serial: rotation.serial + 1, copied_from: from };
        copied.map(|()| true)
    }

    fn copy_away(&self, from: u64) -> io::Result<()> {
        let mut temporary = self.previous.clone().into_os_string();
        temporary.push(".new");
        let mut source = File::open(&self.current)?;
        source.seek(SeekFrom::Start(from))?;
        let copied = File::create(&temporary).and_then(|mut target| {
            io::copy(&mut source.take(self.bytes_max), &mut target)?;
            std::fs::rename(&temporary, &self.previous)
        });
        if copied.is_err() {
            // Readers of a copy that is not of this rotation would be misled; and its room is needed.
            let _absent = std::fs::remove_file(&temporary);
            let _absent = std::fs::remove_file(&self.previous);
        }
        copied
    }
}

fn size_of(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |data| data.len())
}

fn read_at(path: &Path, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(to.saturating_sub(from)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Where the last `wanted` lines of the first `size` bytes start; nothing when there are fewer, and then
/// `wanted` is how many are missing.
fn start_of_lines(path: &Path, size: u64, wanted: &mut usize) -> io::Result<Option<u64>> {
    const STEP: u64 = 64 << 10;
    if size == 0 {
        return Ok(None);
    }
    // The newline that ends the last line starts no further one.
    let ended = read_at(path, size - 1, size)? == b"\n";
    let mut end = if ended { size - 1 } else { size };
    while end > 0 {
        let start = end.saturating_sub(STEP);
        for (index, byte) in read_at(path, start, end)?.into_iter().enumerate().rev() {
            if byte == b'\n' {
                *wanted -= 1;
            }
            if *wanted == 0 {
                return Ok(Some(start + index as u64 + 1));
            }
        }
        end = start;
    }
    *wanted -= 1;
    Ok((*wanted == 0).then_some(0))
}

/// Looks at all output files, on a thread of its own: a busy runtime must not let them grow.
#[derive(Debug)]
pub struct Janitor {
    files: Arc<Mutex<Vec<Weak<LogFile>>>>,
}

impl Janitor {
    /// Starts the thread; it ends with the last handle.
    pub fn start(metrics: HostMetrics) -> io::Result<Self> {
        let files: Arc<Mutex<Vec<Weak<LogFile>>>> = Arc::default();
        let seen = Arc::downgrade(&files);
        let look = move || {
            let mut sizes = Vec::new();
            while let Some(files) = seen.upgrade() {
                let pause = look_once(&files, &mut sizes, &metrics);
                drop(files);
                std::thread::sleep(pause);
            }
        };
        std::thread::Builder::new().name("host-logs".to_owned()).spawn(look)?;
        Ok(Self { files })
    }

    /// Keeps `file` within its bound for as long as somebody else holds it.
    pub fn watch(&self, file: &Arc<LogFile>) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(file));
    }
}

/// Rotates what is full; says when to look again: sooner while a file grows by much.
fn look_once(files: &Mutex<Vec<Weak<LogFile>>>, sizes: &mut Vec<u64>, metrics: &HostMetrics) -> Duration {
    let watched: Vec<Arc<LogFile>> = {
        let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|file| file.strong_count() > 0);
        files.iter().filter_map(Weak::upgrade).collect()
    };
    sizes.resize(watched.len(), 0);
    let mut pause = LOOK_EVERY;
    for (file, before) in watched.iter().zip(sizes) {
        let size = size_of(&file.current);
        // An eighth of the bound since the last look: at this rate it would soon be over it.
        if size > before.saturating_add(file.bytes_max / 8) {
            pause = LOOK_AGAIN;
        }
        match file.rotate_if_full() {
            Ok(true) => {
                metrics.log_rotations.inc();
                *before = 0;
                pause = LOOK_AGAIN;
            }
            Ok(false) => *before = size,
            Err(cause) => {
                metrics.log_errors.inc();
                warn!(path = %file.current.display(), %cause, "output could not be kept");
                *before = 0;
            }
        }
    }
    pause
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_from_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        for (text, lines, start, missing) in [
            ("a\nb\nc\n", 1, Some(4), 0),
            ("a\nb\nc", 1, Some(4), 0),
            ("a\nb\nc\n", 3, Some(0), 0),
            ("a\nb\n", 3, None, 1),
            ("", 2, None, 2),
            ("\n\n", 1, Some(1), 0),
        ] {
            std::fs::write(&path, text).unwrap();
            let mut wanted = lines;
            assert_eq!(
                start_of_lines(&path, text.len() as u64, &mut wanted).unwrap(),
                start,
                "{text:?} {lines}"
            );
            assert_eq!(wanted, missing, "{text:?} {lines}");
        }
    }

    #[test]
    fn a_tail_reaches_over_a_rotation_but_not_into_an_earlier_run() {
        let folder = tempfile::tempdir().unwrap();
        let file = LogFile::new(folder.path().join("out"), 100);
        std::fs::write(file.path(), "earlier run\n").unwrap();
        let mark = file.mark();
        let append = |text: &str| {
            use std::io::Write;
            let mut out = OpenOptions::new().append(true).open(file.path()).unwrap();
            out.write_all(text.as_bytes()).unwrap();
        };
        append("this run\n");
        assert_eq!(file.tail_since(mark), "this run\n");
        append(&"x".repeat(79));
        assert!(file.rotate_if_full().unwrap());
        append("end\n");
        let tail = file.tail_since(mark);
        assert!(tail.ends_with("xend\n") && tail.len() == 92, "{tail}");
    }

    #[test]
    fn a_copy_that_fails_does_not_let_the_file_grow() {
        let folder = tempfile::tempdir().unwrap();
        let file = LogFile::new(folder.path().join("out"), 100);
        std::fs::write(file.path(), "x".repeat(200)).unwrap();
        // Stands in for a full disk: the copy can't be made.
        std::fs::create_dir(folder.path().join("out.1.new")).unwrap();
        assert!(file.rotate_if_full().is_err());
        assert_eq!(size_of(file.path()), 0);
    }
}
