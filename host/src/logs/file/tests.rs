use super::*;
use std::io::Write;

/// The smallest block of the filesystems that tests run on is at most this.
const BLOCK: usize = 4096;
const KEPT: u64 = 10 * BLOCK as u64;

fn append(file: &LogFile, text: &str) {
    let mut out = OpenOptions::new().create(true).append(true).open(file.path()).unwrap();
    out.write_all(text.as_bytes()).unwrap();
}

/// So many bytes in lines of 16.
fn lines(bytes: usize) -> String {
    (0..bytes / 16).map(|number| format!("{number:015}\n")).collect()
}

#[test]
fn what_is_kept_is_the_last_and_the_rest_takes_no_room() {
    let folder = tempfile::tempdir().unwrap();
    let file = LogFile::new(folder.path().join("out"), KEPT);
    let mut written = String::new();
    for _ in 0..100 {
        let text = lines(BLOCK / 2 + 16);
        append(&file, &text);
        written += &text;
        let _looked = file.look().unwrap();
        let (oldest, end) = file.reach();
        assert_eq!(end, written.len() as u64, "positions count all that was written");
        let left = end - oldest;
        assert!(left >= KEPT.min(end) && left <= KEPT + KEPT / 8 + BLOCK as u64, "{left}");
        let piece = file.read(0, 1 << 20).unwrap();
        assert_eq!((piece.start, piece.at_end), (oldest, true));
        assert_eq!(piece.bytes, &written.as_bytes()[usize::try_from(oldest).unwrap()..]);
    }
    let room = std::fs::metadata(file.path()).unwrap().blocks() * 512;
    assert!(room <= KEPT + KEPT / 8 + 2 * BLOCK as u64, "{room} bytes of disk");
}

#[test]
fn a_tail_does_not_reach_into_an_earlier_run() {
    let folder = tempfile::tempdir().unwrap();
    let file = LogFile::new(folder.path().join("out"), KEPT);
    append(&file, "earlier run\n");
    let mark = file.mark();
    append(&file, "this run\n");
    assert_eq!(file.tail_since(mark), "this run\n");
    append(&file, &lines(20 * BLOCK));
    assert!(file.look().unwrap().trimmed);
    append(&file, "end\n");
    let tail = file.tail_since(mark);
    assert!(tail.ends_with("\nend\n") && tail.len() == TAIL_BYTES, "{tail}");
}

#[test]
fn where_there_can_be_no_hole_the_file_is_emptied_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let file = Arc::new(LogFile::new(folder.path().join("out"), KEPT));
    let reading = file.reading();
    append(&file, "1\n2\n3\n");
    let seen = reading.lines_before(4).unwrap();
    append(&file, &lines(20 * BLOCK));
    let out = OpenOptions::new().write(true).open(file.path()).unwrap();
    let mut extent = file.extent();
    file.truncate(&mut extent, &out).unwrap();
    drop(extent);
    append(&file, "next\n");
    let piece = file.read(4, 100).unwrap();
    assert_eq!((piece.start, piece.bytes.as_slice()), (6 + 20 * BLOCK as u64, &b"next\n"[..]));
    let lost = piece.lines_before.unwrap() - seen;
    assert_eq!(lost, 1 + 20 * BLOCK as i64 / 16, "all that was not read is counted");
    let again = LogFile::new(file.path().to_owned(), KEPT);
    assert_eq!(again.reach(), (piece.start, piece.start + 5), "positions go on after a restart");
}

#[test]
fn positions_outlive_holes_restarts_and_truncation_by_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let file = LogFile::new(path.clone(), KEPT);
    append(&file, &lines(30 * BLOCK));
    assert!(file.look().unwrap().trimmed);
    let (oldest, end) = file.reach();
    assert_eq!((oldest, end), (20 * BLOCK as u64, 30 * BLOCK as u64));
    let again = LogFile::new(path.clone(), KEPT);
    assert_eq!(again.reach(), (oldest, end), "a hole says where the output begins");
    assert_eq!(again.read(0, 16).unwrap().bytes, file.read(oldest, 16).unwrap().bytes);
    // As an operator may do it.
    File::create(&path).unwrap();
    append(&again, "new\n");
    for file in [&again, &file, &LogFile::new(path.clone(), KEPT)] {
        assert_eq!(file.reach(), (end, end + 4), "not before what was noted");
        assert_eq!(file.read(0, 100).unwrap().bytes, b"new\n");
    }
}

#[test]
fn nothing_is_written_beside_a_file_that_is_closed_or_gone() {
    let folder = tempfile::tempdir().unwrap();
    let file = LogFile::new(folder.path().join("out"), KEPT);
    append(&file, &lines(20 * BLOCK));
    let _looked = file.look().unwrap();
    let files = || std::fs::read_dir(folder.path()).unwrap().count();
    for file in std::fs::read_dir(folder.path()).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    let _looked = file.look().unwrap();
    assert!(file.read(0, 100).unwrap().bytes.is_empty());
    assert_eq!(files(), 0, "a folder that is being removed");
    file.close();
    append(&file, "late\n");
    let _looked = file.look().unwrap();
    assert_eq!(files(), 1);
}

#[test]
fn what_an_older_host_left_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let header: Vec<u8> = [40_u64, 0].iter().flat_map(|number| number.to_le_bytes()).collect();
    std::fs::write(folder.path().join("out.times"), header).unwrap();
    std::fs::write(folder.path().join("out.1"), "old\n").unwrap();
    std::fs::write(&path, "new\n").unwrap();
    let file = LogFile::new(path, KEPT);
    assert_eq!(file.reach(), (40, 44));
    assert_eq!(file.read(0, 100).unwrap().bytes, b"new\n");
    assert!(!folder.path().join("out.1").exists(), "its copy takes no room");
}

#[test]
fn lines_that_were_let_go_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let file = Arc::new(LogFile::new(folder.path().join("out"), KEPT));
    let reading = file.reading();
    append(&file, "1\n2\n3\n");
    let seen = reading.lines_before(2).unwrap();
    for _ in 0..5 {
        append(&file, &lines(10 * BLOCK));
        let _looked = file.look().unwrap();
    }
    let piece = reading.read(2, 1 << 20).unwrap();
    let lost = piece.lines_before.unwrap() - seen;
    let left = piece.bytes.iter().filter(|byte| **byte == b'\n').count() as i64;
    assert_eq!(lost + left, 2 + 50 * BLOCK as i64 / 16);
}
