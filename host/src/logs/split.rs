//! From bytes to lines.

/// Longest line; the rest of a longer one is left out.
pub(super) const LINE_BYTES_MAX: usize = 16 << 10;

/// A line as it was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found<'b> {
    pub(super) bytes: &'b [u8],
    /// The position of its first byte.
    pub(super) start: u64,
    /// The position after its last byte, the newline counted.
    pub(super) end: u64,
    /// It was longer.
    pub(super) cut: bool,
}

impl Found<'_> {
    /// Its text; what is no UTF-8 is replaced.
    pub(super) fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(self.bytes.strip_suffix(b"\r").unwrap_or(self.bytes))
    }
}

/// Cuts a stream of bytes into lines; holds at most one line's beginning.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    /// The beginning of the line that has not ended.
    held: Vec<u8>,
    start: u64,
    /// The position of the next byte.
    next: u64,
    cut: bool,
    /// The beginning of this line was not seen.
    headless: bool,
}

impl Splitter {
    /// Goes on at a position; what is held is forgotten. `headless`: it may be in the midst of a line.
    pub(super) fn seek(&mut self, position: u64, headless: bool) {
        *self = Self { start: position, next: position, headless, ..Self::default() };
    }

    /// The position of the next byte.
    pub(super) fn position(&self) -> u64 {
        self.next
    }

    /// Hands every line that ends in `bytes` to `each`, which says whether it was the first of a stretch
    /// that may have begun in the midst of it.
    pub(super) fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&Found<'_>, bool)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.next += piece.len() as u64;
            let Some(line) = piece.strip_suffix(b"\n") else {
                self.hold(piece);
                continue;
            };
            if self.held.is_empty() && !self.cut && line.len() <= LINE_BYTES_MAX {
                self.hand_over(line, &mut each);
            } else {
                self.hold(line);
                let held = std::mem::take(&mut self.held);
                self.hand_over(&held, &mut each);
            }
        }
    }

    /// The line that has not ended, if there is one.
    pub(super) fn rest(&mut self, mut each: impl FnMut(&Found<'_>, bool)) {
        if self.next > self.start {
            let held = std::mem::take(&mut self.held);
            self.hand_over(&held, &mut each);
        }
    }

    fn hold(&mut self, piece: &[u8]) {
        let room = LINE_BYTES_MAX - self.held.len();
        self.cut |= piece.len() > room;
        self.held.extend_from_slice(&piece[..piece.len().min(room)]);
    }

    fn hand_over(&mut self, line: &[u8], each: &mut impl FnMut(&Found<'_>, bool)) {
        each(&Found { bytes: line, start: self.start, end: self.next, cut: self.cut }, self.headless);
        self.start = self.next;
        self.cut = false;
        self.headless = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<(String, u64, u64, bool)> {
        let mut splitter = Splitter::default();
        let mut lines = Vec::new();
        let mut keep = |found: &Found<'_>, _headless: bool| {
            lines.push((found.text().into_owned(), found.start, found.end, found.cut));
        };
        pieces.iter().for_each(|piece| splitter.feed(piece, &mut keep));
        splitter.rest(&mut keep);
        lines
    }

    #[test]
    fn lines_come_out_whole_however_they_were_cut() {
        let text = b"one\r\n\ntwo \xff\nthree";
        let wanted = lines(&[text]);
        let of = |text: &str, start, end| (text.to_owned(), start, end, false);
        let expected = [of("one", 0, 5), of("", 5, 6), of("two \u{fffd}", 6, 12), of("three", 12, 17)];
        assert_eq!(wanted, expected);
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(lines(&bytes), expected);
    }

    #[test]
    fn a_long_line_is_cut_and_the_next_is_whole() {
        let long = vec![b'x'; LINE_BYTES_MAX + 3];
        for pieces in [vec![&long[..], b"\nb\n"], vec![&[&long[..], b"\nb\n"].concat()[..]]] {
            let lines = lines(&pieces);
            assert_eq!((lines[0].0.len(), lines[0].3), (LINE_BYTES_MAX, true));
            assert_eq!((lines[1].0.as_str(), lines[1].3), ("b", false));
            assert_eq!(lines[1].1, lines[0].2);
        }
    }
}
