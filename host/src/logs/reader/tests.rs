use super::*;
use std::fs::{FileTimes, OpenOptions};
use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};
use tokio_stream::StreamExt;

struct Output {
    _folder: tempfile::TempDir,
    file: Arc<LogFile>,
}

impl Output {
    fn new(bytes_max: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = Arc::new(LogFile::new(folder.path().join("out"), bytes_max));
        Self { _folder: folder, file }
    }

    /// Appends as if at that time, and lets the file be looked at.
    fn append_at(&self, text: &str, at_ms: u64) {
        let mut out = OpenOptions::new().create(true).append(true).open(self.file.path()).unwrap();
        out.write_all(text.as_bytes()).unwrap();
        let at = UNIX_EPOCH + Duration::from_millis(at_ms);
        out.set_times(FileTimes::new().set_modified(at)).unwrap();
        self.file.look().unwrap();
    }

    async fn all(&self, question: ReadLogs) -> Vec<LogLine> {
        let mut lines = Vec::new();
        let mut answers = read(&self.file, question);
        while let Some(answer) = answers.next().await {
            lines.extend(answer.unwrap().lines);
        }
        lines
    }
}

fn texts(lines: &[LogLine]) -> Vec<&str> {
    lines.iter().map(|line| line.text.as_str()).collect()
}

fn tail(lines: u32) -> ReadLogs {
    ReadLogs { tail_lines: lines, ..ReadLogs::default() }
}

#[tokio::test]
async fn the_tail_counts_after_the_filters() {
    let output = Output::new(1 << 20);
    for number in 1..=100_u64 {
        let word = if number % 10 == 0 { "ten" } else { "other" };
        output.append_at(&format!("{number} {word}\n"), number * 1_000);
    }
    assert_eq!(texts(&output.all(tail(2)).await), ["99 other", "100 ten"]);
    let tens = ReadLogs { contains: "ten".to_owned(), ..tail(3) };
    let lines = output.all(tens.clone()).await;
    assert_eq!(texts(&lines), ["80 ten", "90 ten", "100 ten"]);
    assert_eq!(lines[0].at_ms, 80_000, "the time of a line with a pause after it is exact");
    let since = ReadLogs { since_ms: 90_000, ..tail(1_000) };
    assert_eq!(output.all(since.clone()).await.len(), 11);
    assert_eq!(
        texts(&output.all(ReadLogs { contains: "ten".to_owned(), ..since }).await),
        ["90 ten", "100 ten"]
    );
    let after = ReadLogs { after: Some(lines[1].position), ..tens };
    assert_eq!(texts(&output.all(after).await), ["100 ten"]);
    assert!(output.all(tail(0)).await.is_empty());
}

#[tokio::test]
async fn a_tail_is_found_however_far_back_it_begins() {
    let output = Output::new(64 << 20);
    let line = "x".repeat(1_000);
    let text: String = (0..5_000).map(|number| format!("{number} {line}\n")).collect();
    output.append_at(&text, 1_000);
    for wanted in [1, 200, 300, 4_999, 5_000, 9_999] {
        let lines = output.all(tail(wanted)).await;
        assert_eq!(lines.len(), 5_000.min(wanted as usize));
        assert!(lines.last().unwrap().text.starts_with("4999 "));
    }
    let rare = ReadLogs { contains: "1 x".to_owned(), ..tail(10_000) };
    assert_eq!(output.all(rare).await.len(), 500);
}

#[tokio::test]
async fn a_reader_who_does_not_follow_comes_to_an_end_and_gets_what_has_no_newline() {
    let output = Output::new(1 << 20);
    output.append_at("a\nb", 1_000);
    assert_eq!(texts(&output.all(tail(1)).await), ["b"]);
    let empty = Output::new(1 << 20);
    assert!(empty.all(tail(10)).await.is_empty(), "not started so far");
}

#[tokio::test]
async fn one_who_follows_gets_what_comes_and_ends_when_the_file_is_closed() {
    let output = Output::new(1 << 20);
    output.append_at("a\nb", 1_000);
    let mut answers = read(&output.file, ReadLogs { follow: true, ..tail(10) });
    let first = answers.next().await.unwrap().unwrap();
    assert_eq!((texts(&first.lines), first.caught_up), (vec!["a"], true));
    output.append_at("c\n", 2_000);
    assert_eq!(texts(&answers.next().await.unwrap().unwrap().lines), ["bc"]);
    output.append_at("end", 3_000);
    output.file.close();
    assert_eq!(texts(&answers.next().await.unwrap().unwrap().lines), ["end"]);
    assert!(answers.next().await.is_none());
}

#[tokio::test]
async fn what_a_slow_reader_misses_is_counted() {
    let output = Output::new(40_000);
    let file = output.file.reading();
    let mut cursor = Cursor::open(file, ReadLogs { follow: true, ..tail(0) }).unwrap();
    let (mut seen, mut lost) = (0, 0);
    for round in 0..40 {
        let text: String = (0..1_000).map(|number| format!("{round:02} {number:04}\n")).collect();
        output.append_at(&text, round * 1_000);
        if round % 10 == 9 {
            loop {
                let (answer, at_end) = cursor.step(false).unwrap();
                (seen, lost) = (seen + answer.lines.len() as u64, lost + answer.lost);
                if at_end {
                    break;
                }
            }
        }
    }
    assert!(lost > 0 && seen > 0);
    // Where a line is let go in its midst its rest is shown as a line.
    assert_eq!(seen + lost, 40 * 1_000, "{seen} seen, {lost} lost");
}
