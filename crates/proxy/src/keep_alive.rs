//! Asking a silent HTTP/2 connection whether it lives.

use h2::{Ping, PingPong};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Pings a connection of which nothing was heard.
pub(crate) struct KeepAlive {
    ping: PingPong,
    interval: Duration,
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
    /// A ping has no answer yet.
    waits: bool,
}

impl KeepAlive {
    /// Pings after `interval` of silence; the peer is dead when `timeout` later still nothing has come.
    pub(crate) fn new(ping: PingPong, interval: Duration, timeout: Duration) -> Self {
        Self { ping, interval, timeout, timer: Box::pin(tokio::time::sleep(interval)), waits: false }
    }

    /// Ready when the peer is dead. `heard` says whether anything came since it was called last.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>, mut heard: impl FnMut() -> bool) -> Poll<()> {
        loop {
            if self.waits && self.ping.poll_pong(context).is_ready() {
                self.waits = false;
                self.timer.as_mut().reset(Instant::now() + self.interval);
            }
            std::task::ready!(self.timer.as_mut().poll(context));
            if heard() {
                // Its answer may be behind what it sends: it lives.
                self.timer.as_mut().reset(Instant::now() + self.interval);
            } else if self.waits {
                return Poll::Ready(());
            } else {
                self.waits = self.ping.send_ping(Ping::opaque()).is_ok();
                self.timer.as_mut().reset(Instant::now() + self.timeout);
            }
        }
    }
}
