//! Bodies that are never whole in memory.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

/// The body of any answer.
pub(crate) type AnyBody = http_body_util::combinators::UnsyncBoxBody<Bytes, hyper::Error>;

const PIECE: usize = 32 << 10;

/// A body that is at hand.
pub(crate) fn full(bytes: impl Into<Bytes>) -> AnyBody {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// What came in, as it comes, trailers included.
pub(crate) fn echo(body: Incoming) -> AnyBody {
    body.boxed_unsync()
}

/// `length` bytes, of which byte `n` is `n % 251`.
pub(crate) fn download(length: u64) -> AnyBody {
    Pattern { sent: 0, length }.map_err(|never: Infallible| match never {}).boxed_unsync()
}

struct Pattern {
    sent: u64,
    length: u64,
}

impl Body for Pattern {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let left = self.length - self.sent;
        if left == 0 {
            return Poll::Ready(None);
        }
        let count = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let mut next = u8::try_from(self.sent % 251).unwrap_or(0);
        let mut piece = Vec::with_capacity(count);
        for _ in 0..count {
            piece.push(next);
            next = if next == 250 { 0 } else { next + 1 };
        }
        self.sent += count as u64;
        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.sent == self.length
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length - self.sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_download_is_the_same_each_time() {
        let bytes = download(100_000).collect().await.unwrap().to_bytes();
        assert_eq!(bytes.len(), 100_000);
        assert!(bytes.iter().enumerate().all(|(place, byte)| usize::from(*byte) == place % 251));
        assert!(download(0).collect().await.unwrap().to_bytes().is_empty());
    }
}
