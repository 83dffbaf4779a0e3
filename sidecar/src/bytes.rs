//! A socket's two directions as the bodies of a request and a response: how streams of bytes cross the mesh.
//!
//! The end of a body is the end of that direction alone; an error resets.

use atoll_proxy::server::STREAM_SILENCE_MAX;
use atoll_proxy::{Body, BodyError, Side};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt as _;
use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::Instant;

/// What is read at a time. A connection that is silent costs no buffer.
const PIECE: usize = 16 * 1024;

/// When something last passed, either way.
#[derive(Debug, Clone)]
pub(crate) struct Activity(Rc<Cell<Instant>>);

impl Activity {
    pub(crate) fn begin() -> Self {
        Self(Rc::new(Cell::new(Instant::now())))
    }

    fn note(&self) {
        self.0.set(Instant::now());
    }

    /// Resolves when nothing has passed for `max`.
    pub(crate) async fn silent(&self, max: Duration) {
        loop {
            let until = self.0.get() + max;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// What comes from a socket, as a body of `side`.
pub(crate) fn from_socket(read: OwnedReadHalf, side: Side, activity: &Activity) -> Body {
    let watched = activity.clone();
    let silent = Box::pin(async move { watched.silent(STREAM_SILENCE_MAX).await });
    Body::boxed(FromSocket { read, side, activity: activity.clone(), silent, ended: false })
}

struct FromSocket {
    read: OwnedReadHalf,
    side: Side,
    activity: Activity,
    silent: Pin<Box<dyn Future<Output = ()>>>,
    ended: bool,
}

impl FromSocket {
    fn fails(&mut self, what: &'static str) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.ended = true;
        Poll::Ready(Some(Err(BodyError::new(self.side, what, BodyError::CANCEL))))
    }
}

impl HttpBody for FromSocket {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let mut piece = [0; PIECE];
        loop {
            let read = match this.read.as_ref().poll_read_ready(context) {
                Poll::Ready(Ok(())) => this.read.try_read(&mut piece),
                Poll::Ready(Err(error)) => Err(error),
                Poll::Pending => {
                    ready!(this.silent.as_mut().poll(context));
                    return this.fails("nothing passed for too long");
                }
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) => {
                    this.ended = true;
                    return Poll::Ready(None);
                }
                Ok(count) => {
                    this.activity.note();
                    let data = Bytes::copy_from_slice(&piece[..count]);
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Err(_reset) => return this.fails("the connection was reset"),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// Writes a body to a socket: the body's end closes that direction, and its error resets the connection. False
/// when it did not get to the end.
pub(crate) async fn into_socket(mut body: Body, mut write: OwnedWriteHalf, activity: &Activity) -> bool {
    loop {
        match body.frame().await {
            None => {
                // The peer may have gone after its last byte.
                let _gone = write.shutdown().await;
                return true;
            }
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                if write.write_all(&data).await.is_err() {
                    return false;
                }
                activity.note();
            }
            Some(Err(_broken)) => {
                reset(write);
                return false;
            }
        }
    }
}

/// The peer sees a reset, not an end, once the other half is dropped, too.
pub(crate) fn reset(write: OwnedWriteHalf) {
    abort(write.as_ref());
    // Without this, the half would say that all has been sent.
    write.forget();
}

/// The peer sees a reset when the socket is dropped.
pub(crate) fn abort(stream: &TcpStream) {
    // A socket that is gone already needs no reset.
    let _gone = stream.set_zero_linger();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, server) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    #[tokio::test]
    async fn one_direction_ends_while_the_other_goes_on() {
        let (mut client, near) = pair().await;
        let (mut server, far) = pair().await;
        let activity = Activity::begin();
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        let up = from_socket(near_read, Side::Client, &activity);
        let down = from_socket(far_read, Side::Upstream, &activity);
        let talk = async {
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut heard = Vec::new();
            server.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"question");
            server.write_all(&vec![7; 100_000]).await.unwrap();
            drop(server);
            heard.clear();
            client.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard.len(), 100_000);
        };
        let (up, down, ()) = tokio::join!(
            into_socket(up, far_write, &activity),
            into_socket(down, near_write, &activity),
            talk
        );
        assert!(up && down);
    }

    #[tokio::test]
    async fn a_reset_is_passed_on() {
        let (client, near) = pair().await;
        let (mut server, far) = pair().await;
        let activity = Activity::begin();
        let (far_read, far_write) = far.into_split();
        let up = from_socket(near.into_split().0, Side::Client, &activity);
        abort(&client);
        drop((client, far_read));
        assert!(!into_socket(up, far_write, &activity).await);
        let error = server.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn silence_counts_from_what_passed_last() {
        let activity = Activity::begin();
        let (other, begun) = (activity.clone(), Instant::now());
        let note = async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            other.note();
            Instant::now()
        };
        let silent = activity.silent(Duration::from_millis(50));
        let ((), noted) = tokio::join!(silent, note);
        assert!(begun.elapsed() >= noted - begun + Duration::from_millis(49));
    }
}
