//! A transport whose small writes of one turn of its connection's task go out together.
//!
//! The HTTP/2 library flushes after each frame of data. Over TLS each flush is a record and a system call, which for small responses is
//! most of what they cost. Here what is written is held until the connection has nothing more to do just now: then, and when a
//! record's worth is held, it goes out. Whoever drives the connection calls [`TurnEnd::flush`] after each turn.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What one TLS record holds (RFC 8446, section 5.1). What is as large goes out as it is.
const HELD_BYTES_MAX: usize = 16 * 1024;

/// The transport, as the connection has it.
#[derive(Debug)]
pub(crate) struct Turned<I>(Rc<RefCell<Held<I>>>);

/// The same, for whoever drives the connection.
#[derive(Debug)]
pub(crate) struct TurnEnd<I>(Rc<RefCell<Held<I>>>);

#[derive(Debug)]
struct Held<I> {
    io: I,
    bytes: Vec<u8>,
    /// Of `bytes`, so many have gone.
    gone: usize,
    /// A write at the end of a turn failed: the connection hears of it when it writes next.
    failed: Option<io::ErrorKind>,
    /// Something was read since it was asked last.
    heard: bool,
}

/// Wraps a transport.
pub(crate) fn turned<I>(io: I) -> (Turned<I>, TurnEnd<I>) {
    let held = Rc::new(RefCell::new(Held { io, bytes: Vec::new(), gone: 0, failed: None, heard: false }));
    (Turned(Rc::clone(&held)), TurnEnd(held))
}

impl<I> TurnEnd<I> {
    /// Whether anything was read since the last call.
    pub(crate) fn heard(&self) -> bool {
        std::mem::take(&mut self.0.borrow_mut().heard)
    }
}

impl<I: AsyncWrite + Unpin> TurnEnd<I> {
    /// `future`, with [`Self::flush`] after each of its turns.
    pub(crate) async fn after_each<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|context| {
            let polled = future.as_mut().poll(context);
            self.flush(context);
            polled
        })
        .await
    }

    /// Sends what is held. What can't go now goes in a later turn: the task is woken for it.
    pub(crate) fn flush(&self, context: &mut Context<'_>) {
        let mut held = self.0.borrow_mut();
        if held.failed.is_none()
            && let Poll::Ready(Err(error)) = held.poll_flush(context)
        {
            held.failed = Some(error.kind());
            // So that the connection finds out, whatever else it waits for.
            context.waker().wake_by_ref();
        }
    }
}

impl<I: AsyncWrite + Unpin> Held<I> {
    /// Until nothing is held.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.gone < self.bytes.len() {
            let written = ready!(Pin::new(&mut self.io).poll_write(context, &self.bytes[self.gone..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gone += written;
        }
        // An idle connection holds no memory.
        self.bytes = Vec::new();
        self.gone = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.bytes.is_empty() {
            ready!(self.poll_drain(context))?;
        }
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_write(&mut self, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if let Some(kind) = self.failed {
            return Poll::Ready(Err(kind.into()));
        }
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        if self.bytes.len() + length > HELD_BYTES_MAX {
            ready!(self.poll_drain(context))?;
            if length >= HELD_BYTES_MAX {
                return Pin::new(&mut self.io).poll_write_vectored(context, slices);
            }
        }
        if self.bytes.capacity() == 0 {
            self.bytes.reserve_exact(if length > 512 { HELD_BYTES_MAX } else { 1024 });
        }
        slices.iter().for_each(|slice| self.bytes.extend_from_slice(slice));
        Poll::Ready(Ok(length))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Turned<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut held = self.0.borrow_mut();
        let polled = Pin::new(&mut held.io).poll_read(context, buffer);
        held.heard |= polled.is_ready();
        polled
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Turned<I> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does not wait: the turn is not over.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.0.borrow().failed {
            Some(kind) => Poll::Ready(Err(kind.into())),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut held = self.0.borrow_mut();
        ready!(held.poll_flush(context))?;
        Pin::new(&mut held.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Counts writes.
    struct Counted<I>(I, Rc<std::cell::Cell<usize>>);

    impl<I: AsyncWrite + Unpin> AsyncWrite for Counted<I> {
        fn poll_write(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let this = self.get_mut();
            this.1.set(this.1.get() + 1);
            Pin::new(&mut this.0).poll_write(context, bytes)
        }
        fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().0).poll_flush(context)
        }
        fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().0).poll_shutdown(context)
        }
    }

    fn end<I: AsyncWrite + Unpin>(turn: &TurnEnd<I>) -> impl Future<Output = ()> + '_ {
        poll_fn(|context| {
            turn.flush(context);
            Poll::Ready(())
        })
    }

    #[tokio::test]
    async fn writes_of_a_turn_are_one() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let count = Rc::new(std::cell::Cell::new(0));
        let (mut io, turn) = turned(Counted(ours, Rc::clone(&count)));
        for _ in 0..10 {
            io.write_all(&[1; 100]).await.unwrap();
            io.flush().await.unwrap();
        }
        assert_eq!(count.get(), 0, "the turn is not over");
        end(&turn).await;
        assert_eq!(count.get(), 1);
        let mut read = [0; 1000];
        theirs.read_exact(&mut read).await.unwrap();
        // What is large waits for nobody, and stays behind what came before it.
        io.write_all(&[2; 10]).await.unwrap();
        io.write_all(&[3; 40_000]).await.unwrap();
        io.write_all(&[4; 10]).await.unwrap();
        io.shutdown().await.unwrap();
        let mut rest = Vec::new();
        drop((io, turn));
        theirs.read_to_end(&mut rest).await.unwrap();
        let expected = [vec![2; 10], vec![3; 40_000], vec![4; 10]].concat();
        assert_eq!(rest, expected);
    }

    #[tokio::test]
    async fn who_reads_slowly_gets_all_in_order() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let (mut io, turn) = turned(ours);
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let sent = bytes.clone();
        let write = async move {
            for chunk in sent.chunks(777) {
                io.write_all(chunk).await.unwrap();
                end(&turn).await;
            }
            io.shutdown().await.unwrap();
        };
        let read = async move {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).await.unwrap();
            all
        };
        let ((), all) = tokio::join!(write, read);
        assert_eq!(all, bytes);
    }

    #[tokio::test]
    async fn a_broken_transport_is_told_at_the_next_write() {
        let (ours, theirs) = tokio::io::duplex(64);
        let (mut io, turn) = turned(ours);
        drop(theirs);
        io.write_all(&[1; 10]).await.unwrap();
        end(&turn).await;
        assert_eq!(io.write_all(&[1; 10]).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(io.flush().await.is_err());
    }
}
