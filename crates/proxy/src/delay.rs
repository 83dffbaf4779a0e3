//! A transport whose other end seems far away: what is read arrives later. For `atoll dev --wan`.

use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How much may be on its way, in bytes: the window of a long fat link.
const QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;
const READ_BYTES: usize = 16 * 1024;

/// Delays what is read, its end and its errors by a fixed time; writing is not delayed, so the whole
/// round trip goes on the reading side.
#[derive(Debug)]
pub struct Delayed<I> {
    io: I,
    delay: Duration,
    queue: VecDeque<(Instant, Bytes)>,
    queued_bytes: usize,
    /// How the stream ended, and when that is to be seen.
    end: Option<(Instant, Option<io::Error>)>,
    timer: Pin<Box<Sleep>>,
    scratch: BytesMut,
}

impl<I> Delayed<I> {
    /// Delays what is read from `io` by `delay`.
    pub fn new(io: I, delay: Duration) -> Self {
        Self {
            io,
            delay,
            queue: VecDeque::new(),
            queued_bytes: 0,
            end: None,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            scratch: BytesMut::new(),
        }
    }
}

impl<I: AsyncRead + Unpin> Delayed<I> {
    /// Takes what the transport has, so that each piece is stamped when it arrives.
    fn fill(&mut self, context: &mut Context<'_>) {
        while self.end.is_none() && self.queued_bytes < QUEUE_BYTES_MAX {
            self.scratch.resize(READ_BYTES, 0);
            let mut buffer = ReadBuf::new(&mut self.scratch);
            let polled = Pin::new(&mut self.io).poll_read(context, &mut buffer);
            let length = buffer.filled().len();
            let due = Instant::now() + self.delay;
            match polled {
                Poll::Pending => return,
                Poll::Ready(Err(error)) => self.end = Some((due, Some(error))),
                Poll::Ready(Ok(())) if length == 0 => self.end = Some((due, None)),
                Poll::Ready(Ok(())) => {
                    self.queued_bytes += length;
                    self.queue.push_back((due, Bytes::copy_from_slice(&self.scratch[..length])));
                }
            }
        }
    }

    /// Moves what is due into `buffer`; true when there was something.
    fn drain_due(&mut self, now: Instant, buffer: &mut ReadBuf<'_>) -> bool {
        let before = buffer.filled().len();
        while let Some((due, bytes)) = self.queue.front_mut() {
            if *due > now || buffer.remaining() == 0 {
                break;
            }
            let length = bytes.len().min(buffer.remaining());
            buffer.put_slice(&bytes[..length]);
            bytes.advance(length);
            self.queued_bytes -= length;
            if bytes.is_empty() {
                self.queue.pop_front();
            }
        }
        buffer.filled().len() > before
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Delayed<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.delay.is_zero() {
            return Pin::new(&mut this.io).poll_read(context, buffer);
        }
        loop {
            this.fill(context);
            let now = Instant::now();
            if this.drain_due(now, buffer) {
                return Poll::Ready(Ok(()));
            }
            let due = match (this.queue.front(), &mut this.end) {
                (Some((due, _)), _) => *due,
                (None, Some((due, error))) if *due <= now => {
                    return Poll::Ready(error.take().map_or(Ok(()), Err));
                }
                (None, Some((due, _))) => *due,
                (None, None) => return Poll::Pending,
            };
            this.timer.as_mut().reset(due);
            if this.timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Delayed<I> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn bytes_and_end_arrive_late_and_in_order() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut near = Delayed::new(near, Duration::from_millis(100));
        let started = Instant::now();
        far.write_all(b"hello").await.unwrap();
        drop(far);
        let mut first = [0; 2];
        near.read_exact(&mut first).await.unwrap();
        assert!(started.elapsed() >= Duration::from_millis(100));
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        assert_eq!((&first[..], &rest[..]), (&b"he"[..], &b"llo"[..]));
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_nothing_is_lost() {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let mut near = Delayed::new(near, Duration::from_millis(10));
        let total = 3 * QUEUE_BYTES_MAX;
        let writer = tokio::spawn(async move {
            far.write_all(&vec![7; total]).await.unwrap();
        });
        let mut got = 0;
        let mut buffer = vec![0; 100_000];
        loop {
            let length = near.read(&mut buffer).await.unwrap();
            if length == 0 {
                break;
            }
            assert!(near.queued_bytes <= QUEUE_BYTES_MAX + READ_BYTES);
            got += length;
        }
        writer.await.unwrap();
        assert_eq!(got, total);
    }
}
