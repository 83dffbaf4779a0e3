//! Finds HTTP/1.1 heads that another reader may read differently: those with both `Content-Length` and
//! `Transfer-Encoding` (hyper takes such a message as chunked and removes the length before we see it),
//! and those with lines that end in a bare LF.
//!
//! This reads along with hyper, and notes for each head, in order, whether it is to be refused. From
//! where it can't follow, every head is: then the two no longer agree on where a message begins.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Longer lines are over hyper's limit of a head too.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Heads that hyper may have read but not handed over yet: pipelining beyond this isn't followed.
const HEADS_MAX: usize = 1024;

/// What was found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Findings(Rc<RefCell<Heads>>);

#[derive(Debug, Default)]
struct Heads {
    /// For each head that hyper has yet to hand over, whether it is to be refused.
    ahead: VecDeque<bool>,
    /// The heads behind those are not known.
    lost: bool,
}

impl Findings {
    /// Whether the next head is to be refused.
    pub(crate) fn next(&self) -> bool {
        let mut heads = self.0.borrow_mut();
        heads.ahead.pop_front().unwrap_or(heads.lost)
    }

    /// Notes a head; false when there are too many to follow.
    fn push(&self, refuse: bool) -> bool {
        let mut heads = self.0.borrow_mut();
        let room = heads.ahead.len() < HEADS_MAX;
        if room {
            heads.ahead.push_back(refuse);
        }
        room
    }

    fn lose(&self) {
        self.0.borrow_mut().lost = true;
    }
}

/// A transport whose HTTP/1.1 framing is followed.
#[derive(Debug)]
pub(crate) struct Followed<I> {
    io: I,
    follower: Follower,
}

impl<I> Followed<I> {
    pub(crate) fn new(io: I) -> (Self, Findings) {
        let findings = Findings::default();
        let follower = Follower::new(findings.clone());
        (Self { io, follower }, findings)
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Followed<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(context, buffer);
        if let Poll::Ready(Ok(())) = &polled {
            this.follower.follow(&buffer.filled()[before..]);
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Followed<I> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    RequestLine,
    Fields,
    /// So many bytes of content, or of a chunk.
    Skip {
        left: u64,
        then: Then,
    },
    ChunkSize,
    Trailers,
    /// Not to be followed any more.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    RequestLine,
    ChunkEnd,
}

#[derive(Debug)]
struct Follower {
    findings: Findings,
    at: At,
    line: Vec<u8>,
    length: Option<u64>,
    has_length: bool,
    has_encoding: bool,
    /// A line of the head ends in a bare LF.
    bare: bool,
    /// Empty lines before the request line.
    empty: u32,
}

impl Follower {
    fn new(findings: Findings) -> Self {
        Self {
            findings,
            at: At::RequestLine,
            line: Vec::new(),
            length: None,
            has_length: false,
            has_encoding: false,
            bare: false,
            empty: 0,
        }
    }

    fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.at == At::Lost {
                return;
            }
            if let At::Skip { left, then } = self.at {
                let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                bytes = &bytes[skipped..];
                self.at = match (left - skipped as u64, then) {
                    (0, Then::RequestLine) => At::RequestLine,
                    (0, Then::ChunkEnd) => At::ChunkSize,
                    (left, then) => At::Skip { left, then },
                };
                continue;
            }
            let (piece, rest, whole) = match bytes.iter().position(|b| *b == b'\n') {
                Some(end) => (&bytes[..end], &bytes[end + 1..], true),
                None => (bytes, &[][..], false),
            };
            bytes = rest;
            if self.line.len() + piece.len() > LINE_BYTES_MAX {
                self.go(At::Lost);
                return;
            }
            self.line.extend_from_slice(piece);
            if whole {
                let mut line = std::mem::take(&mut self.line);
                self.take_line(&line);
                line.clear();
                self.line = line;
            }
        }
    }

    fn go(&mut self, at: At) {
        if at == At::Lost {
            self.findings.lose();
        }
        self.at = at;
    }

    fn take_line(&mut self, line: &[u8]) {
        let (line, bare) = line.strip_suffix(b"\r").map_or((line, true), |line| (line, false));
        if bare && matches!(self.at, At::ChunkSize | At::Trailers) {
            // hyper may take this line for the end of something, or not.
            return self.go(At::Lost);
        }
        self.bare |= bare;
        match self.at {
            // Empty lines before a request are skipped, as hyper does; one is robust (RFC 9112, section 2.2).
            At::RequestLine if line.is_empty() => {
                self.empty += 1;
                self.bare |= self.empty > 1;
            }
            At::RequestLine => self.at = At::Fields,
            At::Fields if line.is_empty() => self.end_head(),
            At::Fields => self.take_field(line),
            // A chunk's content is followed by an empty line, which is skipped here.
            At::ChunkSize if line.is_empty() => {}
            At::ChunkSize => self.go(chunk(line)),
            At::Trailers if line.is_empty() => self.at = At::RequestLine,
            At::Trailers | At::Skip { .. } | At::Lost => {}
        }
    }

    fn take_field(&mut self, line: &[u8]) {
        let Some(colon) = line.iter().position(|b| *b == b':') else {
            return;
        };
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            self.has_length = true;
            self.length = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.has_encoding = true;
        }
    }

    fn end_head(&mut self) {
        if !self.findings.push(self.bare || (self.has_length && self.has_encoding)) {
            return self.go(At::Lost);
        }
        let next = match (self.has_encoding, self.has_length, self.length) {
            // The connection ends with this answer.
            (true, true, _) | (false, true, None) => At::Lost,
            (true, false, _) => At::ChunkSize,
            (false, true, Some(left)) if left > 0 => At::Skip { left, then: Then::RequestLine },
            (false, _, _) => At::RequestLine,
        };
        self.go(next);
        (self.bare, self.empty) = (false, 0);
        (self.length, self.has_length, self.has_encoding) = (None, false, false);
    }
}

fn chunk(line: &[u8]) -> At {
    let digits = line.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    let size = std::str::from_utf8(digits).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
    match size {
        Some(0) => At::Trailers,
        Some(left) => At::Skip { left, then: Then::ChunkEnd },
        None => At::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn heads_of(bytes: &[u8], piece: usize) -> Vec<bool> {
        let findings = Findings::default();
        let mut follower = Follower::new(findings.clone());
        bytes.chunks(piece.max(1)).for_each(|piece| follower.follow(piece));
        findings.0.borrow().ahead.iter().copied().collect()
    }

    #[test]
    fn each_head_is_judged_whatever_came_before() {
        let plain = "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let sized = "POST / HTTP/1.1\r\nContent-Length: 30\r\n\r\nA: b\r\nTransfer-Encoding: x\r\n\r\n\r\n";
        let chunked = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\n\r\n\r\nx\r\n0\r\nContent-Length: 1\r\n\r\n";
        let both = "POST / HTTP/1.1\r\nCONTENT-LENGTH:1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let all = [plain, sized, chunked, plain, both, plain].concat();
        for piece in [1, 2, 3, 7, 1000] {
            assert_eq!(heads_of(all.as_bytes(), piece), [false, false, false, false, true], "{piece}");
        }
    }

    #[test]
    fn what_can_not_be_followed_is_refused() {
        let good = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for (input, good_before) in [
            ("GET / HTTP/1.1\nHost: a\r\n\r\n".to_owned(), 0),
            ("GET / HTTP/1.1\r\nHost: a\n\n".to_owned(), 0),
            (format!("\r\n\r\n{good}"), 0),
            // The bare LF is no end of the trailers for hyper.
            (format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\n{good}"), 1),
            (format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n{good}"), 1),
            (format!("{}{good}", good.repeat(HEADS_MAX)), HEADS_MAX),
        ] {
            let findings = Findings::default();
            Follower::new(findings.clone()).follow(input.as_bytes());
            for n in 0..good_before {
                assert!(!findings.next(), "{n} of {input:?}");
            }
            assert!(findings.next(), "{input:?}");
        }
    }

    proptest! {
        #[test]
        fn splitting_changes_nothing(bytes in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b':'), any::<u8>()], 0..300), piece in 1_usize..20) {
            prop_assert_eq!(heads_of(&bytes, piece), heads_of(&bytes, 1000));
        }
    }
}
