//! When what was written: an index of (position, time) beside an output file.
//!
//! Programs write to their file themselves, so that nobody sees each line come. The janitor looks often, and
//! at most every 250 ms notes how long the file is and when it was last written to. A line's time is that
//! of the first note at or after its end: exact for the last line before a pause, up to 250 ms late for others.
//! Old notes are thinned out: a line's time is late by at most a 256th of its age, where that is more. What is
//! written while no host runs gets the time of the last of it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The least time between two notes, ms.
pub(super) const NOTE_EVERY_MS: u64 = 250;
/// Most notes; 128 KiB on disk. Thinned, a month of constant writing leaves less than 6000.
const NOTES_MAX: usize = 8192;
const AGE_SHARE: u64 = 256;
const NOTE_BYTES: usize = 16;

/// A note: what ends at `position` was written until `at_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Note {
    position: u64,
    at_ms: u64,
}

/// The notes, oldest first, by growing position.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Times(Vec<Note>);

impl Times {
    /// When the line that ends there was written, if that was noted.
    pub(super) fn of(&self, end: u64) -> Option<u64> {
        let index = self.0.partition_point(|note| note.position < end);
        self.0.get(index).map(|note| note.at_ms)
    }

    /// A position before which nothing was written at `since_ms` or later.
    pub(super) fn since(&self, since_ms: u64) -> u64 {
        // From the oldest: after a step of the clock rather too much is read than too little.
        let first = self.0.iter().position(|note| note.at_ms >= since_ms).unwrap_or(self.0.len());
        first.checked_sub(1).map_or(0, |before| self.0[before].position)
    }

    fn last(&self) -> Option<Note> {
        self.0.last().copied()
    }

    /// Leaves out notes without which lines are not later than promised.
    fn thin(&mut self) {
        let Some(newest) = self.last() else { return };
        let mut kept: Vec<Note> = vec![newest];
        let mut next = newest;
        for pair in self.0.windows(2).rev() {
            let (older, note) = (pair[0], pair[1]);
            let late = next.at_ms.saturating_sub(older.at_ms);
            if note != newest && late > newest.at_ms.saturating_sub(older.at_ms) / AGE_SHARE {
                kept.push(note);
                next = note;
            }
        }
        // Only a clock that jumps to and fro leaves more than half.
        kept.truncate(NOTES_MAX / 2 + NOTES_MAX / 4);
        kept.reverse();
        self.0 = kept;
    }
}

/// The index on disk: where the file begins, then the notes; all numbers are little-endian.
#[derive(Debug)]
pub(super) struct TimesFile {
    path: PathBuf,
    count: usize,
    last: Option<Note>,
}

impl TimesFile {
    /// The index at `path`, and the position at which the file begins, if that is known.
    pub(super) fn open(path: PathBuf) -> (Self, Option<u64>) {
        let (base, times) = load(&path).unwrap_or_default();
        (Self { path, count: times.0.len(), last: times.last() }, base)
    }

    /// The last position that was noted.
    pub(super) fn noted(&self) -> u64 {
        self.last.map_or(0, |note| note.position)
    }

    /// All notes.
    pub(super) fn read(&self) -> Times {
        load(&self.path).map(|(_, times)| times).unwrap_or_default()
    }

    /// Adds a note, unless nothing came since the last or that was a moment ago.
    pub(super) fn note(&mut self, base: u64, position: u64, at_ms: u64) -> io::Result<()> {
        if self
            .last
            .is_some_and(|last| position <= last.position || at_ms.abs_diff(last.at_ms) < NOTE_EVERY_MS)
        {
            return Ok(());
        }
        let note = Note { position, at_ms };
        if self.count == 0 || self.count >= NOTES_MAX {
            let mut times = self.read();
            times.0.push(note);
            times.thin();
            return self.replace(base, times);
        }
        let mut file = OpenOptions::new().append(true).open(&self.path)?;
        file.write_all(&encode(note))?;
        self.count += 1;
        self.last = Some(note);
        Ok(())
    }

    /// The file begins at `base` now.
    pub(super) fn begins_at(&mut self, base: u64) -> io::Result<()> {
        let times = self.read();
        self.replace(base, times)
    }

    fn replace(&mut self, base: u64, times: Times) -> io::Result<()> {
        let mut bytes = encode(Note { position: base, at_ms: 0 }).to_vec();
        times.0.iter().for_each(|note| bytes.extend(encode(*note)));
        let mut temporary = self.path.clone().into_os_string();
        temporary.push(".new");
        // No sync: what a power failure may cost are times of lines.
        File::create(&temporary)?.write_all(&bytes)?;
        std::fs::rename(&temporary, &self.path)?;
        self.count = times.0.len();
        self.last = times.last();
        Ok(())
    }
}

fn encode(note: Note) -> [u8; NOTE_BYTES] {
    let mut bytes = [0; NOTE_BYTES];
    bytes[..8].copy_from_slice(&note.position.to_le_bytes());
    bytes[8..].copy_from_slice(&note.at_ms.to_le_bytes());
    bytes
}

fn load(path: &Path) -> Option<(Option<u64>, Times)> {
    let bytes = std::fs::read(path).ok()?;
    let mut notes = bytes.chunks_exact(NOTE_BYTES).map(|chunk| {
        let number = |at: usize| chunk[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        Note { position: number(0), at_ms: number(8) }
    });
    let base = notes.next()?.position;
    let mut times: Vec<Note> = notes.collect();
    // A write that broke off in the middle puts what follows it out of step.
    let whole = times.windows(2).take_while(|pair| pair[0].position < pair[1].position).count() + 1;
    times.truncate(whole);
    Some((Some(base), Times(times)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(notes: &[(u64, u64)]) -> Times {
        Times(notes.iter().map(|(position, at_ms)| Note { position: *position, at_ms: *at_ms }).collect())
    }

    #[test]
    fn lines_get_the_time_of_the_note_after_them() {
        let times = times(&[(10, 1_000), (20, 2_000), (30, 3_000)]);
        assert_eq!(
            [1, 10, 11, 30, 31].map(|end| times.of(end)),
            [Some(1_000), Some(1_000), Some(2_000), Some(3_000), None]
        );
        assert_eq!([0, 1_000, 1_001, 2_000, 3_001].map(|since| times.since(since)), [0, 0, 10, 10, 30]);
    }

    #[test]
    fn a_month_of_notes_stays_bounded_and_as_exact_as_promised() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, base) = TimesFile::open(folder.path().join("times"));
        assert_eq!(base, None);
        // Sparse first, so that the test is quick; then as dense as can be.
        let (mut now, mut position) = (0, 0);
        while now < 30 * 24 * 3_600_000 {
            now += if position < 2_000 { 1_200_000 } else { 100_000 };
            position += 1;
            file.note(0, position, now).unwrap();
            assert!(file.count <= NOTES_MAX);
        }
        for _ in 0..NOTES_MAX {
            now += NOTE_EVERY_MS;
            position += 1;
            file.note(0, position, now).unwrap();
        }
        file.note(0, position + 1, now + 1).unwrap();
        assert_eq!(file.noted(), position, "not so soon after the last");
        let (again, base) = TimesFile::open(folder.path().join("times"));
        assert_eq!((base, again.noted()), (Some(0), position));
        let mut times = again.read();
        times.thin();
        for pair in times.0.windows(2) {
            let (gap, age) = (pair[1].at_ms - pair[0].at_ms, now - pair[0].at_ms);
            assert!(gap <= (age / AGE_SHARE).max(1_200_000), "{gap} at {age}");
        }
        assert!(times.0.len() > 1_000);
    }

    #[test]
    fn a_new_beginning_is_kept_and_a_torn_end_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("times");
        let (mut file, _) = TimesFile::open(path.clone());
        for number in 1..=3 {
            file.note(0, number * 10, number * 1_000).unwrap();
        }
        file.begins_at(30).unwrap();
        assert_eq!(file.read(), times(&[(10, 1_000), (20, 2_000), (30, 3_000)]));
        OpenOptions::new().append(true).open(&path).unwrap().write_all(&[7; 9]).unwrap();
        let (file, base) = TimesFile::open(path);
        assert_eq!((base, file.noted()), (Some(30), 30));
    }
}
