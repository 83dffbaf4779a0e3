//! A stream that can be ended from outside.

use crate::connections::ConnectionGuard;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

type Cut = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A stream whose reads fail once something else says so; its user then closes it, as after any error.
pub struct CutStream<S> {
    stream: S,
    cut: Option<Cut>,
}

impl<S> CutStream<S> {
    /// Fails once `cut` resolves.
    pub fn new(stream: S, cut: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { stream, cut: Some(Box::pin(cut)) }
    }

    /// Fails once the guard's peer is denied.
    pub fn guarded(stream: S, guard: ConnectionGuard) -> Self {
        Self::new(stream, async move { guard.cut().await })
    }

    /// Nothing cuts it.
    pub fn uncut(stream: S) -> Self {
        Self { stream, cut: None }
    }
}

impl<S> fmt::Debug for CutStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CutStream").field("has_cut", &self.cut.is_some()).finish_non_exhaustive()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CutStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(cut) = &mut self.cut
            && cut.as_mut().poll(cx).is_ready()
        {
            self.cut = None;
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CutStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
