//! A stream of text, a line at a time.

use crate::failure::{Exit, Failure, Outcome};
use http_body_util::BodyExt;
use hyper::body::Incoming;

/// Longest line; a longer one is cut into several.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Reads lines. What is no UTF-8 is replaced.
#[derive(Debug)]
pub struct LineReader {
    body: Incoming,
    lines: Lines,
}

impl LineReader {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, lines: Lines::default() }
    }

    /// The next line without its end; nothing when the stream has ended.
    pub async fn next(&mut self) -> Outcome<Option<String>> {
        loop {
            if let Some(line) = self.lines.next() {
                return Ok(Some(line));
            }
            match self.body.frame().await {
                None => return Ok(self.lines.rest()),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.lines.0.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => {
                    return Err(Failure::new(Exit::Unreachable, format!("the stream broke off: {error}")));
                }
            }
        }
    }
}

#[derive(Debug, Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn next(&mut self) -> Option<String> {
        let end = self.0.iter().position(|byte| *byte == b'\n');
        match end {
            Some(end) if end <= LINE_BYTES_MAX => {
                let line: Vec<u8> = self.0.drain(..=end).collect();
                Some(String::from_utf8_lossy(&line[..end]).trim_end_matches('\r').to_owned())
            }
            _ if self.0.len() > LINE_BYTES_MAX => {
                let line: Vec<u8> = self.0.drain(..LINE_BYTES_MAX).collect();
                Some(String::from_utf8_lossy(&line).into_owned())
            }
            _ => None,
        }
    }

    fn rest(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.0);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whole_and_bounded() {
        let mut lines = Lines(b"a\r\n\nb".to_vec());
        assert_eq!(lines.next().as_deref(), Some("a"));
        assert_eq!(lines.next().as_deref(), Some(""));
        assert_eq!(lines.next(), None);
        assert_eq!(lines.rest().as_deref(), Some("b"));
        assert_eq!(lines.rest(), None);
        let mut long = Lines(vec![b'x'; LINE_BYTES_MAX + 5]);
        assert_eq!(long.next().map(|line| line.len()), Some(LINE_BYTES_MAX));
        assert_eq!(long.rest().as_deref(), Some("xxxxx"));
    }
}
