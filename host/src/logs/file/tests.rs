use super::*;
use std::io::Write;

fn append(file: &LogFile, text: &str) {
    let mut out = OpenOptions::new().create(true).append(true).open(file.path()).unwrap();
    out.write_all(text.as_bytes()).unwrap();
}

#[test]
fn a_tail_reaches_over_a_rotation_but_not_into_an_earlier_run() {
    let folder = tempfile::tempdir().unwrap();
    let file = LogFile::new(folder.path().join("out"), 100);
    append(&file, "earlier run\n");
    let mark = file.mark();
    append(&file, "this run\n");
    assert_eq!(file.tail_since(mark), "this run\n");
    append(&file, &"x".repeat(79));
    assert!(file.look().unwrap().rotated);
    append(&file, "end\n");
    let tail = file.tail_since(mark);
    assert!(tail.ends_with("xend\n") && tail.len() == 92, "{tail}");
}

#[test]
fn a_copy_that_fails_does_not_let_the_file_grow() {
    let folder = tempfile::tempdir().unwrap();
    let file = LogFile::new(folder.path().join("out"), 100);
    append(&file, &"x".repeat(200));
    // Stands in for a full disk: the copy can't be made.
    std::fs::create_dir(folder.path().join("out.1.new")).unwrap();
    assert!(file.look().is_err());
    assert_eq!(size_of(file.path()), 0);
    append(&file, "y");
    let piece = file.read(0, 100).unwrap();
    assert_eq!(piece.bytes, b"y", "what comes next is read");
}

#[test]
fn positions_outlive_rotations_and_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let file = LogFile::new(path.clone(), 100);
    append(&file, &"a".repeat(60));
    file.look().unwrap();
    append(&file, &"b".repeat(40));
    assert!(file.look().unwrap().rotated);
    append(&file, "c");
    file.look().unwrap();
    let whole = file.read(20, 1_000).unwrap();
    assert_eq!((whole.start, whole.bytes.len(), whole.at_end), (20, 80, false), "to the previous file's end");
    let (oldest, end) = file.reach();
    assert_eq!((oldest, end), (12, 101), "an eighth is left out");
    let again = LogFile::new(path.clone(), 100);
    assert_eq!(again.reach(), (oldest, end));
    let next = again.read(100, 10).unwrap();
    assert_eq!((next.start, next.bytes.as_slice(), next.at_end), (100, &b"c"[..], true));
    // Truncated between the rotation and the end of the host that did it.
    std::fs::write(&path, "").unwrap();
    assert_eq!(LogFile::new(path, 100).reach().1, 100, "not before what was noted");
}

#[test]
fn files_from_before_there_was_an_index_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    std::fs::write(folder.path().join("out.1"), "old\n").unwrap();
    std::fs::write(&path, "new\n").unwrap();
    let file = LogFile::new(path, 100);
    assert_eq!(file.reach(), (0, 8));
    assert_eq!(file.read(0, 100).unwrap().bytes, b"old\n");
    assert_eq!(file.read(4, 100).unwrap().bytes, b"new\n");
}

#[test]
fn overwritten_lines_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let file = Arc::new(LogFile::new(folder.path().join("out"), 100));
    let reading = file.reading();
    append(&file, "1\n2\n3\n");
    let seen = reading.lines_before(2).unwrap();
    for _ in 0..3 {
        append(&file, &"123456789\n".repeat(9));
        assert!(file.look().unwrap().rotated);
    }
    let piece = reading.read(2, 100).unwrap();
    let lost = reading.lines_before(piece.start).unwrap() - seen;
    assert!((19..=21).contains(&lost), "two of the first, two rotations of nine: {lost}");
}

#[test]
fn what_is_lost_in_a_rotation_is_counted_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = Arc::new(LogFile::new(folder.path().join("out"), 100));
    let reading = file.reading();
    append(&file, "1\n2\n3\n");
    let seen = reading.lines_before(4).unwrap();
    append(&file, &"123456789\n".repeat(9));
    // The copy can't be made: all that was not read is lost.
    std::fs::create_dir(folder.path().join("out.1.new")).unwrap();
    assert!(file.look().is_err());
    append(&file, "next\n");
    let piece = reading.read(4, 100).unwrap();
    assert_eq!((piece.start, piece.bytes.as_slice()), (96, &b"next\n"[..]), "the end of what was there");
    assert_eq!(reading.lines_before(piece.start).unwrap() - seen, 10);
}
