//! Output as a stream of lines, filtered here so that only what is wanted travels.

use super::LogFile;
use super::file::Reading;
use super::split::{Found, LINE_BYTES_MAX, Splitter};
use super::times::Times;
use atoll_wire::node::{LogLine, LogLines, ReadLogs};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// What is read at a time, bytes. The lines of an answer are at most this and a line.
const PIECE_BYTES: usize = 16 << 10;
/// The same where only the starts of lines are kept.
const SCAN_BYTES: usize = 64 << 10;
/// Answers that wait for a slow reader; 128 KiB a stream.
const ANSWERS_MAX: usize = 4;
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Most lines of the past.
const TAIL_LINES_MAX: usize = 10_000;
/// The first part of the past that is looked through, from the end; then eight times as much, and so on.
const LOOK_BACK_BYTES: u64 = 256 << 10;

/// Answers a question with the lines of `file`: of the past, and with `follow` what comes after, until the
/// stream is dropped or the file closed. After an error nothing comes.
#[must_use]
pub fn read(file: &Arc<LogFile>, question: ReadLogs) -> ReceiverStream<io::Result<LogLines>> {
    let (sender, receiver) = mpsc::channel(ANSWERS_MAX);
    let reading = file.reading();
    tokio::spawn(async move {
        if let Err(cause) = pump(reading, question, &sender).await {
            // A reader that went away is the usual cause, and isn't there to be told.
            let _gone = sender.send(Err(cause)).await;
        }
    });
    ReceiverStream::new(receiver)
}

async fn pump(
    file: Reading,
    question: ReadLogs,
    sender: &mpsc::Sender<io::Result<LogLines>>,
) -> io::Result<()> {
    let follow = question.follow;
    let mut cursor = blocking(move || Cursor::open(file, question)).await?;
    loop {
        // Asked first: what was appended before it was closed is still read.
        let last = !follow || cursor.file.is_closed();
        let (back, answer, at_end) = blocking(move || {
            let (answer, at_end) = cursor.step(last)?;
            Ok((cursor, answer, at_end))
        })
        .await?;
        cursor = back;
        if !answer.lines.is_empty() || answer.lost > 0 || answer.caught_up {
            sender.send(Ok(answer)).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        if at_end && last {
            return Ok(());
        }
        if at_end {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = sender.closed() => return Ok(()),
            }
        }
    }
}

/// Where a reader is.
#[derive(Debug)]
struct Cursor {
    file: Reading,
    question: ReadLogs,
    splitter: Splitter,
    times: Times,
    /// Lines before the splitter's position, as the file counts them.
    lines: i64,
    /// The end of the output when the question came.
    asked_at: u64,
    caught_up: bool,
}

impl Cursor {
    fn open(file: Reading, question: ReadLogs) -> io::Result<Self> {
        let (times, (_, asked_at), splitter) = (file.times(), file.reach(), Splitter::default());
        let mut cursor = Self { file, question, splitter, times, lines: 0, asked_at, caught_up: false };
        let start = match cursor.question.after {
            Some(position) => position,
            None => cursor.start_of_tail()?,
        };
        cursor.lines = cursor.file.lines_before(start)?;
        cursor.splitter.seek(start, false);
        Ok(cursor)
    }

    /// Where the last wanted lines begin.
    fn start_of_tail(&mut self) -> io::Result<u64> {
        let wanted = usize::try_from(self.question.tail_lines).unwrap_or(usize::MAX).min(TAIL_LINES_MAX);
        let (oldest, end) = self.file.reach();
        if wanted == 0 {
            return Ok(end);
        }
        let low = oldest.max(self.times.since(self.question.since_ms));
        let mut back = LOOK_BACK_BYTES;
        loop {
            let from = low.max(end.saturating_sub(back));
            let starts = self.matches_between(from, oldest, end, wanted)?;
            if from == low || starts.len() == wanted {
                return Ok(starts.front().copied().unwrap_or(end));
            }
            back *= 8;
        }
    }

    /// The starts of the last `wanted` lines of those that end after `from` and match.
    fn matches_between(
        &mut self,
        from: u64,
        oldest: u64,
        end: u64,
        wanted: usize,
    ) -> io::Result<VecDeque<u64>> {
        // Far enough before that the first line is seen from its start.
        let begin = oldest.max(from.saturating_sub(LINE_BYTES_MAX as u64));
        let mut splitter = Splitter::default();
        splitter.seek(begin, begin > oldest);
        let mut starts = VecDeque::new();
        while splitter.position() < end {
            let piece = self.file.read(splitter.position(), SCAN_BYTES)?;
            if piece.bytes.is_empty() {
                break;
            }
            if piece.start != splitter.position() {
                splitter.seek(piece.start, true);
            }
            let (times, question) = (&self.times, &self.question);
            let mut keep = |found: &Found<'_>, headless: bool| {
                let at_ms = times.of(found.end).unwrap_or(piece.written_ms);
                if !headless && found.end > from && matches(question, &found.text(), at_ms) {
                    starts.push_back(found.start);
                }
            };
            splitter.feed(&piece.bytes, &mut keep);
            if piece.at_end || splitter.position() >= end {
                splitter.rest(&mut keep);
                break;
            }
            while starts.len() > wanted {
                starts.pop_front();
            }
        }
        while starts.len() > wanted {
            starts.pop_front();
        }
        Ok(starts)
    }

    /// The lines of the next piece, and whether there is no more now. With `last` also a line without end.
    fn step(&mut self, last: bool) -> io::Result<(LogLines, bool)> {
        let piece = self.file.read(self.splitter.position(), PIECE_BYTES)?;
        let mut answer = LogLines::default();
        if piece.start != self.splitter.position() {
            let lines = piece.lines_before.unwrap_or(self.lines);
            // Where a part of a line is lost, that line is.
            answer.lost = u64::try_from(lines - self.lines).unwrap_or(0).max(1);
            self.lines = lines;
            self.splitter.seek(piece.start, false);
        }
        let end = piece.start + piece.bytes.len() as u64;
        if !piece.at_end && self.times.of(end).is_none() {
            self.times = self.file.times();
        }
        let (times, question, lines) = (&self.times, &self.question, &mut self.lines);
        let mut keep = |found: &Found<'_>, _headless: bool| {
            let at_ms = times.of(found.end).unwrap_or(piece.written_ms);
            let text = found.text();
            if matches(question, &text, at_ms) {
                let (text, position, cut) = (text.into_owned(), found.end, found.cut);
                answer.lines.push(LogLine { text, at_ms, position, cut });
            }
        };
        self.splitter.feed(&piece.bytes, |found, headless| {
            *lines += 1;
            keep(found, headless);
        });
        // A program that goes on writing does not keep a reader who only wants what there was.
        let at_end = piece.at_end || (!self.question.follow && self.splitter.position() >= self.asked_at);
        if at_end && last {
            self.splitter.rest(&mut keep);
        }
        answer.caught_up = at_end && !self.caught_up;
        self.caught_up |= at_end;
        Ok((answer, at_end))
    }
}

fn matches(question: &ReadLogs, text: &str, at_ms: u64) -> bool {
    at_ms >= question.since_ms && (question.contains.is_empty() || text.contains(&question.contains))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests;
